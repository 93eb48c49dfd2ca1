package fsm

import "github.com/gpuai/gpuai"

// placeGang gives leases to all tasks of a gang or to none.
func (m *Machine) placeGang(group uint32) (placed, final bool) {
	g := *m.groups.Get(group)
	if m.now.ordinal+g.count > MaxLeasesPerEntry {
		return false, m.now.ordinal == 0 // the next entry has tokens for it
	}
	before := m.sched.Work()
	room := m.sched.Capacity(g.shape, g.count)
	m.now.work -= int64(m.sched.Work()-before) + workLook
	if room < g.count {
		return false, true
	}
	mark, now := m.sp.Mark(), m.now
	events := len(m.out.Events)
	for range g.count {
		fit, ok := m.find(g.shape)
		if ok {
			ok = m.grant(group, fit)
		}
		if !ok {
			m.sp.RollbackTo(mark)
			now.work = m.now.work // spent all the same
			m.now = now
			m.out.Events = m.out.Events[:events]
			return false, true
		}
	}
	if !m.openRendezvous(group) {
		m.sp.RollbackTo(mark)
		now.work = m.now.work
		m.now = now
		m.out.Events = m.out.Events[:events]
		return false, true
	}
	m.dequeue(group, g.count)
	return true, true
}

// openRendezvous lends the gang a port on the node of its rank 0.
func (m *Machine) openRendezvous(group uint32) bool {
	l := m.leases.Mut(m.tasks.Get(m.groups.Get(group).first.slot()).lease.slot())
	n := m.nodes.Mut(l.node)
	if n.portCount == 0 {
		return true // the node lends none: its gangs find each other by themselves
	}
	l.port = n.lendPort()
	return l.port != 0
}

// gangMemberLost notes that a gang lost a member: the others are stopped, and
// once all have ended the gang is placed again as one, or ends.
func (m *Machine) gangMemberLost(task uint32, cause gpuai.LeaseCause) {
	group := m.tasks.Get(task).group.slot()
	m.setTask(task, gpuai.TaskPending)
	g := m.groups.Mut(group)
	g.waiting++ // until the gang settles
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
	case gpuai.CauseExpired, gpuai.CauseFenced, gpuai.CauseNodeRestarted, gpuai.CauseRestored:
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
	}
}

// gangEnd ends a gang: members that wait take the given state.
func (m *Machine) gangEnd(group uint32, s gpuai.TaskStatus) {
	g := m.groups.Mut(group)
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
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		if m.tasks.Get(t.slot()).status != gpuai.TaskPending {
			m.setTask(t.slot(), gpuai.TaskPending)
		}
		m.putAgain(t.slot())
		m.requeued(t.slot())
	}
	g.broken, g.waiting = gpuai.CauseNone, g.count
	if on == 0 {
		m.gangReady(group)
		return
	}
	g.retryAt = m.now.time.Add(backOff(gpuai.Duration(g.backoff), g.used))
	g.used++
	m.jobs.Mut(g.job.slot()).restarts++
	m.timers.set(g.retryAt, timerGroup, group)
}

// gangBackOffOver makes a gang ready whose back-off ended.
func (m *Machine) gangBackOffOver(group uint32) {
	if g := m.groups.Mut(group); !g.ended {
		g.retryAt = 0
		m.gangReady(group)
	}
}

func (m *Machine) gangReady(group uint32) {
	g := m.groups.Mut(group)
	g.waiting = 0
	m.enqueue(group, g.count)
}
