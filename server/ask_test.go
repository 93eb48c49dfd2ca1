package server

import (
	"reflect"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// explained asks about a job without what is this server's own memory.
func explained(t *testing.T, s *Server, ref string, index uint64) gpuai.Explanation {
	t.Helper()
	x, err := s.Explain(t.Context(), ref, index)
	if err != nil {
		t.Fatal(err)
	}
	if x.Estimate != nil {
		x.Estimate.Calibration = nil
	}
	return x
}

func TestExplainAtAPastIndexSaysWhatWasSaidThen(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader().Server
	a := join(t, s, helloOf("n1", 2))
	spec := jobSpec("first", 1)
	spec.Limits.RunTime = gpuai.Hour
	r.submit(spec, "")
	a.report(a.awaitLeases(1)[0], 1, gpuai.ReportRunning)
	r.submit(jobSpec("waits", 3), "")
	then := explained(t, s, "waits", 0)
	if len(then.Groups) != 1 || then.Estimate == nil || len(then.Places) == 0 || then.Places[0].Fits == 0 {
		t.Fatalf("%+v", then)
	}
	if _, err := s.StopJob(t.Context(), "waits", ""); err != nil {
		t.Fatal(err)
	}
	r.submit(jobSpec("later", 1), "")
	if now := explained(t, s, "waits", 0); reflect.DeepEqual(now, then) {
		t.Error("nothing has changed")
	}
	if again := explained(t, s, "waits", then.Index); !reflect.DeepEqual(again, then) {
		t.Errorf("at index %d:\n%+v\nthen:\n%+v", then.Index, again, then)
	}
	if _, err := s.Explain(t.Context(), "later", then.Index); !isCode(err, gpuai.NotFound) {
		t.Errorf("a job that was not there yet: %v", err)
	}
	if _, err := s.Explain(t.Context(), "waits", 1<<40); !isCode(err, gpuai.NotFound) || !strings.Contains(err.Error(), "indexes 0 to ") {
		t.Errorf("an index that is not there yet: %v", err)
	}
}

func TestSupposeChangesNothing(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader().Server
	join(t, s, helloOf("n1", 2)).awaitLeases(0)
	r.submit(jobSpec("here", 1), "")
	digest := func() (d fsm.Digest, index uint64) {
		s.node.View(func(m *fsm.Machine) { d, index = m.Digest(), m.Index() })
		return d, index
	}
	p := s.Policy()
	p.PriorityBatch = 99
	before, at := digest()
	plan, err := s.Suppose(t.Context(), &gpuai.PlanRequest{
		Policy: &p, Add: []gpuai.PlanNodes{{Count: 2, Like: "n1"}}, Drain: []gpuai.NodeID{"n1"}, Submit: []gpuai.JobSpec{*jobSpec("new", 1)},
	})
	if err != nil || len(plan.Jobs) != 1 || plan.Jobs[0].Now != 1 || plan.Jobs[0].Job.Priority != 99 || plan.Blast.Moves != 1 || plan.After.Nodes != 3 {
		t.Fatalf("%+v, %v", plan, err)
	}
	if after, end := digest(); at == end && after != before {
		t.Error("a plan changed the machine")
	}
	if _, err := s.Node("plan-0-0", ""); !isCode(err, gpuai.NotFound) {
		t.Errorf("a planned node: %v", err)
	}
	_, err = s.Suppose(t.Context(), &gpuai.PlanRequest{Lose: []gpuai.NodeID{"nobody"}})
	if !isCode(err, gpuai.NotFound) {
		t.Errorf("losing nobody: %v", err)
	}
}

func TestCalibrationOfEstimates(t *testing.T) {
	c := newCalibration()
	if c.sum() != nil {
		t.Error("a history of nothing")
	}
	id := func(n byte) gpuai.JobID { return gpuai.JobID{15: n} }
	for n, late := range []gpuai.Duration{10, -20, 300} {
		c.said(id(byte(n+1)), 1_000, &gpuai.StartEstimate{Known: true, In: 500})
		c.said(id(byte(n+1)), 1_400, &gpuai.StartEstimate{Known: true, In: 1}) // the first counts
		c.saw(&fsm.Output{Events: []gpuai.Event{{Kind: gpuai.LeaseGrantedEvent, Job: id(byte(n + 1)), At: gpuai.Instant(1_500 + late)}}})
	}
	c.said(id(9), 0, &gpuai.StartEstimate{})
	c.said(id(10), 0, &gpuai.StartEstimate{Known: true})
	c.saw(&fsm.Output{Events: []gpuai.Event{{Kind: gpuai.JobEnded, Job: id(10)}}})
	if s := c.sum(); s == nil || *s != (gpuai.Calibration{Starts: 3, Error: 20, Bias: 10}) || len(c.open) != 0 {
		t.Errorf("%+v, %d open", s, len(c.open))
	}
	for range 2 * keptErrors {
		c.add(7)
	}
	if s := c.sum(); s.Starts != keptErrors || s.Error != 7 {
		t.Errorf("%+v", s)
	}
}

// Refusals of one spec that wait together share a look at the nodes, and one
// that comes later has a newer look.
func TestRefusalsOfOneSpecShareALook(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.servers[0].Server
	join(t, s, helloOf("n1", 1))
	x := newExplainer(s) // which nobody runs
	of := func(gpus uint32) *gpuai.JobSpec {
		spec := jobSpec("j", 1)
		spec.Groups[0].Resources.GPU.Count = gpus
		return spec
	}
	first, _ := x.never(of(40))
	second, _ := x.never(of(40))
	other, _ := x.never(of(41))
	if first != second || first == other || len(x.asks) != 2 {
		t.Fatalf("%d questions wait", len(x.asks))
	}
	x.round(<-x.asks)
	for _, q := range []*question{first, other} {
		reasons, err := q.reasons, x.answered(t.Context(), q)
		if err != nil || len(reasons) == 0 {
			t.Errorf("the reasons are %+v, %v", reasons, err)
		}
	}
	if later, _ := x.never(of(40)); later == first || len(x.specs) != 1 {
		t.Errorf("a later refusal has the answer of an earlier state; %d specs wait", len(x.specs))
	}
}
