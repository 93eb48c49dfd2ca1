package fsm

import (
	"errors"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// plan asks a fork, and fails when that changed the machine.
func (r *region) plan(q *gpuai.PlanRequest) gpuai.Plan {
	r.t.Helper()
	p, err := r.tryPlan(q)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *region) tryPlan(q *gpuai.PlanRequest) (gpuai.Plan, error) {
	r.t.Helper()
	if wrong := q.Validate(); len(wrong) > 0 {
		r.t.Fatalf("an invalid request: %+v", wrong)
	}
	var ids []gpuai.JobID
	for range q.Submit {
		ids = append(ids, r.newID())
	}
	before := r.m.Digest()
	f := r.m.Fork()
	p, err := f.Plan(q, ids, Header{Time: r.time, Wall: 1})
	if r.m.Digest() != before {
		r.t.Fatal("a plan changed the machine")
	}
	if e := f.Check(); e != nil {
		r.t.Fatal(e)
	}
	if e := r.m.Check(); e != nil {
		r.t.Fatal(e)
	}
	return p, err
}

func limited(s *gpuai.JobSpec, d gpuai.Duration) *gpuai.JobSpec {
	s.Limits.RunTime = d
	return s
}

func TestPlanOfSeveralThingsAtOnce(t *testing.T) {
	r := newRegion(t)
	r.node("a", 4)
	r.node("b", 4)
	old := r.submit(jobSpec("old", 1, 3))     // on a
	other := r.submit(jobSpec("other", 1, 4)) // on b
	waits := r.submit(jobSpec("waits", 1, 2))
	p := r.plan(&gpuai.PlanRequest{
		Add: []gpuai.PlanNodes{{Count: 1, Like: "a"}}, Drain: []gpuai.NodeID{"a"}, Lose: []gpuai.NodeID{"b"},
		Submit: []gpuai.JobSpec{*jobSpec("new", 1, 2), *jobSpec("never", 1, 9)},
	})
	if len(p.Jobs) != 2 || p.Jobs[0].Code != gpuai.OK || p.Jobs[0].Now != 1 || p.Jobs[0].Leases[0].Node != "plan-0-0" {
		t.Errorf("the submit: %+v", p.Jobs)
	}
	if p.Jobs[1].Code != gpuai.Unschedulable || len(p.Jobs[1].Reasons) == 0 {
		t.Errorf("what can never fit: %+v", p.Jobs[1])
	}
	want := map[gpuai.JobID]gpuai.PlanChange{
		old:   {Change: gpuai.PlanWaits, Cause: gpuai.CauseDrained, From: "a", GPUs: 3, Name: "old"},
		other: {Change: gpuai.PlanWaits, Cause: gpuai.CauseExpired, From: "b", GPUs: 4, Name: "other"},
		waits: {Change: gpuai.PlanStarts, To: "plan-0-0", GPUs: 2, Name: "waits"},
	}
	for _, c := range p.Changes {
		x := want[c.Job]
		x.TaskRef = c.TaskRef
		if c != x {
			t.Errorf("%+v, want %+v", c, x)
		}
		delete(want, c.Job)
	}
	if len(want) > 0 {
		t.Errorf("missing: %+v", want)
	}
	if b := p.Blast; b.Jobs != 3 || b.Waits != 2 || b.Starts != 1 || b.GPUs != 7 || len(b.Revoked) != 2 {
		t.Errorf("blast radius %+v", b)
	}
	if b, a := p.Before, p.After; b.GPUs != 8 || b.FreeGPUs != 1 || a.GPUs != 4 || a.FreeGPUs != 0 || a.NodesOpen != 1 || a.Nodes != 3 || b.TasksPending != 1 || a.TasksPending != 2 {
		t.Errorf("capacity %+v, then %+v", b, a)
	}
	if p.Index != r.m.Index() || p.Unfinished {
		t.Errorf("index %d of %d, unfinished %v", p.Index, r.m.Index(), p.Unfinished)
	}
}

func TestPlanFollowsWhatIsRevoked(t *testing.T) {
	r := newRegion(t)
	r.node("a", 4)
	job := r.submit(jobSpec("j", 2, 2))
	gang := jobSpec("g", 2, 1)
	gang.Groups[0].Gang = true
	r.node("b", 4)
	r.submit(gang)
	p := r.plan(&gpuai.PlanRequest{Lose: []gpuai.NodeID{"a"}})
	if p.Blast.Moves != 1 || p.Blast.Waits != 1 { // behind their back-off one finds room
		t.Errorf("after a loss: %+v %+v", p.Blast, p.Changes)
	}
	p = r.plan(&gpuai.PlanRequest{Drain: []gpuai.NodeID{"b"}, Add: []gpuai.PlanNodes{{Count: 2, Like: "b"}}})
	if p.Blast.Moves != 2 || p.Changes[0].From != "b" || !strings.HasPrefix(string(p.Changes[0].To), "plan-") {
		t.Errorf("after a drain: %+v %+v", p.Blast, p.Changes)
	}
	r.do(&SetNodeEligibility{Node: "a", Drained: true})
	if p = r.plan(&gpuai.PlanRequest{Undrain: []gpuai.NodeID{"a"}}); p.After.NodesOpen != 2 || p.Before.NodesOpen != 1 {
		t.Errorf("after an undrain: %+v", p)
	}
	_ = job
}

func TestPlanOfAPolicy(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	q := r.m.Policy()
	q.PriorityBatch = 7
	p := r.plan(&gpuai.PlanRequest{Policy: &q, Submit: []gpuai.JobSpec{*jobSpec("j", 1, 1)}})
	if p.Jobs[0].Job.Priority != 7 {
		t.Errorf("priority %d under the policy planned", p.Jobs[0].Job.Priority)
	}
}

func TestPlanNamesWhatIsWrong(t *testing.T) {
	r := newRegion(t)
	r.node("a", 1)
	_, err := r.tryPlan(&gpuai.PlanRequest{
		Drain: []gpuai.NodeID{"a", "x"}, Lose: []gpuai.NodeID{"y"}, Undrain: []gpuai.NodeID{"u"}, Add: []gpuai.PlanNodes{{Count: 1, Like: "z"}},
	})
	var e *gpuai.Error
	if !errors.As(err, &e) || e.Code != gpuai.NotFound || len(e.Fields) != 4 {
		t.Fatalf("%v", err)
	}
	for i, want := range []string{"/add/0/like", "/undrain/0", "/drain/1", "/lose/0"} {
		if e.Fields[i].Pointer != want {
			t.Errorf("pointer %q, want %q", e.Fields[i].Pointer, want)
		}
	}
	if e := (&gpuai.PlanRequest{}).Validate(); len(e) != 1 {
		t.Errorf("an empty request: %+v", e)
	}
	bad := gpuai.PlanRequest{Add: []gpuai.PlanNodes{{Count: gpuai.MaxPlanAdd, Like: "a"}, {Like: "a"}, {Count: 1}}, Submit: []gpuai.JobSpec{{Name: "X"}}}
	if e := bad.Validate(); len(e) < 3 || e[0].Pointer != "/submit/0/name" {
		t.Errorf("a bad request: %+v", e)
	}
	gang := jobSpec("g", 3, 1)
	gang.Groups[0].Gang = true
	if p := r.plan(&gpuai.PlanRequest{Submit: []gpuai.JobSpec{*gang}}); p.Jobs[0].Code != gpuai.Unschedulable || len(p.Jobs[0].Reasons) == 0 {
		t.Errorf("a gang larger than the region: %+v", p.Jobs[0])
	}
}

func TestEstimateByRunTimeLimits(t *testing.T) {
	r := newRegion(t)
	r.node("a", 2)
	first := r.submit(limited(jobSpec("first", 1, 2), 10*gpuai.Minute))
	r.wait(gpuai.Minute)
	r.report(r.leases(first)[0], gpuai.ReportRunning, 0)
	second := r.submit(limited(jobSpec("second", 1, 2), gpuai.Hour))
	third := r.submit(jobSpec("third", 4, 1))
	fourth := r.submit(jobSpec("fourth", 1, 1))
	r.wait(gpuai.Minute)
	for _, x := range []struct {
		id        gpuai.JobID
		in, all   gpuai.Duration
		behind    string
		why       string
		whyOthers bool
	}{
		{id: second, in: 9 * gpuai.Minute, all: 9 * gpuai.Minute, behind: "first"},
		{id: third, in: 69 * gpuai.Minute, behind: "second", why: "the others of its tasks wait for tasks without a run-time limit"},
		{id: fourth, why: "it waits for tasks without a run-time limit"},
		{id: first, why: "none of its tasks waits"},
	} {
		e := r.m.Fork().EstimateStart(x.id)
		if e.In != x.in || e.AllIn != x.all || e.Name != x.behind || e.Why != x.why || e.Known != (x.in > 0) {
			t.Errorf("%+v, want %+v", e, x)
		}
	}
	short := jobSpec("short", 1, 2)
	short.Limits.QueueTime = gpuai.Second
	id := r.submit(short)
	if e := r.m.Fork().EstimateStart(id); e.Known || e.Why != "its own limit queue_time ends it first" {
		t.Errorf("%+v", e)
	}
	p := r.plan(&gpuai.PlanRequest{Lose: []gpuai.NodeID{"a"}, Add: []gpuai.PlanNodes{{Count: 1, Like: "a"}}, Submit: []gpuai.JobSpec{*jobSpec("last", 1, 2)}})
	if p.Jobs[0].Estimate == nil || p.Jobs[0].Job.Counts.Pending != 1 {
		t.Errorf("a plan without an estimate: %+v", p.Jobs[0])
	}
}

// TestEstimateHoldsInASimulatedRegion lets a region go on as the estimate
// supposes and compares.
func TestEstimateHoldsInASimulatedRegion(t *testing.T) {
	t.Parallel()
	r := newRegion(t)
	r.node("a", 4)
	var ids []gpuai.JobID
	for i := range 30 {
		ids = append(ids, r.submit(limited(jobSpec("j", 1+uint32(i%3), 1+uint32(i%4)), gpuai.Duration(1+i*7%13)*gpuai.Minute)))
	}
	said := map[gpuai.JobID]gpuai.StartEstimate{}
	for _, id := range ids {
		if j := r.job(id); j.Counts.Pending == j.Tasks {
			said[id] = r.m.Fork().EstimateStart(id)
		}
	}
	began := r.time
	for ended, rounds := 0, 0; ended < len(ids); rounds++ {
		if ended = 0; rounds > 1_000 {
			t.Fatal("the region does not come to an end")
		}
		for _, id := range ids {
			if r.job(id).Status.Final() {
				ended++
			}
			for _, l := range r.leases(id) {
				switch {
				case l.State == gpuai.LeaseGranted:
					r.report(l, gpuai.ReportRunning, 0)
				case l.State == gpuai.LeaseRevoking: // at its limit
					r.report(l, gpuai.ReportDone, 0)
				}
			}
		}
		r.wait(gpuai.Minute / 2)
	}
	if len(said) < 20 {
		t.Fatalf("only %d waited", len(said))
	}
	for _, id := range ids {
		e, ok := said[id]
		if !ok {
			continue
		}
		actual := gpuai.Duration(r.job(id).StartedAt - began)
		if off := actual - e.In; !e.Known || off < -gpuai.Minute || off > gpuai.Minute+e.In/20 { // the test looks each half minute
			t.Errorf("job %s: it started after %s, %s was said", id, actual, e.In)
		}
	}
}
