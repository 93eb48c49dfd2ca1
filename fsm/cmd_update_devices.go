package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// UpdateDevices tells of a node's devices anew: their set or their health
// changed. A device that the machine quarantined and that is said to be
// healthy is taken back into use. From LevelTenants on it says too whether the node
// refuses new tasks.
//
// Rejected: NotFound, Conflict when Incarnation is not the node's current one,
// InvalidSpec (see gpuai.ValidateDevices), TooLarge.
type UpdateDevices struct {
	Node        gpuai.NodeID
	Incarnation gpuai.Incarnation
	Devices     []gpuai.Device
	Refuses     *gpuai.Refusal // as in gpuai.NodeSpec
}

// Append appends the encoded command to dst.
func (c *UpdateDevices) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeUpdateDevices, env, func(b []byte) []byte {
		b = wire.AppendStr(b, string(c.Node))
		b = le.AppendUint64(b, uint64(c.Incarnation))
		b = wire.AppendDevices(b, c.Devices)
		if c.Refuses != nil {
			b = wire.AppendRefusal(b, c.Refuses)
		}
		return b
	})
}

func (m *Machine) applyUpdateDevices(r *wire.Reader) Result {
	id, inc := gpuai.NodeID(r.Str()), gpuai.Incarnation(r.U64())
	devices, err := wire.ReadDevicesFrom(r)
	var refuses *gpuai.Refusal
	if err == nil && r.More() && m.Level() >= LevelTenants {
		refuses = wire.ReadRefusalFrom(r)
	}
	if err != nil || r.Done() != nil || gpuai.Places(devices) && m.Level() < LevelTenants {
		return malformed
	}
	slot, res, ok := m.nodeOfLife(id, inc)
	if !ok {
		return res
	}
	var bad []gpuai.FieldError
	if gpuai.ValidateDevices(devices, &bad); len(bad) > 0 || len(devices) > gpuai.MaxGPUs || !refuses.Valid() {
		return rejected(gpuai.InvalidSpec, "the list of devices is invalid")
	}
	old := m.nodeBody(slot)
	body := old
	body.spec.Devices, body.spec.Refuses = devices, refuses
	m.nodes.Mut(slot).modified = m.now.index
	if code := m.defineNode(slot, &body, &old); code != gpuai.OK {
		m.takeBack()
		return rejected(code, "the node has too many devices, or the region too many kinds of nodes")
	}
	m.trust(slot, &body)
	n := m.nodes.Get(slot)
	m.emit(gpuai.Event{Kind: gpuai.NodeChanged, Node: id, Incarnation: inc, NodeState: n.state, Drained: n.drained})
	return Result{}
}

// trust ends the quarantine of devices that their driver says are healthy.
func (m *Machine) trust(slot uint32, body *nodeBody) {
	n := m.nodes.Mut(slot)
	for i := range body.spec.Devices {
		if n.broken>>i&1 != 0 && body.spec.Devices[i].Health == gpuai.DeviceHealthy {
			n.broken &^= 1 << i
			m.sched.SetDevice(slot, uint8(i), true)
		}
	}
	m.setOpen(slot)
}

// nodeOfLife finds a node that must be in the given incarnation.
func (m *Machine) nodeOfLife(id gpuai.NodeID, inc gpuai.Incarnation) (uint32, Result, bool) {
	slot, ok := m.nodeSlot(id)
	if !ok {
		return 0, rejected(gpuai.NotFound, "no such node"), false
	}
	if cur := m.nodes.Get(slot).incarnation; cur != inc || m.void(cur) {
		res := rejected(gpuai.Conflict, "the node is in another incarnation")
		res.Incarnation = cur
		return 0, res, false
	}
	return slot, Result{}, true
}
