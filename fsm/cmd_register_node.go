package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// RegisterNode makes a node's agent known, or tells of a new life of it. It is
// compare-and-set: it names the incarnation that it replaces.
//
// Result: OK and the node's incarnation. The same (BootID, Nonce) as the
// current life is answered again. A new life adopts the leases of Held that
// are live, on this node and were started in this boot; it frees nothing. An
// incarnation from before a restore is void: any other such may replace it.
//
// Rejected: InvalidSpec (see gpuai.NodeSpec.Validate), Conflict with the
// current incarnation when Replaces names another, RateLimited when the region
// has MaxNodes, TooLarge when it has too many names or pools.
type RegisterNode struct {
	Spec     gpuai.NodeSpec
	BootID   string
	Nonce    string
	Replaces gpuai.Incarnation
	Held     []gpuai.HeldLease
}

// Append appends the encoded command to dst.
func (c *RegisterNode) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeRegisterNode, env, func(b []byte) []byte {
		b = wire.AppendNodeSpec(b, &c.Spec)
		b = wire.AppendStr(b, c.BootID)
		b = wire.AppendStr(b, c.Nonce)
		b = le.AppendUint64(b, uint64(c.Replaces))
		return wire.AppendHeld(b, c.Held)
	})
}

func readRegisterNode(r *wire.Reader) (c RegisterNode, err error) {
	if c.Spec, err = wire.ReadNodeSpecFrom(r); err != nil {
		return c, err
	}
	c.BootID, c.Nonce = r.Str(), r.Str()
	c.Replaces = gpuai.Incarnation(r.U64())
	if c.Held, err = wire.ReadHeldFrom(r); err != nil {
		return c, err
	}
	return c, r.Done()
}

func (m *Machine) applyRegisterNode(r *wire.Reader) Result {
	r.Share(&m.texts)
	c, err := readRegisterNode(r)
	if err != nil || c.BootID == "" || c.Nonce == "" || len(c.BootID) > gpuai.MaxTextLen || len(c.Nonce) > gpuai.MaxTextLen {
		return malformed
	}
	if c.Spec.Rack+c.Spec.NVLinkDomain != "" && m.Level() < LevelPlacement {
		return malformed
	}
	if m.Level() < LevelTenants && (c.Spec.Refuses != nil || gpuai.Places(c.Spec.Devices)) {
		return malformed
	}
	if len(c.Spec.Validate()) > 0 {
		return rejected(gpuai.InvalidSpec, "the node's description is invalid")
	}
	if m.Level() >= LevelTenants && c.Spec.Price > gpuai.MaxPrice {
		return rejected(gpuai.InvalidSpec, "the node's price is above "+gpuai.MaxPrice.String()+" by the device and hour, which is the most")
	}
	body := nodeBody{c.Spec, c.BootID, c.Nonce}
	slot, known := m.nodeSlot(c.Spec.ID)
	if !known {
		return m.registerNew(&body)
	}
	n := m.nodes.Get(slot)
	old := m.nodeBody(slot)
	void := m.void(n.incarnation) && m.void(c.Replaces) // whoever registers first has the node
	same := old.boot == c.BootID && old.nonce == c.Nonce && !m.void(n.incarnation)
	if !same && n.incarnation != c.Replaces && !void {
		res := rejected(gpuai.Conflict, "another agent holds this node's identity: give this host another node name, or stop the other agent and start this one with --take-over")
		res.Incarnation = n.incarnation
		return res
	}
	if code := m.defineNode(slot, &body, &old); code != gpuai.OK {
		m.takeBack()
		return rejected(code, "the region has too many kinds of nodes, racks or NVLink domains, or too many nodes in one")
	}
	if !same {
		w := m.nodes.Mut(slot)
		w.incarnation = gpuai.MakeIncarnation(m.meta.Get().epoch, w.incarnation.Counter()+1)
		m.adopt(slot, &c)
		m.now.joined = refTo(slot)
	}
	return m.registered(slot)
}

// registerNew adds a node that the region has not seen.
func (m *Machine) registerNew(body *nodeBody) Result {
	if m.nodes.Len() >= MaxNodes {
		return rejected(gpuai.RateLimited, "the region has its maximum of nodes")
	}
	if m.strs.Len() >= MaxStrings {
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	name := m.strs.Intern(string(body.spec.ID))
	slot := m.nodes.Append(nodeRec{
		name: name, incarnation: gpuai.MakeIncarnation(m.meta.Get().epoch, 1), registered: m.now.index,
		owner: m.contributorOf(gpuai.IdentityNode, name),
	})
	m.nodeOf.Grow(name + 1)
	*m.nodeOf.Mut(name) = refTo(slot)
	if code := m.defineNode(slot, body, &nodeBody{}); code != gpuai.OK {
		m.takeBack()
		return rejected(code, "the region has too many kinds of nodes, racks or NVLink domains, or too many nodes in one")
	}
	m.now.joined = refTo(slot)
	return m.registered(slot)
}

// registered brings a node that has just spoken into its state.
func (m *Machine) registered(slot uint32) Result {
	r := m.nodes.Mut(slot)
	r.modified = m.now.index
	if r.state != gpuai.NodeQuarantined {
		m.revive(slot)
	} else {
		m.setOpen(slot)
	}
	r = m.nodes.Mut(slot)
	m.emit(gpuai.Event{
		Kind: gpuai.NodeRegistered, Node: m.nodeName(slot), Incarnation: r.incarnation,
		NodeState: r.state, Drained: r.drained,
	})
	return Result{Incarnation: r.incarnation}
}

// adopt moves the leases that a node's new life still runs to it.
func (m *Machine) adopt(slot uint32, c *RegisterNode) {
	inc := m.nodes.Get(slot).incarnation
	for i := range c.Held {
		h := &c.Held[i]
		l, ok := m.leaseSlot(h.Lease)
		if !ok || h.BootID != c.BootID {
			continue
		}
		if r := m.leases.Get(l); r.live() && r.node == slot && r.token.Epoch() == m.meta.Get().epoch {
			w := m.leases.Mut(l)
			w.incarnation, w.modified = inc, m.now.index
			m.emit(m.leaseEvent(gpuai.LeaseAdopted, l))
		}
	}
}

// defineNode stores a node's description and tells the scheduler. While the
// node has leases its devices keep their places: one that is gone is lost, new
// ones come behind.
func (m *Machine) defineNode(slot uint32, body, old *nodeBody) gpuai.Code {
	m.loseHolds(slot)
	r := m.nodes.Mut(slot)
	var broken uint64
	if r.live > 0 {
		body.spec.Devices = mergeDevices(old.spec.Devices, body.spec.Devices)
	}
	if len(body.spec.Devices) > gpuai.MaxGPUs {
		return gpuai.TooLarge
	}
	if body.boot == old.boot { // a reboot cleans what the machine quarantined
		broken = carryBroken(r.broken, old.spec.Devices, body.spec.Devices)
	}
	r.broken = broken
	r.refuses = body.spec.Refuses != nil
	r.devices, r.price = uint8(len(body.spec.Devices)), m.priceOf(r, body.spec.Price)
	if r.portMin != body.spec.PortMin || r.portCount != uint8(body.spec.PortCount) {
		r.portMin, r.portCount, r.ports = body.spec.PortMin, uint8(body.spec.PortCount), 0
		m.relendPorts(slot)
	}
	m.setNodeBody(slot, body)
	return m.tellScheduler(slot, body)
}

// tellScheduler defines a node's room anew and takes what its leases hold.
func (m *Machine) tellScheduler(slot uint32, body *nodeBody) gpuai.Code {
	pools := m.sched.PoolChanges()
	m.recountModels(slot, true)
	if code := m.sched.SetNode(slot, m.capacityOf(slot, body)); code != gpuai.OK {
		return code
	}
	if m.Level() >= LevelPlacement && m.sched.PoolChanges() != pools {
		m.renewNeeds()
		m.poolsMoved()
	}
	m.recountModels(slot, false)
	m.retake(slot)
	m.setOpen(slot)
	m.checkReserved(slot)
	return gpuai.OK
}

// retake takes from the scheduler what a node's live leases hold.
func (m *Machine) retake(slot uint32) {
	for l := m.nodes.Get(slot).first; l != 0; {
		r := m.leases.Get(l.slot())
		m.sched.Hold(slot, r.devices, r.share, int64(r.cpu), r.memory)
		m.sched.Lend(slot, m.scratchOf(r))
		l = r.next
	}
}

// relendPorts marks the ports of a new range that live leases hold.
func (m *Machine) relendPorts(slot uint32) {
	n := m.nodes.Mut(slot)
	for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
		p := m.leases.Get(l.slot()).port
		if p >= n.portMin && p < n.portMin+uint16(n.portCount) {
			n.ports |= 1 << (p - n.portMin)
		}
	}
}

// mergeDevices returns old with what now says of each device.
func mergeDevices(old, now []gpuai.Device) []gpuai.Device {
	out := append([]gpuai.Device(nil), old...)
	for i := range out {
		if k := deviceIndex(now, out[i].ID); k >= 0 {
			out[i] = now[k]
		} else {
			out[i].Health, out[i].HealthCode = gpuai.DeviceLost, "gone"
		}
	}
	for i := range now {
		if deviceIndex(old, now[i].ID) < 0 {
			out = append(out, now[i])
		}
	}
	return out
}

// carryBroken moves the bits of quarantined devices to their new places.
func carryBroken(broken uint64, old, now []gpuai.Device) uint64 {
	var out uint64
	for i := range now {
		if k := deviceIndex(old, now[i].ID); k >= 0 && broken>>k&1 != 0 {
			out |= 1 << i
		}
	}
	return out
}

func deviceIndex(ds []gpuai.Device, id gpuai.DeviceID) int {
	for i := range ds {
		if ds[i].ID == id {
			return i
		}
	}
	return -1
}
