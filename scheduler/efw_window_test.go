package scheduler

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// Windows, bounds and what is remembered change no decision: in a cluster of
// many states, Place says what scoring all of them exactly says.
func TestPackingWindowsAgainstAllStates(t *testing.T) {
	x := newPackBench(t, 300, gpuai.PackingEFW)
	x.s.scratch().narrow = 4
	for range 600 {
		x.place()
	}
	var widened, left int
	for i := range 600 {
		if i%2 == 0 {
			x.end()
		}
		kind := x.draw[x.r.IntN(len(x.draw))]
		x.s.setPrices(x.s.scratch())
		want, wantOK := x.bestOfAll(x.ids[kind])
		f, ok := x.s.Place(x.ids[kind])
		if ok {
			x.s.Take(f, x.ids[kind])
			x.leases = append(x.leases, benchLease{f, kind})
		}
		if wantOK && (!ok || f != want) {
			t.Fatalf("step %d: Place(%+v) = %+v %v, want %+v", i, x.needs[kind], f, ok, want)
		}
		x.sp.Commit()
		r := x.s.heaps.heaps.Get(x.s.heapOf(x.ids[kind], 0))
		if r.width > 4 {
			widened++
		}
		if r.floored {
			left++
		}
	}
	if widened < 100 || left < 100 {
		t.Fatalf("%d searches had a widened window, %d left something out", widened, left)
	}
}

// bestOfAll scores a shape in all states exactly.
func (x *packBench) bestOfAll(id ShapeID) (Fit, bool) {
	s := x.s
	q := &scoring{State: s, c: s.scratch(), r: s.shapes.Get(uint32(id))}
	q.need = q.r.needOf()
	var best heapEntry
	found := false
	for at := s.packSums.Get().newest; at != 0; at = s.packBuckets.Get(at - 1).older {
		key := s.packBuckets.Get(at - 1).key
		from := key.state()
		v := q.c.view(s, from.pool)
		add := func(to packState, left uint16) {
			e := heapEntry{key: key, bucket: at - 1, left: left, score: v.value(&from) - v.value(&to) - q.c.priceOf(v, &from, &to)}
			if !found || e.before(&best) {
				best, found = e, true
			}
		}
		if !from.room(&q.need) || !s.passes(q.r, 0, uint32(from.pool)) {
			continue
		}
		for i, p := range from.parts {
			if q.need.share > 0 && p >= q.need.share {
				add(q.onPart(&from, i), p)
			}
		}
		if to, ok := q.onWhole(&from); ok && from.whole >= q.need.count {
			add(to, 0)
		}
	}
	if !found {
		return Fit{}, false
	}
	return s.fitPacked(q.r, &best, 0), true
}

// What bounds a value is no more than it.
func TestPackingBounds(t *testing.T) {
	x := newPackBench(t, 200, gpuai.PackingEFW)
	for range 500 {
		x.place()
	}
	c, near := x.s.scratch(), 0
	for at := x.s.packSums.Get().newest; at != 0; at = x.s.packBuckets.Get(at - 1).older {
		st := x.s.packBuckets.Get(at - 1).key.state()
		for range 20 {
			v := c.view(x.s, st.pool)
			value, least := v.value(&st), v.least(&st)
			if least > value || value < 0 {
				t.Fatalf("%+v has value %d, its bound is %d", st, value, least)
			}
			if least > value/2 {
				near++
			}
			st.cpu = st.cpu / 3 * 2 / cpuGrid * cpuGrid
			st.mem = st.mem / 4 * 3 / memGrid * memGrid
		}
	}
	if near < 500 {
		t.Fatalf("%d bounds only are of any use", near)
	}
}

// Every search is charged for what its shape has not been scored in, whatever
// heaps hold.
func TestPackingChargesWhatIsNotSeen(t *testing.T) {
	x := newPackBench(t, 100, gpuai.PackingEFW)
	id := x.ids[0]
	live := func() uint64 { return uint64(x.s.packSums.Get().live) }
	work := func() uint64 {
		from := x.s.Work()
		x.s.Place(id)
		return x.s.Work() - from
	}
	for range 150 {
		x.place()
	}
	x.s.demandFrozen()
	if got, want := work(), workPackSearch+workPackBucket*live(); got != want {
		t.Fatalf("the first search is charged %d, want %d", got, want)
	}
	if got := work(); got != workPackSearch {
		t.Fatalf("the second search is charged %d, want %d", got, workPackSearch)
	}
	x.s.dropHeaps()
	if got := work(); got != workPackSearch {
		t.Fatalf("a search with no heaps is charged %d, want %d", got, workPackSearch)
	}
	births := x.s.packing.Get().births
	for range 10 {
		x.end()
	}
	if births = x.s.packing.Get().births - births; births == 0 {
		t.Fatal("no state was new")
	}
	if got, want := work(), workPackSearch+workPackBucket*min(births, live()); got != want {
		t.Fatalf("a search after %d new states is charged %d, want %d", births, got, want)
	}
}

// A shape that has not been scored in more states than one search may look at
// is placed by best fit until it has, and decides the same whatever heaps hold.
func TestPackingApproachesInParts(t *testing.T) {
	const most = 16
	kept, lost := newPackBench(t, 100, gpuai.PackingEFW), newPackBench(t, 100, gpuai.PackingEFW)
	kept.s.scratch().most, lost.s.scratch().most = most, most
	byBestFit, packed := 0, 0
	step := func(x *packBench, forget bool) (Fit, uint64) {
		if len(x.leases) > 150 {
			x.end()
		}
		kind := x.draw[x.r.IntN(len(x.draw))]
		if forget {
			x.s.dropHeaps()
		}
		from := x.s.Work()
		f, ok := x.s.Place(x.ids[kind])
		if best, _ := x.s.Find(x.ids[kind]); f == best {
			byBestFit++
		} else {
			packed++
		}
		work := x.s.Work() - from
		if ok {
			x.s.Take(f, x.ids[kind])
			x.leases = append(x.leases, benchLease{f, kind})
		}
		return f, work
	}
	for i := range 3_000 {
		if i%500 == 200 { // all shapes are cold again
			kept.s.packing.Mut().cold++
			lost.s.packing.Mut().cold++
		}
		a, work := step(kept, false)
		if b, _ := step(lost, true); a != b {
			t.Fatalf("step %d: %+v, without heaps %+v", i, a, b)
		}
		if work > 2*(workPackSearch+workPackBucket*most) {
			t.Fatalf("step %d is charged %d", i, work)
		}
	}
	if byBestFit < 100 || packed < 100 {
		t.Fatalf("%d places by best fit, %d others", byBestFit, packed)
	}
	if err := kept.s.Check(); err != nil {
		t.Fatal(err)
	}
}
