package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// newGangWalk returns a walk of feature level 3 among racks, with elastic
// gangs, placement and groups that start together.
func newGangWalk(t testing.TB, seed uint64) *walk {
	w := newWalk(t, seed)
	w.ports = uint16(4 + seed%8)
	w.do(&SetFeatureLevel{Level: LevelPlacement})
	w.gangs()
	return w
}

// gangs has a walk use what LevelPlacement brought for gangs.
func (w *walk) gangs() {
	w.prepares = true
	w.where = func(n *gpuai.NodeSpec) {
		n.Rack = []string{"", "r1", "r1", "r2"}[w.r.IntN(4)]
		n.NVLinkDomain = []string{"", "n1", "n2"}[w.r.IntN(3)]
		if w.r.IntN(3) > 0 {
			n.Labels = map[string]string{gpuai.LabelScratch: []string{"100", "250"}[w.r.IntN(2)]}
		}
	}
	w.more = func(s *gpuai.JobSpec) {
		s.Together = w.r.IntN(4) == 0
		if w.r.IntN(3) == 0 {
			c := gpuai.Constraint{Attribute: gpuai.LabelPrefix + gpuai.LabelScratch, Op: gpuai.AtLeast, Values: []string{[]string{"40", "90"}[w.r.IntN(2)]}}
			for i := range s.Groups {
				s.Groups[i].Constraints = append(s.Groups[i].Constraints, c)
			}
		}
		whole := true
		for i := range s.Groups {
			g := &s.Groups[i]
			if g.Gang = w.r.IntN(3) > 0; g.Gang && w.r.IntN(2) == 0 {
				g.MinCount = 1 + w.r.Uint32N(g.Count)
			}
			whole = whole && (g.Gang || s.Together) && g.Resources.GPU.Share.Milli == 0
		}
		if whole && w.r.IntN(2) == 0 {
			s.Placement.Same = gpuai.Topology(w.r.IntN(5))
			s.Placement.Near = gpuai.Topology(w.r.IntN(5))
			if s.Placement.Near >= s.Placement.Same && s.Placement.Same != 0 {
				s.Placement.Near = 0
			}
		}
	}
}

// Machines that apply one log of gangs, restored and forked at random points,
// are equal in digest.
func TestRandomGangLogs(t *testing.T) {
	t.Parallel()
	seeds := uint64(20)
	if brief() {
		seeds = 10
	}
	for seed := range seeds {
		w := newGangWalk(t, seed)
		other := New(w.m.opts)
		if err := other.Apply(w.index, w.term, w.log[0], &Output{}); err != nil {
			t.Fatal(err)
		}
		w.beside(seed, other, 150)
	}
}

// Whenever there is no backlog, no group of any bucket could start, or grow.
func TestGangWorkConservation(t *testing.T) {
	t.Parallel()
	var started, grown, shrunk int
	for seed := range few(8, 3) {
		w := newGangWalk(t, 2000+seed)
		for range 120 {
			before := w.elastics()
			w.step()
			for g, n := range w.elastics() {
				switch was, ok := before[g]; {
				case !ok:
					started++
				case n > was:
					grown++
				case n < was:
					shrunk++
				}
			}
			if w.m.backlog() {
				t.Fatalf("seed %d, entry %d: a backlog within the budget", seed, w.index)
			}
			for b, ok := w.m.bucketSlots.Next(0); ok; b, ok = w.m.bucketSlots.Next(b + 1) {
				for g := w.m.buckets.Get(b).first; g != 0; g = w.m.groups.Get(g.slot()).qnext {
					if g != w.m.buckets.Get(b).first && w.m.meta.Get().reserve.group != 0 {
						break // a job with a shorter limit could pass, behind one that cannot
					}
					fork := w.m.Fork()
					fork.now, fork.out = entryState{index: w.index + 1, work: WorkPerEntry, time: w.m.Time()}, &Output{}
					if _, final := fork.placeGroup(g.slot()); fork.now.ordinal > 0 || !final {
						t.Fatalf("seed %d, entry %d: group %d waits, of which %d tasks could start: %+v", seed, w.index, g.slot(), fork.now.ordinal, *w.m.groups.Get(g.slot()))
					}
				}
			}
		}
	}
	if started < 6 || grown < 3 || shrunk < 2 {
		t.Errorf("%d elastic gangs started, %d grew, %d shrank: the walk is no test of them", started, grown, shrunk)
	}
}

// elastics returns how many leases each running elastic gang has.
func (w *walk) elastics() map[uint32]uint32 {
	of := map[uint32]uint32{}
	for s, ok := w.m.groupSlots.Next(0); ok; s, ok = w.m.groupSlots.Next(s + 1) {
		if g := w.m.groups.Get(s); g.elastic() && g.live() > 0 {
			of[s] = g.live()
		}
	}
	return of
}
