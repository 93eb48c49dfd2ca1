package scheduler

import "slices"

// A heap need not hold all buckets: those whose base is low will not be chosen
// soon. It holds a window of the entries with the greatest bases, and knows the
// first of the others. Prices move scores but not bases, and no score is above
// its base: an entry whose score is above what was left out is the best of all.

const (
	// minWindow is how wide a heap's window is at first. It is made four times
	// as wide when the best of it is not above what was left out.
	minWindow   = 512
	windowShift = 2
)

// A packRank is an entry's place in the order in which entries are left out.
type packRank struct {
	key  packKey
	base int64
	part bool // on a partly used device
}

func (e *heapEntry) rank() packRank { return packRank{e.key, e.base, e.left != 0} }

// precedes reports whether an entry comes after r.
func (r *packRank) precedes(e *heapEntry) bool { o := e.rank(); return r.before(&o) }

func (r *packRank) before(o *packRank) bool {
	if r.base != o.base {
		return r.base > o.base
	}
	if r.key != o.key {
		return r.key.before(&o.key)
	}
	return r.part && !o.part
}

// above reports whether the first entry of a heap, if it is exact, is better
// than all that was left out; a bound that is not is of no use either.
func (r *heapRec) above(e *heapEntry) bool {
	if !r.floored || e.score > r.floor.base {
		return true
	}
	if e.score < r.floor.base {
		return false
	}
	if e.bound {
		return true // it must be made exact first
	}
	x := packRank{e.key, e.score, e.left != 0}
	return x.before(&r.floor)
}

// A window collects the entries with the greatest bases: the last of them is
// at the root of its heap.
type window struct {
	entries []heapEntry
	width   uint32
	floor   packRank // the first that was left out
	floored bool
}

func (w *window) leaveOut(r packRank) {
	if !w.floored || r.before(&w.floor) {
		w.floor, w.floored = r, true
	}
}

func (w *window) add(e *heapEntry) {
	h := w.entries
	if uint32(len(h)) < w.width {
		h = append(h, *e)
		k := len(h) - 1
		for k > 0 && h[(k-1)/2].ranksBefore(e) {
			h[k] = h[(k-1)/2]
			k = (k - 1) / 2
		}
		h[k] = *e
		w.entries = h
		return
	}
	if h[0].ranksBefore(e) {
		w.leaveOut(e.rank())
		return
	}
	w.leaveOut(h[0].rank())
	k := 0
	for {
		c := 2*k + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c].ranksBefore(&h[c+1]) {
			c++
		}
		if h[c].ranksBefore(e) {
			break
		}
		h[k] = h[c]
		k = c
	}
	h[k] = *e
}

func (e *heapEntry) ranksBefore(o *heapEntry) bool {
	if e.base != o.base {
		return e.base > o.base
	}
	a, b := e.rank(), o.rank()
	return a.before(&b)
}

// scan finds the best of all buckets, and fills a heap with a window of them.
// What it works on is in no table: most of it is left out again.
func (q *scoring) scan(i uint32) (heapEntry, bool) {
	all := q.c.all[:0]
	for at := q.newest(0); at != 0; at = q.olderThan(at, 0) {
		all = append(all, q.out[:q.score(at-1)]...)
	}
	q.c.all = all
	best, found := heapEntry{}, len(all) > 0
	for k := len(all) / 2; k > 0; k-- {
		siftDown(all, k-1)
	}
	for found && all[0].bound {
		q.exact(&all[0])
		siftDown(all, 0)
	}
	if found {
		best = all[0]
	}
	q.c.window = window{entries: q.c.window.entries[:0], width: q.heaps.heaps.Get(i).width}
	for k := range all {
		q.c.window.add(&all[k])
	}
	q.store(i)
	q.heaps.heaps.Mut(i).seen = q.packSums.Get().births
	return best, found
}

// siftDown moves entry k of a heap down to its place.
func siftDown(h []heapEntry, k int) {
	e := h[k]
	for {
		c := 2*k + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&e) {
			break
		}
		h[k] = h[c]
		k = c
	}
	h[k] = e
}

// widen is scan with a wider window.
func (q *scoring) widen(i uint32) (heapEntry, bool) {
	q.heaps.heaps.Mut(i).width <<= windowShift
	return q.scan(i)
}

// trim leaves out of a heap what is dead and what is outside its window.
func (q *scoring) trim(i uint32) {
	r := q.heaps.heaps.Get(i)
	q.c.window = window{entries: q.c.window.entries[:0], width: r.width, floor: r.floor, floored: r.floored}
	for k := range r.n {
		if e := q.heaps.entries.Get(r.at + k); q.alive(e) {
			q.c.window.add(e)
		}
	}
	q.store(i)
}

// store makes a heap of the entries in the window.
func (q *scoring) store(i uint32) {
	w := &q.c.window
	q.emptyExtent(i, uint32(len(w.entries)))
	r := q.heaps.heaps.Mut(i)
	r.n, r.floor, r.floored = uint32(len(w.entries)), w.floor, w.floored
	at := r.at
	slices.SortFunc(w.entries, func(a, b heapEntry) int { // a heap is written once, so
		if a.before(&b) {
			return -1
		}
		if b.before(&a) {
			return 1
		}
		return 0
	})
	for k := range w.entries {
		*q.heaps.entries.Mut(at + uint32(k)) = w.entries[k]
	}
}
