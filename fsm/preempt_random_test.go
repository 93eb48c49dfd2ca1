package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

func newPreemptWalk(t testing.TB, seed uint64) *walk {
	w := newWalk(t, seed)
	w.preempts, w.ports = true, uint16(seed%4)
	w.do(&SetFeatureLevel{Level: MaxLevel})
	p := gpuai.DefaultPolicy()
	p.PreemptionGap, p.PreemptionProtect = 15, gpuai.Duration(seed%3)*10*gpuai.Second
	w.do(&SetPolicy{Policy: p})
	for _, n := range walkNodes {
		w.node(n, 4)
		w.incs[n], _, _ = w.m.NodeLive(gpuai.NodeID(n))
	}
	return w
}

// priorityOf returns the priority of a job that is kept; 0 of another.
func (w *walk) priorityOf(id gpuai.JobID) gpuai.Priority {
	j, _ := w.m.Job(id, false)
	return j.Priority
}

// watched applies one random step and holds each preemption to the rule: the
// displacer's priority is above the victim's, by the gap of the policy.
func (w *walk) watched(gap gpuai.Priority, step func() *Output) (preempted int) {
	w.t.Helper()
	prio := map[gpuai.JobID]gpuai.Priority{}
	for _, id := range w.ids {
		prio[id] = w.priorityOf(id)
	}
	out := step()
	for _, e := range out.Events {
		if e.Kind != gpuai.LeaseRevokingEvent || e.Cause != gpuai.CausePreempted {
			continue
		}
		preempted++
		victim, by := max(prio[e.Job], w.priorityOf(e.Job)), max(prio[e.By], w.priorityOf(e.By))
		if by == 0 || victim == 0 || by < victim+gap {
			w.t.Fatalf("entry %d: a job of priority %d is displaced by one of %d, the gap is %d", w.index, victim, by, gap)
		}
	}
	return preempted
}

// settle has agents end what is revoked, and time pass, until nothing is revoked
// any more.
func (w *walk) settle(gap gpuai.Priority) (preempted int) {
	w.t.Helper()
	for round := 0; ; round++ {
		var cmds []Command
		for next := uint32(0); ; {
			var ls []gpuai.Lease
			ls, next = w.m.Leases(next, 1000, true)
			for _, l := range ls {
				if l.State == gpuai.LeaseRevoking {
					slot, _ := w.m.leaseSlot(l.ID)
					cmds = append(cmds, &ReportLease{Node: l.Node, Report: gpuai.Report{
						Lease: l.ID, Seq: w.m.leases.Get(slot).seq + 1, Incarnation: l.Incarnation, State: gpuai.ReportStopped,
					}})
				}
			}
			if next == 0 {
				break
			}
		}
		if len(cmds) == 0 && w.m.NextDeadline() > w.time.Add(gpuai.Hour) {
			return preempted
		}
		if round > 200 {
			w.t.Fatalf("entry %d: %d leases are still being revoked after %d rounds, the next deadline is %d at %d: it does not end", w.index, len(cmds), round, w.m.NextDeadline(), w.time)
		}
		w.time = w.time.Add(gpuai.Minute)
		preempted += w.watched(gap, func() *Output { return w.apply(append(cmds, &Tick{})...) })
	}
}

// Over random histories a job is only displaced by one of strictly higher
// priority. So there is no cycle, and when nothing more happens from outside it
// comes to an end: with nobody who waits for room that is being made, and nobody
// who could take some.
func TestPreemptionEnds(t *testing.T) {
	t.Parallel()
	total := 0
	seeds := uint64(40)
	if brief() {
		seeds = 8
	}
	for seed := range seeds {
		w := newPreemptWalk(t, 3000+seed)
		for range 100 {
			gap := max(w.m.gap(), 1)
			total += w.watched(min(gap, 1), w.step)
			w.mustDisplace()
		}
		p := gpuai.DefaultPolicy()
		p.PreemptionGap, p.PreemptionProtect = 15, 0
		w.do(&SetPolicy{Policy: p})
		leases := int(w.m.Counts().Leases)
		n := w.settle(15)
		if bound := (leases + int(w.m.Counts().TasksPending)) * 8; n > bound {
			t.Fatalf("seed %d: %d preemptions with %d leases", seed, n, leases)
		}
		total += n
		w.mustDisplace()
		if w.m.holdSlots.Len() > 0 {
			t.Fatalf("seed %d: room is kept for %d tasks though nobody leaves", seed, w.m.holdSlots.Len())
		}
	}
	if total < 2*int(seeds) {
		t.Fatalf("only %d preemptions: the test shows nothing", total)
	}
}

// mustDisplace verifies that nobody waits who could take room: that is the law of
// work conservation for those who may displace others.
func (w *walk) mustDisplace() {
	w.t.Helper()
	m := w.m
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		r := m.buckets.Get(b)
		most := m.displaces(r)
		if most == 0 || r.gang > 0 {
			continue
		}
		for g := r.first; g != 0; g = m.groups.Get(g.slot()).qnext {
			if m.wants(g.slot()) == m.held(g.slot()) {
				continue
			}
			if _, ok := m.sched.FindReclaim(r.shape, bandsUpTo(most)); ok {
				w.t.Fatalf("entry %d: a task of priority %d waits that could take room from %d and less", w.index, r.priority, most)
			}
			if !r.starved {
				w.t.Fatalf("entry %d: a task without room waits, and its bucket says that none does", w.index)
			}
		}
	}
}

// shrinks has nodes come back with less than they had, or more.
func (w *walk) shrinks() {
	where := w.where
	w.where = func(n *gpuai.NodeSpec) {
		if where(n); w.r.IntN(2) == 0 {
			n.CPU, n.Memory = gpuai.MilliCPU(4_000+w.r.IntN(60_000)), gpuai.Bytes(1+w.r.IntN(512))<<30
		}
	}
}

// Preemption beside all else that the feature level has: elastic gangs, required
// and preferred placement, groups that start together, arrays with bounds,
// dependencies, tenants, aging, the reservation. Machines that are restored and
// forked on the way agree, and nobody waits who could take room.
func TestPreemptionAmongAll(t *testing.T) {
	t.Parallel()
	seeds := uint64(16)
	if brief() {
		seeds = 4
	}
	var preempted, shrunk, beside, kept, reserved int
	for seed := range seeds {
		w := &orderWalk{newPreemptWalk(t, 5000+seed)}
		w.ports = 64 // one that finds no port on the node of its rank 0 is looked at when something changes near it only
		w.gangs()
		w.shrinks()
		other := restored(t, w.m)
		for range 120 {
			before := w.elastics()
			preempted += w.watched(1, func() *Output { return w.apply(w.later(w.command)...) })
			w.see()
			for g, n := range w.elastics() {
				if n < before[g] {
					shrunk++
				}
			}
			if w.m.holdSlots.Len() > 0 && w.m.meta.Get().reserve.group != 0 {
				beside++
			}
			w.mustDisplace()
			if !underRace || w.index%8 == 0 {
				w.mustDisplaceWhole()
			}
			holds, has := w.domainHolds()
			if kept += holds; has {
				reserved++
			}
			if w.m.backlog() {
				t.Fatalf("seed %d, entry %d: a backlog within the budget", seed, w.index)
			}
			switch w.r.IntN(20) {
			case 0:
				other = restored(t, other)
			case 1:
				other = other.Fork()
			}
			if err := other.Apply(w.index, w.term, w.log[len(w.log)-1], &Output{}); err != nil {
				t.Fatal(err)
			}
			if other.Digest() != w.m.Digest() || other.NextDeadline() != w.m.NextDeadline() {
				t.Fatalf("seed %d, entry %d: digests differ: %s and %s", seed, w.index, w.m.Digest(), other.Digest())
			}
		}
		if err := other.Check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Logf("%d preempted, %d gangs shrank, holds beside a reservation %d times; for what must be in one domain or starts together: %d holds, the reservation %d times", preempted, shrunk, beside, kept, reserved)
	if preempted < 50 || shrunk < 3 || beside < 3 || kept < 20 || reserved < 20 {
		t.Error("the walk is no test of them")
	}
}
