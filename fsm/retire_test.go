package fsm

import (
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
)

// end lets every lease of a job report success.
func (r *region) end(id gpuai.JobID) {
	r.t.Helper()
	for _, l := range r.leases(id) {
		r.report(l, gpuai.ReportRunning, 0)
		r.report(l, gpuai.ReportDone, 0)
	}
}

func TestRetiredJobsComeOutWhole(t *testing.T) {
	r := newRegion(t)
	r.node("a", 2)
	done := r.submit(jobSpec("done", 2, 1))
	r.end(done)
	r.status(done, gpuai.JobSucceeded)
	stopped := r.submit(jobSpec("stopped", 5, 1)) // two run, three wait
	r.do(&StopJob{Job: stopped})
	for _, l := range r.leases(stopped) {
		r.report(l, gpuai.ReportStopped, 0)
	}
	live := r.submit(jobSpec("live", 1, 1))
	want := make(map[gpuai.JobID]gpuai.RetiredJob)
	for _, id := range []gpuai.JobID{done, stopped} {
		j, _ := r.m.Job(id, true)
		want[id] = gpuai.RetiredJob{Job: j, Tasks: r.m.Tasks(id, 0, 2), Leases: r.leases(id)}
	}
	before := r.m.Counts()
	twin := restored(t, r.m)
	unknown := gpuai.JobID{9}
	out := r.apply(&RetireJobs{Jobs: []gpuai.JobID{stopped, live, unknown, done, done}})
	if out.Prev != out.Index-1 || len(out.Retired) != 2 {
		t.Fatalf("the entry at %d says that %d came before, and retired %d jobs", out.Index, out.Prev, len(out.Retired))
	}
	for _, got := range out.Retired {
		if !reflect.DeepEqual(got, want[got.Job.ID]) {
			t.Errorf("job %s came out as\n%+v\nand was\n%+v", got.Job.Name, got, want[got.Job.ID])
		}
		if len(got.Leases) != 2 || got.Leases[0].State != gpuai.LeaseEnded || len(got.Leases[0].Devices) != 1 {
			t.Errorf("job %s came out with leases %+v", got.Job.Name, got.Leases)
		}
	}
	if n := r.m.Counts(); n.Jobs != before.Jobs-2 || n.Leases != 1 {
		t.Errorf("%d of %d jobs are left, with %d live leases", n.Jobs, before.Jobs, n.Leases)
	}
	var again Output
	if err := twin.Apply(r.index, r.term, r.log[len(r.log)-1], &again); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again.Retired, out.Retired) || twin.Digest() != r.m.Digest() {
		t.Error("a replica that came from a snapshot retired the jobs otherwise")
	}
	if err := twin.Apply(r.index, r.term, r.log[len(r.log)-1], &again); err != nil || len(again.Retired) != 0 {
		t.Errorf("an index applied before gave %d jobs, %v", len(again.Retired), err)
	}
	r.refuse(&StopJob{Job: done}, gpuai.NotFound)
}

// The machine's memory does not grow with the jobs that have passed through.
func TestRetirementFreesTheSlots(t *testing.T) {
	t.Parallel()
	r := newRegion(t)
	r.node("a", 8)
	specs := r.m.blobs.Len() // the node's
	for range 50 {
		var ids []gpuai.JobID
		for range 4 {
			id := r.submit(jobSpec("j", 2, 1))
			r.end(id)
			ids = append(ids, id)
		}
		r.do(&RetireJobs{Jobs: ids})
	}
	for what, n := range map[string]uint32{
		"jobs": r.m.jobSlots.Len(), "groups": r.m.groupSlots.Len(), "tasks": r.m.taskSlots.Len(),
		"leases": r.m.leaseSlots.Len(), "spec blocks": r.m.blobs.Len() - specs,
	} {
		if n != 0 {
			t.Errorf("%d %s are left", n, what)
		}
	}
	if n := r.m.jobs.Len(); n > 32 {
		t.Errorf("the table of jobs has grown to %d rows for 4 at a time", n)
	}
	if full := r.m.Fullness(); full != 0 {
		t.Errorf("the empty machine is full to %d in 1,000", full)
	}
}

// A list of jobs goes on in its place when the job it stopped at is retired.
func TestJobsAreListedOnceWhileSomeAreRetired(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	var ids []gpuai.JobID
	for range 9 {
		id := r.submit(jobSpec("j", 1, 1))
		r.end(id)
		ids = append(ids, id)
	}
	seen := make(map[gpuai.JobID]int)
	var at JobCursor
	for {
		page, next := r.m.Jobs(at, 2, nil)
		for _, j := range page {
			seen[j.ID]++
		}
		if next == (JobCursor{}) {
			break
		}
		at = next
		r.do(&RetireJobs{Jobs: []gpuai.JobID{page[len(page)-1].ID}})
	}
	for _, id := range ids {
		if seen[id] != 1 {
			t.Errorf("job %s was listed %d times", id, seen[id])
		}
	}
}

func TestEndedJobs(t *testing.T) {
	r := newRegion(t)
	r.node("a", 2)
	first := r.submit(jobSpec("first", 1, 1))
	r.end(first)
	r.wait(gpuai.Minute)
	second := r.submit(jobSpec("second", 2, 1))
	r.end(second)
	r.submit(jobSpec("live", 1, 1))
	all, next := r.m.EndedJobs(0, r.m.Time(), 10)
	if len(all) != 2 || next != 0 || all[0].ID != first || all[1].ID != second || all[1].Tasks != 2 {
		t.Errorf("ended: %+v, then %d", all, next)
	}
	if old, _ := r.m.EndedJobs(0, r.m.Time()-gpuai.Instant(gpuai.Second), 10); len(old) != 1 || old[0].ID != first {
		t.Errorf("ended a second ago: %+v", old)
	}
	if one, next := r.m.EndedJobs(0, r.m.Time(), 1); len(one) != 1 || next == 0 {
		t.Errorf("one of them: %+v, then %d", one, next)
	}
}
