package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// A holdRec is room of a node that is kept for one task of a group, which
// others are leaving. The scheduler has it as taken beside what they still
// hold, so what they give back goes to nobody else.
type holdRec struct {
	group   ref
	node    uint32
	next    ref // of the node, the oldest first
	older   ref // of the group
	newer   ref
	count   uint32 // of the group's, kept by its newest
	devices uint64
	memory  int64
	cpu     uint32
	share   uint16 // milli; 0: whole devices
	port    uint16 // lent to the gang whose rank 0 this is for
	alt     uint8
	vacant  bool // of a gang: nobody else is there any more
	// What its task's lease will hold of the tenant's budget; zero where that has none.
	money gpuai.Micros
	time  uint64
}

func (r *holdRec) put(b []byte) []byte {
	b = r.group.put(b)
	b = le.AppendUint32(b, r.node)
	b = r.next.put(b)
	b = r.older.put(b)
	b = r.newer.put(b)
	b = le.AppendUint32(b, r.count)
	b = le.AppendUint64(b, r.devices)
	b = put64(b, r.memory)
	b = le.AppendUint32(b, r.cpu)
	b = le.AppendUint16(b, r.share)
	b = le.AppendUint16(b, r.port)
	if r.money == 0 && r.time == 0 {
		return append(b, r.alt, bool8(r.vacant))
	}
	b = append(b, r.alt, bool8(r.vacant)|flagTail)
	return le.AppendUint64(put64(b, int64(r.money)), r.time)
}

func (r *holdRec) get(rd *wire.Reader) {
	r.group = ref(rd.U32())
	r.node = rd.U32()
	r.next = ref(rd.U32())
	r.older = ref(rd.U32())
	r.newer = ref(rd.U32())
	r.count = rd.U32()
	r.devices = rd.U64()
	r.memory = rd.I64()
	r.cpu = rd.U32()
	r.share = rd.U16()
	r.port = rd.U16()
	r.alt = rd.U8()
	flags := rd.U8()
	if r.vacant = flags&1 != 0; flags&flagTail != 0 {
		r.money, r.time = gpuai.Micros(rd.I64()), rd.U64()
	}
}

func (r *holdRec) fit() scheduler.Fit {
	return scheduler.Fit{Node: r.node, Devices: r.devices, Share: r.share, Alt: r.alt}
}

func hashGroup(group ref) uint64 { return mem.Mix(uint64(group), 11) }

// newestHold returns the newest hold of a group, by which the others are found.
func (m *Machine) newestHold(group uint32) ref {
	if m.holdSlots.Len() == 0 {
		return 0
	}
	slot, ok := m.holdByGroup.Find(hashGroup(refTo(group)), func(s uint32) bool { return m.holds.Get(s).group == refTo(group) })
	if !ok {
		return 0
	}
	return refTo(slot)
}

// held is for how many tasks of a group room is kept.
func (m *Machine) held(group uint32) uint32 {
	if h := m.newestHold(group); h != 0 {
		return m.holds.Get(h.slot()).count
	}
	return 0
}

// firstHold returns the oldest hold of a node.
func (m *Machine) firstHold(node uint32) ref {
	if m.holdSlots.Len() == 0 || node >= m.holdOf.Len() {
		return 0
	}
	return *m.holdOf.Get(node)
}

// mayKeep reports whether a node may be given one more lease or hold.
func (m *Machine) mayKeep(node uint32) bool {
	n := m.nodes.Get(node)
	return n.live+n.kept < MaxNodeLeases
}

// keep keeps room for one more task of a group.
func (m *Machine) keep(group uint32, fit *scheduler.Fit) {
	cpu, memory, _ := m.sched.Demand(m.groups.Get(group).shape)
	slot, _ := m.holdSlots.Alloc()
	r := holdRec{
		group: refTo(group), node: fit.Node, devices: fit.Devices, share: fit.Share, alt: fit.Alt,
		cpu: uint32(cpu), memory: memory, count: 1,
	}
	m.keepBudget(&r)
	if r.older = m.newestHold(group); r.older != 0 {
		old := m.holds.Mut(r.older.slot())
		r.count, old.count, old.newer = old.count+1, 0, refTo(slot)
		m.holdByGroup.Delete(hashGroup(r.group), r.older.slot())
	}
	m.holds.Put(slot, r)
	m.holdByGroup.Insert(hashGroup(r.group), slot)
	m.linkHold(slot)
	m.useHold(&r, false)
	m.sched.Hold(fit.Node, fit.Devices, fit.Share, cpu, memory)
	m.sched.Lend(fit.Node, m.sched.Scratch(m.groups.Get(group).shape))
	m.relist(fit.Node)
	m.vacated.Set(fit.Node) // it may be vacant already
	m.now.work -= workEnd
}

// holdPort keeps the port with the newest hold of a gang that its rank 0 will
// need. It reports false when the node has none left.
func (m *Machine) holdPort(group uint32) bool {
	h := m.holds.Mut(m.newestHold(group).slot())
	n := m.nodes.Mut(h.node)
	if n.portCount > 0 {
		h.port = n.lendPort()
	}
	return n.portCount == 0 || h.port != 0
}

// linkHold puts a hold behind the others of its node.
func (m *Machine) linkHold(slot uint32) {
	node := m.holds.Get(slot).node
	m.holdOf.Grow(node + 1)
	n := m.nodes.Mut(node)
	if n.kept++; n.lastKept == 0 {
		*m.holdOf.Mut(node) = refTo(slot)
	} else {
		m.holds.Mut(n.lastKept.slot()).next = refTo(slot)
	}
	n.lastKept = refTo(slot)
}

// unlinkHold takes a hold out of the list of its node.
func (m *Machine) unlinkHold(slot uint32, r *holdRec) {
	n := m.nodes.Mut(r.node)
	n.kept--
	before := ref(0)
	for at := m.firstHold(r.node); at != refTo(slot); at = m.holds.Get(at.slot()).next {
		m.now.work -= workLook
		before = at
	}
	if before == 0 {
		*m.holdOf.Mut(r.node) = r.next
	} else {
		m.holds.Mut(before.slot()).next = r.next
	}
	if n.lastKept == refTo(slot) {
		n.lastKept = before
	}
}

// unhold ends a hold. What it kept goes to whoever is next, unless the caller
// takes it at once.
func (m *Machine) unhold(slot uint32) {
	r := *m.holds.Get(slot)
	m.useHold(&r, true)
	m.unkeepBudget(&r)
	m.unlinkHold(slot, &r)
	m.unholdGroup(slot, &r)
	m.returnPort(r.node, r.port)
	*m.holds.Mut(slot) = holdRec{}
	if m.holdSlots.Len() == MaxHolds {
		m.lookAtStarved() // for some there may have been no other reason
	}
	m.holdSlots.Free(slot)
	m.sched.Give(r.node, r.devices, r.share, int64(r.cpu), r.memory)
	m.sched.Lend(r.node, -m.sched.Scratch(m.groups.Get(r.group.slot()).shape))
	m.relist(r.node)
	m.gained(r.node)
	if m.firstHold(r.node) != 0 {
		m.vacated.Set(r.node) // what was vacant for this one may be for another
	}
	m.now.work -= workEnd
	if v := m.meta.Get().reserve; v.group == 0 && !v.wanted {
		m.meta.Mut().reserve.wanted = true // the group may need one now, or its next task
	}
}

// unholdGroup takes a hold out of its group's list.
func (m *Machine) unholdGroup(slot uint32, r *holdRec) {
	if r.older != 0 {
		m.holds.Mut(r.older.slot()).newer = r.newer
	}
	if r.newer != 0 {
		m.holds.Mut(r.newer.slot()).older = r.older
		m.holds.Mut(m.newestHold(r.group.slot()).slot()).count--
		return
	}
	m.holdByGroup.Delete(hashGroup(r.group), slot)
	if r.older != 0 {
		m.holds.Mut(r.older.slot()).count = r.count - 1
		m.holdByGroup.Insert(hashGroup(r.group), r.older.slot())
	}
}

// wants is for how many tasks of a group room may be kept: for what must start
// together of a gang, else for what may start.
func (m *Machine) wants(group uint32) uint32 {
	g := m.groups.Get(group)
	j := m.jobs.Get(g.job.slot())
	n := g.ready()
	if g.together != 0 { // only the first is in a queue
		n = g.pending()
	}
	whole := m.startsWhole(group)
	switch {
	case g.ended || j.stopping || g.grows() || whole && n < g.least():
		return 0
	case whole:
		return g.least()
	}
	if w := m.waitOf(j); w.parallel > 0 {
		n = min(n, w.parallel-min(w.parallel, j.live))
	}
	return n
}

// trimHolds ends the newest holds of a group that has fewer tasks to place: some
// found room elsewhere, or the group ends.
func (m *Machine) trimHolds(group uint32) {
	for h := m.newestHold(group); h != 0; h = m.newestHold(group) {
		if n, most := m.holds.Get(h.slot()).count, m.wants(group); n == most || n < most && !m.startsWhole(group) {
			return
		}
		m.unhold(h.slot())
	}
}

// loseHolds ends the holds on a node that takes nothing any more, or is another
// one now. Their groups look for room anew.
func (m *Machine) loseHolds(node uint32) {
	for h := m.firstHold(node); h != 0; h = m.firstHold(node) {
		group := m.holds.Get(h.slot()).group.slot()
		m.unhold(h.slot())
		g := m.groups.Get(group)
		if m.startsWhole(group) {
			m.dropHolds(group)
		}
		if g.together != 0 {
			g = m.groups.Get(m.jobs.Get(g.job.slot()).group.slot())
		}
		if g.bucket != 0 {
			m.look(g.bucket.slot())
		}
	}
}

// dropHolds ends the holds of a gang, and of all groups that start together with
// it.
func (m *Machine) dropHolds(group uint32) {
	m.gather(group)
	for _, x := range m.members {
		for h := m.newestHold(x); h != 0; h = m.newestHold(x) {
			m.unhold(h.slot())
		}
	}
}

// lostDevices ends the holds of devices that take nothing any more.
func (m *Machine) lostDevices(node uint32, devices uint64) {
	for h := m.firstHold(node); h != 0; h = m.holds.Get(h.slot()).next {
		if m.holds.Get(h.slot()).devices&devices != 0 {
			m.loseHolds(node)
			break
		}
	}
	m.relisted(node)
	m.checkReserved(node)
}

// claimDue gives leases to those whose room has become vacant. What the entry's
// tokens do not reach stays due: false.
func (m *Machine) claimDue() bool {
	for node, ok := m.vacated.Next(0); ok; node, ok = m.vacated.Next(node + 1) {
		for h := m.firstVacant(node); h != 0; h = m.firstVacant(node) {
			if m.now.ordinal >= MaxLeasesPerEntry || m.now.work <= 0 || !m.claim(h.slot()) {
				return false
			}
		}
		m.vacated.Clear(node)
	}
	return true
}

// firstVacant returns the oldest hold of a node that nobody else is in any more,
// and that its task may take.
func (m *Machine) firstVacant(node uint32) ref {
	h := m.firstHold(node)
	if h == 0 || m.nodes.Get(node).live >= MaxNodeLeases {
		return 0
	}
	room := m.sched.Free(node)
	for x := h; x != 0; x = m.holds.Get(x.slot()).next {
		m.now.work -= workLook
		if r := m.holds.Get(x.slot()); !r.vacant {
			room.Add(r.devices, r.share, int64(r.cpu), r.memory)
			room.Lend(-m.keptScratch(r))
		}
	}
	for ; h != 0; h = m.holds.Get(h.slot()).next {
		r := m.holds.Get(h.slot())
		if !r.vacant && room.Has(r.devices, r.share, int64(r.cpu), r.memory) && room.Lends(m.keptScratch(r)) {
			return h
		}
	}
	return 0
}

// claim places the task that room was kept for; what starts as a whole once all
// of it is vacant. It reports false when the entry has no tokens left for it.
func (m *Machine) claim(slot uint32) bool {
	r := *m.holds.Get(slot)
	group := r.group.slot()
	if m.startsWhole(group) {
		return m.claimWhole(slot, group)
	}
	fit := r.fit()
	m.unhold(slot)
	if m.grant(group, fit) {
		m.dequeue(group, 1)
	} else {
		m.lookFor(group)
	}
	return true
}

// claimWhole notes that room of a gang, or of groups that start together, is
// vacant, and places them when all of it is.
func (m *Machine) claimWhole(slot, group uint32) bool {
	m.gather(group)
	tasks := uint32(0)
	for _, x := range m.members {
		for h := m.newestHold(x); h != 0; h = m.holds.Get(h.slot()).older {
			m.now.work -= workLook
			if h != refTo(slot) && !m.holds.Get(h.slot()).vacant {
				m.holds.Mut(slot).vacant = true
				return true
			}
		}
		tasks += m.held(x)
	}
	if m.now.ordinal+tasks > MaxLeasesPerEntry && m.now.ordinal > 0 {
		return false
	}
	if !m.attempt(m.claimMembers) { // there is no port for it, or the machine is full: it waits as others do
		m.dropHolds(group)
		m.lookFor(group)
	}
	return true
}

// lookFor has a group tried again whose tenant may have a quota that refused it the
// room that was kept for it, or for which the node closes too soon by now.
func (m *Machine) lookFor(group uint32) {
	g := m.groups.Get(group)
	if g.together != 0 {
		g = m.groups.Get(m.jobs.Get(g.job.slot()).group.slot())
	}
	if m.quotas.Len()+m.owners.schedules.Len() > 0 && g.bucket != 0 {
		m.look(g.bucket.slot())
	}
}

// claimMembers gives leases to the tasks of m.members where room was kept for
// them. After false the caller rolls back.
func (m *Machine) claimMembers() bool {
	for _, group := range m.members {
		m.leaveTogether(group)
		if !m.claimHolds(group) {
			return false
		}
	}
	return true
}

// claimHolds is claimMembers for one of them.
func (m *Machine) claimHolds(group uint32) bool {
	ready, n := m.groups.Get(group).ready(), uint32(0)
	lead, oldest := m.leadHold(group)
	for h := lead; h != 0; n++ {
		r := *m.holds.Get(h.slot())
		m.unhold(h.slot())
		if !m.grant(group, r.fit()) {
			return false
		}
		switch {
		case h != lead:
			h = r.newer
		case lead == oldest:
			h = r.newer
		default:
			h = oldest
		}
	}
	if m.groups.Get(group).gang && !m.openRendezvous(group) {
		return false
	}
	m.gangStarted(group, ready, n)
	return true
}
