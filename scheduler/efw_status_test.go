package scheduler

import (
	"math/bits"
	"testing"

	"github.com/gpuai/gpuai"
)

// The status foretells each number of arrivals at which the demand is looked at.
func TestPackingStatusForetellsTheFreeze(t *testing.T) {
	w := newPackWorld(t, 1, gpuai.PackingEFW)
	a, b := w.addPlain(100, 1, 0).id, w.addPlain(200, 2, 0).id
	due := func(n uint64) bool {
		return n >= freezeEvery && n%freezeEvery == 0 || n >= firstFreeze && n < freezeEvery && bits.OnesCount64(n) == 1
	}
	for n := uint64(0); n <= 3*freezeEvery; n++ {
		want := n + 1
		for !due(want) {
			want++
		}
		if st := w.s.PackingStatus(); st.NextFreeze != want || st.Arrivals != n || st.Fixed {
			t.Fatalf("after %d arrivals: %+v, the next freeze is at %d", n, st, want)
		}
		id := a
		if n%3 == 0 {
			id = b
		}
		w.s.Arrived(id, 2)
		w.sp.Commit()
	}
	var tasks, weight uint64
	w.s.Expects(func(e Expected) { tasks, weight = tasks+e.Tasks, weight+uint64(e.WeightPPM) })
	if tasks == 0 || weight < 990_000 || weight > 1_000_000 {
		t.Errorf("%d tasks, weights of %d millionths in all", tasks, weight)
	}
	w.s.SeedDemand([]Demand{{a, 5}}, true)
	if st := w.s.PackingStatus(); !st.Fixed || st.NextFreeze != 0 || st.Arrivals != 0 || st.Epoch == 0 {
		t.Errorf("%+v", st)
	}
}
