package liveness

import (
	"testing"

	"github.com/gpuai/gpuai/fsm"
)

// big is a region of n nodes that have all just beaten.
func big(b *testing.B, n int) (*world, []fsm.NodeRef) {
	w := newWorld(b)
	refs := make([]fsm.NodeRef, n)
	for i := range refs {
		refs[i] = w.register(nodeID(i), "a")
	}
	w.decide()
	w.beat(refs...)
	w.decide()
	return w, refs
}

// BenchmarkScan is one window in which nobody is silent.
func BenchmarkScan(b *testing.B) {
	w, _ := big(b, 100_000)
	for b.Loop() {
		if d := w.decide(); len(d.Expire) > 0 {
			b.Fatal("somebody expired")
		}
	}
}

// BenchmarkBeats is the beats of one window of 100,000 nodes that beat every
// 4 s.
func BenchmarkBeats(b *testing.B) {
	w, refs := big(b, 100_000)
	for b.Loop() {
		w.beat(refs[:6_250]...)
		w.decide()
	}
}
