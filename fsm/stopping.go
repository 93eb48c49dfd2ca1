package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
)

// A job of many tasks is stopped in slices: it is out of the queue at once, and
// its tasks are told by this entry and those that follow, as far as the budget of
// each goes. groupRec.stop is the first that is not told yet. Below LevelPlacement
// a stop is one step.

// beginStop takes a group of a job that is being stopped out of the queue. Tasks
// that never had a lease end at once.
func (m *Machine) beginStop(group uint32) {
	m.dequeue(group, 0)
	g := m.groups.Mut(group)
	if fresh := g.count - g.made; fresh > 0 {
		g.n[gpuai.TaskStopped] += fresh
		m.meta.Mut().pending -= uint64(fresh)
	}
	m.timers.clear(&g.timer)
	g.again, g.againTo, g.retryAt = 0, 0, 0
	if g.gang || g.together != 0 { // of others it counts the tasks in their back-off
		g.waiting = 0
	}
	if g.stop = g.first; g.stop != 0 {
		m.halting.Set(group)
	} else {
		m.endGroup(group)
	}
}

// goOnStopping tells tasks of jobs that are being stopped, until so much is left
// of the entry's budget.
func (m *Machine) goOnStopping(left int64) {
	for m.now.work > left {
		group, ok := m.halting.Next(0)
		if !ok {
			return
		}
		m.stopTasks(group, left)
	}
}

// stopOneByOne is goOnStopping after a panic, with each task a step of its own:
// the one that panics is stepped over, since it would again in each entry, and
// those behind it are left to the next.
func (m *Machine) stopOneByOne(left int64) {
	for m.now.work > left {
		group, ok := m.halting.Next(0)
		if !ok {
			return
		}
		if m.guard(func(m *Machine) { m.stopTasks(group, m.now.work-1) }) {
			continue
		}
		if !m.guard(func(m *Machine) { m.stopFrom(group, m.tasks.Get(m.groups.Get(group).stop.slot()).next) }) {
			m.guard(func(m *Machine) { m.stopFrom(group, 0) }) // its list leads nowhere
		}
		return
	}
}

// stopFrom makes t the first task of a group that is not told yet; 0: all are.
func (m *Machine) stopFrom(group uint32, t ref) {
	if m.groups.Mut(group).stop = t; t == 0 {
		m.halting.Clear(group)
	}
}

// stopAgain has the tasks of a job that is being stopped told anew, by the entries
// that follow: some may have been stepped over.
func (m *Machine) stopAgain(job uint32) {
	for r := m.jobs.Get(job).group; r != 0; r = m.groups.Get(r.slot()).next {
		if g := m.groups.Get(r.slot()); !g.ended && g.stop == 0 && g.first != 0 {
			m.groups.Mut(r.slot()).stop = g.first
			m.halting.Set(r.slot())
		}
	}
}

// stopTasks is goOnStopping of one group.
func (m *Machine) stopTasks(group uint32, left int64) {
	t := m.groups.Get(group).stop
	for t != 0 && m.now.work > left {
		m.now.work -= workLook
		next := m.tasks.Get(t.slot()).next
		m.stopTask(t.slot())
		t = next
	}
	g := m.groups.Mut(group)
	if g.stop = t; t == 0 {
		m.halting.Clear(group)
		if g.live() == 0 {
			m.endGroup(group)
		}
	}
}

// stopTask revokes the lease of a task, or ends one that waits.
func (m *Machine) stopTask(task uint32) {
	x := m.tasks.Mut(task)
	switch x.status {
	case gpuai.TaskLeased, gpuai.TaskRunning:
		m.revoke(x.lease.slot(), gpuai.CauseStopped)
	case gpuai.TaskPending:
		if x.qnext = 0; x.timer != 0 {
			m.timers.clear(&x.timer)
			x.retryAt = 0
			m.groups.Mut(x.group.slot()).waiting--
		}
		m.now.work -= workEnd
		m.setTask(task, gpuai.TaskStopped)
	}
}

// checkHalting verifies that all groups of which tasks are still to be told that
// they stop are known.
func (m *Machine) checkHalting() error {
	for s, ok := m.groupSlots.Next(0); ok; s, ok = m.groupSlots.Next(s + 1) {
		g := m.groups.Get(s)
		switch {
		case m.halting.Has(s) != (g.stop != 0):
			return fmt.Errorf("group %d of slot %d has tasks to be stopped, or not, and is marked otherwise", g.idx, s)
		case g.stop != 0 && (g.ended || g.bucket != 0 || !m.jobs.Get(g.job.slot()).stopping):
			return fmt.Errorf("group %d of slot %d has tasks to be stopped, and has ended, or waits, or its job is not being stopped", g.idx, s)
		}
	}
	return nil
}
