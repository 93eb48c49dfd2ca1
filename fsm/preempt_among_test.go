package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// An elastic gang gives up what it has beyond its least, and goes on; only when
// that is not enough does it go as a whole.
func TestPreemptionShrinksElasticGangs(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 4)
	s := gangOf(jobSpec("elastic", 4, 1))
	s.Groups[0].MinCount = 2
	elastic := r.submit(s)
	if n := len(r.leases(elastic)); n != 4 {
		t.Fatalf("the gang starts with %d tasks", n)
	}
	first := r.submit(at(jobSpec("first", 1, 2), 60))
	going := r.revoking(elastic)
	if len(going) != 2 {
		t.Fatalf("%d tasks make room for 2 devices", len(going))
	}
	for _, l := range going {
		if l.Task == 0 {
			t.Error("rank 0 makes room, where the others meet")
		}
		r.report(l, gpuai.ReportStopped, 0)
	}
	r.status(first, gpuai.JobRunning)
	r.status(elastic, gpuai.JobRunning)
	if j, _ := r.m.Job(elastic, true); j.Restarts != 0 {
		t.Errorf("%d restarts", j.Restarts)
	}
	r.submit(at(jobSpec("second", 1, 1), 60))
	if n := len(r.revoking(elastic)); n != 2 {
		t.Fatalf("%d tasks of a gang at its least make room, want all 2", n)
	}
}

// Growth takes no room from anybody.
func TestPreemptionNotForGrowth(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 3)
	low := r.submit(jobSpec("low", 1, 1))
	s := gangOf(at(jobSpec("elastic", 3, 1), 60))
	s.Groups[0].MinCount = 2
	r.submit(s)
	if n := len(r.revoking(low)); n != 0 {
		t.Fatalf("%d tasks make room for a gang to grow", n)
	}
}

// What must be in one domain, or starts together with others, takes no room.
func TestPreemptionNotForPlacement(t *testing.T) {
	for _, together := range []bool{false, true} {
		r := newest(t, nil)
		r.node("a", 2)
		low := r.submit(jobSpec("low", 2, 1))
		s := gangOf(at(jobSpec("near", 2, 1), 60))
		s.Together = together
		if !together {
			s.Placement.Same = gpuai.TopologyNode
		}
		r.submit(s)
		if n := len(r.revoking(low)); n != 0 {
			t.Fatalf("together %v: %d tasks make room", together, n)
		}
	}
}

// An array takes room for as many of its elements as may run at a time.
func TestPreemptionWithinMaxParallel(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 4)
	low := r.submit(jobSpec("low", 4, 1))
	s := at(jobSpec("array", 4, 1), 60)
	s.Array = gpuai.Array{Size: 4, MaxParallel: 2}
	array := r.submit(s)
	going := r.revoking(low)
	if len(going) != 2 {
		t.Fatalf("%d tasks make room for two elements", len(going))
	}
	for _, l := range going {
		r.report(l, gpuai.ReportStopped, 0)
	}
	if n := len(r.leases(array)); n != 2 {
		t.Fatalf("%d elements run", n)
	}
	r.report(r.leases(array)[0], gpuai.ReportDone, 0)
	if n := len(r.revoking(low)); n != 0 {
		t.Fatalf("%d tasks make room where an element has just left some", n)
	}
}

// Nodes that are reserved for a gang are taken by jobs of higher priority, and by
// nobody else; the gang itself takes room when it may.
func TestPreemptionOfReservedNodes(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	r.node("b", 2)
	low := r.submit(at(jobSpec("low", 4, 1), 10))
	gang := r.submit(gangOf(at(jobSpec("gang", 3, 1), 30)))
	if r.m.meta.Get().reserve.group == 0 {
		t.Fatal("nothing is reserved for the gang")
	}
	middle := r.submit(at(jobSpec("middle", 1, 1), 35))
	if n := len(r.revoking(low)); n != 0 {
		t.Fatalf("%d tasks make room below the gap", n)
	}
	high := r.submit(at(jobSpec("high", 1, 1), 60))
	going := r.revoking(low)
	if len(going) != 1 {
		t.Fatalf("%d tasks make room on nodes that are reserved for less", len(going))
	}
	r.report(going[0], gpuai.ReportStopped, 0)
	r.status(high, gpuai.JobRunning)
	r.do(&StopJob{Job: middle})
	p := gpuai.DefaultPolicy()
	p.PreemptionGap, p.PreemptionProtect = 20, 0
	r.do(&SetPolicy{Policy: p})
	for _, l := range r.revoking(low) {
		r.report(l, gpuai.ReportStopped, 0)
	}
	r.status(gang, gpuai.JobRunning)
}

// A task that makes room again and again is safe for longer each time.
func TestPreemptionProtectsLonger(t *testing.T) {
	r := newest(t, func(p *gpuai.Policy) { p.PreemptionProtect = gpuai.Minute })
	r.node("a", 1)
	low := r.submit(jobSpec("low", 1, 1))
	for i, safe := range []gpuai.Duration{1, 2, 4, 8} {
		high := r.submit(at(jobSpec([]string{"w", "x", "y", "z"}[i], 1, 1), 60))
		r.wait(safe*gpuai.Minute - gpuai.Second)
		if len(r.revoking(low)) > 0 {
			t.Fatalf("round %d: it makes room before %d minutes have passed", i, safe)
		}
		r.wait(2 * gpuai.Second)
		going := r.revoking(low)
		if len(going) != 1 {
			t.Fatalf("round %d: it is still safe after %d minutes", i, safe)
		}
		r.report(going[0], gpuai.ReportStopped, 0)
		r.report(r.leases(high)[0], gpuai.ReportDone, 0)
		r.status(low, gpuai.JobRunning)
	}
}

// A plan of a submit tells whom it would displace, and that the job starts once
// they have left.
func TestPlanTellsWhomASubmitDisplaces(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 4)
	low := r.submit(jobSpec("low", 4, 1))
	p := r.plan(&gpuai.PlanRequest{Submit: []gpuai.JobSpec{*at(jobSpec("high", 1, 3), 60)}})
	if len(p.Jobs) != 1 || p.Jobs[0].Code != gpuai.OK || p.Jobs[0].Now != 0 || p.Jobs[0].Later != 1 {
		t.Fatalf("%+v", p.Jobs)
	}
	if len(p.Blast.Revoked) != 1 || p.Blast.Revoked[0] != (gpuai.PlanCause{Cause: gpuai.CausePreempted, Tasks: 3}) {
		t.Errorf("the blast is %+v", p.Blast)
	}
	if len(p.Changes) != 3 {
		t.Fatalf("%+v", p.Changes)
	}
	for _, c := range p.Changes {
		if c.Job != low || c.Change != gpuai.PlanWaits || c.Cause != gpuai.CausePreempted || c.From != "a" {
			t.Errorf("%+v", c)
		}
	}
}
