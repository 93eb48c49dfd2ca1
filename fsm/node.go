package fsm

import (
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// A nodeRec is a registered node. What its agent said of it is in the spec
// blob; capacity in use is the scheduler's.
type nodeRec struct {
	name        uint32 // string number; never 0
	spec        ref    // blob, local: the encoded NodeSpec, boot ID and nonce
	specHash    uint64
	incarnation gpuai.Incarnation
	cpuUsed     int64
	memUsed     int64
	broken      uint64 // devices that the machine quarantined
	ports       uint64 // lent to gangs
	portMin     uint16
	portCount   uint8
	state       gpuai.NodeState
	drained     bool
	devices     uint8
	price       gpuai.Micros
	priced      bool // by an operator, whatever its agent says; from LevelTenants on
	first       ref  // live leases
	live        uint32
	flaps       uint32
	flapSince   gpuai.Instant
	quarantines uint32
	until       gpuai.Instant // end of the quarantine
	timer       uint32        // place in the heap + 1; derived
	registered  uint64
	modified    uint64
	reserved    uint16 // tasks of the reservation's group that it is kept for
	refuses     bool   // its agent takes no new task; derived from its spec
	yielding    uint32 // leases that yield; derived
	kept        uint32 // holds; derived
	lastKept    ref    // the newest of them; derived
	owner       uint32 // string number of its contributor; 0 is none
	closes      uint32 // minute of the wall clock from which on its schedule has it closed; 0: none
	outside     bool   // of its schedule
	asked       bool   // by its contributor
	ask         gpuai.Micros
	earned      gpuai.Micros // by its present contributor
}

func (r *nodeRec) put(b []byte) []byte {
	b = le.AppendUint32(b, r.name)
	b = le.AppendUint64(b, r.specHash)
	b = le.AppendUint64(b, uint64(r.incarnation))
	b = put64(b, r.cpuUsed)
	b = put64(b, r.memUsed)
	b = le.AppendUint64(b, r.broken)
	b = le.AppendUint64(b, r.ports)
	b = le.AppendUint16(b, r.portMin)
	tail := r.reserved != 0
	b = append(b, r.portCount, uint8(r.state), bool8(r.drained)|bool8(tail)<<1|bool8(r.priced)*flagPriced|bool8(r.owner != 0)*flagOwner|r.termFlags(), r.devices)
	b = put64(b, int64(r.price))
	b = r.first.put(b)
	b = le.AppendUint32(b, r.live)
	b = le.AppendUint32(b, r.flaps)
	b = put64(b, int64(r.flapSince))
	b = le.AppendUint32(b, r.quarantines)
	b = put64(b, int64(r.until))
	b = le.AppendUint64(b, r.registered)
	b = le.AppendUint64(b, r.modified)
	if tail {
		b = le.AppendUint16(b, r.reserved)
	}
	if r.owner != 0 {
		b = le.AppendUint32(b, r.owner)
	}
	return r.putTerms(b)
}

func (r *nodeRec) get(rd *wire.Reader) {
	r.name = rd.U32()
	r.specHash = rd.U64()
	r.incarnation = gpuai.Incarnation(rd.U64())
	r.cpuUsed = rd.I64()
	r.memUsed = rd.I64()
	r.broken = rd.U64()
	r.ports = rd.U64()
	r.portMin = rd.U16()
	r.portCount = rd.U8()
	r.state = gpuai.NodeState(rd.U8())
	flags := rd.U8()
	r.drained, r.priced = flags&1 != 0, flags&flagPriced != 0
	r.devices = rd.U8()
	r.price = gpuai.Micros(rd.I64())
	r.first = ref(rd.U32())
	r.live = rd.U32()
	r.flaps = rd.U32()
	r.flapSince = gpuai.Instant(rd.I64())
	r.quarantines = rd.U32()
	r.until = gpuai.Instant(rd.I64())
	r.registered = rd.U64()
	r.modified = rd.U64()
	if flags&2 != 0 {
		r.reserved = rd.U16()
	}
	if flags&flagOwner != 0 {
		r.owner = rd.U32()
	}
	r.getTerms(rd, flags)
}

// termFlags says which of the terms of a node's contributor are behind it.
func (r *nodeRec) termFlags() uint8 {
	return bool8(r.closes != 0)*flagCloses | bool8(r.outside)*flagOutside | bool8(r.asked)*flagAsked | bool8(r.earned != 0)*flagEarned
}

func (r *nodeRec) putTerms(b []byte) []byte {
	if r.closes != 0 {
		b = le.AppendUint32(b, r.closes)
	}
	if r.asked {
		b = put64(b, int64(r.ask))
	}
	if r.earned != 0 {
		b = put64(b, int64(r.earned))
	}
	return b
}

func (r *nodeRec) getTerms(rd *wire.Reader, flags uint8) {
	r.outside, r.asked = flags&flagOutside != 0, flags&flagAsked != 0
	if flags&flagCloses != 0 {
		r.closes = rd.U32()
	}
	if r.asked {
		r.ask = gpuai.Micros(rd.I64())
	}
	if flags&flagEarned != 0 {
		r.earned = gpuai.Micros(rd.I64())
	}
}

// flagOwner is set in a node's last flag where its contributor is behind it, from
// LevelTenants on.
const flagOwner = 4

// flagPriced is set there where an operator has priced the node.
const flagPriced = 8

// These are set there for what a node's contributor says and earns.
const (
	flagCloses  = 1 << 4
	flagOutside = 1 << 5
	flagAsked   = 1 << 6
	flagEarned  = 1 << 7
)

func bool8(v bool) uint8 {
	if v {
		return 1
	}
	return 0
}

// open reports whether the node takes new leases.
func (r *nodeRec) open() bool {
	return r.state == gpuai.NodeReady && !r.drained && !r.outside && !r.refuses && r.live < MaxNodeLeases
}

// nodeBody is the content of a node's spec blob.
type nodeBody struct {
	spec        gpuai.NodeSpec
	boot, nonce string
}

func (n *nodeBody) put(b []byte) []byte {
	b = wire.AppendNodeSpec(b, &n.spec)
	b = wire.AppendStr(b, n.boot)
	return wire.AppendStr(b, n.nonce)
}

func readNodeBody(b []byte) (n nodeBody, err error) {
	r := wire.NewReader(b)
	n.spec, err = wire.ReadNodeSpecFrom(r)
	n.boot, n.nonce = r.Str(), r.Str()
	if err == nil {
		err = r.Err()
	}
	return n, err
}

// nodeSlot returns the slot of a registered node.
func (m *Machine) nodeSlot(id gpuai.NodeID) (uint32, bool) {
	n, ok := m.strs.Find(string(id))
	if !ok || n == 0 || n >= m.nodeOf.Len() || *m.nodeOf.Get(n) == 0 {
		return 0, false
	}
	return m.nodeOf.Get(n).slot(), true
}

func (m *Machine) nodeName(slot uint32) gpuai.NodeID {
	return gpuai.NodeID(m.strs.Get(m.nodes.Get(slot).name))
}

// nodeBody returns what the agent said of a node.
func (m *Machine) nodeBody(slot uint32) nodeBody {
	n, err := readNodeBody(m.blobs.Append(nil, uint32(m.nodes.Get(slot).spec)))
	if err != nil {
		return nodeBody{} // written by us: cannot be
	}
	return n
}

// setNodeBody stores what the agent said of a node.
func (m *Machine) setNodeBody(slot uint32, n *nodeBody) {
	m.body = n.put(m.body[:0])
	r := m.nodes.Mut(slot)
	m.blobs.Free(uint32(r.spec))
	r.spec = ref(m.blobs.Put(m.body))
	r.specHash = hashOf(m.body)
}

// capacityOf returns what the scheduler is told of a node.
func (m *Machine) capacityOf(slot uint32, n *nodeBody) *scheduler.NodeInfo {
	info := &scheduler.NodeInfo{}
	fillCapacity(info, m.nodes.Get(slot), &n.spec)
	info.Scratch = m.lentScratch(&n.spec)
	return info
}

// fillCapacity is capacityOf into what a former node has filled.
func fillCapacity(info *scheduler.NodeInfo, r *nodeRec, n *gpuai.NodeSpec) {
	*info = scheduler.NodeInfo{
		Zone: n.Zone, Rack: n.Rack, NVLinkDomain: n.NVLinkDomain, Labels: n.Labels, Price: r.price, Closes: r.closes,
		CPU: int64(n.CPU), Memory: int64(n.Memory), Devices: info.Devices[:0],
	}
	for i := range n.Devices {
		d := &n.Devices[i]
		info.Devices = append(info.Devices, scheduler.DeviceInfo{
			Vendor: d.Vendor, Model: d.Model, Memory: int64(d.Memory),
			Usable: d.Health == gpuai.DeviceHealthy && r.broken>>i&1 == 0, Place: d.DevicePlace,
		})
	}
}

// setOpen tells the scheduler whether the node takes new leases, and has the
// queue look at a node that opened.
func (m *Machine) setOpen(slot uint32) {
	n := m.nodes.Get(slot)
	m.sched.SetOpen(slot, m.opens(slot))
	if n.open() {
		m.gained(slot)
		m.relist(slot)
		if v := m.meta.Get().reserve; v.group == 0 && !v.wanted && m.Level() >= LevelPlacement {
			m.meta.Mut().reserve.wanted = true
		}
	} else {
		if n.reserved > 0 {
			m.unreserve() // its group needs other nodes
		}
		m.loseHolds(slot)
	}
}

// setNodeState moves a node to another state.
func (m *Machine) setNodeState(slot uint32, s gpuai.NodeState) {
	r := m.nodes.Mut(slot)
	r.state, r.modified = s, m.now.index
	m.setOpen(slot)
	m.emit(gpuai.Event{
		Kind: gpuai.NodeChanged, Node: m.nodeName(slot), Incarnation: r.incarnation,
		NodeState: s, Drained: r.drained,
	})
}

// revive brings a silent or suspect node back, or quarantines it when it has
// come back from silence too often.
func (m *Machine) revive(slot uint32) {
	r := m.nodes.Mut(slot)
	if r.state == gpuai.NodeSilent && m.flapped(r) {
		p := m.policy.Get()
		back := p.FlapBackoff << min(r.quarantines, 10)
		r.quarantines++
		r.until = m.now.time.Add(min(back, gpuai.Day))
		m.timers.set(r.until, timerNode, slot)
		m.setNodeState(slot, gpuai.NodeQuarantined)
		return
	}
	m.setNodeState(slot, gpuai.NodeReady)
}

// flapped counts a return from silence and reports whether it was one too many.
func (m *Machine) flapped(r *nodeRec) bool {
	p := m.policy.Get()
	if m.now.time > r.flapSince.Add(p.FlapWindow) {
		r.flaps, r.flapSince = 0, m.now.time
		if m.now.time > r.until.Add(10*p.FlapWindow) {
			r.quarantines = 0
		}
	}
	r.flaps++
	return r.flaps > p.FlapLimit
}

// quarantineOver ends a node's quarantine.
func (m *Machine) quarantineOver(slot uint32) {
	r := m.nodes.Mut(slot)
	if r.state != gpuai.NodeQuarantined {
		return
	}
	r.flaps, r.until = 0, 0
	state := gpuai.NodeSuspect // its next beat makes it ready
	if m.Level() < LevelRestore {
		state = gpuai.NodeReady
	}
	m.setNodeState(slot, state)
}

// lendPort takes the lowest free port of a node; 0 when it has none left.
func (r *nodeRec) lendPort() uint16 {
	if r.portsOut() {
		return 0
	}
	i := bits.TrailingZeros64(^r.ports)
	r.ports |= 1 << i
	return r.portMin + uint16(i)
}

// portsOut reports whether every port is lent.
func (r *nodeRec) portsOut() bool {
	return bits.TrailingZeros64(^r.ports) >= int(r.portCount)
}

// returnPort gives a lent port back. A port of an older range is no more there.
func (r *nodeRec) returnPort(p uint16) {
	if p >= r.portMin && p < r.portMin+uint16(r.portCount) {
		r.ports &^= 1 << (p - r.portMin)
	}
}

// node converts a record to its edge type.
func (m *Machine) node(slot uint32) gpuai.Node {
	r, body := m.nodes.Get(slot), m.nodeBody(slot)
	n := gpuai.Node{
		NodeSpec: body.spec, Region: m.opts.Region, State: r.state, Drained: r.drained,
		Incarnation: r.incarnation, BootID: body.boot, Leases: r.live,
		FreeCPU:         body.spec.CPU - gpuai.MilliCPU(r.cpuUsed),
		FreeMemory:      body.spec.Memory - gpuai.Bytes(r.memUsed),
		Contributor:     gpuai.ContributorID(m.text(r.owner)),
		QuarantineUntil: r.until, RegisterIndex: r.registered, ModifyIndex: r.modified,
	}
	n.Price = r.price
	m.fillTerms(&n, slot)
	var used [gpuai.MaxGPUs]gpuai.Milli
	for l := r.first; l != 0; l = m.leases.Get(l.slot()).next {
		x := m.leases.Get(l.slot())
		for d := x.devices; d != 0; d &= d - 1 {
			used[bits.TrailingZeros64(d)] += x.milli()
		}
	}
	for i := range n.Devices {
		d := &n.Devices[i]
		if d.Health == gpuai.DeviceHealthy && r.broken>>i&1 != 0 {
			d.Health = gpuai.DeviceQuarantined
		}
		d.Free = gpuai.WholeDevice - min(used[i], gpuai.WholeDevice)
		if d.Health == gpuai.DeviceHealthy && d.Free == gpuai.WholeDevice {
			n.FreeGPUs++
		}
	}
	return n
}
