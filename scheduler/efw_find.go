package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// Work of a search, whatever the heaps hold: what is derived must not reach
// decisions, not even by the budget.
const (
	workPackSearch  = 400
	packBucketShift = 4 // buckets alive per unit of work, as a power of two
)

// Place returns the place for a task of a shape by the region's packing policy.
// It takes nothing. It counts as work, so it is for the goroutine that changes
// the state.
func (s *State) Place(id ShapeID) (Fit, bool) {
	switch s.Packing() {
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
// index: the first alternative that has any.
func (s *State) findPacked(id ShapeID) (Fit, bool) {
	s.work += workPackSearch + uint64(s.packSums.Get().live)>>packBucketShift
	if s.packing.Get().stale {
		s.demandFrozen()
	}
	c := s.scratch()
	s.setPrices(c)
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
}

// best returns the best entry of an alternative of a shape.
func (s *State) best(c *packScratch, id ShapeID, alt uint8) (heapEntry, bool) {
	i := s.heapOf(id, alt)
	q := &scoring{State: s, c: c, r: s.shapes.Get(uint32(id)), alt: alt}
	q.need = q.r.needOf()
	q.refresh(i)
	for {
		r := s.heaps.heaps.Get(i)
		if r.n == 0 {
			return heapEntry{}, false
		}
		e := *s.heaps.entries.Get(r.at)
		if b := s.packBuckets.Get(e.bucket); b.key != e.key || b.nodes == 0 {
			s.popHeap(i)
			continue
		}
		if !e.bound {
			return e, true
		}
		q.exact(&e)
		s.siftDown(r.at, r.n, 0, &e)
	}
}

// refresh brings a heap up to the demand, the prices and the buckets of now.
func (q *scoring) refresh(i uint32) {
	sums := q.packSums.Get()
	r := q.heaps.heaps.Get(i)
	switch {
	case r.demand != q.packing.Get().demand || r.era != sums.heaps.era || r.n > 4*sums.live+1<<minExtent:
		q.emptyHeap(i) // more than half of so many are dead
	case r.prices != sums.prices:
		q.reprice(i)
	}
	for !q.learn(i) {
	}
}

// learn adds the buckets that were born since the heap was last used; false
// when it must begin again.
func (q *scoring) learn(i uint32) bool {
	seen := q.heaps.heaps.Get(i).seen
	births := q.packSums.Get().births
	if seen == births {
		return true
	}
	for b := q.packSums.Get().newest; b != 0; {
		r := q.packBuckets.Get(b - 1)
		if r.birth <= seen {
			break
		}
		at, key := b-1, r.key
		b = r.older
		if !q.score(&key, func(e *heapEntry) bool { e.bucket = at; return q.pushHeap(i, e) }) {
			return false
		}
	}
	q.heaps.heaps.Mut(i).seen = births
	return true
}

// score makes the entries of a state, as bounds: one for its partly used
// devices, one for whole devices or for a task without devices. It stops when
// put returns false.
func (q *scoring) score(key *packKey, put func(*heapEntry) bool) bool {
	n := &q.need
	t := key.state()
	if !t.room(n) || t.whole < n.count && (n.share == 0 || t.used()) || !q.passes(q.r, q.alt, uint32(t.pool)) {
		return true
	}
	v := q.c.view(q.State, t.pool)
	if n.share > 0 {
		e := heapEntry{key: *key, bound: true}
		for i, p := range t.parts {
			if p < n.share || i > 0 && p == t.parts[i-1] {
				continue
			}
			to := q.onPart(&t, i)
			if base := q.c.value(q.State, &t) - v.least(&to); e.left == 0 || base > e.base {
				e.base, e.left = base, p
			}
			e.score = e.base - q.c.priceOf(v, &t, &to)
		}
		if e.left != 0 && !put(&e) {
			return false
		}
	}
	to, ok := q.onWhole(&t)
	if !ok {
		return true
	}
	e := heapEntry{key: *key, bound: true, base: q.c.value(q.State, &t) - v.least(&to)}
	e.score = e.base - q.c.priceOf(v, &t, &to)
	return put(&e)
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
	for k := r.n / 2; k > 0; k-- {
		e := *t.Get(r.at + k - 1)
		q.siftDown(r.at, r.n, k-1, &e)
	}
}

// fitPacked chooses node and devices of an entry: the first node of the bucket,
// its first devices.
func (s *State) fitPacked(r *shapeRec, e *heapEntry, alt uint8) Fit {
	key, _ := s.packNodes.seek(s.packRoot.Get(), packNodeKey(e.bucket, 0), 0)
	f := Fit{Node: uint32(key & nodeMask), Share: r.share, Alt: alt}
	n := s.nodes.Get(f.Node)
	if e.left == 0 {
		f.Devices = lowest(n.unit.whole, r.count)
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
