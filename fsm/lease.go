package fsm

import (
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// A leaseRec is a lease: a live one, or the latest of its task.
type leaseRec struct {
	token       gpuai.Token
	task        ref
	node        uint32
	incarnation gpuai.Incarnation
	devices     uint64
	memory      int64
	price       gpuai.Micros
	granted     gpuai.Instant
	started     gpuai.Instant
	ended       gpuai.Instant
	modified    uint64
	cpu         uint32
	ttl         uint32 // ms
	grace       uint32 // ms
	seq         uint32 // of the latest report
	exit        int32
	next        ref // live lease of the node
	prev        ref
	timer       uint32 // run-time limit; derived
	share       uint16 // milli; 0: whole devices
	port        uint16
	state       gpuai.LeaseState
	cause       gpuai.LeaseCause
	yields      bool        // its room is listed as one that may be taken
	prepared    bool        // its task could start, but for its gang
	older       ref         // lease of the priority that is still safe; derived
	newer       ref         // derived
	by          gpuai.JobID // that it must make room for
	mesh        ref         // where it is reached from other nodes
	bill        ref         // what it costs, if anything; derived
}

// Flags in the byte of a lease's state.
const (
	leaseTail   = 1 << 7 // fields of feature level 3 follow
	leaseYields = 1 << 6

	leasePrepared = 1 << 5
	leaseMeshed   = 1 << 4 // a mesh point follows
)

func (r *leaseRec) put(b []byte) []byte {
	b = le.AppendUint64(b, uint64(r.token))
	b = r.task.put(b)
	b = le.AppendUint32(b, r.node)
	b = le.AppendUint64(b, uint64(r.incarnation))
	b = le.AppendUint64(b, r.devices)
	b = put64(b, r.memory)
	b = put64(b, int64(r.price))
	b = put64(b, int64(r.granted))
	b = put64(b, int64(r.started))
	b = put64(b, int64(r.ended))
	b = le.AppendUint64(b, r.modified)
	b = le.AppendUint32(b, r.cpu)
	b = le.AppendUint32(b, r.ttl)
	b = le.AppendUint32(b, r.grace)
	b = le.AppendUint32(b, r.seq)
	b = le.AppendUint32(b, uint32(r.exit))
	b = r.next.put(b)
	b = r.prev.put(b)
	b = le.AppendUint16(b, r.share)
	b = le.AppendUint16(b, r.port)
	state := uint8(r.state)
	if r.yields {
		state |= leaseYields
	}
	if r.prepared {
		state |= leasePrepared
	}
	if r.mesh != 0 {
		state |= leaseMeshed
	}
	if !r.by.IsZero() {
		state |= leaseTail
	}
	b = append(b, state, uint8(r.cause))
	if !r.by.IsZero() {
		b = append(b, r.by[:]...)
	}
	if r.mesh != 0 {
		b = r.mesh.put(b)
	}
	return b
}

func (r *leaseRec) get(rd *wire.Reader) {
	r.token = gpuai.Token(rd.U64())
	r.task = ref(rd.U32())
	r.node = rd.U32()
	r.incarnation = gpuai.Incarnation(rd.U64())
	r.devices = rd.U64()
	r.memory = rd.I64()
	r.price = gpuai.Micros(rd.I64())
	r.granted = gpuai.Instant(rd.I64())
	r.started = gpuai.Instant(rd.I64())
	r.ended = gpuai.Instant(rd.I64())
	r.modified = rd.U64()
	r.cpu = rd.U32()
	r.ttl = rd.U32()
	r.grace = rd.U32()
	r.seq = rd.U32()
	r.exit = int32(rd.U32())
	r.next = ref(rd.U32())
	r.prev = ref(rd.U32())
	r.share = rd.U16()
	r.port = rd.U16()
	state := rd.U8()
	r.state, r.yields = gpuai.LeaseState(state&^(leaseTail|leaseYields|leasePrepared|leaseMeshed)), state&leaseYields != 0
	r.prepared = state&leasePrepared != 0
	r.cause = gpuai.LeaseCause(rd.U8())
	if state&leaseTail != 0 {
		copy(r.by[:], rd.Bytes(len(r.by)))
	}
	if state&leaseMeshed != 0 {
		r.mesh = ref(rd.U32())
	}
}

// hashToken hashes a token so that those granted one after the other find their
// places beside each other, in eight buckets at a time: an entry grants many.
func hashToken(t gpuai.Token) uint64 { return mem.Mix(uint64(t)>>3, 3) ^ uint64(t)&7 }

// milli is what the lease holds of each of its devices.
func (r *leaseRec) milli() gpuai.Milli {
	if r.share != 0 {
		return gpuai.Milli(r.share)
	}
	return gpuai.WholeDevice
}

// held is what the lease holds of all its devices.
func (r *leaseRec) held() uint64 {
	return uint64(bits.OnesCount64(r.devices)) * uint64(r.milli())
}

func (r *leaseRec) live() bool { return r.state != gpuai.LeaseEnded }

// leaseSlot returns the slot of a kept lease.
func (m *Machine) leaseSlot(t gpuai.Token) (uint32, bool) {
	return m.leaseByToken.Find(hashToken(t), func(s uint32) bool { return m.leases.Get(s).token == t })
}

// linkLease adds a live lease to its node.
func (m *Machine) linkLease(slot uint32) {
	l := m.leases.Mut(slot)
	n := m.nodes.Mut(l.node)
	if l.next = n.first; l.next != 0 {
		m.leases.Mut(l.next.slot()).prev = refTo(slot)
	}
	n.first = refTo(slot)
	n.cpuUsed += int64(l.cpu)
	n.memUsed += l.memory
	if n.live++; n.live == MaxNodeLeases {
		m.sched.SetOpen(l.node, false)
	}
	meta := m.meta.Mut()
	meta.liveLeases++
	meta.milliUsed += l.held()
	if m.counted(l.token) {
		m.account(m.tenantOfLease(l), l.held(), 0)
	}
	m.useLease(slot)
}

// unlinkLease takes an ended lease off its node.
func (m *Machine) unlinkLease(slot uint32) {
	m.unuseLease(slot)
	l := m.leases.Mut(slot)
	n := m.nodes.Mut(l.node)
	if l.prev != 0 {
		m.leases.Mut(l.prev.slot()).next = l.next
	} else {
		n.first = l.next
	}
	if l.next != 0 {
		m.leases.Mut(l.next.slot()).prev = l.prev
	}
	l.next, l.prev = 0, 0
	n.cpuUsed -= int64(l.cpu)
	n.memUsed -= l.memory
	m.returnPort(l.node, l.port)
	m.dropPoint(slot)
	if n.live--; n.live == MaxNodeLeases-1 {
		m.sched.SetOpen(l.node, m.opens(l.node))
	}
	meta := m.meta.Mut()
	meta.liveLeases--
	meta.milliUsed -= l.held()
	if m.counted(l.token) {
		m.account(m.tenantOfLease(l), 0, l.held())
	}
}

// returnPort gives a port back that a gang was lent, if it was lent one.
func (m *Machine) returnPort(node uint32, port uint16) {
	if port == 0 {
		return
	}
	n := m.nodes.Mut(node)
	if n.portsOut() {
		m.lookAtGangs() // one may have waited for nothing else
	}
	n.returnPort(port)
}

// dropLease forgets an ended lease.
func (m *Machine) dropLease(r ref) {
	if r == 0 {
		return
	}
	l := m.leases.Get(r.slot())
	m.forgetGiven(r)
	m.leaseByToken.Delete(hashToken(l.token), r.slot())
	*m.leases.Mut(r.slot()) = leaseRec{}
	m.leaseSlots.Free(r.slot())
}

// event returns an event that tells of a lease.
func (m *Machine) leaseEvent(kind gpuai.EventKind, slot uint32) gpuai.Event {
	l := m.leases.Get(slot)
	t := m.tasks.Get(l.task.slot())
	g := m.groups.Get(t.group.slot())
	return gpuai.Event{
		Kind: kind, Job: m.jobs.Get(g.job.slot()).id, Group: uint16(g.idx), Task: t.idx,
		Lease: l.token, Node: m.nodeName(l.node), Incarnation: l.incarnation,
		Cause: l.cause, ExitCode: l.exit, By: l.by,
	}
}

// lease converts a record to its edge type.
func (m *Machine) lease(slot uint32) gpuai.Lease {
	l := m.leases.Get(slot)
	t := m.tasks.Get(l.task.slot())
	g := m.groups.Get(t.group.slot())
	j := m.jobs.Get(g.job.slot())
	x := gpuai.Lease{
		ID: l.token, TaskRef: gpuai.TaskRef{Job: j.id, Group: uint16(g.idx), Task: t.idx},
		Tenant: gpuai.TenantID(m.strs.Get(j.tenant)), Node: m.nodeName(l.node), Incarnation: l.incarnation,
		State: l.state, Cause: l.cause, Share: gpuai.Milli(l.share), CPU: gpuai.MilliCPU(l.cpu),
		Memory: gpuai.Bytes(l.memory), TTL: gpuai.Duration(l.ttl), Grace: gpuai.Duration(l.grace),
		Price: l.price, GrantedAt: l.granted, StartedAt: l.started, EndedAt: l.ended,
		ExitCode: l.exit, ModifyIndex: l.modified, PreemptedBy: l.by,
		Prepared: l.prepared,
	}
	x.Checkpoint = m.lastCheckpoint(l.task.slot())
	if l.bill != 0 {
		b := m.bills.Get(l.bill.slot())
		x.Held, x.Billed = b.hold, b.meter.Billed+b.meter.Fee
	}
	x.Secrets = m.secretsGiven(slot)
	if l.devices == 0 {
		return x
	}
	body := wire.NewReader(m.blobs.Append(nil, uint32(m.nodes.Get(l.node).spec)))
	if ids, err := wire.ReadDeviceIDs(body, l.devices); err == nil && len(ids) > 0 { // written by us: cannot fail
		x.Devices = ids
	}
	return x
}
