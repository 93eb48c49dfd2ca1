package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
)

// scheduleSlot returns the schedule of a node.
func (m *Machine) scheduleSlot(node uint32) (uint32, bool) {
	if node >= m.owners.scheduleOf.Len() || *m.owners.scheduleOf.Get(node) == 0 {
		return 0, false
	}
	return m.owners.scheduleOf.Get(node).slot(), true
}

// checkHours holds that nodes are open and closed as their schedules say at the clock
// up to which they were followed, and that those without one always may be used.
func (m *Machine) checkHours() error {
	h := m.owners.hours.Get()
	for s := range m.nodes.Len() {
		n := m.nodes.Get(s)
		at, has := m.scheduleSlot(s)
		if !has {
			if n.outside || n.closes != 0 {
				return fmt.Errorf("node %s has no schedule and is outside of it", m.nodeName(s))
			}
			continue
		}
		r := m.owners.schedules.Get(at)
		sched := r.schedule()
		open, until := sched.At(h.clock)
		if r.node != s || sched.Validate() != nil {
			return fmt.Errorf("schedule %d is not that of node %s", at, m.nodeName(s))
		}
		if h.next <= h.clock {
			continue // not all of them have been followed yet
		}
		if open && !n.outside && (until < gpuai.MaxWallTime) != (n.closes != 0) || !open && !n.outside || until < h.next {
			return fmt.Errorf("node %s: its schedule is open %v until %d at %d, it is outside %v and closes at %d", m.nodeName(s), open, until, h.clock, n.outside, n.closes)
		}
		if open && !n.outside && n.closes != 0 && gpuai.WallTime(n.closes)*gpuai.WallTime(gpuai.Minute) != until {
			return fmt.Errorf("node %s closes at minute %d, its schedule at %d", m.nodeName(s), n.closes, until)
		}
		for l := n.first; l != 0 && n.outside; l = m.leases.Get(l.slot()).next {
			if x := m.leases.Get(l.slot()); x.state != gpuai.LeaseRevoking {
				return fmt.Errorf("node %s is outside of its schedule, and its lease %d goes on", m.nodeName(s), x.token)
			}
		}
	}
	return nil
}

// ownerFrame reads a frame about contributors; false for another.
func (m *loader) ownerFrame(section uint8, f rows) bool {
	switch section {
	case secSchedules:
		readRows(f, m.owners.schedules, MaxNodes)
	case secHours:
		m.owners.hours.Mut().get(f.rd)
	case secEarners:
		readRows(f, m.owners.earners, MaxStrings)
	default:
		return false
	}
	return true
}

// rebuildOwners finds schedules by their nodes, and accounts by their contributors.
func (m *Machine) rebuildOwners() error {
	for s := range m.owners.schedules.Len() {
		r := m.owners.schedules.Get(s)
		if _, twice := m.scheduleSlot(r.node); twice || r.node >= m.nodes.Len() {
			return errSnapshot("a schedule is of no node, or one of two")
		}
		m.owners.scheduleOf.Grow(r.node + 1)
		*m.owners.scheduleOf.Mut(r.node) = refTo(s)
	}
	for s := range m.owners.earners.Len() {
		name := m.owners.earners.Get(s).name
		if _, twice := m.earnerSlot(name); twice || name == 0 || name >= m.strs.Len() {
			return errSnapshot("an account is of no contributor, or one of two")
		}
		m.owners.earnerOf.Grow(name + 1)
		*m.owners.earnerOf.Mut(name) = refTo(s)
	}
	return nil
}

// writeOwners writes what is known of contributors, where there is something.
func (m *Machine) writeOwners(f *frameWriter) {
	writeRows(f, secSchedules, m.owners.schedules)
	if *m.owners.hours.Get() != (hoursRec{}) {
		f.begin(secHours)
		f.buf = m.owners.hours.Get().put(f.buf)
		f.added()
		f.end()
	}
	writeRows(f, secEarners, m.owners.earners)
}
