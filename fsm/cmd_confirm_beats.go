package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// ConfirmBeats is the entry behind which a leader acknowledges the beats of one
// window: after it, the machine itself says which nodes are live at which
// incarnation. It carries no beats, only the nodes whose state changes: ready
// ones that have not beaten for a while, and others that beat again.
//
// Rejected: PreconditionFailed when the entry was not proposed in Term. Nodes
// that are unknown or in another incarnation are passed over.
type ConfirmBeats struct {
	Term           uint64
	Suspect, Ready []NodeRef
}

// MaxNodeRefs bounds each list of a ConfirmBeats.
const MaxNodeRefs = 1_000

// Append appends the encoded command to dst.
func (c *ConfirmBeats) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeConfirmBeats, env, func(b []byte) []byte {
		b = le.AppendUint64(b, c.Term)
		return appendRefs(appendRefs(b, c.Suspect), c.Ready)
	})
}

func appendRefs(b []byte, refs []NodeRef) []byte {
	b = le.AppendUint16(b, uint16(len(refs)))
	for i := range refs {
		b = wire.AppendStr(b, string(refs[i].Node))
		b = le.AppendUint64(b, uint64(refs[i].Incarnation))
	}
	return b
}

func readRefs(r *wire.Reader) []NodeRef {
	n := r.U16()
	if n > MaxNodeRefs {
		r.Fail("too many nodes")
		return nil
	}
	var refs []NodeRef
	for range n {
		refs = append(refs, NodeRef{gpuai.NodeID(r.Str()), gpuai.Incarnation(r.U64())})
		if r.Err() != nil {
			return nil
		}
	}
	return refs
}

func (m *Machine) applyConfirmBeats(r *wire.Reader) Result {
	term := r.U64()
	suspect, ready := readRefs(r), readRefs(r)
	if r.Done() != nil {
		return malformed
	}
	if term != m.now.term {
		return rejected(gpuai.PreconditionFailed, "the leader that held the beats no longer leads")
	}
	for _, n := range suspect {
		if slot, _, ok := m.nodeOfLife(n.Node, n.Incarnation); ok && m.nodes.Get(slot).state == gpuai.NodeReady {
			m.setNodeState(slot, gpuai.NodeSuspect)
		}
	}
	for _, n := range ready {
		slot, _, ok := m.nodeOfLife(n.Node, n.Incarnation)
		if !ok {
			continue
		}
		if s := m.nodes.Get(slot).state; s == gpuai.NodeSuspect || s == gpuai.NodeSilent {
			m.revive(slot)
		}
	}
	return Result{}
}
