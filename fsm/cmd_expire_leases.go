package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// ExpireLeases ends the leases of one incarnation of a node whose own TTL and
// grace have passed since its last beat. Only the leader of Term proposes it,
// and never twice: the next scan makes a new one.
//
// Rejected: NotFound, PreconditionFailed when the entry was not proposed in
// Term. Leases of other incarnations, and those whose time is not over, stay.
type ExpireLeases struct {
	Node        gpuai.NodeID
	Incarnation gpuai.Incarnation
	SilentFor   gpuai.Duration // rounded down
	Term        uint64
}

// Append appends the encoded command to dst.
func (c *ExpireLeases) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeExpireLeases, env, func(b []byte) []byte {
		b = wire.AppendStr(b, string(c.Node))
		b = le.AppendUint64(b, uint64(c.Incarnation))
		b = put64(b, int64(c.SilentFor))
		return le.AppendUint64(b, c.Term)
	})
}

func (m *Machine) applyExpireLeases(r *wire.Reader) Result {
	id, inc := gpuai.NodeID(r.Str()), gpuai.Incarnation(r.U64())
	silent, term := r.I64(), r.U64()
	if r.Done() != nil {
		return malformed
	}
	if term != m.now.term {
		return rejected(gpuai.PreconditionFailed, "the leader that saw the silence no longer leads")
	}
	slot, ok := m.nodeSlot(id)
	if !ok {
		return rejected(gpuai.NotFound, "no such node")
	}
	ended := false
	for l := m.nodes.Get(slot).first; l != 0; {
		x := m.leases.Get(l.slot())
		at, next := l.slot(), x.next
		if x.incarnation == inc && int64(x.ttl)+int64(x.grace) <= silent {
			if !ended { // nothing is placed meanwhile: it need not move in the index with each end
				m.sched.SetOpen(slot, false)
			}
			m.endLease(at, leaseEnd{cause: gpuai.CauseExpired})
			ended = true
		}
		l = next
	}
	n := m.nodes.Get(slot)
	switch {
	case ended && n.incarnation == inc && n.state != gpuai.NodeSilent && n.state != gpuai.NodeQuarantined:
		m.setNodeState(slot, gpuai.NodeSilent)
	case ended:
		m.sched.SetOpen(slot, m.opens(slot))
		m.relist(slot)
	}
	return Result{Incarnation: n.incarnation}
}
