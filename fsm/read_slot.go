package fsm

import "github.com/gpuai/gpuai"

// NodeSlot returns a node's slot, which it keeps for ever and EachNode counts
// in, with its incarnation and state.
func (m *Machine) NodeSlot(n gpuai.NodeID) (slot uint32, inc gpuai.Incarnation, state gpuai.NodeState, ok bool) {
	slot, ok = m.nodeSlot(n)
	if !ok {
		return 0, 0, 0, false
	}
	r := m.nodes.Get(slot)
	return slot, r.incarnation, r.state, true
}
