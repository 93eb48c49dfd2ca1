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

// raiseBarrier puts the barrier of a gang up that is about to get leases.
func (m *Machine) raiseBarrier(group uint32) {
	if g := m.groups.Get(group); g.gang && g.count > 1 && m.Level() >= LevelPlacement {
		w := m.groups.Mut(group)
		w.held, w.readyBy, w.unready = true, 0, 0
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
	if bound := m.policy.Get().GangReadyMax; bound > 0 {
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

// lift lets the tasks of a gang start whose members are all ready.
func (m *Machine) lift(group uint32) bool {
	g := m.groups.Get(group)
	if !g.held || g.unready > 0 || g.live() == 0 || g.broken != gpuai.CauseNone {
		return false
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
	return true
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

// barrierOver gives up the members of a gang that are not ready in time.
func (m *Machine) barrierOver(group uint32) {
	m.groups.Mut(group).readyBy = 0
	for t := m.groups.Get(group).first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		if l := m.tasks.Get(t.slot()).lease; l != 0 && m.leases.Get(l.slot()).unready() {
			m.revoke(l.slot(), gpuai.CauseNotReady)
		}
	}
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
	case g.held && (!g.gang || g.live() == 0):
		return fmt.Errorf("group %d: a barrier before %d members", g.idx, g.live())
	case g.held && unready == 0 && g.broken == gpuai.CauseNone:
		return fmt.Errorf("group %d: all members are ready, and wait", g.idx)
	case (g.barrier != 0) != (g.readyBy != 0) || g.readyBy != 0 && !g.held:
		return fmt.Errorf("group %d: the bound of its barrier and its timer differ", g.idx)
	}
	return nil
}
