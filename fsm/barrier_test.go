package fsm

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// holds returns, by task, which members of a job's gang are told to wait.
func (r *region) holds(id gpuai.JobID) (out []bool) {
	for _, l := range r.live(id) {
		a, ok := r.m.Assignment(l.ID)
		out = append(out, ok && a.Gang != nil && a.Gang.Hold)
	}
	return out
}

func (r *region) wantHolds(id gpuai.JobID, want ...bool) {
	r.t.Helper()
	got := r.holds(id)
	if len(got) != len(want) {
		r.t.Fatalf("%d members have leases, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			r.t.Fatalf("members that wait: %v, want %v", got, want)
		}
	}
}

// heldGang returns a region of two nodes of feature level 3, and a gang that has
// its leases.
func heldGang(t *testing.T, least, count uint32) (*region, gpuai.JobID) {
	r := newest(t, nil)
	r.node("a", 2)
	r.node("b", 2)
	return r, r.submit(gangSpec("gang", least, count, 1))
}

// No member starts before all are ready, and all are told when they are, also by
// a machine that was restored meanwhile.
func TestGangStartsBehindABarrier(t *testing.T) {
	r, id := heldGang(t, 3, 3)
	r.wantHolds(id, true, true, true)
	all := r.live(id)
	r.report(all[0], gpuai.ReportPrepared, 0)
	r.report(all[2], gpuai.ReportPrepared, 0)
	r.wantHolds(id, true, true, true)
	if l := r.live(id); !l[0].Prepared || l[1].Prepared || l[0].State != gpuai.LeaseGranted {
		t.Fatalf("leases %+v", l)
	}
	r.m = restored(t, r.m)
	rep := gpuai.Report{Lease: all[1].ID, Seq: 1, Incarnation: all[1].Incarnation, State: gpuai.ReportPrepared}
	ready := map[gpuai.Token]bool{}
	for _, e := range r.apply(&ReportLease{Node: all[1].Node, Report: rep}).Events {
		if e.Kind == gpuai.LeaseReady {
			ready[e.Lease] = true
		}
	}
	r.wantHolds(id, false, false, false)
	for _, l := range all {
		if !ready[l.ID] {
			t.Errorf("nobody is told that member %d may start", l.Task)
		}
		r.report(l, gpuai.ReportRunning, 0)
	}
	r.wait(gpuai.DefaultPolicy().GangReadyMax)
	r.wantLive(id, 3)
	for _, l := range all {
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(id, gpuai.JobSucceeded)
}

// An agent that does not know the barrier reports its task running.
func TestRunningMemberCountsAsReady(t *testing.T) {
	r, id := heldGang(t, 2, 2)
	all := r.live(id)
	r.report(all[0], gpuai.ReportRunning, 0)
	r.wantHolds(id, true, true)
	r.report(all[1], gpuai.ReportPrepared, 0)
	r.wantHolds(id, false, false)
}

func TestOneTaskHasNoBarrier(t *testing.T) {
	r, id := heldGang(t, 1, 1)
	r.wantHolds(id, false)
}

// A member that cannot start breaks the gang, and none of the others has run.
func TestMemberThatCannotStartBreaksTheGang(t *testing.T) {
	r, id := heldGang(t, 3, 3)
	all := r.live(id)
	r.report(all[0], gpuai.ReportPrepared, 0)
	r.report(all[1], gpuai.ReportLost, 0) // its image cannot be had there
	for _, i := range []int{0, 2} {
		if l := r.live(id); l[0].State != gpuai.LeaseRevoking || l[0].Cause != gpuai.CauseGang {
			t.Fatalf("leases %+v", l)
		}
		if i == 0 { // too late
			r.report(all[2], gpuai.ReportPrepared, 0)
			r.wantHolds(id, true, true)
		}
		r.report(all[i], gpuai.ReportStopped, 0)
	}
	r.wait(2 * gpuai.Second)
	again := r.wantLive(id, 3)
	r.wantHolds(id, true, true, true)
	if again[0].ID == all[0].ID || r.job(id).Restarts != 1 {
		t.Errorf("after %d restarts: %+v", r.job(id).Restarts, again)
	}
}

// Who is not ready in time is named, and the gang restarts as one; the bound
// counts from the first member that is ready.
func TestLateMemberIsGivenUp(t *testing.T) {
	const bound = 10 * gpuai.Minute
	r, id := heldGang(t, 3, 3)
	all := r.live(id)
	r.wait(bound)
	r.report(all[0], gpuai.ReportPrepared, 0)
	r.m = restored(t, r.m)
	r.wait(bound - gpuai.Second)
	r.wantHolds(id, true, true, true)
	r.report(all[1], gpuai.ReportPrepared, 0)
	r.wait(gpuai.Second)
	if l := r.live(id)[2]; l.State != gpuai.LeaseRevoking || l.Cause != gpuai.CauseNotReady {
		t.Fatalf("the late member has %+v", l)
	}
	r.report(all[2], gpuai.ReportStopped, 0)
	for _, l := range all[:2] {
		r.report(l, gpuai.ReportStopped, 0)
	}
	if ended := r.leases(id)[2]; ended.Cause != gpuai.CauseNotReady {
		t.Errorf("the late member ended by %s", ended.Cause)
	}
	r.wait(2 * gpuai.Second)
	r.wantLive(id, 3)
	if n := r.job(id).Restarts; n != 1 {
		t.Errorf("%d restarts", n)
	}
}

// An elastic gang goes on without a member that is late.
func TestElasticGangStartsWithoutALateMember(t *testing.T) {
	r, id := heldGang(t, 2, 3)
	all := r.live(id)
	r.report(all[0], gpuai.ReportPrepared, 0)
	r.report(all[1], gpuai.ReportPrepared, 0)
	r.wait(gpuai.DefaultPolicy().GangReadyMax)
	r.report(all[2], gpuai.ReportStopped, 0)
	r.wantHolds(id, false, false)
	for _, l := range all[:2] {
		r.report(l, gpuai.ReportRunning, 0)
	}
	r.wait(2 * gpuai.Second) // it grows again, into a gang that runs
	r.wantHolds(id, false, false, false)
}

func TestBarrierWithoutABound(t *testing.T) {
	r, id := heldGang(t, 2, 2)
	p := gpuai.DefaultPolicy()
	p.GangReadyMax = 0
	r.do(&SetPolicy{Policy: p})
	r.report(r.live(id)[0], gpuai.ReportPrepared, 0)
	r.wait(30 * gpuai.Day)
	r.wantHolds(id, true, true)
	if l := r.live(id); l[1].State != gpuai.LeaseGranted {
		t.Errorf("leases %+v", l)
	}
}

func TestStoppedGangLeavesNoBarrier(t *testing.T) {
	r, id := heldGang(t, 2, 2)
	all := r.live(id)
	r.report(all[0], gpuai.ReportPrepared, 0)
	r.do(&StopJob{Job: id})
	for _, l := range all {
		r.report(l, gpuai.ReportStopped, 0)
	}
	r.status(id, gpuai.JobStopped)
}

// Below its level a region knows no barrier, and answers as builds do that do
// not.
func TestBarrierNeedsItsLevel(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement - 1})
	r.node("a", 2)
	id := r.submit(gangSpec("gang", 2, 2, 1))
	r.wantHolds(id, false, false)
	l := r.live(id)[0]
	rep := gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportPrepared}
	r.refuse(&ReportLease{Node: l.Node, Report: rep}, gpuai.InvalidSpec)
}

// jointRegion returns a region of two nodes, and a job whose two groups start
// together: a gang of two, and two tasks by themselves.
func jointRegion(t *testing.T) (*region, gpuai.JobID) {
	r := newest(t, nil)
	r.node("a", 2)
	r.node("b", 2)
	s := gangSpec("both", 2, 2, 1)
	other := s.Groups[0]
	other.Name, other.Gang = "alone", false
	s.Groups = append(s.Groups, other)
	s.Together = true
	return r, r.submit(s)
}

// heldTasks returns, by lease, which tasks of a job are told to wait.
func (r *region) heldTasks(id gpuai.JobID) (n int) {
	for _, l := range r.live(id) {
		if a, ok := r.m.Assignment(l.ID); ok && a.Held() {
			n++
		}
	}
	return n
}

func (r *region) wantHeld(id gpuai.JobID, want int) {
	r.t.Helper()
	if n := r.heldTasks(id); n != want {
		r.t.Fatalf("%d tasks wait, want %d", n, want)
	}
}

// Groups that start together wait for one another, tasks outside of gangs too.
func TestGroupsWaitForOneAnother(t *testing.T) {
	r, id := jointRegion(t)
	all := r.wantLive(id, 4)
	r.wantHeld(id, 4)
	for _, l := range all[:3] {
		r.report(l, gpuai.ReportPrepared, 0)
	}
	r.wantHeld(id, 4)
	r.m = restored(t, r.m)
	r.report(all[3], gpuai.ReportPrepared, 0)
	r.wantHeld(id, 0)
	for _, l := range all {
		r.report(l, gpuai.ReportRunning, 0)
		r.report(l, gpuai.ReportDone, 0)
	}
	r.status(id, gpuai.JobSucceeded)
}

// A group that breaks is waited for, gang or not; none has run before.
func TestGroupThatBreaksIsWaitedFor(t *testing.T) {
	r, id := jointRegion(t)
	all := r.wantLive(id, 4)
	r.report(all[0], gpuai.ReportPrepared, 0)
	r.report(all[1], gpuai.ReportLost, 0)
	r.report(all[0], gpuai.ReportStopped, 0)
	r.report(all[2], gpuai.ReportPrepared, 0)
	r.report(all[3], gpuai.ReportLost, 0)
	r.wantHeld(id, 1)
	r.m = restored(t, r.m)
	r.wait(2 * gpuai.Second)
	again := r.wantLive(id, 4)
	r.wantHeld(id, 4)
	for _, l := range again {
		if !l.Prepared {
			r.report(l, gpuai.ReportPrepared, 0)
		}
	}
	r.wantHeld(id, 0)
}

// Who is late is given up in each group, and the others wait for it once more;
// a group that has no place by then is done without.
func TestLateGroupIsDoneWithout(t *testing.T) {
	const bound = 10 * gpuai.Minute
	r, id := jointRegion(t)
	all := r.wantLive(id, 4)
	for _, l := range all[2:] {
		r.report(l, gpuai.ReportPrepared, 0)
	}
	r.wait(bound)
	for _, l := range all[:2] {
		if x := r.live(id)[0]; x.State != gpuai.LeaseRevoking || x.Cause != gpuai.CauseNotReady {
			t.Fatalf("the late member has %+v", x)
		}
		r.report(l, gpuai.ReportStopped, 0)
	}
	r.wantHeld(id, 2)
	r.wantLive(r.submit(jobSpec("takes-it", 2, 1)), 2)
	r.wait(bound - gpuai.Second)
	r.wantHeld(id, 2)
	r.wait(2 * gpuai.Second)
	r.wantHeld(id, 0)
}

// An explanation names who is waited for, where and since when.
func TestExplainNamesWhoIsNotReady(t *testing.T) {
	r, id := heldGang(t, 4, 4)
	all := r.live(id)
	r.wait(10 * gpuai.Second)
	r.report(all[0], gpuai.ReportPrepared, 0)
	r.report(all[2], gpuai.ReportPrepared, 0)
	r.wait(31 * gpuai.Second)
	x, _ := r.m.Fork().Explain(id)
	want := "2 of 4 ranks are prepared and none starts before all are: waits for ranks 1, 3 to be prepared (rank 1 on node " +
		string(all[1].Node) + " since 41s, rank 3 on node " + string(all[3].Node) + " since 41s); limit 10m, over in 9m29s"
	if len(x.Reasons) != 1 || x.Reasons[0].Code != gpuai.GangNotReady || x.Reasons[0].Message != want {
		t.Errorf("%+v, want %s", x.Reasons, want)
	}
	r.report(all[1], gpuai.ReportPrepared, 0)
	r.report(all[3], gpuai.ReportPrepared, 0)
	if x, _ := r.m.Fork().Explain(id); len(x.Reasons) != 0 {
		t.Errorf("of a gang that may start: %+v", x.Reasons)
	}

	r, id = jointRegion(t)
	for _, l := range r.live(id)[:3] {
		r.report(l, gpuai.ReportPrepared, 0)
	}
	x, _ = r.m.Fork().Explain(id)
	if len(x.Reasons) != 2 || !strings.Contains(x.Reasons[0].Message, "group 0: 2 of 2 ranks are prepared and none starts before all are: waits for group 1, task 1 to be prepared (task 1 on node") {
		t.Errorf("%+v", x.Reasons)
	}
}
