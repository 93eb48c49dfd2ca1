package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetNodeOwner says whose a node is: the contributor that sees it and may drain
// it. "" is nobody's but the region's. What its last contributor asks for it ends;
// what runs there is billed up to now, and earned by that one.
//
// Rejected: InvalidSpec, also below LevelTenants; NotFound for a node that never
// registered; TooLarge at a limit of the machine.
type SetNodeOwner struct {
	Node        gpuai.NodeID
	Contributor gpuai.ContributorID
}

// Append appends the encoded command to dst.
func (c *SetNodeOwner) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetNodeOwner, env, func(b []byte) []byte {
		return wire.AppendStr(wire.AppendStr(b, string(c.Node)), string(c.Contributor))
	})
}

func (m *Machine) applySetNodeOwner(r *wire.Reader) Result {
	id, owner := gpuai.NodeID(r.Str()), r.Str()
	if m.Level() < LevelTenants || r.Done() != nil || owner != "" && !gpuai.ValidName(owner) {
		return malformed
	}
	slot, ok := m.nodeSlot(id)
	switch {
	case !ok:
		return rejected(gpuai.NotFound, "no such node")
	case m.strs.Len() >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	return m.giveNode(slot, m.number(owner))
}

// giveNode makes a node a contributor's, by string number; 0 is nobody's.
func (m *Machine) giveNode(slot, owner uint32) Result {
	if m.nodes.Get(slot).owner == owner {
		return Result{}
	}
	m.settleNode(slot) // so far it is the other's
	r := m.nodes.Mut(slot)
	r.owner, r.modified, r.earned, r.ask, r.asked = owner, m.now.index, 0, 0, false
	if res := m.reprice(slot); res.Code != gpuai.OK {
		return res
	}
	r = m.nodes.Mut(slot)
	m.emit(gpuai.Event{Kind: gpuai.NodeChanged, Node: m.nodeName(slot), Incarnation: r.incarnation, NodeState: r.state, Drained: r.drained})
	return Result{}
}
