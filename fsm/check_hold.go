package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// checkHolds verifies that room is kept only for tasks that wait, on nodes that
// take them, that what is free is what neither leases nor holds have, and that
// what may be taken is listed.
func (m *Machine) checkHolds() error {
	ofGroup, ofNode := uint32(0), uint32(0)
	for s, ok := m.holdSlots.Next(0); ok; s, ok = m.holdSlots.Next(s + 1) {
		if m.holds.Get(s).newer != 0 {
			continue
		}
		group, n := m.holds.Get(s).group.slot(), uint32(0)
		for h := refTo(s); h != 0; h = m.holds.Get(h.slot()).older {
			n++
		}
		if most := m.wants(group); m.newestHold(group) != refTo(s) || m.held(group) != n || n > most || m.startsWhole(group) && n != most {
			return fmt.Errorf("room is kept for %d tasks of a group, which counts %d and may have it for %d", n, m.held(group), most)
		}
		if err := m.checkWholeHolds(group); err != nil {
			return err
		}
		ofGroup += n
	}
	if ofGroup != m.holdSlots.Len() {
		return fmt.Errorf("%d holds, %d are listed by groups", m.holdSlots.Len(), ofGroup)
	}
	for s := range m.nodes.Len() {
		n, err := m.checkRoom(s)
		if err != nil {
			return fmt.Errorf("node %s: %w", m.nodeName(s), err)
		}
		ofNode += n
	}
	if ofNode != m.holdSlots.Len() {
		return fmt.Errorf("%d holds, %d are listed by nodes", m.holdSlots.Len(), ofNode)
	}
	return m.checkSafe()
}

// checkWholeHolds verifies that room is kept for all that starts together with a
// group, in one domain when it must be.
func (m *Machine) checkWholeHolds(group uint32) error {
	g := m.groups.Get(group)
	var sc scheduler.Scope
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		if g.together == 0 && x != refTo(group) {
			continue
		}
		if m.held(x.slot()) == 0 {
			return fmt.Errorf("room is kept for group %d, and none for one that starts with it", g.idx)
		}
		for h := m.newestHold(x.slot()); h != 0 && m.startsWhole(group); h = m.holds.Get(h.slot()).older {
			at := m.sched.ScopeOf(g.same, m.holds.Get(h.slot()).node)
			if sc == (scheduler.Scope{}) {
				sc = at
			}
			if at != sc {
				return fmt.Errorf("room is kept for group %d in two domains", g.idx)
			}
		}
	}
	return nil
}

// checkRoom verifies what is free of a node, and returns its holds.
func (m *Machine) checkRoom(node uint32) (holds uint32, err error) {
	body := m.nodeBody(node)
	room := m.sched.Free(node)
	var hs []scheduler.Holding
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		r := m.leases.Get(l.slot())
		room.Add(r.devices, r.share, int64(r.cpu), r.memory)
		if r.yields {
			hs = append(hs, m.victimOf(l.slot()).holding)
		}
	}
	n := m.nodes.Get(node)
	if n.yielding != uint32(len(hs)) {
		return 0, fmt.Errorf("%d leases may have to go, counted %d", len(hs), n.yielding)
	}
	last := ref(0)
	for h := m.firstHold(node); h != 0; h = m.holds.Get(h.slot()).next {
		r := m.holds.Get(h.slot())
		last = h
		if n := m.nodes.Get(node); r.node != node || !n.open() && n.live < MaxNodeLeases {
			return 0, fmt.Errorf("room is kept on it, for node %d", r.node)
		}
		room.Add(r.devices, r.share, int64(r.cpu), r.memory)
		holds++
	}
	if n.kept != holds || n.lastKept != last {
		return 0, fmt.Errorf("%d holds, counted %d, the last is %d and not %d", holds, n.kept, last, n.lastKept)
	}
	whole := uint64(1)<<len(body.spec.Devices) - 1
	if !room.Has(whole, 0, int64(body.spec.CPU), int64(body.spec.Memory)) || room.Has(0, 0, int64(body.spec.CPU)+1, 0) {
		return 0, fmt.Errorf("what is free, leased and kept is not what it has: %+v", room)
	}
	if m.vacated.Has(node) && holds > 0 && m.firstVacant(node) != 0 && m.now.ordinal < MaxLeasesPerEntry && m.now.work > 0 {
		return 0, fmt.Errorf("room is vacant and not given to whom it is kept for")
	}
	return holds, m.sched.CheckReclaim(node, hs)
}

// checkSafe verifies the lists of leases that are still safe, and of buckets
// that found nothing to take.
func (m *Machine) checkSafe() error {
	safe := 0
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		j := m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot())
		if j.preemptible && !l.yields && l.state < gpuai.LeaseRevoking {
			safe++
		}
		if l.yields && !l.live() {
			return fmt.Errorf("lease %d has ended and is listed as one that may have to go", l.token)
		}
	}
	for p := range m.unripe.Len() {
		if m.ripening.Has(p) != (m.unripe.Get(p).first != 0) {
			return fmt.Errorf("queue %d of leases that are safe is empty, or not, and marked otherwise", p)
		}
		last := gpuai.Token(0)
		for at := m.unripe.Get(p).first; at != 0; at = m.leases.Get(at.slot()).newer {
			l := m.leases.Get(at.slot())
			j := m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot())
			if safe--; l.token <= last || l.state >= gpuai.LeaseRevoking || m.unripeOf(at.slot(), j.priority) != p {
				return fmt.Errorf("lease %d is out of order among those of queue %d that are safe", l.token, p)
			}
			last = l.token
		}
	}
	if safe != 0 {
		return fmt.Errorf("%d leases are safe and not in the lists", safe)
	}
	for n, ok := m.asked.Next(0); ok; n, ok = m.asked.Next(n + 1) {
		if !m.dirty.Has(n) {
			return fmt.Errorf("displacers were asked of node %d, which gained nothing", n)
		}
	}
	counts := make([]uint32, m.starvedAt.Len())
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		r := m.buckets.Get(b)
		if (r.starved && r.gang > 0) != m.starvingWhole.Has(b) {
			return fmt.Errorf("bucket %d is starved: %v, and marked otherwise among those that start as a whole", b, r.starved)
		}
		if r.starved != m.starving.Has(b) {
			return fmt.Errorf("bucket %d is starved: %v, marked otherwise", b, r.starved)
		}
		if r.starved {
			counts[r.priority]++
		}
	}
	for p, n := range counts {
		if *m.starvedAt.Get(uint32(p)) != n {
			return fmt.Errorf("%d buckets of priority %d are starved, %d are counted", n, p, *m.starvedAt.Get(uint32(p)))
		}
	}
	return nil
}
