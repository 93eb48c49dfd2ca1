package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetNodeEligibility drains a node or takes it back into use. A drained node
// takes no new leases, and those it has are revoked: their tasks are placed
// elsewhere once their agent has reported the end.
//
// Rejected: NotFound. Asking for what is already so is OK and changes nothing.
type SetNodeEligibility struct {
	Node    gpuai.NodeID
	Drained bool
}

// Append appends the encoded command to dst.
func (c *SetNodeEligibility) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetNodeEligibility, env, func(b []byte) []byte {
		b = wire.AppendStr(b, string(c.Node))
		return append(b, bool8(c.Drained))
	})
}

func (m *Machine) applySetNodeEligibility(r *wire.Reader) Result {
	id, drained := gpuai.NodeID(r.Str()), r.U8()
	if r.Done() != nil || drained > 1 {
		return malformed
	}
	slot, ok := m.nodeSlot(id)
	if !ok {
		return rejected(gpuai.NotFound, "no such node")
	}
	n := m.nodes.Get(slot)
	if n.drained == (drained == 1) {
		return Result{Incarnation: n.incarnation}
	}
	m.nodes.Mut(slot).drained = drained == 1
	m.setNodeState(slot, n.state)
	if drained == 1 {
		for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
			m.revoke(l.slot(), gpuai.CauseDrained)
		}
	}
	return Result{Incarnation: n.incarnation}
}
