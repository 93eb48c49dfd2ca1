package fsm

import (
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// What a plan says of the capacity behind it, from the nodes that it touched, is
// what looking at every node says.
func TestPlanCountsTheCapacityBehindIt(t *testing.T) {
	lengthy(t)
	changed := 0
	for seed := range uint64(10) {
		w := newWalk(t, 700+seed)
		if seed%2 == 0 {
			w.do(&SetFeatureLevel{Level: MaxLevel})
		}
		for range 80 {
			w.step()
			var known []gpuai.NodeID
			for _, n := range w.m.Nodes("", MaxScan) {
				known = append(known, n.ID)
			}
			var req gpuai.PlanRequest
			for _, id := range known {
				list := []*[]gpuai.NodeID{&req.Drain, &req.Undrain, &req.Lose, nil, nil}[w.r.IntN(5)]
				if list != nil {
					*list = append(*list, id)
				}
			}
			if len(known) > 0 && w.r.IntN(2) == 0 {
				req.Add = []gpuai.PlanNodes{{Count: 1 + w.r.Uint32N(3), Like: known[0]}}
			}
			req.Submit = []gpuai.JobSpec{*jobSpec("j", 1+w.r.Uint32N(4), w.r.Uint32N(3))}
			f := w.m.Fork()
			p, err := f.Plan(&req, []gpuai.JobID{{7}}, Header{Time: w.time})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if want := f.countCapacity().Capacity; p.After != want {
				t.Fatalf("seed %d, entry %d, %+v:\nthe plan says %+v\nthere is %+v", seed, w.index, req, p.After, want)
			}
			if want := w.m.countCapacity().Capacity; p.Before != want {
				t.Fatalf("seed %d: before %+v, it is %+v", seed, p.Before, want)
			}
			if p.After != p.Before && !slices.Equal(req.Drain, req.Undrain) {
				changed++
			}
		}
	}
	if changed < 300 {
		t.Errorf("%d plans changed something", changed)
	}
}
