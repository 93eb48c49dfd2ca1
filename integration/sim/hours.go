package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
)

// openIn reports whether a schedule is open in a minute since 1970.
func openIn(s *gpuai.Schedule, minute int64) bool {
	at := weekMinute(minute + int64(s.UTCOffset))
	for _, w := range s.Windows {
		switch {
		case w.From == w.To, w.From < w.To && w.From <= at && at < w.To, w.From > w.To && (at >= w.From || at < w.To):
			return true
		}
	}
	return len(s.Windows) == 0
}

// openAll reports whether a schedule is open from one minute to another, both included.
func openAll(s *gpuai.Schedule, from, to int64) bool {
	for m := from; m <= to; m++ {
		if !openIn(s, m) {
			return false
		}
	}
	return true
}

// openNone reports whether a schedule is closed all that time.
func openNone(s *gpuai.Schedule, from, to int64) bool {
	for m := from; m <= to; m++ {
		if openIn(s, m) {
			return false
		}
	}
	return true
}

// around returns the first and the last minute that it may be, since leaders' clocks
// differ.
func (b *books) around(ahead gpuai.Duration) (from, to int64) {
	off := gpuai.WallTime(2 * b.w.users.terms.wallOff)
	return minuteOf(b.wall - off), minuteOf(b.wall + off + gpuai.WallTime(ahead))
}

// lasts looks whether a lease that was granted ends before its node's hours do, by the
// run-time limit of its job: without one nothing starts where hours end.
func (b *books) lasts(e *gpuai.Event, s *gpuai.Schedule, limit gpuai.Duration) {
	if len(s.Windows) == 0 {
		return
	}
	now := minuteOf(b.wall)
	last := minuteOf(b.wall + gpuai.WallTime(limit) - 1)
	if limit == 0 {
		last = now + 7*24*60
	}
	if b.w.users.terms.wallOff > 0 { // by which of the clocks it was judged is not known
		first, end := b.around(0)
		if openNone(s, first, end) {
			b.w.check.fail("hours", fmt.Sprintf("index %d: lease %s is granted on node %s, whose hours are over by every clock", e.Index, e.Lease, e.Node))
		}
		return
	}
	if !openAll(s, now, last) {
		b.w.check.fail("hours", fmt.Sprintf("index %d: lease %s may run for %s and is granted on node %s, whose hours %v end before", e.Index, e.Lease, limit, e.Node, s.Windows))
	}
}

// closed looks whether leases on nodes whose hours are over are being revoked.
func (b *books) closed(index uint64) {
	from, to := b.around(0)
	for _, t := range slices.Sorted(maps.Keys(b.leases)) {
		l := b.leases[t]
		n := b.nodes[l.node]
		if !l.revoked && len(n.schedule.Windows) > 0 && openNone(&n.schedule, from, to) {
			b.w.check.fail("hours", fmt.Sprintf("index %d: lease %s goes on on node %s, whose hours %v are over", index, t, l.node, n.schedule.Windows))
		}
	}
}

// drainBound is how long a task may run once its lease is revoked: what it has to save
// its work and to stop, or its lease's time where its agent does not hear of it.
const drainBound = (60 + 5 + 8 + 10 + 10) * sec

// overrun looks for tasks that run on for longer than a drain allows.
func (b *books) overrun() {
	for _, h := range b.w.hosts {
		for _, r := range h.runners {
			l, ok := b.leases[r.token]
			if ok && l.revoked && h.active() && !r.zombie && b.w.now-l.revoking > drainBound {
				b.w.check.fail("hours", fmt.Sprintf("token %s on %s is revoked for %d s and runs", r.token, h.name, (b.w.now-l.revoking)/sec))
			}
		}
	}
}

// usable reports whether nothing but its hours keeps a node from being used.
func usable(n gpuai.Node) bool {
	sick := slices.ContainsFunc(n.Devices, func(d gpuai.Device) bool { return d.Health != gpuai.DeviceHealthy })
	return n.State == gpuai.NodeReady && !n.Drained && !sick
}

// explained looks whether a job that waits while the hours of every node are over is
// told so.
func (b *books) explained(s *server) {
	if !b.w.users.terms.on || s.m.Index() != b.w.check.seen || s.m.QuietUntil() > 0 || len(b.nodes) < b.w.prof.nodes {
		return
	}
	from, to := b.around(0)
	for _, n := range b.nodes {
		if !openNone(&n.schedule, from, to) {
			return
		}
	}
	if !slices.ContainsFunc(s.m.Nodes("", b.w.prof.nodes), usable) {
		return
	}
	asked := 0
	for _, j := range allJobs(s.m) {
		_, quota := b.quotas[j.Tenant]
		if _, budget := b.budgets[j.Tenant]; quota || budget || j.Status.Final() || j.Counts.Pending == 0 || asked == 3 {
			continue
		}
		asked++
		x, _ := s.m.Fork().Explain(j.ID)
		b.w.count(hoursExplained)
		if !slices.ContainsFunc(x.Reasons, func(r gpuai.Reason) bool {
			return r.Code == gpuai.OutsideSchedule || r.Code == gpuai.BackOff || r.Code == gpuai.GangIncomplete
		}) {
			b.w.check.fail("explain", fmt.Sprintf("server %d, index %d: the hours of all nodes are over, and of job %s, which waits, it is said: %+v", s.id, s.m.Index(), j.Name, x.Reasons))
		}
	}
}
