package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// newMixedWalk is a walk of all that keeps jobs waiting at once: quotas that share
// cohorts, budgets, gangs, groups that start together, preemption.
func newMixedWalk(t testing.TB, seed uint64) *walk {
	w := newWalk(t, seed)
	w.ports = uint16(4 + seed%8)
	w.preempts = seed%2 == 0
	w.do(&SetFeatureLevel{Level: MaxLevel})
	w.gangs()
	gangs := w.more
	w.ofTenants(seed%4 > 0)
	tenants := w.more
	w.more = func(s *gpuai.JobSpec) {
		if seed%5 > 1 {
			gangs(s)
		}
		together := s.Together
		tenants(s)
		if s.Together = together; seed%3 == 0 {
			s.Groups, s.Together, s.Placement = s.Groups[:1], false, gpuai.Placement{}
		}
	}
	w.prepares, w.publishes = seed%5 == 0, seed%7 == 0
	w.hides, w.opens, w.joins = seed%7 == 1, seed%7 == 2, seed%7 == 3
	w.says, w.meets = seed%7 == 4, seed%7 == 5
	for _, n := range walkNodes {
		w.node(n, 4)
		w.incs[n], _, _ = w.m.NodeLive(gpuai.NodeID(n))
	}
	return w
}

// A machine that is restored every few entries decides as one that never was, and
// tells the same: whom a lease makes room for, who goes, what is refused.
func TestRandomMixes(t *testing.T) {
	t.Parallel()
	seeds := []uint64{53}
	for seed := range few(14, 2) {
		seeds = append(seeds, 100+seed)
	}
	for _, seed := range seeds {
		w := newMixedWalk(t, seed)
		w.check, w.restores = false, 3
		other := New(w.m.opts)
		for i, entry := range w.log {
			if err := other.Apply(uint64(i+1), w.term, entry, &Output{}); err != nil {
				t.Fatal(err)
			}
		}
		w.beside(seed, other, 150)
	}
}
