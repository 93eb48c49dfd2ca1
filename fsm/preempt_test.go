package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// newest returns a region of the newest level whose policy protects nobody.
func newest(t testing.TB, change func(p *gpuai.Policy)) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	p := gpuai.DefaultPolicy()
	p.PreemptionProtect = 0
	if change != nil {
		change(&p)
	}
	r.do(&SetPolicy{Policy: p})
	return r
}

func at(s *gpuai.JobSpec, p gpuai.Priority) *gpuai.JobSpec {
	s.Priority = p
	return s
}

func gangOf(s *gpuai.JobSpec) *gpuai.JobSpec {
	s.Groups[0].Gang = true
	return s
}

// revoking returns the leases of a job that are being revoked.
func (r *region) revoking(id gpuai.JobID) (out []gpuai.Lease) {
	for _, l := range r.leases(id) {
		if l.State == gpuai.LeaseRevoking {
			out = append(out, l)
		}
	}
	return out
}

func TestPreemption(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	low := r.submit(jobSpec("low", 2, 1))
	high := r.submit(at(jobSpec("high", 1, 1), 50))
	gone := r.revoking(low)
	if len(gone) != 1 || gone[0].Cause != gpuai.CausePreempted || gone[0].PreemptedBy != high {
		t.Fatalf("%+v", gone)
	}
	r.status(high, gpuai.JobPending)
	other := r.submit(jobSpec("other", 1, 1)) // what is freed is not for it, nor for whom it is taken from
	out := r.apply(&ReportLease{Node: "a", Report: gpuai.Report{Lease: gone[0].ID, Seq: 1, Incarnation: gone[0].Incarnation, State: gpuai.ReportStopped}})
	if out.Results[0].Code != gpuai.OK {
		t.Fatal(out.Results[0])
	}
	if l := r.leases(high); len(l) != 1 || l[0].Devices[0] != gone[0].Devices[0] {
		t.Fatalf("the room is not given to whom it was taken for, in the same entry: %+v", l)
	}
	r.status(low, gpuai.JobRunning)
	r.status(other, gpuai.JobPending)
	if c := r.job(low); c.Counts.Pending != 1 || c.Restarts != 0 {
		t.Fatalf("%+v", c)
	}
	x, _ := r.m.Explain(low)
	if len(x.Reasons) == 0 || x.Reasons[0].Code != gpuai.Preempted {
		t.Fatalf("%+v", x.Reasons)
	}
	// It comes back as soon as there is room, and takes none from its displacer.
	r.wait(gpuai.Hour)
	if len(r.revoking(high)) > 0 {
		t.Fatal("a preempted job displaces its displacer")
	}
	r.report(r.leases(high)[0], gpuai.ReportDone, 0)
	if c := r.job(low).Counts; c.Pending != 0 {
		t.Fatalf("%+v", c)
	}
}

// Who is taken from, and who is not.
func TestPreemptionRules(t *testing.T) {
	no, yes := false, true
	for _, c := range []struct {
		name   string
		policy func(p *gpuai.Policy)
		victim func(s *gpuai.JobSpec)
		prio   gpuai.Priority
		want   bool
	}{
		{"by the gap of the classes", nil, nil, 50, true},
		{"a smaller gap", nil, nil, 49, false},
		{"a smaller gap that is asked for", func(p *gpuai.Policy) { p.PreemptionGap = 1 }, nil, 21, true},
		{"an equal never", func(p *gpuai.Policy) { p.PreemptionGap = 1 }, nil, 20, false},
		{"off", func(p *gpuai.Policy) { p.PreemptionGap = 0 }, nil, 100, false},
		{"a job that says no", nil, func(s *gpuai.JobSpec) { s.Preemptible = &no }, 100, false},
		{"a class that gives nothing up", func(p *gpuai.Policy) { p.PreemptibleBatch = false }, nil, 100, false},
		{"a job that says yes of such a class", func(p *gpuai.Policy) { p.PreemptibleBatch = false }, func(s *gpuai.JobSpec) { s.Preemptible = &yes }, 50, true},
		{"inference", nil, func(s *gpuai.JobSpec) { s.Class, s.Priority = gpuai.ClassInference, 1 }, 100, false},
		{"finetune", nil, func(s *gpuai.JobSpec) { s.Class, s.Priority = gpuai.ClassFinetune, 1 }, 50, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newest(t, c.policy)
			r.node("a", 1)
			s := jobSpec("low", 1, 1)
			if c.victim != nil {
				c.victim(s)
			}
			low := r.submit(s)
			r.submit(at(jobSpec("high", 1, 1), c.prio))
			if got := len(r.revoking(low)) > 0; got != c.want {
				t.Fatalf("preempted: %v, want %v", got, c.want)
			}
		})
	}
}

// A lease is safe for a while; then whoever waits takes its room, without that
// anything else happens.
func TestPreemptionProtects(t *testing.T) {
	r := newest(t, func(p *gpuai.Policy) { p.PreemptionProtect = 5 * gpuai.Minute })
	r.node("a", 1)
	r.wait(1500)
	low := r.submit(jobSpec("low", 1, 1))
	r.wait(gpuai.Minute)
	r.submit(at(jobSpec("high", 1, 1), 50))
	if at, want := r.m.NextDeadline(), gpuai.Instant(302_000); at != want {
		t.Fatalf("the next deadline is %d, want %d: a whole second behind the end of the protection", at, want)
	}
	r.wait(4*gpuai.Minute - 1)
	if len(r.revoking(low)) > 0 {
		t.Fatal("preempted before its time")
	}
	r.wait(2 * gpuai.Second)
	if len(r.revoking(low)) != 1 {
		t.Fatal("not preempted when its protection was over")
	}
}

// The fewest and the least go: lower priorities first, single tasks before gangs,
// then what lost least, and no more than is needed.
func TestPreemptionVictims(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 4)
	gang := r.submit(gangOf(at(jobSpec("gang", 2, 1), 20)))
	r.wait(gpuai.Minute)
	old := r.submit(at(jobSpec("old", 1, 1), 20))
	r.wait(gpuai.Minute)
	young := r.submit(at(jobSpec("young", 1, 1), 20))
	first := r.submit(at(jobSpec("first", 1, 1), 60))
	if len(r.revoking(young)) != 1 || len(r.revoking(old)) != 0 || len(r.revoking(gang)) != 0 {
		t.Fatal("the youngest single task must go first")
	}
	r.submit(at(jobSpec("second", 1, 1), 60))
	if len(r.revoking(old)) != 1 || len(r.revoking(gang)) != 0 {
		t.Fatal("then the older one")
	}
	r.submit(at(jobSpec("third", 1, 1), 60))
	if n := len(r.revoking(gang)); n != 2 {
		t.Fatalf("then the gang as a whole: %d", n)
	}
	before := r.m.Counts().Revoking
	r.submit(at(jobSpec("fourth", 1, 1), 60)) // of the gang one device is still nobody's
	r.submit(at(jobSpec("fifth", 1, 1), 60))
	if n := r.m.Counts().Revoking; n != before {
		t.Fatalf("%d leases are being revoked, want %d: there is nothing left to take", n, before)
	}
	for _, id := range []gpuai.JobID{young, old, gang} {
		for _, l := range r.revoking(id) {
			r.report(l, gpuai.ReportStopped, 0)
		}
	}
	r.status(first, gpuai.JobRunning)
	if q := r.m.QueueEntries(0, 10); len(q) != 4 || q[0].Priority != 60 {
		t.Fatalf("%+v", q)
	}
}

// A gang takes room for all of its tasks or for none, some of which may be free.
func TestPreemptionByGang(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	r.node("b", 2)
	low := r.submit(jobSpec("low", 3, 1))
	no := false
	s := jobSpec("stays", 1, 1)
	s.Preemptible = &no
	stays := r.submit(s)
	big := r.newID()
	r.do(&SubmitJob{ID: big, Spec: gangOf(at(jobSpec("big", 4, 1), 60))})
	if len(r.revoking(low)) > 0 {
		t.Fatal("room is taken for a gang that cannot have all of it")
	}
	r.report(r.leases(stays)[0], gpuai.ReportDone, 0)
	if n := len(r.revoking(low)); n != 3 {
		t.Fatalf("%d tasks make room, want 3", n)
	}
	for i, l := range r.revoking(low) {
		if len(r.leases(big)) > 0 {
			t.Fatalf("the gang started after %d of 3 had left", i)
		}
		r.report(l, gpuai.ReportStopped, 0)
	}
	r.status(big, gpuai.JobRunning)
	if ls := r.leases(big); len(ls) != 4 {
		t.Fatalf("%d leases", len(ls))
	}
	a, _ := r.m.Assignment(r.leases(big)[1].ID)
	if a.Gang == nil || a.Gang.Rank != 1 || a.Gang.MasterPort == 0 {
		t.Fatalf("%+v", a.Gang)
	}
}

// What room is kept for may find other room first, or end, or its node may go:
// then the room is everybody's again.
func TestHoldsEnd(t *testing.T) {
	start := func(t *testing.T) (r *region, low, high gpuai.JobID, gone gpuai.Lease) {
		r = newest(t, nil)
		r.node("a", 1)
		low = r.submit(jobSpec("low", 1, 1))
		high = r.submit(at(jobSpec("high", 1, 1), 60))
		if r.m.holdSlots.Len() != 1 {
			t.Fatal("no room is kept")
		}
		return r, low, high, r.revoking(low)[0]
	}
	t.Run("other room", func(t *testing.T) {
		r, low, high, gone := start(t)
		r.node("b", 1)
		if l := r.leases(high); len(l) != 1 || l[0].Node != "b" || r.m.holdSlots.Len() != 0 {
			t.Fatalf("%+v", l)
		}
		r.report(gone, gpuai.ReportStopped, 0)
		if l := r.leases(low); l[0].Node != "a" || l[0].State != gpuai.LeaseGranted || !l[0].PreemptedBy.IsZero() {
			t.Fatalf("%+v", l)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		r, low, high, gone := start(t)
		r.do(&StopJob{Job: high})
		if r.m.holdSlots.Len() != 0 {
			t.Fatal("room is kept for a job that ended")
		}
		r.report(gone, gpuai.ReportStopped, 0)
		r.status(low, gpuai.JobRunning)
	})
	t.Run("drained", func(t *testing.T) {
		r, _, high, gone := start(t)
		r.do(&SetNodeEligibility{Node: "a", Drained: true})
		if r.m.holdSlots.Len() != 0 {
			t.Fatal("room is kept on a node that is drained")
		}
		r.report(gone, gpuai.ReportStopped, 0)
		r.do(&SetNodeEligibility{Node: "a", Drained: false})
		r.status(high, gpuai.JobRunning)
	})
	t.Run("suspect and back", func(t *testing.T) {
		r, _, high, gone := start(t)
		node := []NodeRef{{"a", gone.Incarnation}}
		r.do(&ConfirmBeats{Term: 1, Suspect: node})
		r.do(&ConfirmBeats{Term: 1, Ready: node})
		if r.m.holdSlots.Len() != 1 || r.m.Counts().Revoking != 1 {
			t.Fatal("the room that is being made anyway is not kept again")
		}
		r.report(gone, gpuai.ReportStopped, 0)
		r.status(high, gpuai.JobRunning)
	})
	t.Run("the victim's agent is dead", func(t *testing.T) {
		r, low, high, gone := start(t)
		r.expire("a", gone.Incarnation)
		r.status(low, gpuai.JobPending)
		r.do(&ConfirmBeats{Term: 1, Ready: []NodeRef{{"a", gone.Incarnation}}})
		r.status(high, gpuai.JobRunning)
		r.status(low, gpuai.JobPending)
	})
	t.Run("restored from a backup", func(t *testing.T) {
		r, _, _, _ := start(t)
		if _, err := r.m.BeginEpoch(NewEpoch{Epoch: 1, RestoreID: [16]byte{1}, MaxTTL: gpuai.MinLeaseTTL}); err != nil || r.m.holdSlots.Len() != 0 {
			t.Fatal(err)
		}
	})
}

// A share takes room from a share.
func TestPreemptionOfShares(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	part := func(name string, milli gpuai.Milli) *gpuai.JobSpec {
		s := jobSpec(name, 1, 1)
		s.Groups[0].Resources.GPU.Share.Milli = milli
		return s
	}
	half, third := r.submit(part("half", 500)), r.submit(part("third", 300))
	r.wait(gpuai.Minute)
	high := r.submit(at(part("high", 400), 60))
	if len(r.revoking(half)) != 0 && len(r.revoking(third)) != 0 {
		t.Fatal("one of them is enough")
	}
	gone := append(r.revoking(half), r.revoking(third)...)
	r.report(gone[0], gpuai.ReportStopped, 0)
	r.status(high, gpuai.JobRunning)
}

// CPU and memory are taken as devices are.
func TestPreemptionOfCPU(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	s := jobSpec("low", 1, 0)
	s.Groups[0].Resources.CPU = 63_000
	low := r.submit(s)
	s = at(jobSpec("high", 1, 2), 60)
	s.Groups[0].Resources.CPU = 2_000
	high := r.submit(s)
	if len(r.revoking(low)) != 1 {
		t.Fatal("its CPU was not taken")
	}
	r.report(r.leases(low)[0], gpuai.ReportStopped, 0)
	r.status(high, gpuai.JobRunning)
}

// Many who join a queue take as much as they need, and no more.
func TestPreemptionByMany(t *testing.T) {
	r := newest(t, nil)
	for _, n := range []string{"a", "b", "c"} {
		r.node(n, 8)
	}
	low := r.submit(jobSpec("low", 3, 8))
	var cmds []Command
	for range 9 {
		cmds = append(cmds, &SubmitJob{ID: r.newID(), Spec: at(jobSpec("high", 1, 1), 60)})
	}
	r.apply(cmds...)
	if n := len(r.revoking(low)); n != 2 {
		t.Fatalf("%d of 8 devices each make room for 9 tasks of one, want 2", n)
	}
	wide := r.submit(at(jobSpec("wide", 9, 1), 60))
	if n := len(r.revoking(low)); n != 3 {
		t.Fatalf("%d of 8 devices each make room for 18 tasks of one, want 3", n)
	}
	for _, l := range r.revoking(low) {
		r.report(l, gpuai.ReportStopped, 0)
	}
	if c := r.job(wide).Counts; c.Leased != 9 || r.m.Counts().TasksPending != 3-0 {
		t.Fatalf("%+v, %d pending", c, r.m.Counts().TasksPending)
	}
}

// The agent is told by whom and why a lease is revoked, and how its task saves its
// work.
func TestRevokedLeaseSaysHowToSave(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	s := jobSpec("low", 1, 1)
	s.Groups[0].Task.Checkpoint = gpuai.Checkpoint{Signal: gpuai.SIGHUP, Grace: gpuai.Minute}
	low := r.submit(s)
	high := r.submit(at(jobSpec("high", 1, 1), 60))
	a, ok := r.m.Assignment(r.revoking(low)[0].ID)
	if !ok || a.Task.Checkpoint != s.Groups[0].Task.Checkpoint || a.Lease.Cause != gpuai.CausePreempted || a.Lease.PreemptedBy != high {
		t.Fatalf("%+v", a)
	}
	m := restored(t, r.m)
	if b, _ := m.Assignment(a.Lease.ID); b.Lease.PreemptedBy != high || b.Task.Checkpoint != a.Task.Checkpoint {
		t.Fatalf("after a restore: %+v", b)
	}
	if out := r.apply(&StopJob{Job: low}); len(out.Events) != 1 || out.Events[0].Cause != gpuai.CauseStopped {
		t.Fatalf("nobody tells the agent that nothing need be saved: %+v", out.Events)
	}
}

// Below the level nobody is displaced, whatever the priorities.
func TestPreemptionNeedsItsLevel(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement - 1})
	r.node("a", 1)
	low := r.submit(jobSpec("low", 1, 1))
	r.submit(at(jobSpec("high", 1, 1), 100))
	r.wait(gpuai.Hour)
	if len(r.revoking(low)) > 0 {
		t.Fatal("a lease is revoked for another job")
	}
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	r.wait(gpuai.Hour)
	if len(r.revoking(low)) > 0 {
		t.Fatal("a job of before is displaced")
	}
}
