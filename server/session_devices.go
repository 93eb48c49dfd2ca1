package server

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/frames"
)

// An update of devices may reach the log twice, the second time behind a later
// one: a leader that stood still takes what its follower has sent again since.
// So what the region holds is compared with what the agent said last whenever
// the node changes, and told again where it differs.

// tell remembers what the agent says of its devices, for the leader.
func (se *session) tell(devices []gpuai.Device, refuses *gpuai.Refusal) error {
	se.mu.Lock()
	se.told, se.refuses = devices, refuses
	se.mu.Unlock()
	se.s.node.View(func(m *fsm.Machine) { devices, refuses = frames.Tellable(m.Level(), devices, refuses) })
	return se.carry(se.deviceUpdate(devices, refuses))
}

func (se *session) deviceUpdate(devices []gpuai.Device, refuses *gpuai.Refusal) agentCommand {
	c := fsm.UpdateDevices{Node: se.ref.Node, Incarnation: se.ref.Incarnation, Devices: devices, Refuses: refuses}
	return agentCommand{cmd: c.Append(nil, se.envelope())}
}

// doubtDevices has the carrier compare once it has nothing else to do.
func (se *session) doubtDevices() {
	se.mu.Lock()
	se.doubt = true
	se.carries()
	se.mu.Unlock()
}

// correction is the update that is due because the region holds other devices
// than the agent told of.
func (se *session) correction() (c agentCommand, due bool) {
	se.mu.Lock()
	doubt, told, refuses := se.doubt, se.told, se.refuses
	se.doubt = false
	se.mu.Unlock()
	if !doubt {
		return agentCommand{}, false
	}
	var node gpuai.Node
	var known, behind bool
	se.s.node.View(func(m *fsm.Machine) {
		behind = m.Index() < se.registered
		node, known = m.Node(se.ref.Node)
		told, refuses = frames.Tellable(m.Level(), told, refuses)
	})
	if behind {
		se.mu.Lock()
		se.doubt = true // until the event of the registration
		se.mu.Unlock()
	}
	if behind || !known || node.Incarnation != se.ref.Incarnation || frames.HoldsDevices(node.Devices, told) && frames.HoldsRefusal(node.Refuses, refuses) {
		return agentCommand{}, false
	}
	return se.deviceUpdate(told, refuses), true
}
