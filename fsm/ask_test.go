package fsm

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// ask asks the machine itself, which must not change by it.
func (r *region) ask(id gpuai.JobID) gpuai.Explanation {
	r.t.Helper()
	before := r.m.Digest()
	x, ok := r.m.Ask(id)
	if !ok {
		r.t.Fatal("no such job")
	}
	if r.m.Digest() != before {
		r.t.Fatal("asking changed the machine")
	}
	if err := r.m.Check(); err != nil {
		r.t.Fatal(err)
	}
	return x
}

func (r *region) helps(x gpuai.Explanation, change, effect string) {
	r.t.Helper()
	for _, h := range x.Helps {
		if h.Change == change && strings.HasPrefix(h.Effect, effect) {
			return
		}
	}
	r.t.Errorf("no help %q -> %q in %+v (rules %+v)", change, effect, x.Helps, x.Groups)
}

func TestAskTriesWhatHelps(t *testing.T) {
	r := newRegion(t)
	small := nodeSpec("small", 4, "L4")
	for i := range small.Devices {
		small.Devices[i].Memory = 24 << 30
	}
	r.register(small)
	r.node("big", 4)
	r.submit(jobSpec("holder", 1, 3))
	holder := r.leases(r.submit(jobSpec("holder2", 1, 4)))
	if len(holder) != 1 {
		t.Fatal("no lease")
	}
	needs := jobSpec("needs", 1, 4)
	needs.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: "L4", MemoryMin: 20 << 30}}
	r.submit(needs)
	for _, c := range []struct {
		name   string
		spec   func(s *gpuai.JobSpec)
		change string
		effect string
	}{
		{"less memory", func(s *gpuai.JobSpec) {
			s.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{MemoryMin: 200 << 30}}
		}, "gpu.memory 24GiB..", "starts now on small"},
		{"any model", func(s *gpuai.JobSpec) {
			s.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: "B200"}}
		}, "gpu.model any", "starts now on small"},
		{"fewer devices", func(s *gpuai.JobSpec) { s.Groups[0].Resources.GPU.Count = 2 }, "gpu.count 1", "starts now on small"},
		{"less CPU", func(s *gpuai.JobSpec) { s.Groups[0].Resources.CPU = 63_500 }, "cpu 63", "starts now on small"},
		{"less memory of the host", func(s *gpuai.JobSpec) { s.Groups[0].Resources.Memory = 513 << 30 }, "memory 511GiB", "starts now on small"},
		{"no constraint", func(s *gpuai.JobSpec) {
			s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "zone", Op: gpuai.Equal, Values: []string{"z9"}}}
		}, "without zone", "starts now on small"},
		{"a smaller gang", func(s *gpuai.JobSpec) { s.Groups[0].Gang, s.Groups[0].Count = true, 3 }, "count 1", "starts now on small"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := jobSpec("asked", 1, 1)
			c.spec(spec)
			id := r.newID()
			r.do(&SubmitJob{ID: id, Spec: spec, HoldAnyway: true})
			r.helps(r.ask(id), c.change, c.effect)
			r.do(&StopJob{id})
		})
	}
	four := r.submit(jobSpec("four", 1, 4))
	x := r.ask(four)
	r.helps(x, "wait", "when ")
	if x.Position < 2 || len(x.Ahead) != int(x.Position)-1 || x.Ahead[0].Name != "needs" || x.Ahead[0].Why != "it was submitted before" {
		t.Errorf("who is ahead: %+v", x)
	}
	r.node("busy", 4) // takes four
	r.node("spare", 4)
	r.do(&SetNodeEligibility{Node: "busy", Drained: true})
	r.do(&SetNodeEligibility{Node: "spare", Drained: true})
	five := r.submit(jobSpec("five", 1, 4))
	r.helps(r.ask(five), "undrain spare", "starts now on spare")
}

func TestAskSaysWhichEndLetsItStart(t *testing.T) {
	r := newRegion(t)
	r.node("a", 2)
	first := r.submit(limited(jobSpec("first", 1, 2), 10*gpuai.Minute))
	r.report(r.leases(first)[0], gpuai.ReportRunning, 0)
	waits := r.submit(jobSpec("waits", 1, 2))
	x := r.ask(waits)
	r.helps(x, "wait", "when first[0] ends, in about 10m (estimate)")
	if x.Estimate == nil || x.Estimate.In != 10*gpuai.Minute {
		t.Errorf("%+v", x.Estimate)
	}
}

func TestTracedGrantsSayWhyThere(t *testing.T) {
	r := newRegion(t)
	r.node("four", 4)
	r.node("two", 2)
	r.node("one", 1)
	r.node("two-b", 2)
	r.m.TraceGrants([]gpuai.Token{gpuai.MakeToken(0, r.index+1, 0), gpuai.MakeToken(0, r.index+2, 1)})
	id := r.submit(jobSpec("j", 1, 2))
	r.submit(jobSpec("k", 2, 1))
	got := r.m.Traced()
	if len(got) != 2 || got[0].Job != id || got[0].Lease != r.leases(id)[0].ID || got[0].Node != "two" {
		t.Fatalf("%+v", got)
	}
	if w := got[0]; w.Nodes != 4 || w.Fits != 3 || len(w.Steps) < 2 || w.Steps[0].Rule != "class" || w.Steps[0].Nodes != 2 || w.Note != "" || w.Steps[len(w.Steps)-1].Rule != "node" {
		t.Errorf("%+v", w)
	}
	if w := got[1]; w.Node != "two-b" || w.Fits != 2 {
		t.Errorf("%+v", w)
	}
}
