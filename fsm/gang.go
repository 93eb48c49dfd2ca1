package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// maxTries is how many domains are tried for several groups at a time, and how
// many zones for a gang: which of them have the room for one gang is known
// beforehand, see scheduler.Search.
const maxTries = 16

// triedTasks is how many tasks may be placed and taken back by the tries for one
// gang, or the groups that start together, beyond two.
const triedTasks = 8_192

// placeGang gives leases to all tasks of a gang or to none; of an elastic one
// to as many as there is room for, if they are enough.
func (m *Machine) placeGang(group uint32) (placed, final bool) {
	g := m.groups.Get(group)
	if m.now.ordinal+g.count > MaxLeasesPerEntry {
		return false, m.now.ordinal == 0 // the next entry has tokens for it
	}
	m.members = append(m.members[:0], group)
	return m.startTogether(g.same), true
}

// startTogether gives leases to the groups in m.members, or changes nothing.
func (m *Machine) startTogether(same gpuai.Topology) bool {
	m.needs = m.needs[:0]
	for _, group := range m.members {
		g := m.groups.Get(group)
		least := g.least()
		if room := m.capacity(g.shape, least); room < least && room+m.reservedRoom(group) < least {
			return false
		}
		m.needs = append(m.needs, scheduler.Members{Shape: g.shape, Count: g.count, Min: g.least()})
	}
	if m.reservedFor(m.now.group) { // what is kept for it the index does not count
		if filled := m.fillReserved(same); filled || same == gpuai.TopologyNone {
			return filled
		}
	}
	x := scheduler.Search{Level: same, Needs: m.needs}
	for range m.tries() {
		before := m.sched.Work()
		sc, ok := m.sched.Next(&x)
		m.now.work -= int64(m.sched.Work() - before)
		if !ok {
			return false
		}
		if m.tryFill(sc) {
			return true
		}
	}
	return false
}

// tries is how many domains are tried for m.members: fewer for many tasks, each of
// which a try may place and take back.
func (m *Machine) tries() int {
	tasks := 0
	for _, group := range m.members {
		tasks += int(m.groups.Get(group).count)
	}
	return min(max(triedTasks/max(tasks, 1), 2), maxTries)
}

// tryFill gives leases to the groups in m.members within a scope, or changes
// nothing.
func (m *Machine) tryFill(sc scheduler.Scope) bool {
	return m.attempt(func() bool { return m.fillAll(sc) })
}

// fillReserved is tryFill in the domain of the reserved nodes, and on these
// first. The reservation ends with it.
func (m *Machine) fillReserved(same gpuai.Topology) bool {
	return m.attempt(func() bool {
		m.now.onReserved = true
		if !m.fillAll(m.reservedScope(same)) {
			return false
		}
		m.now.onReserved = false
		m.unreserve()
		return true
	})
}

// attempt takes back all that f did when f reports false, but for the work: that
// is spent all the same.
func (m *Machine) attempt(f func() bool) bool {
	mark, now, events := m.sp.Mark(), m.now, len(m.out.Events)
	if f() {
		return true
	}
	m.sp.RollbackTo(mark)
	now.work = m.now.work
	m.now = now
	m.out.Events = m.out.Events[:events]
	return false
}

// capacity bounds how many tasks of a shape could start now.
func (m *Machine) capacity(sh scheduler.ShapeID, limit uint32) uint32 {
	before := m.sched.Work()
	room := m.sched.Capacity(sh, limit)
	if room >= limit && m.Level() >= LevelPlacement { // what it costs is in the logs before
		room = m.sched.RoomFor(sh, limit)
	}
	m.now.work -= int64(m.sched.Work()-before) + workLook
	return room
}

// fillAll gives leases to the groups in m.members within a scope. After false
// the caller rolls back.
func (m *Machine) fillAll(sc scheduler.Scope) bool {
	for _, group := range m.members {
		if !m.fill(group, sc) {
			return false
		}
	}
	return true
}

// fill gives leases to the tasks of one group, and takes it out of the queue; an
// elastic gang that has room for more joins those that grow.
func (m *Machine) fill(group uint32, sc scheduler.Scope) bool {
	m.leaveTogether(group)
	m.raiseBarrier(group)
	m.fits = m.fits[:0]
	if m.Level() >= LevelTenants && m.groups.Get(group).gang {
		return m.fillMeeting(group, sc)
	}
	return m.fillRanks(group, sc)
}

// fillRanks is fill for those of its tasks that are not in m.fits already.
func (m *Machine) fillRanks(group uint32, sc scheduler.Scope) bool {
	g := *m.groups.Get(group)
	p := scheduler.Picker{Scope: sc, Near: g.near}
	m.now.reserved = 0
	n := uint32(len(m.fits))
	ready := g.ready() + n
	for ; n < ready; n++ {
		fit, ok := m.pick(&p, g.shape, ready-n)
		if !ok || !m.fillOne(group, fit) {
			break
		}
	}
	if least := g.least(); n < ready && (!g.elastic() || n < least) || g.gang && !m.openRendezvous(group) {
		return false
	}
	m.gangStarted(group, ready, n)
	return true
}

// gangStarted takes a gang out of the queue of which n of its ready tasks have
// got leases; an elastic one that wants more joins those that grow.
func (m *Machine) gangStarted(group, ready, n uint32) {
	m.groups.Mut(group).waiting = ready - n // out of the bucket, whatever is left
	m.dequeue(group, ready)
	m.grow(group)
}

// pick finds the place of the next of rest tasks.
func (m *Machine) pick(p *scheduler.Picker, sh scheduler.ShapeID, rest uint32) (scheduler.Fit, bool) {
	if m.now.onReserved {
		if fit, ok := m.findReserved(sh); ok {
			return fit, true
		}
	}
	if p.Scope.Everywhere() && (p.Near == gpuai.TopologyNone || m.reservedFor(m.now.group)) {
		return m.find(sh)
	}
	before := m.sched.Work()
	fit, ok := m.sched.Pick(p, sh, rest)
	m.now.work -= int64(m.sched.Work()-before) + workLook
	return fit, ok
}

// wakes reports whether a node that gained room may be what the first group of
// a bucket waits for.
func (m *Machine) wakes(b *bucketRec, node uint32) bool {
	return m.anyOf(b, func(sh scheduler.ShapeID) bool {
		_, fits := m.sched.FitsOn(sh, node)
		return fits
	})
}

// gangMemberLost notes that a gang lost a member: the others are stopped, and
// once all have ended the gang is placed again as one, or ends.
func (m *Machine) gangMemberLost(task uint32, cause gpuai.LeaseCause) {
	group := m.tasks.Get(task).group.slot()
	m.setTask(task, gpuai.TaskPending)
	if m.shrinksBy(task, cause) {
		m.shrink(task, cause)
		return
	}
	g := m.groups.Mut(group)
	if g.elastic() {
		m.stopGrowing(group, 1)
		m.timers.clear(&g.timer)
		g.retryAt = 0
	} else {
		g.waiting++ // until the gang settles
	}
	m.barrierBroken(group)
	first := g.broken == gpuai.CauseNone
	if worse(cause, g.broken) {
		g.broken = cause
	}
	if !first { // the others are being stopped, and none gets a lease before the gang has settled
		if m.Level() < LevelPlacement { // what a look at each cost is in the log
			m.now.work -= workLook * int64(g.made)
		}
		m.gangSettle(group)
		return
	}
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		x := m.tasks.Get(t.slot())
		if x.status == gpuai.TaskLeased || x.status == gpuai.TaskRunning {
			m.revoke(x.lease.slot(), gpuai.CauseGang)
		}
	}
	m.gangSettle(group)
}

// worse reports whether cause a says more of why a gang broke than b: what ends
// it for good first, then what counts an attempt, then the rest.
func worse(a, b gpuai.LeaseCause) bool { return severity(a) > severity(b) }

func severity(c gpuai.LeaseCause) int {
	switch c {
	case gpuai.CauseNone:
		return 0
	case gpuai.CauseGang:
		return 1
	case gpuai.CauseDrained, gpuai.CausePreempted:
		return 2
	case gpuai.CauseExpired, gpuai.CauseFenced, gpuai.CauseNodeRestarted, gpuai.CauseRestored, gpuai.CauseNotReady:
		return 3
	case gpuai.CauseGPU:
		return 4
	case gpuai.CauseFailed:
		return 5
	default:
		return 6
	}
}

// gangSettle decides what becomes of a gang whose members have all ended.
func (m *Machine) gangSettle(group uint32) {
	g := m.groups.Get(group)
	if g.elastic() && g.n[gpuai.TaskSucceeded] > 0 && !g.ended {
		m.stopGrowing(group, 0) // it is about to end
	}
	if g.ended || g.live() > 0 {
		return
	}
	switch {
	case m.jobs.Get(g.job.slot()).stopping || g.n[gpuai.TaskStopped] > 0:
		m.gangEnd(group, gpuai.TaskStopped)
	case g.broken != gpuai.CauseNone:
		m.gangAgain(group)
	case g.pending() == 0:
		m.endGroup(group)
	case g.elastic() && g.n[gpuai.TaskSucceeded] > 0:
		m.gangDone(group)
	}
}

// gangEnd ends a gang: members that wait take the given state, those that never
// ran are stopped.
func (m *Machine) gangEnd(group uint32, s gpuai.TaskStatus) {
	g := m.groups.Mut(group)
	if fresh := g.count - g.made; fresh > 0 && !m.jobs.Get(g.job.slot()).stopping {
		g.n[gpuai.TaskStopped] += fresh
		m.meta.Mut().pending -= uint64(fresh)
	}
	m.clearAgain(group)
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		if m.tasks.Get(t.slot()).status == gpuai.TaskPending {
			m.setTask(t.slot(), s)
		}
	}
	g.waiting, g.broken = 0, gpuai.CauseNone
	m.endGroup(group)
}

// gangAgain places a broken gang again as one, now or after its back-off, or
// ends it. Members that had succeeded run again with the others.
func (m *Machine) gangAgain(group uint32) {
	g := m.groups.Mut(group)
	cause := g.broken
	on := restartOn(cause)
	if g.isOver(cause, g.used) {
		m.gangEnd(group, finalStatus(cause))
		return
	}
	m.clearAgain(group)
	m.dropBarrier(group)
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		if m.tasks.Get(t.slot()).status != gpuai.TaskPending {
			m.setTask(t.slot(), gpuai.TaskPending)
		}
		m.putAgain(t.slot())
		m.requeued(t.slot())
	}
	g.broken, g.waiting, g.shrinks = gpuai.CauseNone, g.count, 0
	if on == 0 {
		m.gangReady(group)
		return
	}
	g.retryAt = m.now.time.Add(backOff(gpuai.Duration(g.backoff), g.used))
	g.used++
	m.jobs.Mut(g.job.slot()).restarts++
	m.timers.set(g.retryAt, timerGroup, group)
}

// clearAgain empties the list of the tasks of an elastic gang that are to be
// placed again. That of any other gang is empty while it runs.
func (m *Machine) clearAgain(group uint32) {
	g := m.groups.Mut(group)
	for t := g.again; t != 0; {
		x := m.tasks.Mut(t.slot())
		t, x.qnext = x.qnext, 0
	}
	g.again, g.againTo = 0, 0
}

// gangBackOffOver makes a gang ready whose back-off ended, or has it grow again.
func (m *Machine) gangBackOffOver(group uint32) {
	if g := m.groups.Mut(group); !g.ended {
		g.retryAt = 0
		if g.live() > 0 {
			m.grow(group)
			return
		}
		m.gangReady(group)
	}
}

func (m *Machine) gangReady(group uint32) {
	g := m.groups.Mut(group)
	g.waiting = 0
	m.enqueue(group, g.count)
}
