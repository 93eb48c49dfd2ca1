package fsm

import (
	"cmp"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// Preemption: what finds no room takes that of jobs whose own priority is lower
// by the policy's gap. Who goes is told by a revoking lease; the room is kept
// (hold.go) until the last of them has left. A job that had to go waits as any
// other does. Since a gap is never 0 for two that may displace one another, it
// never takes the room back from the one that took it.

// unripeRec is a queue of the leases that are still safe, of one priority and of
// tasks that made room as often, in the order in which they were granted: each
// is safe for as long.
type unripeRec struct{ first, last ref }

// A victim is a lease that may have to go.
type victim struct {
	slot     uint32
	alone    bool // of an elastic gang, which goes on without it
	holding  scheduler.Holding
	priority gpuai.Priority
	progress uint64 // that would be lost
	seq      uint64 // of its job
	group    ref
	gang     bool
}

// gap returns by how much a priority must exceed another one to take its room;
// 0 when none is taken.
func (m *Machine) gap() gpuai.Priority {
	if m.Level() < LevelPlacement {
		return 0
	}
	return gpuai.Priority(m.policy.Get().PreemptionGap)
}

// displaceable returns the highest priority that one may displace; 0: none.
func (m *Machine) displaceable(p gpuai.Priority) gpuai.Priority {
	if gap := m.gap(); gap > 0 && p > gap {
		return p - gap
	}
	return 0
}

// displaces returns up to which priority those who wait in a bucket may displace
// others; 0: none, as for an elastic gang that wants to grow.
func (m *Machine) displaces(b *bucketRec) gpuai.Priority {
	if b.grows {
		return 0
	}
	return m.displaceable(b.priority)
}

// Of each priority the leases that end anyway come first, then those of single
// tasks, then gangs, of which more is lost.
const bandsOfPriority = 3

var _ [scheduler.NumBands - bandsOfPriority*(int(gpuai.MaxPriority)+1)]struct{}

// bandsUpTo is one more than the last band of a priority.
func bandsUpTo(p gpuai.Priority) scheduler.Band {
	return bandsOfPriority * (scheduler.Band(p) + 1)
}

func (m *Machine) victimOf(slot uint32) victim {
	l := m.leases.Get(slot)
	group := m.tasks.Get(l.task.slot()).group
	g := m.groups.Get(group.slot())
	j := m.jobs.Get(g.job.slot())
	v := victim{slot: slot, priority: j.priority, seq: j.seq, group: group, gang: g.gang}
	v.holding = scheduler.Holding{
		Band: bandsOfPriority*scheduler.Band(j.priority) + 1, Going: l.state == gpuai.LeaseRevoking,
		Devices: l.devices, Share: l.share, CPU: int64(l.cpu), Memory: l.memory,
	}
	if m.Level() >= LevelTenants {
		v.holding.Scratch = m.scratchOf(l)
	}
	v.progress = m.progress(m.savedSince(l.task.slot(), l.granted), l.held())
	if g.gang {
		v.holding.Band++
		v.holding.Unit = uint32(group)
		since := m.leases.Get(m.tasks.Get(g.first.slot()).lease.slot()).granted
		v.progress = m.progress(m.savedSince(g.first.slot(), since), l.held()) * uint64(g.count)
	}
	if v.holding.Going { // it goes by itself, whatever becomes of its gang
		v.holding.Band, v.holding.Unit = bandsOfPriority*scheduler.Band(j.priority), 0
	}
	return v
}

// progress is the device time that a lease would lose which has held so much
// since an instant.
func (m *Machine) progress(since gpuai.Instant, milli uint64) uint64 {
	return uint64(min(max(m.now.time-since, 0), 1<<32)) * (milli + 1)
}

// worthier orders victims with the most worth sparing first: the higher
// priority, then what would lose more of its work, then the older job. Those that
// go in any case come last.
func (a *victim) worthier(b *victim) int {
	return cmp.Or(
		cmp.Compare(bool8(a.holding.Going), bool8(b.holding.Going)),
		cmp.Compare(b.priority, a.priority), cmp.Compare(b.progress, a.progress),
		cmp.Compare(bool8(a.alone), bool8(b.alone)), cmp.Compare(a.seq, b.seq), cmp.Compare(a.group, b.group), cmp.Compare(a.slot, b.slot),
	)
}

// relist tells the scheduler what may be taken of a node.
func (m *Machine) relist(node uint32) {
	hs := m.holdings[:0]
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		if m.leases.Get(l.slot()).yields {
			hs = append(hs, m.victimOf(l.slot()).holding)
		}
	}
	m.holdings = hs
	if len(hs) > 0 || m.sched.Reclaimable(node) {
		m.now.work -= workPlace + workLook*int64(len(hs))
		m.sched.SetReclaim(node, hs)
	}
}

// relisted is relist for a node whose room changed but not who may have to go. A
// node of which more is held than it has lists nobody until it has room again.
func (m *Machine) relisted(node uint32) {
	if m.nodes.Get(node).yielding > 0 {
		m.relist(node)
	}
}

// protect puts a new lease among those that are safe for a while. Leases of jobs
// that give nothing up are in no such list.
func (m *Machine) protect(slot, job uint32) {
	j := m.jobs.Get(job)
	if !j.preemptible {
		return
	}
	at := m.unripeOf(slot, j.priority)
	m.ripening.Set(at)
	q := m.unripe.Mut(at)
	l := m.leases.Mut(slot)
	if l.older = q.last; q.last != 0 {
		m.leases.Mut(q.last.slot()).newer = refTo(slot)
	} else {
		q.first = refTo(slot)
	}
	q.last = refTo(slot)
}

// unprotect takes a lease out of the list of its priority, if it is in one.
func (m *Machine) unprotect(slot uint32) {
	l := m.leases.Mut(slot)
	j := m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot())
	at := m.unripeOf(slot, j.priority)
	if q := m.unripe.Get(at); l.older == 0 && l.newer == 0 && q.first != refTo(slot) {
		return
	}
	q := m.unripe.Mut(at)
	if l.older != 0 {
		m.leases.Mut(l.older.slot()).newer = l.newer
	} else {
		q.first = l.newer
	}
	if l.newer != 0 {
		m.leases.Mut(l.newer.slot()).older = l.older
	} else {
		q.last = l.older
	}
	if q.first == 0 {
		m.ripening.Clear(at)
	}
	l.older, l.newer = 0, 0
}

// ripen lists the room of leases up to a priority that are no longer safe. It
// reports whether there were any, and whether the budget sufficed.
func (m *Machine) ripen(most gpuai.Priority) (any, all bool) {
	last := ref(0) // the node of the last lease: those granted one after the other are on one
	any, all = m.ripenOn(most, &last)
	if last != 0 {
		m.relist(last.slot())
	}
	return any, all
}

// ripenOn is ripen but for the list of the last node.
func (m *Machine) ripenOn(most gpuai.Priority, last *ref) (any, all bool) {
	for at, ok := m.ripening.Next(0); ok && at < unripeUpTo(most); at, ok = m.ripening.Next(at + 1) {
		for {
			first := m.unripe.Get(at).first
			if first == 0 || m.ripeAt(first.slot()) > m.now.time {
				break
			}
			if m.now.work <= 0 {
				return any, false
			}
			m.unprotect(first.slot())
			l := m.leases.Mut(first.slot())
			l.yields, any = true, true
			m.nodes.Mut(l.node).yielding++
			m.now.work -= workLook
			if *last != 0 && *last != refTo(l.node) {
				m.relist(last.slot())
			}
			*last = refTo(l.node)
		}
	}
	return any, true
}

// ripeAt is when a lease is no longer safe: twice as long from its grant on for
// each time that its task has made room already. So what is displaced again and
// again, and loses its work each time, comes to an end.
func (m *Machine) ripeAt(slot uint32) gpuai.Instant {
	l := m.leases.Get(slot)
	return l.granted.Add(m.policy.Get().PreemptionProtect << m.tasks.Get(l.task.slot()).moved)
}

// maxMoved bounds how often a task's time of safety doubles.
const maxMoved = 7

// unripeOf returns the number of the queue in which a lease is while it is safe.
func (m *Machine) unripeOf(lease uint32, p gpuai.Priority) uint32 {
	return uint32(p)*(maxMoved+1) + uint32(m.tasks.Get(m.leases.Get(lease).task.slot()).moved)
}

// unripeUpTo is one more than the number of the last queue of a priority.
func unripeUpTo(p gpuai.Priority) uint32 { return (uint32(p) + 1) * (maxMoved + 1) }

// ripenDue looks at those again who wait for room that may be taken by now.
func (m *Machine) ripenDue() {
	if any, _ := m.ripen(m.displaceable(m.hungriest())); any {
		m.lookAtStarved()
	}
}

// hungriest returns the highest priority of those who found nothing to take; 0
// when there is nobody.
func (m *Machine) hungriest() gpuai.Priority {
	if _, ok := m.starving.Next(0); !ok {
		return 0
	}
	for p := gpuai.MaxPriority; p > 0; p-- {
		if *m.starvedAt.Get(uint32(p)) > 0 {
			return p
		}
	}
	return 0
}

// ripensAt returns when the next lease that somebody waits for stops being safe.
// It is a whole second, so that one Tick serves many.
func (m *Machine) ripensAt() gpuai.Instant {
	at := gpuai.MaxInstant
	most := m.displaceable(m.hungriest())
	if most == 0 {
		return at
	}
	for q, ok := m.ripening.Next(0); ok && q < unripeUpTo(most); q, ok = m.ripening.Next(q + 1) {
		at = min(at, m.ripeAt(m.unripe.Get(q).first.slot()))
	}
	if at < gpuai.MaxInstant-gpuai.Instant(gpuai.Second) {
		at = (at + gpuai.Instant(gpuai.Second) - 1) / gpuai.Instant(gpuai.Second) * gpuai.Instant(gpuai.Second)
	}
	return at
}

// setStarved notes whether a bucket has a group that found nothing to take.
func (m *Machine) setStarved(bucket uint32, starved bool) {
	b := m.buckets.Get(bucket)
	if b.starved == starved {
		return
	}
	m.buckets.Mut(bucket).starved = starved
	n := m.starvedAt.Mut(uint32(b.priority))
	if starved {
		m.starve(bucket)
		*n++
	} else {
		m.starving.Clear(bucket)
		m.starvingWhole.Clear(bucket)
		*n--
	}
}

// starve marks a bucket that is starved.
func (m *Machine) starve(bucket uint32) {
	m.starving.Set(bucket)
	if m.buckets.Get(bucket).gang > 0 {
		m.starvingWhole.Set(bucket)
	}
}

// lookAtHungry has all tried again who may displace others, under rules that
// have changed.
func (m *Machine) lookAtHungry() {
	if m.Level() < LevelPlacement {
		return
	}
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		if m.now.work -= workLook; m.displaces(m.buckets.Get(b)) > 0 {
			m.look(b)
		} else {
			m.setStarved(b, false)
		}
	}
}

// mayDisplaceOn reports whether a bucket whose first found nothing to take would
// find it on a node that changed.
func (m *Machine) mayDisplaceOn(bucket, node uint32) bool {
	b := m.buckets.Get(bucket)
	most := m.displaces(b)
	if !b.starved || most == 0 {
		return false
	}
	if m.nodes.Get(node).reserved > 0 { // it lists nobody: see displaceGroup
		return (m.reservedFor(b.first) || b.priority > m.priorityOf(m.meta.Get().reserve.group.slot())) &&
			m.anyOf(b, func(sh scheduler.ShapeID) bool { return m.sched.Admits(sh, node) })
	}
	limit := bandsUpTo(most)
	return m.anyOf(b, func(sh scheduler.ShapeID) bool { return m.sched.FitsReclaim(sh, node, limit) })
}

// lookAtDisplacers has those tried again who found nothing to take and would find
// it on a node that changed: once, however many entries it takes to serve it.
func (m *Machine) lookAtDisplacers(node uint32) {
	if m.asked.Has(node) {
		return
	}
	m.asked.Set(node)
	if n := m.nodes.Get(node); n.reserved > 0 || n.yielding > 0 {
		for b, ok := m.starving.Next(0); ok; b, ok = m.starving.Next(b + 1) {
			if m.now.work -= workLook; !m.startsWhole(m.buckets.Get(b).first.slot()) && m.mayDisplaceOn(b, node) {
				m.look(b)
			}
		}
	}
	m.lookAtWholes(node)
}

// workWholes is what it may cost to ask those who start as a whole whether a node
// that changed is of use to them.
const workWholes = WorkPerEntry / 4

// lookAtWholes is lookAtDisplacers for those who start as a whole: the node may
// have just what they lack. Each is asked about a whole domain. Where there are
// more than may be asked, each change of a node begins with another.
func (m *Machine) lookAtWholes(node uint32) {
	from := uint32(m.now.index * 7_919 % uint64(max(m.bucketSlots.Len(), 1)))
	left := m.now.work - workWholes
	ask := func(b uint32) {
		if m.now.work -= workLook; m.mayDisplaceWhole(b, node) {
			m.look(b)
		}
	}
	for b, ok := m.starvingWhole.Next(from); ok && m.now.work > left; b, ok = m.starvingWhole.Next(b + 1) {
		ask(b)
	}
	for b, ok := m.starvingWhole.Next(0); ok && b < from && m.now.work > left; b, ok = m.starvingWhole.Next(b + 1) {
		ask(b)
	}
}

// mayDisplaceWhole reports whether those of a bucket who start as a whole may find
// the rest of what they need now that a node changed.
func (m *Machine) mayDisplaceWhole(bucket, node uint32) bool {
	b := m.buckets.Get(bucket)
	most := m.displaces(b)
	if most == 0 || !m.mayDisplaceOn(bucket, node) && !m.mayServe(b, node) {
		return false
	}
	// What is reserved for it lists nobody, and is not seen to be of use.
	return m.nodes.Get(node).reserved > 0 && m.reservedFor(b.first) || m.mayDisplaceAround(b, node, bandsUpTo(most))
}

// leaving lists the room of a lease that is being revoked: it may be kept for
// somebody, who then needs nobody else's. While nobody waits for such room it is
// not worth its while.
func (m *Machine) leaving(slot uint32) {
	l := m.leases.Mut(slot)
	if _, anybody := m.starving.Next(0); anybody && !l.yields && m.gap() > 0 {
		m.gained(l.node)
		l.yields = true
		m.nodes.Mut(l.node).yielding++
	}
	if l.yields && m.now.emptying != refTo(l.node) {
		m.relist(l.node)
	}
}

// left notes that a lease has left its node.
func (m *Machine) left(slot uint32) {
	l := m.leases.Mut(slot)
	if m.firstHold(l.node) != 0 {
		m.vacated.Set(l.node)
	}
	if full := m.nodes.Get(l.node).live == MaxNodeLeases-1; l.yields || full {
		if l.yields {
			l.yields = false
			m.nodes.Mut(l.node).yielding--
		}
		m.relist(l.node) // a full node lists nothing
	} else {
		m.relisted(l.node)
	}
}

// lookAtStarved has all tried again who found nothing to take, but for those that
// no node could hold if it were empty.
func (m *Machine) lookAtStarved() {
	for b, ok := m.starving.Next(0); ok; b, ok = m.starving.Next(b + 1) {
		if m.now.work -= workLook; m.everHolds(m.buckets.Get(b).first.slot()) {
			m.look(b)
		}
	}
}

// joinedStarving has a bucket looked at that a group joined where others wait:
// they wait for room that is being made, this one has none yet.
func (m *Machine) joinedStarving(bucket uint32) {
	if b := m.buckets.Get(bucket); !b.starved && m.displaces(b) > 0 {
		m.look(bucket)
	}
}

// workDisplace is what may be used to find who is not safe any more when the search
// for room has used up the entry's budget: without it, that would never be known.
const workDisplace = WorkPerEntry / 8

// displace makes room for the groups of a bucket, whose first found none: in
// order, until one finds nothing to take. It reports false when the budget
// ended first.
func (m *Machine) displace(bucket uint32) (final bool) {
	most := m.displaces(m.buckets.Get(bucket))
	if most == 0 || m.buckets.Get(bucket).parked() {
		return true
	}
	lent := max(workDisplace-m.now.work, 0)
	m.now.work += lent
	any, all := m.ripen(most)
	m.now.work -= lent
	if any {
		m.lookAtStarved()
	}
	if !all {
		return false
	}
	for g := m.buckets.Get(bucket).first; g != 0; g = m.groups.Get(g.slot()).qnext {
		// The first is decided whatever it costs: else it would be tried again in each
		// entry, and all others wait behind it.
		if m.now.work -= workLook; m.now.work <= 0 && g != m.buckets.Get(bucket).first {
			return false
		}
		if ok, final := m.displaceGroup(g.slot(), bandsUpTo(most)); !ok {
			if final && !m.buckets.Get(bucket).parked() {
				m.setStarved(bucket, true)
			}
			return final
		}
	}
	m.setStarved(bucket, false)
	return true
}

// displaceOne makes room for one task of a group: it finds the node, decides who
// goes, tells them, and keeps the room.
func (m *Machine) displaceOne(group uint32, limit scheduler.Band) bool {
	return m.displaceOneIn(scheduler.Scope{}, group, limit)
}

// displaceOneIn is displaceOne in a zone, or everywhere.
func (m *Machine) displaceOneIn(sc scheduler.Scope, group uint32, limit scheduler.Band) bool {
	before := m.sched.Work()
	node, ok := m.sched.FindReclaimIn(sc, m.groups.Get(group).shape, limit)
	m.now.work -= int64(m.sched.Work()-before) + workLook
	return ok && m.displaceOn(group, node, limit)
}

// displaceOn makes room for one task of a group on a node, if it can.
func (m *Machine) displaceOn(group, node uint32, limit scheduler.Band) bool {
	if m.holdSlots.Len() >= MaxHolds || m.leaseSlots.Len() >= MaxLeaseRecs || m.taskSlots.Len() >= MaxTaskRecs || !m.mayKeep(node) {
		return false // it could not be placed there
	}
	shape := m.groups.Get(group).shape
	m.listVictims(node, limit)
	fit, ok := m.whoGoes(shape, node)
	if !ok {
		return false
	}
	if !m.payable(group, &fit) {
		return false
	}
	by := m.jobs.Get(m.groups.Get(group).job.slot()).id
	m.now.emptying = refTo(node)
	for i := range m.victims {
		if m.gone[i] {
			m.preempt(&m.victims[i], by)
		}
	}
	m.now.emptying = 0
	m.keep(group, &fit) // lists the node
	return true
}

// listVictims lists what may be taken of a node, the most worth sparing first.
func (m *Machine) listVictims(node uint32, limit scheduler.Band) {
	vs := m.victims[:0]
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		if !m.leases.Get(l.slot()).yields {
			continue
		}
		if v := m.victimOf(l.slot()); v.holding.Band < limit {
			vs = append(vs, v)
		}
	}
	slices.SortFunc(vs, func(a, b victim) int { return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.slot, b.slot)) })
	m.markSurplus(vs)
	slices.SortFunc(vs, func(a, b victim) int { return a.worthier(&b) })
	m.victims, m.holdings = vs, m.holdings[:0]
	for i := range vs {
		m.holdings = append(m.holdings, vs[i].holding)
	}
	m.gone = append(m.gone[:0], make([]bool, len(vs))...)
}

// markSurplus marks, of victims by group, what elastic gangs have on a node beyond their least: they go
// on without it.
func (m *Machine) markSurplus(vs []victim) {
	group, more := ref(0), uint32(0) // of the members that were looked at last
	for i := range vs {
		v := &vs[i]
		l := m.leases.Get(v.slot)
		if !v.gang || v.holding.Going || m.tasks.Get(l.task.slot()).idx == 0 {
			continue
		}
		if v.group != group {
			group, more = v.group, m.surplus(v.group.slot())
		}
		if more > 0 {
			more--
			v.alone, v.holding.Unit, v.progress = true, 0, m.progress(l.granted, l.held())
		}
	}
}

// surplus returns how many tasks a gang could do without now.
func (m *Machine) surplus(group uint32) uint32 {
	g := m.groups.Get(group)
	if !g.elastic() || g.broken != gpuai.CauseNone {
		return 0
	}
	n := uint32(0)
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		x := m.tasks.Get(t.slot())
		holds := x.status == gpuai.TaskLeased || x.status == gpuai.TaskRunning
		if holds && m.leases.Get(x.lease.slot()).state < gpuai.LeaseRevoking {
			n++
		}
	}
	return n - min(n, g.min)
}

// preempt revokes a lease for a job, and with it those of its whole gang.
func (m *Machine) preempt(v *victim, by gpuai.JobID) {
	switch {
	case v.alone: // its gang goes on: nothing is lost
		m.leases.Mut(v.slot).by = by
		m.revoke(v.slot, gpuai.CausePreempted)
		return
	case !v.gang:
		m.makeRoom(v.slot, by)
		return
	}
	for t := m.groups.Get(v.group.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		x := m.tasks.Get(t.slot())
		if x.status != gpuai.TaskLeased && x.status != gpuai.TaskRunning {
			continue
		}
		if l := m.leases.Get(x.lease.slot()); l.state < gpuai.LeaseRevoking {
			m.makeRoom(x.lease.slot(), by)
		}
	}
}

// makeRoom revokes a lease for a job; its task will be safe for longer.
func (m *Machine) makeRoom(lease uint32, by gpuai.JobID) {
	l := m.leases.Mut(lease)
	l.by = by
	task := l.task.slot()
	m.revoke(lease, gpuai.CausePreempted)
	t := m.tasks.Mut(task)
	t.moved = min(t.moved+1, maxMoved)
}
