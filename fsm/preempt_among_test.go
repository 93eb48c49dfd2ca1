package fsm

import (
	"fmt"
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

func withCPU(s *gpuai.JobSpec, cpu gpuai.MilliCPU) *gpuai.JobSpec {
	s.Groups[0].Resources.CPU = cpu
	return s
}

func firm(s *gpuai.JobSpec) *gpuai.JobSpec {
	no := false
	s.Preemptible = &no
	return s
}

// A node that came back with less than its leases hold lists nobody, and those
// who may have to go again once there is room: as a restored machine does.
func TestPreemptionOnANodeThatShrank(t *testing.T) {
	r := newest(t, nil)
	spec := nodeSpec("a", 4, "H100")
	inc := r.register(spec)
	low := r.submit(withCPU(jobSpec("low", 1, 1), 10_000))
	other := r.submit(firm(withCPU(jobSpec("other", 1, 1), 50_000)))
	r.submit(at(withCPU(jobSpec("waits", 1, 1), 60_000), 60))
	var held []gpuai.HeldLease
	for _, l := range r.m.LeasesOfNode("a", 10) {
		held = append(held, gpuai.HeldLease{Lease: l.ID, BootID: "boot-1"})
	}
	spec.CPU = 32_000
	r.do(&RegisterNode{Spec: spec, BootID: "boot-1", Nonce: "nonce-2", Replaces: inc, Held: held})
	r.report(r.leases(other)[0], gpuai.ReportDone, 0)
	r.submit(at(withCPU(jobSpec("taker", 1, 1), 30_000), 60))
	if n := len(r.revoking(low)); n != 1 {
		t.Fatalf("%d leases make room", n)
	}
}

// A member of a gang that is leaving already is no reason to take the others.
func TestPreemptionTakesWhatIsLeaving(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 4)
	s := gangOf(jobSpec("elastic", 4, 1))
	s.Groups[0].MinCount = 3
	elastic := r.submit(s)
	r.wait(gpuai.Minute)
	first := r.submit(at(jobSpec("first", 1, 1), 60))
	if n := len(r.revoking(elastic)); n != 1 {
		t.Fatalf("%d tasks make room", n)
	}
	r.do(&StopJob{Job: first})
	second := r.submit(at(jobSpec("second", 1, 1), 60))
	going := r.revoking(elastic)
	if len(going) != 1 {
		t.Fatalf("%d tasks make room where one is leaving", len(going))
	}
	r.report(going[0], gpuai.ReportStopped, 0)
	r.status(second, gpuai.JobRunning)
}

// A gang that finds nothing, and could not have the reservation, leaves it to the
// gang of lower priority that has it.
func TestPreemptionLeavesTheReservation(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 8)
	r.node("b", 8)
	r.node("c", 8)
	r.do(&SetNodeEligibility{Node: "c", Drained: true})
	half := r.submit(firm(jobSpec("half", 1, 4)))
	r.submit(firm(jobSpec("rest", 1, 4)))
	r.submit(firm(jobSpec("whole", 1, 8)))
	r.submit(gangOf(at(jobSpec("holder", 2, 8), 50)))
	holder := r.m.meta.Get().reserve.group
	if holder == 0 {
		t.Fatal("nothing is reserved")
	}
	r.submit(gangOf(at(jobSpec("higher", 3, 8), 90)))
	small := r.submit(at(jobSpec("small", 6, 1), 10))
	if r.m.meta.Get().reserve.group != holder {
		t.Fatal("a gang that no nodes can be reserved for took the reservation")
	}
	r.report(r.leases(half)[0], gpuai.ReportDone, 0)
	if n := len(r.leases(small)); n != 0 || r.m.meta.Get().reserve.group != holder {
		t.Fatalf("%d small tasks took what is reserved", n)
	}
}

// A gang for which one node comes free and another can be taken is tried.
func TestPreemptionOfAPart(t *testing.T) {
	r := newest(t, nil)
	for _, n := range []string{"a", "y", "x"} {
		r.node(n, 1)
	}
	low := r.submit(jobSpec("low", 1, 1))
	first := r.submit(firm(jobSpec("first", 1, 1)))
	second := r.submit(firm(jobSpec("second", 1, 1)))
	gang := r.submit(gangOf(at(jobSpec("gang", 2, 1), 80)))
	if n := len(r.revoking(low)); n != 0 {
		t.Fatalf("%d tasks make room for half a gang", n)
	}
	ended := second
	if r.leases(first)[0].Node == "x" {
		ended = first
	}
	r.report(r.leases(ended)[0], gpuai.ReportDone, 0)
	going := r.revoking(low)
	if len(going) != 1 {
		t.Fatalf("%d tasks make room though the other half is free", len(going))
	}
	r.report(going[0], gpuai.ReportStopped, 0)
	r.status(gang, gpuai.JobRunning)
}

// A gang that cannot have all the room that it needs costs a count, not a try.
func TestHopelessPreemptionIsCheap(t *testing.T) {
	r := newest(t, nil)
	r.check = false
	for i := range 60 {
		r.node(fmt.Sprintf("n-%02d", i), 8)
	}
	low := r.submit(jobSpec("low", 240, 1))
	r.submit(firm(jobSpec("stays", 240, 1)))
	s := gangOf(at(jobSpec("gang", 400, 1), 90))
	r.submit(s)
	if spent := WorkPerEntry - r.m.now.work; spent > 8_000 {
		t.Errorf("a gang that cannot start cost %d units", spent)
	}
	if n := len(r.revoking(low)); n != 0 {
		t.Fatalf("%d tasks make room", n)
	}
}
