package fsm

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// A flood is what one tenant submits: each time something that nobody asked for
// yet, and nobody can ever give it.
var floods = map[string]func(s *gpuai.JobSpec, i int){
	"shapes": func(s *gpuai.JobSpec, i int) { s.Groups[0].Resources.CPU = gpuai.MilliCPU(900_000 + i) },
	"labels": func(s *gpuai.JobSpec, i int) {
		s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "label.no-such", Op: gpuai.In, Values: []string{fmt.Sprint("v", i)}}}
	},
	"models": func(s *gpuai.JobSpec, i int) {
		s.Groups[0].Resources.GPU.Any = nil
		for k := range gpuai.MaxAlternatives {
			s.Groups[0].Resources.GPU.Any = append(s.Groups[0].Resources.GPU.Any, gpuai.GPUAlternative{Model: fmt.Sprint("m", i, "-", k)})
		}
	},
	"priorities and gangs": func(s *gpuai.JobSpec, i int) {
		s.Priority = gpuai.Priority(1 + i%int(gpuai.MaxPriority))
		s.Groups[0].Count = uint32(2 + i/int(gpuai.MaxPriority))
		s.Groups[0].Gang = true
		s.Groups[0].Resources.CPU = 900_000
	},
	"dependents": func(s *gpuai.JobSpec, i int) {
		s.Begin = 1 << 40
		s.Groups[0].Resources.CPU = gpuai.MilliCPU(900_000 + i)
	},
}

// flood submits until the tenant is refused, and returns how often it was not.
func (r *region) flood(by func(s *gpuai.JobSpec, i int), limit int) (taken int) {
	r.t.Helper()
	for taken < limit {
		var cmds []Command
		for i := range 500 {
			s := jobSpec("flood", 1, 1)
			s.Tenant = "flooder"
			by(s, taken+i)
			cmds = append(cmds, &SubmitJob{ID: r.newID(), Spec: s, HoldAnyway: true})
		}
		out := r.applyAs(Envelope{Tenant: "flooder"}, cmds...)
		r.log = r.log[:0]
		for i := range out.Results {
			switch out.Results[i].Code {
			case gpuai.OK:
				taken++
			case gpuai.RateLimited:
				return taken
			default:
				r.t.Fatalf("submit %d of the flood: %s (%s)", taken, out.Results[i].Code, out.Results[i].Detail)
			}
		}
	}
	return taken
}

// A tenant that floods the region with distinct requests is refused at its bound,
// and what it asked for before stays. Another tenant has the same answers and the
// same places as without it.
func TestFloodCostsOthersNothing(t *testing.T) {
	for name, by := range floods {
		if brief() && (name == "shapes" || name == "models") {
			continue // as labels, and slow
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			alone, beside := newOrderWalk(t, 50), newOrderWalk(t, 50)
			alone.check, beside.check = false, false
			taken := beside.flood(by, MaxBuckets)
			if taken < MaxTenantKinds || taken > MaxBuckets/2+1 {
				t.Errorf("%d distinct requests were taken, want no less than %d and no more than %d", taken, MaxTenantKinds, MaxBuckets/2+1)
			}
			for beside.m.backlog() {
				beside.apply(&Tick{})
			}
			for alone.index < beside.index {
				alone.apply(&Tick{})
			}
			alone.jobs = beside.jobs
			for step := range 100 {
				a, b := alone.later(alone.command), beside.later(beside.command)
				x, y := alone.apply(a...), beside.apply(b...)
				for i := range x.Results {
					if x.Results[i].Code != y.Results[i].Code || x.Results[i].Leased != y.Results[i].Leased {
						t.Fatalf("step %d: %T is answered %+v, beside the flood %+v", step, a[i], x.Results[i], y.Results[i])
					}
				}
				if !slices.Equal(grants(x), grants(y)) {
					t.Fatalf("step %d: leases %v, beside the flood %v", step, grants(x), grants(y))
				}
				if v, w := alone.m.meta.Get().reserve, beside.m.meta.Get().reserve; (v.group != 0) != (w.group != 0) || v.shadow != w.shadow {
					t.Fatalf("step %d: reservation %+v, beside the flood %+v", step, v, w)
				}
				alone.see()
				beside.see()
			}
			if err := beside.m.Check(); err != nil {
				t.Error(err)
			}
			if got := restored(t, beside.m); got.Digest() != beside.m.Digest() {
				t.Error("restored, it is another")
			}
			// A request like one that is there is no flood.
			s := jobSpec("flood", 1, 1)
			s.Tenant = "flooder"
			by(s, 0)
			beside.do(&SubmitJob{ID: beside.newID(), Spec: s, HoldAnyway: true})
			by(s, taken+1)
			beside.refuse(&SubmitJob{ID: beside.newID(), Spec: s, HoldAnyway: true}, gpuai.RateLimited)
		})
	}
}

// grants returns the places of the leases that an entry granted.
func grants(out *Output) (all []string) {
	for i := range out.Events {
		if e := &out.Events[i]; e.Kind == gpuai.LeaseGrantedEvent {
			all = append(all, fmt.Sprint(e.Job, e.Group, e.Task, e.Node))
		}
	}
	return all
}
