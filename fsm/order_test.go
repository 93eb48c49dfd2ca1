package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// orderWalk is a walk that uses all that decides when a job may run.
type orderWalk struct{ *walk }

func newOrderWalk(t testing.TB, seed uint64) *orderWalk {
	w := &orderWalk{newWalk(t, seed)}
	w.do(&SetFeatureLevel{Level: MaxLevel})
	return w
}

func (w *orderWalk) command() Command {
	switch w.r.IntN(14) {
	case 0:
		p := gpuai.DefaultPolicy()
		p.AgingEvery = gpuai.Duration(w.r.IntN(3)) * 5 * gpuai.Second
		p.UsageHalfLife = gpuai.Duration(1+w.r.IntN(3)) * gpuai.Minute
		if w.preempts {
			w.preemptBy(&p)
		}
		return &SetPolicy{Policy: p}
	case 1:
		return &SetTenantWeight{Tenant: w.tenant(), Weight: w.r.Uint32N(300)}
	case 2, 3, 4, 5:
		id := w.newID()
		s := w.spec()
		w.wait(s)
		w.ids = append(w.ids, id)
		return &SubmitJob{ID: id, Spec: s, HoldAnyway: w.r.IntN(2) == 0}
	default:
		return w.walk.command()
	}
}

func (w *orderWalk) tenant() gpuai.TenantID {
	return gpuai.TenantID([]string{"a", "b", "default"}[w.r.IntN(3)])
}

// wait gives a spec times, dependencies and bounds.
func (w *orderWalk) wait(s *gpuai.JobSpec) {
	s.Tenant = w.tenant()
	if w.r.IntN(2) == 0 {
		s.Limits.RunTime = gpuai.Duration(1 + w.r.IntN(60_000))
	}
	if w.r.IntN(4) == 0 {
		s.Begin = gpuai.WallTime(1 + w.r.IntN(20_000))
	}
	for w.r.IntN(4) == 0 && len(s.After) < 3 && len(w.ids) > 0 {
		s.After = append(s.After, gpuai.JobDependency{Job: w.ids[len(w.ids)-1-w.r.IntN(min(len(w.ids), 6))], On: gpuai.Stage(w.r.IntN(gpuai.NumStages))})
	}
	if g := &s.Groups[0]; len(s.Groups) == 1 && !g.Gang && w.r.IntN(3) == 0 {
		s.Array = gpuai.Array{Size: g.Count, MaxParallel: w.r.Uint32N(g.Count + 1)}
	}
}

func (w *orderWalk) step() {
	w.t.Helper()
	w.apply(w.later(w.command)...)
	w.see()
}

// Two machines that apply one log are equal, and stay it when one of them is
// snapshotted and restored, or forked.
func TestRandomOrderLogs(t *testing.T) {
	t.Parallel()
	seeds := uint64(20)
	if brief() {
		seeds = 8
	}
	reservations := 0
	for seed := range seeds {
		w := newOrderWalk(t, 300+seed)
		w.ports = uint16(seed % 4)
		other := New(w.m.opts)
		if err := other.Apply(w.index, w.term, w.log[0], &Output{}); err != nil {
			t.Fatal(err)
		}
		for range 150 {
			w.step()
			entry := w.log[len(w.log)-1]
			if w.r.IntN(15) == 0 {
				other = restored(t, other)
			}
			if w.r.IntN(20) == 0 {
				fork := other.Fork()
				if err := other.Apply(w.index, w.term, entry, &Output{}); err != nil {
					t.Fatal(err)
				}
				other = fork
			}
			if err := other.Apply(w.index, w.term, entry, &Output{}); err != nil {
				t.Fatal(err)
			}
			if other.Digest() != w.m.Digest() || other.NextDeadline() != w.m.NextDeadline() {
				t.Fatalf("seed %d, entry %d: digests differ: %s and %s", seed, w.index, w.m.Digest(), other.Digest())
			}
			if w.m.meta.Get().reserve.group != 0 {
				reservations++
			}
		}
	}
	if reservations == 0 {
		t.Error("no walk met a reservation")
	}
}

// Whenever there is no backlog, nothing that could start waits but behind the
// reservation, and there behind no more than it keeps.
func TestWorkConservationBesideTheReservation(t *testing.T) {
	t.Parallel()
	for seed := range few(5, 1) {
		w := newOrderWalk(t, 2000+seed)
		for range 120 {
			w.step()
			if w.m.backlog() {
				t.Fatalf("seed %d, entry %d: a backlog within the budget", seed, w.index)
			}
			for b, ok := w.m.bucketSlots.Next(0); ok; b, ok = w.m.bucketSlots.Next(b + 1) {
				fork := w.m.Fork()
				fork.now, fork.out = entryState{index: w.index + 1, work: WorkPerEntry, time: w.m.Time()}, &Output{}
				r := fork.buckets.Get(b)
				before := fork.meta.Get().liveLeases
				fork.placeGroup(r.first.slot())
				if n := fork.meta.Get().liveLeases - before; n > 0 {
					t.Fatalf("seed %d, entry %d: %d tasks of a bucket of gang %d wait that could start", seed, w.index, n, r.gang)
				}
			}
		}
	}
}

// The order of service is the order that sorting all waiting groups gives, when
// one node takes one task at a time.
func TestOrderIsThatOfSorting(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		w := newOrderWalk(t, 4000+seed)
		w.node("one", 1)
		for range 60 {
			s := jobSpec("j", 1, 1)
			s.Tenant, s.Priority = w.tenant(), gpuai.Priority(1+w.r.IntN(3))
			s.Groups[0].Resources.CPU = gpuai.MilliCPU(1_000 + w.r.IntN(4))
			w.submit(s)
		}
		for range 59 {
			w.time = w.time.Add(gpuai.Duration(w.r.IntN(90_000)))
			live, _ := w.m.Leases(0, 100, true)
			w.apply(&Tick{})
			fork := w.m.Fork()
			var want gpuai.JobID
			// The lease that ends counts for its tenant until then: sort behind its end.
			fork.now, fork.out = entryState{index: w.index + 1, work: WorkPerEntry, time: w.m.Time()}, &Output{}
			slot, _ := fork.leaseSlot(live[0].ID)
			fork.endLease(slot, leaseEnd{cause: gpuai.CauseDone})
			var best *candidate
			for g, ok := fork.groupSlots.Next(0); ok; g, ok = fork.groupSlots.Next(g + 1) {
				if fork.groups.Get(g).bucket == 0 {
					continue
				}
				if c := fork.candidate(0, g); best == nil || c.before(best) {
					best, want = &c, fork.jobs.Get(fork.groups.Get(g).job.slot()).id
				}
			}
			w.report(live[0], gpuai.ReportDone, 0)
			if now, _ := w.m.Leases(0, 100, true); len(now) != 1 || now[0].Job != want {
				t.Fatalf("seed %d: %+v was placed, want job %s", seed, now, want)
			}
		}
	}
}

// churn is a region under a never-ending stream of jobs of one device, which
// keeps it full.
type churn struct {
	*region
	live  []gpuai.Lease
	limit gpuai.Duration
}

func (c *churn) small() {
	s := jobSpec("small", 1, 1)
	s.Limits.RunTime = c.limit
	c.grown(c.apply(&SubmitJob{ID: c.newID(), Spec: s}))
}

func (c *churn) grown(out *Output) {
	for _, e := range out.Events {
		if e.Kind == gpuai.LeaseGrantedEvent {
			l, _ := c.m.Lease(e.Lease)
			c.live = append(c.live, l)
		}
	}
}

// end ends one lease and adds another small job.
func (c *churn) end() {
	c.time = c.time.Add(gpuai.Second)
	l := c.live[0]
	c.live = c.live[1:]
	c.grown(c.apply(&ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportDone}}))
	c.small()
}

func newChurn(t *testing.T, limit gpuai.Duration) *churn {
	c := &churn{region: placing(t), limit: limit}
	for _, n := range []string{"a", "b", "c", "d"} {
		c.node(n, 4)
	}
	for range 24 {
		c.small()
	}
	return c
}

// A gang of the region's size, and a task of a whole node, start once all that
// ran before them has ended: no later job takes what comes free.
func TestBigJobsStartWithinABound(t *testing.T) {
	for name, limit := range map[string]gpuai.Duration{"without limits": 0, "with limits": gpuai.Hour} {
		for _, gang := range []bool{true, false} {
			c := newChurn(t, limit)
			s := jobSpec("big", 4, 4)
			s.Groups[0].Gang = gang
			if !gang {
				s.Groups[0].Count = 1
			}
			id := c.newID()
			c.do(&SubmitJob{ID: id, Spec: s})
			ends := 0
			for ; c.job(id).Status == gpuai.JobPending; ends++ {
				if ends > 16+8 { // what ran, and what was older in the queue
					t.Fatalf("%s, gang %v: it waits still after %d ends of others: %+v", name, gang, ends, c.m.meta.Get().reserve)
				}
				c.end()
			}
			t.Logf("%s, gang %v: started after %d ends", name, gang, ends)
		}
	}
}

// A job whose limit ends before the shadow runs on reserved nodes; one without
// a limit, or with a longer one, waits, but where it leaves room.
func TestBackfill(t *testing.T) {
	r := placing(t)
	r.node("a", 4)
	r.node("b", 4)
	job := func(name string, gpus uint32, limit gpuai.Duration) gpuai.JobID {
		s := jobSpec(name, 1, gpus)
		s.Limits.RunTime = limit
		return r.submit(s)
	}
	long := job("long", 3, gpuai.Hour) // on a, until 1 h
	r.report(r.leases(long)[0], gpuai.ReportRunning, 0)
	other := job("other", 2, 2*gpuai.Hour) // on b
	gang := jobSpec("gang", 2, 4)
	gang.Groups[0].Gang = true
	id := r.submit(gang)
	r.status(id, gpuai.JobPending)
	if v := r.m.meta.Get().reserve; v.shadow != gpuai.Instant(2*gpuai.Hour) {
		t.Fatalf("%+v", v)
	}
	r.reason(id, gpuai.QueueOrder)
	r.m = restored(t, r.m)
	fits, over, none := job("fits", 1, 2*gpuai.Hour), job("over", 1, 2*gpuai.Hour+1), job("none", 1, 0)
	r.status(fits, gpuai.JobRunning)
	r.status(over, gpuai.JobPending)
	r.status(none, gpuai.JobPending)
	r.reason(over, gpuai.QueueOrder)
	high := jobSpec("high", 1, 1)
	high.Priority = 90
	r.status(r.submit(high), gpuai.JobRunning)
	r.do(&StopJob{Job: id}) // the reservation goes with its job
	r.status(over, gpuai.JobRunning)
	r.status(other, gpuai.JobRunning)
}

// A task that leaves room for what the node is reserved for needs no limit.
func TestBackfillBeside(t *testing.T) {
	r := placing(t)
	r.node("a", 4)
	r.node("b", 4)
	job := func(tasks, gpus uint32, limit gpuai.Duration) gpuai.JobID {
		s := jobSpec("j", tasks, gpus)
		s.Limits.RunTime = limit
		return r.submit(s)
	}
	long := job(1, 4, gpuai.Hour)
	one := job(1, 1, 0)
	gang := jobSpec("gang", 2, 2)
	gang.Groups[0].Gang = true
	id := r.submit(gang) // one task on the node with three devices free, one where the long task ends
	r.status(id, gpuai.JobPending)
	beside, more := job(1, 1, 0), job(1, 1, 0)
	r.status(beside, gpuai.JobRunning)
	r.status(more, gpuai.JobPending)
	r.end(long)
	for _, j := range []gpuai.JobID{one, id, more} {
		r.status(j, gpuai.JobRunning)
	}
}

// A reserved node that closes is replaced by another.
func TestReservationMovesOffAClosedNode(t *testing.T) {
	r := placing(t)
	r.node("a", 2)
	small := r.submit(jobSpec("small", 1, 1))
	big := r.submit(jobSpec("big", 1, 2))
	r.do(&SetNodeEligibility{Node: "a", Drained: true})
	if v := r.m.meta.Get().reserve; v.group != 0 {
		t.Fatalf("%+v", v)
	}
	r.node("b", 2)
	r.status(big, gpuai.JobRunning)
	r.status(small, gpuai.JobRunning)
}

// A gang of higher priority takes the reservation over.
func TestReservationGoesToHigherPriority(t *testing.T) {
	r := placing(t)
	r.node("a", 2)
	small := r.submit(jobSpec("small", 1, 1))
	low := r.submit(jobSpec("low", 1, 2))
	s := jobSpec("high", 1, 2)
	s.Priority = 90
	high := r.submit(s)
	r.end(small)
	r.status(high, gpuai.JobRunning)
	r.status(low, gpuai.JobPending)
}

// A turn whose only bucket moves on to its next group is made anew, perhaps under
// another number: the node's room goes on to that group all the same. A restored
// machine numbers its turns otherwise. Found by the simulation, seed 1080.
func TestTurnThatIsMadeAnewGoesOn(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	r.node("full", 1)
	r.submit(jobSpec("runs", 1, 1))
	first := jobSpec("first", 1, 1) // the turn with the lowest number, while it waits
	first.Priority = 90
	gone := r.submit(first)
	for range 3 {
		r.submit(jobSpec("waits", 1, 1))
	}
	r.do(&StopJob{Job: gone})
	r.node("new", 4)
	if n := r.m.Counts().Leases; n != 4 {
		t.Errorf("%d leases, want 4: room is left that what waits could have", n)
	}
}

// What waits from before level 3 is served on. Found by the simulation, seed 163.
func TestBucketsOfOldLevelsAreServed(t *testing.T) {
	r := newRegion(t)
	for range 5 {
		r.submit(jobSpec("waits", 1, 1))
	}
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	r.node("new", 4)
	if n := r.m.Counts().Leases; n != 4 {
		t.Errorf("%d leases, want 4", n)
	}
}
