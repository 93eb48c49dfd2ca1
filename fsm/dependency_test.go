package fsm

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// placing returns a region of the level that knows when a job wants to run.
func placing(t testing.TB) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	return r
}

func (r *region) reason(id gpuai.JobID, want gpuai.ReasonCode) {
	r.t.Helper()
	x, _ := r.m.Explain(id)
	if len(x.Reasons) == 0 || x.Reasons[0].Code != want {
		r.t.Fatalf("the job waits for %+v, want %s", x.Reasons, want)
	}
}

func TestBeginTime(t *testing.T) {
	r := placing(t)
	r.node("a", 2)
	s := jobSpec("later", 1, 1)
	s.Begin = 1 + gpuai.WallTime(gpuai.Minute) // entries say that it is 1 ms past 1970
	s.Limits.QueueTime = gpuai.Second
	id := r.submit(s)
	now := jobSpec("now", 1, 1)
	now.Begin = 1
	r.status(r.submit(now), gpuai.JobRunning)
	r.reason(id, gpuai.BeginTime)
	r.m = restored(t, r.m)
	if at := r.m.NextDeadline(); at != gpuai.Instant(gpuai.Minute) {
		t.Fatalf("the machine wants a tick at %d", at)
	}
	r.wait(gpuai.Minute - 1) // far beyond its queue time, which has not begun
	r.status(id, gpuai.JobPending)
	r.wait(1)
	r.status(id, gpuai.JobRunning)
}

// What a job waits for before it is let in is no time in the queue.
func TestQueueTimeCountsFromTheQueue(t *testing.T) {
	r := placing(t)
	r.node("a", 1)
	first := r.submit(jobSpec("first", 1, 1))
	s := jobSpec("second", 1, 1)
	s.After = []gpuai.JobDependency{{Job: first, On: gpuai.StageStarted}}
	s.Limits.QueueTime = 10 * gpuai.Second
	begins := jobSpec("begins", 1, 1)
	begins.Begin, begins.Limits = 20_001, s.Limits
	second, third := r.submit(s), r.submit(begins)
	r.wait(11 * gpuai.Second)
	r.status(second, gpuai.JobFailed)
	r.status(third, gpuai.JobPending)
	r.wait(20 * gpuai.Second)
	r.status(third, gpuai.JobFailed)
}

func TestAfter(t *testing.T) {
	for _, c := range []struct {
		on                               gpuai.Stage
		started, succeeded, failed, dead gpuai.JobStatus // of the job that waits, when the other is that
	}{
		{gpuai.StageSucceeded, gpuai.JobPending, gpuai.JobRunning, gpuai.JobFailed, gpuai.JobFailed},
		{gpuai.StageEnded, gpuai.JobPending, gpuai.JobRunning, gpuai.JobRunning, gpuai.JobRunning},
		{gpuai.StageStarted, gpuai.JobRunning, gpuai.JobRunning, gpuai.JobRunning, gpuai.JobFailed},
		{gpuai.StageFailed, gpuai.JobPending, gpuai.JobFailed, gpuai.JobRunning, gpuai.JobRunning},
	} {
		t.Run(c.on.String(), func(t *testing.T) {
			for _, late := range []bool{false, true} { // the job is submitted when the other is that already
				for state, want := range map[string]gpuai.JobStatus{
					"started": c.started, "succeeded": c.succeeded, "failed": c.failed, "stopped before it started": c.dead,
				} {
					testAfter(t, c.on, late, state, want)
				}
			}
		})
	}
}

func testAfter(t *testing.T, on gpuai.Stage, late bool, state string, want gpuai.JobStatus) {
	t.Helper()
	r := placing(t)
	first := r.submit(jobSpec("first", 1, 1))
	s := jobSpec("second", 1, 0)
	s.After = []gpuai.JobDependency{{Job: first, On: on}}
	var second gpuai.JobID
	if !late {
		second = r.submit(s)
		r.reason(second, gpuai.Dependency)
	}
	if state == "stopped before it started" {
		r.do(&StopJob{Job: first})
		r.node("a", 1)
	} else {
		r.node("a", 1)
		r.report(r.leases(first)[0], gpuai.ReportRunning, 0)
	}
	switch state {
	case "succeeded":
		r.report(r.leases(first)[0], gpuai.ReportDone, 0)
	case "failed":
		r.report(r.leases(first)[0], gpuai.ReportFailed, 1)
	}
	if late {
		second = r.submit(s)
	}
	j := r.job(second)
	if j.Status != want {
		t.Fatalf("late %v: the other is %s: the job is %s, want %s", late, state, j.Status, want)
	}
	if want == gpuai.JobFailed && !strings.Contains(j.Reason, "waited for") {
		t.Fatalf("it ended since %q", j.Reason)
	}
}

func TestAfterUnknownJobIsRefused(t *testing.T) {
	r := placing(t)
	r.node("a", 1)
	theirs := jobSpec("theirs", 1, 1)
	theirs.Tenant = "other"
	other, gone := r.submit(theirs), r.newID()
	for _, id := range []gpuai.JobID{other, gone} {
		s := jobSpec("j", 1, 1)
		s.After = []gpuai.JobDependency{{Job: id}}
		r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.InvalidSpec)
	}
	own := jobSpec("own", 1, 1) // a job cannot wait for itself
	id := r.newID()
	own.After = []gpuai.JobDependency{{Job: id}}
	r.refuse(&SubmitJob{ID: id, Spec: own}, gpuai.InvalidSpec)
}

// A long chain of jobs comes down link by link, and jobs of one entry may wait
// for earlier ones of it.
func TestAfterChainEnds(t *testing.T) {
	r := placing(t)
	r.node("a", 1)
	ids := []gpuai.JobID{r.submit(jobSpec("first", 1, 1))}
	var cmds []Command
	for range 300 {
		s := jobSpec("next", 1, 1)
		s.After = []gpuai.JobDependency{{Job: ids[len(ids)-1]}}
		ids = append(ids, r.newID())
		cmds = append(cmds, &SubmitJob{ID: ids[len(ids)-1], Spec: s})
	}
	r.apply(cmds...)
	r.m = restored(t, r.m)
	r.report(r.leases(ids[0])[0], gpuai.ReportDone, 0)
	r.status(ids[1], gpuai.JobRunning)
	r.report(r.leases(ids[1])[0], gpuai.ReportFailed, 1)
	for _, id := range ids[2:] {
		r.status(id, gpuai.JobFailed)
	}
	r.do(&RetireJobs{Jobs: ids})
	if n := r.m.Counts().Jobs; n != 0 || r.m.edgeSlots.Len() != 0 || r.m.waitSlots.Len() != 0 {
		t.Fatalf("%d jobs, %d waits and %d edges are left", n, r.m.waitSlots.Len(), r.m.edgeSlots.Len())
	}
}

// What waits for one job may be more than an entry's budget reaches.
func TestAfterIsSettledWithinTheBudget(t *testing.T) {
	t.Parallel()
	r := placing(t)
	r.check = false
	r.node("a", 1)
	first := r.submit(jobSpec("first", 1, 1))
	s := jobSpec("next", 1, 0)
	s.After = []gpuai.JobDependency{{Job: first, On: gpuai.StageFailed}}
	const jobs = 15_000
	for range jobs / 500 {
		var cmds []Command
		for range 500 {
			cmds = append(cmds, &SubmitJob{ID: r.newID(), Spec: s})
		}
		r.apply(cmds...)
	}
	r.report(r.leases(first)[0], gpuai.ReportDone, 0)
	if at := r.m.NextDeadline(); at != r.m.Time() {
		t.Fatal("one entry settled all: the test is too small")
	}
	entries := 0
	for ; r.m.NextDeadline() <= r.m.Time(); entries++ {
		r.apply(&Tick{})
	}
	if c := r.m.Counts(); c.JobsPending != 0 || entries < 1 {
		t.Fatalf("%d jobs still wait after %d entries", c.JobsPending, entries)
	}
}

func TestArrayMaxParallel(t *testing.T) {
	r := placing(t)
	r.node("a", 8)
	s := jobSpec("array", 5, 1)
	s.Array = gpuai.Array{Size: 5, MaxParallel: 2}
	id := r.submit(s)
	small := r.submit(jobSpec("other", 3, 1)) // what the array leaves is not kept from others
	r.status(small, gpuai.JobRunning)
	r.reason(id, gpuai.ArrayThrottled)
	r.m = restored(t, r.m)
	for left := 5; left > 0; left-- {
		var live []gpuai.Lease
		for _, l := range r.leases(id) {
			if l.State != gpuai.LeaseEnded {
				live = append(live, l)
			}
		}
		if len(live) != min(left, 2) {
			t.Fatalf("%d elements hold a lease with %d left", len(live), left)
		}
		r.report(live[0], gpuai.ReportDone, 0)
	}
	r.status(id, gpuai.JobSucceeded)
}
