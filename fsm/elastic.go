package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// An elastic gang runs with any number of tasks from its least to its count.
// What it has no lease for while it runs are tasks that wait to grow: they are
// ready, and in a bucket of those that grow, or counted as waiting while it may
// not grow: in its back-off, when it breaks, and once a member has succeeded.

// grow has a gang that runs with fewer tasks than it wants wait for more, when
// it may.
func (m *Machine) grow(group uint32) {
	if !m.groups.Get(group).elastic() {
		return
	}
	g := m.groups.Mut(group)
	if g.ended || g.live() == 0 || g.broken != gpuai.CauseNone || g.retryAt != 0 || g.n[gpuai.TaskSucceeded] > 0 {
		return
	}
	g.waiting = 0
	if n := g.ready(); n > 0 {
		m.enqueue(group, n)
	}
}

// stopGrowing has a gang no longer wait for more tasks. Of those that are ready
// its bucket does not count the newest ones: they have just lost their leases.
func (m *Machine) stopGrowing(group, newest uint32) {
	g := m.groups.Mut(group)
	if n := g.ready(); n > 0 {
		g.waiting += n
		m.dequeue(group, n-newest)
	}
}

// growGang gives leases to tasks of a running elastic gang, as many as fit.
func (m *Machine) growGang(group uint32) (placed, final bool) {
	g := m.groups.Get(group)
	for n := g.ready(); n > 0; n-- {
		if m.now.ordinal >= MaxLeasesPerEntry || m.now.work <= 0 {
			return false, false
		}
		fit, ok := m.growFit(group, n)
		if !ok || !m.grant(group, fit) {
			return false, true
		}
		m.dequeue(group, 1)
	}
	return true, true
}

// growFit finds the place of one task more: where the gang must be, and near
// its first task when it wants to be.
func (m *Machine) growFit(group, rest uint32) (scheduler.Fit, bool) {
	g := m.groups.Get(group)
	node := m.leases.Get(m.tasks.Get(g.first.slot()).lease.slot()).node
	p := scheduler.Picker{Scope: m.sched.ScopeOf(g.same, node), Near: g.near}
	if g.near != gpuai.TopologyNone {
		beside := scheduler.Picker{Scope: m.sched.ScopeOf(g.near, node)}
		fit, ok := m.pick(&beside, g.shape, rest)
		if ok && (g.same == gpuai.TopologyNone || m.sched.ScopeOf(g.same, fit.Node) == p.Scope) {
			return fit, true
		}
	}
	return m.pick(&p, g.shape, rest)
}

// shrinksBy reports whether a gang goes on without a member that ended by cause:
// without one that was lost or taken away, but not without its first, where the
// others meet, nor when one failed or ran too long.
func (m *Machine) shrinksBy(task uint32, cause gpuai.LeaseCause) bool {
	t := m.tasks.Get(task)
	g := m.groups.Get(t.group.slot())
	switch cause {
	case gpuai.CauseExpired, gpuai.CauseFenced, gpuai.CauseNodeRestarted, gpuai.CauseGPU, gpuai.CauseDrained, gpuai.CausePreempted, gpuai.CauseNotReady:
		return g.elastic() && g.broken == gpuai.CauseNone && t.idx != 0 &&
			g.live() > 0 && g.live()+g.n[gpuai.TaskSucceeded] >= g.min
	}
	return false
}

// shrink lets a gang go on without a member whose task waits to grow again: at
// once when it was taken away, after a back-off when it was lost. That is no
// restart and counts no attempt.
func (m *Machine) shrink(task uint32, cause gpuai.LeaseCause) {
	group := m.tasks.Get(task).group.slot()
	m.putAgain(task)
	m.requeued(task)
	g := m.groups.Mut(group)
	if restartOn(cause) != 0 {
		g.retryAt = m.now.time.Add(backOff(gpuai.Duration(g.backoff), g.shrinks))
		g.shrinks = min(g.shrinks+1, 1_000)
		m.timers.set(g.retryAt, timerGroup, group)
	}
	if g.retryAt != 0 || g.n[gpuai.TaskSucceeded] > 0 {
		m.stopGrowing(group, 1)
		return
	}
	m.enqueue(group, 1)
}

// gangDone ends an elastic gang whose members have succeeded: the tasks that it
// did without are stopped.
func (m *Machine) gangDone(group uint32) {
	m.groups.Mut(group).done = true
	m.gangEnd(group, gpuai.TaskStopped)
}

// spared counts the stopped tasks of a job that it did without: they do not make
// it a stopped one.
func (m *Machine) spared(job uint32) (n uint32) {
	for g := m.jobs.Get(job).group; g != 0; g = m.groups.Get(g.slot()).next {
		if r := m.groups.Get(g.slot()); r.done {
			n += r.n[gpuai.TaskStopped]
		}
	}
	return n
}
