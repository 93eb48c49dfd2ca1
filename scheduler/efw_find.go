package scheduler

import (
	"math"
	"math/bits"

	"github.com/gpuai/gpuai"
)

// Work of a search: so much, and so much for each bucket that the shape has not
// seen yet.
const (
	workPackSearch = 200
	workPackBucket = 12
)

// Place returns the place for a task of a shape by the region's packing policy.
// It takes nothing. It counts as work, so it is for the goroutine that changes
// the state.
func (s *State) Place(id ShapeID) (Fit, bool) {
	packing := s.Packing()
	if s.barring || s.Scratch(id) != 0 {
		packing = gpuai.PackingBestFit // the scores know nothing of bars, nor of what nodes have lent
	}
	switch packing {
	case gpuai.PackingEFW:
		if f, ok := s.findPacked(id); ok {
			return f, true
		}
	case gpuai.PackingFGD:
		if f, ok := s.findFGD(id); ok {
			return f, true
		}
	}
	return s.Find(id)
}

// findPacked returns the place with the best score among the nodes in the
// index: the first alternative that has any. There is none while the shape has
// not been scored in all of them.
func (s *State) findPacked(id ShapeID) (Fit, bool) {
	if s.packing.Get().stale {
		s.demandFrozen()
	}
	n, whole := s.unseen(id)
	s.work += workPackSearch + workPackBucket*n
	c := s.scratch()
	s.setPrices(c)
	if !whole {
		s.approach(c, id)
		return Fit{}, false
	}
	for alt := range s.shapes.Get(uint32(id)).alts {
		if e, ok := s.best(c, id, alt); ok {
			return s.fitPacked(s.shapes.Get(uint32(id)), &e, alt), true
		}
	}
	return Fit{}, false
}

// A scoring is one search of the index.
type scoring struct {
	*State
	c    *packScratch
	r    *shapeRec
	need packNeed
	alt  uint8
	out  [2]heapEntry // what score made
}

func (s *State) scoringOf(c *packScratch, id ShapeID, alt uint8) *scoring {
	q := &scoring{State: s, c: c, r: s.shapes.Get(uint32(id)), alt: alt}
	q.need = q.r.needOf()
	return q
}

// best returns the best entry of an alternative of a shape.
func (s *State) best(c *packScratch, id ShapeID, alt uint8) (heapEntry, bool) {
	i := s.heapOf(id, alt)
	q := s.scoringOf(c, id, alt)
	if !q.refresh(i) {
		return q.scan(i)
	}
	for {
		r := s.heaps.heaps.Get(i)
		if r.n == 0 {
			if !r.floored {
				return heapEntry{}, false
			}
			return q.widen(i)
		}
		e := *s.heaps.entries.Get(r.at)
		switch {
		case !q.alive(&e):
			s.popHeap(i)
		case !r.above(&e):
			return q.widen(i)
		case !e.bound:
			return e, true
		default:
			q.exact(&e)
			s.siftDown(r.at, r.n, 0, &e)
		}
	}
}

// alive reports whether the bucket of an entry is there.
func (s *State) alive(e *heapEntry) bool {
	b := s.packBuckets.Get(e.bucket)
	return b.key == e.key && b.nodes > 0
}

// refresh brings a heap up to the prices and the buckets of now; false when it
// must be filled from the beginning.
func (q *scoring) refresh(i uint32) bool {
	sums := q.packSums.Get()
	r := q.heaps.heaps.Get(i)
	if r.demand != q.packing.Get().demand || r.era != sums.heaps.era || r.width == 0 {
		q.emptyHeap(i)
		return false
	}
	if r.partial && !q.part(i, math.MaxUint64) {
		return false // the store was full
	}
	if r.prices != sums.prices {
		q.reprice(i)
	}
	if !q.learn(i) {
		return false // the store was full
	}
	if r = q.heaps.heaps.Get(i); r.n > 2*r.width {
		q.trim(i)
	}
	return true
}

// learn adds the buckets that were born since the heap was last used; false
// when the heap was lost by it.
func (q *scoring) learn(i uint32) bool {
	seen := q.heaps.heaps.Get(i).seen
	births := q.packSums.Get().births
	if seen == births {
		return true
	}
	for at := q.newest(seen); at != 0; at = q.olderThan(at, seen) {
		if !q.addBucket(i, at-1) {
			return false
		}
	}
	q.heaps.heaps.Mut(i).seen = births
	return true
}

// newest returns the bucket + 1 that was born last, if that was after a birth.
func (q *scoring) newest(seen uint64) uint32 { return q.bornAfter(q.packSums.Get().newest, seen) }

// olderThan returns the bucket + 1 that was born before another one, if that
// was after a birth.
func (q *scoring) olderThan(at uint32, seen uint64) uint32 {
	return q.bornAfter(q.packBuckets.Get(at-1).older, seen)
}

func (q *scoring) bornAfter(at uint32, seen uint64) uint32 {
	if at == 0 || q.packBuckets.Get(at-1).birth <= seen {
		return 0
	}
	return at
}

// score makes the entries of a bucket, as bounds, and returns how many: one for
// its partly used devices, one for whole devices or for a task without devices.
func (q *scoring) score(bucket uint32) (made int) {
	n := &q.need
	x, v := q.c.bucket(q.State, bucket, &q.packBuckets.Get(bucket).key)
	t := &x.state
	if !t.room(n) || t.whole < n.count && (n.share == 0 || t.used()) || !q.passes(q.r, q.alt, uint32(t.pool)) {
		return 0
	}
	if !x.asked {
		x.value, x.asked = q.c.value(q.State, t), true
	}
	if n.share > 0 {
		e := &q.out[0]
		*e = heapEntry{key: x.key, bound: true, bucket: bucket}
		for i, p := range t.parts {
			if p < n.share || i > 0 && p == t.parts[i-1] {
				continue
			}
			to := q.onPart(t, i)
			if base := x.value - v.least(&to); e.left == 0 || base > e.base {
				e.base, e.left = base, p
			}
			e.score = e.base - q.c.priceOf(v, t, &to)
		}
		if e.left != 0 {
			made++
		}
	}
	if to, ok := q.onWhole(t); ok {
		e := &q.out[made]
		*e = heapEntry{key: x.key, bound: true, bucket: bucket, base: x.value - v.least(&to)}
		e.score = e.base - q.c.priceOf(v, t, &to)
		made++
	}
	return made
}

// onPart returns a state with the task on its partly used device i, which must
// have room for the share.
func (q *scoring) onPart(t *packState, i int) packState {
	to := t.less(&q.need, packGrid{cpuGrid, memGrid})
	to.shrink(uint(i), t.parts[i]-q.need.share)
	return to
}

// onWhole returns a state with the task on whole devices, or on none if it
// wants none; false when it has not enough, or a ninth device would be partly
// used, which is for best fit.
func (q *scoring) onWhole(t *packState) (packState, bool) {
	to := t.less(&q.need, packGrid{cpuGrid, memGrid})
	if t.whole < q.need.count || q.need.share > 0 && (t.whole == 0 || t.parts[maxParts-1] != 0) {
		return to, false
	}
	to.whole -= q.need.count
	if q.need.share > 0 {
		to.put(1000 - q.need.share)
	}
	return to, true
}

// exact makes an entry exact, on the best of its partly used devices.
func (q *scoring) exact(e *heapEntry) {
	t := e.key.state()
	v := q.c.view(q.State, t.pool)
	if e.left == 0 {
		to, _ := q.onWhole(&t)
		*e = q.entry(e, &t, &to, v)
		return
	}
	first := true
	best := *e
	for i, p := range t.parts {
		if p < q.need.share || i > 0 && p == t.parts[i-1] {
			continue
		}
		to := q.onPart(&t, i)
		x := q.entry(e, &t, &to, v)
		x.left = p
		if first || x.before(&best) {
			best, first = x, false
		}
	}
	*e = best
}

// entry scores going from one state to another, for an entry of the former.
func (q *scoring) entry(of *heapEntry, from, to *packState, v *packView) heapEntry {
	e := heapEntry{key: of.key, bucket: of.bucket, left: of.left}
	e.base = q.c.value(q.State, from) - q.c.value(q.State, to)
	e.score = e.base - q.c.priceOf(v, from, to)
	return e
}

// reprice scores a heap's entries by the prices of now.
func (q *scoring) reprice(i uint32) {
	r := *q.heaps.heaps.Get(i)
	t := q.heaps.entries
	changed := false
	for k := range r.n {
		e := *t.Get(r.at + k)
		if e.key.whole() == 0 {
			continue // it has no slots
		}
		from := e.key.state()
		to := from.less(&q.need, packGrid{cpuGrid, memGrid})
		if e.left == 0 {
			to.whole -= q.need.count // 1 for a share
		}
		if score := e.base - q.c.priceOf(q.c.view(q.State, from.pool), &from, &to); score != e.score {
			t.Mut(r.at + k).score = score
			changed = true
		}
	}
	q.heaps.heaps.Mut(i).prices = q.packSums.Get().prices
	if !changed {
		return
	}
	q.heapify(r.at, r.n)
}

// fitPacked chooses node and devices of an entry: the first node of the bucket,
// its first devices.
func (s *State) fitPacked(r *shapeRec, e *heapEntry, alt uint8) Fit {
	key, _ := s.packNodes.seek(s.packRoot.Get(), packNodeKey(e.bucket, 0), 0)
	f := Fit{Node: uint32(key & nodeMask), Share: r.share, Alt: alt}
	n := s.nodes.Get(f.Node)
	if e.left == 0 {
		f.Devices = s.choose(f.Node, &n.unit, n.unit.whole, r.count)
		return f
	}
	for m := n.unit.parts; m != 0; m &= m - 1 {
		if d := uint8(bits.TrailingZeros64(m)); s.free(n, d) == int16(e.left) {
			f.Devices = 1 << d
			break
		}
	}
	return f
}
