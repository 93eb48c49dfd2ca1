package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// The baseline takes the first node that was registered; the region's own
// policy the tightest.
func TestFirstFitTakesTheFirstNode(t *testing.T) {
	for _, first := range []bool{false, true} {
		r := newRegion(t)
		r.m = New(Options{Region: r.m.opts.Region, FirstFit: first})
		r.node("wide", 8)
		r.node("tight", 2)
		want := gpuai.NodeID("tight")
		if first {
			want = "wide"
		}
		for range 4 {
			id := r.submit(jobSpec("j", 1, 2))
			if got := r.leases(id)[0].Node; got != want {
				t.Errorf("first fit %v: placed on %s, want %s", first, got, want)
			}
			want = "wide"
		}
		if err := r.m.Check(); err != nil {
			t.Error(err)
		}
	}
}
