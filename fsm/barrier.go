package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
)

// A gang starts behind a barrier: its agents are told to make ready what its
// tasks need (images, devices), report `prepared`, and hold the task. When no
// member is left that is not ready, the tasks may start. A member that is not
// ready within the policy's bound from the first that was is given up, and with it
// the gang; an elastic one may go on without it. What breaks a gang does so
// behind the barrier as anywhere: none of its tasks has run then.
//
// An agent that does not know the barrier reports its task running: it counts as
// ready. groupRec.held says that the barrier is up.
//
// Groups that start together, gangs or not, wait for one another (joint): none is
// let through before all are ready. One that breaks there is placed again and the
// others still wait for it, for the same bound: when that is over and nobody is
// left who could be given up, those that are ready start without it.

// raiseBarrier puts the barrier of a group up that is about to get leases.
func (m *Machine) raiseBarrier(group uint32) {
	if g := m.groups.Get(group); (g.gang && g.count > 1 || g.joint) && m.Level() >= LevelPlacement {
		w := m.groups.Mut(group)
		w.held, w.readyBy, w.unready = true, 0, 0
		m.clocksAnew(w)
	}
}

// clocksAnew gives a group that comes back to those that wait for it the whole
// of the bound.
func (m *Machine) clocksAnew(g *groupRec) {
	for x := m.jobs.Get(g.job.slot()).group; g.joint && x != 0; x = m.groups.Get(x.slot()).next {
		if m.groups.Get(x.slot()).readyBy != 0 {
			m.startClock(x.slot())
		}
	}
}

// unready reports whether a lease's member keeps a barrier that is up from
// lifting.
func (r *leaseRec) unready() bool { return r.live() && !r.prepared }

// prepared notes that a lease's task could start, and waits for its gang.
func (m *Machine) prepared(slot uint32) {
	l := m.leases.Get(slot)
	group := m.tasks.Get(l.task.slot()).group.slot()
	if l.state != gpuai.LeaseGranted || l.prepared || !m.groups.Get(group).held {
		return
	}
	w := m.leases.Mut(slot)
	w.prepared, w.modified = true, m.now.index
	g := m.groups.Mut(group)
	g.unready--
	if m.lift(group) || g.readyBy != 0 || g.broken != gpuai.CauseNone {
		return
	}
	m.startClock(group)
}

// startClock has the members of a group from now on have the policy's bound.
func (m *Machine) startClock(group uint32) {
	if bound := m.policy.Get().GangReadyMax; bound > 0 {
		g := m.groups.Mut(group)
		g.readyBy = max(m.now.time.Add(bound), 1)
		m.timers.set(g.readyBy, timerBarrier, group)
	}
}

// leftBarrier notes that a member whose lease keeps the barrier up does so no
// longer: its task runs, or its lease ends. Without a barrier it does nothing.
func (m *Machine) leftBarrier(slot uint32) {
	l := m.leases.Get(slot)
	group := m.tasks.Get(l.task.slot()).group.slot()
	if m.groups.Get(group).held && l.unready() {
		m.groups.Mut(group).unready--
	}
}

// lift lets the tasks of a group start whose members are all ready, and with
// joint groups those of the others.
func (m *Machine) lift(group uint32) bool {
	g := m.groups.Get(group)
	if g.joint {
		m.now.work -= workLook
	}
	if !m.mayLift(g) {
		return false
	}
	if !g.joint {
		m.letThrough(group)
		return true
	}
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		if m.groups.Get(x.slot()).joint {
			m.groups.Mut(x.slot()).joint = false
			m.letThrough(x.slot())
		}
	}
	return true
}

// mayLift reports whether all are ready whom the members of a group wait for.
func (m *Machine) mayLift(g *groupRec) bool {
	if !g.joint {
		return g.allReady()
	}
	any := false
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		if o := m.groups.Get(x.slot()); o.joint && !o.ended {
			if any = true; !o.allReady() {
				return false
			}
		}
	}
	return any
}

// allReady reports whether each task of a group behind a barrier has a lease, of
// an elastic gang as many as it has, and could start.
func (r *groupRec) allReady() bool {
	return r.held && r.unready == 0 && r.live() > 0 && r.broken == gpuai.CauseNone && (r.gang || r.pending() == 0)
}

// letThrough takes a group's barrier away and tells its members.
func (m *Machine) letThrough(group uint32) {
	g := m.groups.Get(group)
	if !g.held {
		return
	}
	m.dropBarrier(group)
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		x := m.tasks.Get(t.slot()).lease
		if x != 0 && m.leases.Get(x.slot()).state == gpuai.LeaseGranted {
			m.leases.Mut(x.slot()).modified = m.now.index
			m.emit(m.leaseEvent(gpuai.LeaseReady, x.slot()))
		}
	}
}

// dropBarrier takes the barrier of a gang away.
func (m *Machine) dropBarrier(group uint32) {
	if m.groups.Get(group).held {
		g := m.groups.Mut(group)
		m.timers.clear(&g.barrier)
		g.held, g.readyBy, g.unready = false, 0, 0
	}
}

// barrierBroken stops the clock of a gang that is being stopped. Its barrier
// stays, so that none of its tasks starts.
func (m *Machine) barrierBroken(group uint32) {
	if m.groups.Get(group).readyBy != 0 {
		g := m.groups.Mut(group)
		m.timers.clear(&g.barrier)
		g.readyBy = 0
	}
}

// barrierOver gives up the members that are not ready in time, of the group whose
// bound it is and of those that it starts with. Where there are none it waits for
// a group that has no place yet, and for that one once only.
func (m *Machine) barrierOver(group uint32) {
	m.groups.Mut(group).readyBy = 0
	g := m.groups.Get(group)
	if !g.joint {
		m.giveUpLate(group)
		return
	}
	late := false
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		if m.groups.Get(x.slot()).joint {
			late = m.giveUpLate(x.slot()) || late
		}
	}
	if late {
		m.startClock(group)
		return
	}
	m.partGroups(g.job.slot())
}

// partGroups has the groups of a job that wait for one another wait no more.
func (m *Machine) partGroups(job uint32) {
	for x := m.jobs.Get(job).group; x != 0; x = m.groups.Get(x.slot()).next {
		if g := m.groups.Get(x.slot()); g.joint {
			if m.groups.Mut(x.slot()).joint = false; !g.gang {
				m.letThrough(x.slot()) // what runs of it waits for no more
			}
			m.lift(x.slot())
		}
	}
}

// giveUpLate revokes the members of a group that are not ready, if there are any.
func (m *Machine) giveUpLate(group uint32) (any bool) {
	if g := m.groups.Get(group); !g.held || g.unready == 0 {
		return false
	}
	for t := m.groups.Get(group).first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		if l := m.tasks.Get(t.slot()).lease; l != 0 && m.leases.Get(l.slot()).unready() {
			m.revoke(l.slot(), gpuai.CauseNotReady)
			any = true
		}
	}
	return any
}

// rebuildBarriers counts who keeps the barriers up, and starts their clocks.
func (m *Machine) rebuildBarriers() {
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		if group := m.tasks.Get(l.task.slot()).group.slot(); l.unready() && m.groups.Get(group).held {
			m.groups.Mut(group).unready++
		}
	}
	for s, ok := m.groupSlots.Next(0); ok; s, ok = m.groupSlots.Next(s + 1) {
		if g := m.groups.Get(s); g.readyBy != 0 {
			m.timers.set(g.readyBy, timerBarrier, s)
		}
	}
}

// checkBarrier checks what holds of the barrier of a gang.
func (m *Machine) checkBarrier(g *groupRec) error {
	var unready uint32
	for t := g.first; t != 0 && g.held; t = m.tasks.Get(t.slot()).next {
		if l := m.tasks.Get(t.slot()).lease; l != 0 && m.leases.Get(l.slot()).unready() {
			unready++
		}
	}
	switch {
	case unready != g.unready:
		return fmt.Errorf("group %d: %d members are not ready, recorded %d", g.idx, unready, g.unready)
	case g.held && (g.ended || g.gang && g.live() == 0 || !g.gang && !g.joint):
		return fmt.Errorf("group %d: a barrier before %d members", g.idx, g.live())
	case !g.ended && !m.jobs.Get(g.job.slot()).stopping && m.mayLift(g):
		return fmt.Errorf("group %d: all members are ready, and wait", g.idx)
	case (g.barrier != 0) != (g.readyBy != 0) || g.readyBy != 0 && !g.held:
		return fmt.Errorf("group %d: the bound of its barrier and its timer differ", g.idx)
	}
	return nil
}
