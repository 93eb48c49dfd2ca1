package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai/internal/mem"
)

// Heaps remember the scores of a shape in all buckets that were alive when the
// shape was last searched for. They hold nothing that could not be computed
// again, and no decision depends on what they hold.

const (
	// maxHeapEntries bounds the entries of all heaps, 48 bytes each. When they
	// are used up all heaps are forgotten.
	maxHeapEntries = 1 << 21
	// minExtent is the size of the least extent, of 1<<minExtent entries.
	minExtent  = 5
	numExtents = 22 - minExtent
)

// A heapEntry is the score of a shape in a bucket, on one of its devices. It is
// of a bucket that is alive if the bucket of this number has this key.
type heapEntry struct {
	key    packKey
	score  int64 // base less price
	base   int64 // what the value of the state falls by
	bucket uint32
	left   uint16 // of the device, before; 0: whole devices, or none
	// bound says that base is no more than a bound from above, which costs much
	// less: an entry is made exact when it comes to the top.
	bound bool
}

// before orders the entries: the higher score, what is not exact yet, then the
// order of the states, then the partly used device, the fuller first.
func (a *heapEntry) before(b *heapEntry) bool {
	if a.score != b.score {
		return a.score > b.score
	}
	if a.bound != b.bound {
		return a.bound
	}
	if a.key != b.key {
		return a.key.before(&b.key)
	}
	if (a.left == 0) != (b.left == 0) {
		return a.left != 0
	}
	return a.left < b.left
}

// A heapRec is the heap of one alternative of a shape.
type heapRec struct {
	demand  uint64   // hash of the demand its scores are made of
	prices  uint64   // number of the prices
	seen    uint64   // births of buckets that it knows of
	floor   packRank // the first entry that was left out, if floored
	at      uint32   // of its extent
	n       uint32
	era     uint32 // of the store; of another one, it is empty
	next    uint32 // heap + 1 of a further alternative of the shape
	width   uint32 // of the window; 0: never filled
	cursor  uint32 // bucket
	floored bool
	partial bool  // of the buckets that it knows of, those before cursor only are in it
	size    uint8 // of its extent: 1<<size; 0: none
	alt     uint8
}

// A heapSums is the state of the store of heaps.
type heapSums struct {
	top  uint32             // entries handed out, from the front
	era  uint32             // how often all heaps were forgotten
	free [numExtents]uint32 // extent + 1 of each size; linked by bucket
}

// A heapStore is the memory of all heaps.
type heapStore struct {
	heaps   *mem.Table[heapRec]
	slots   *mem.Slots
	of      *mem.Table[uint32] // heap + 1 of a shape
	entries *mem.Table[heapEntry]
}

func newHeapStore(sp *mem.Space) heapStore {
	return heapStore{mem.NewTable[heapRec](sp, 5), mem.NewSlots(sp), mem.NewTable[uint32](sp, 8), mem.NewTable[heapEntry](sp, 6)}
}

func (h heapStore) fork(ns *mem.Space) heapStore {
	return heapStore{h.heaps.Fork(ns), h.slots.Fork(ns), h.of.Fork(ns), h.entries.Fork(ns)}
}

// heapOf returns the heap of an alternative of a shape, which is made when there
// is none.
func (s *State) heapOf(id ShapeID, alt uint8) uint32 {
	h := s.heaps
	h.of.Grow(uint32(id) + 1)
	for at := *h.of.Get(uint32(id)); at != 0; at = h.heaps.Get(at - 1).next {
		if h.heaps.Get(at-1).alt == alt {
			return at - 1
		}
	}
	i, _ := h.slots.Alloc() // shapes and alternatives bound them
	h.heaps.Grow(i + 1)
	*h.heaps.Mut(i) = heapRec{alt: alt, next: *h.of.Get(uint32(id))}
	*h.of.Mut(uint32(id)) = i + 1
	return i
}

// dropHeapsOf forgets the heaps of a shape.
func (s *State) dropHeapsOf(id uint32) {
	s.forgetSeen(id)
	h := s.heaps
	if id >= h.of.Len() || *h.of.Get(id) == 0 {
		return
	}
	for at := *h.of.Get(id); at != 0; {
		r := *h.heaps.Get(at - 1)
		s.freeExtent(&r)
		*h.heaps.Mut(at - 1) = heapRec{}
		h.slots.Free(at - 1)
		at = r.next
	}
	*h.of.Mut(id) = 0
}

// dropHeaps forgets what all heaps hold.
func (s *State) dropHeaps() {
	r := &s.packSums.Mut().heaps
	*r = heapSums{era: r.era + 1}
}

// freeExtent gives a heap's extent back.
func (s *State) freeExtent(r *heapRec) {
	sums := &s.packSums.Mut().heaps
	if r.size == 0 || r.era != sums.era {
		return
	}
	s.heaps.entries.Mut(r.at).bucket = sums.free[r.size-minExtent]
	sums.free[r.size-minExtent] = r.at + 1
}

// allocExtent returns an extent of 1<<size entries. It may forget all heaps.
func (s *State) allocExtent(size uint8) uint32 {
	sums := &s.packSums.Mut().heaps
	if at := sums.free[size-minExtent]; at != 0 {
		sums.free[size-minExtent] = s.heaps.entries.Get(at - 1).bucket
		return at - 1
	}
	if sums.top+1<<size > maxHeapEntries {
		s.dropHeaps()
		sums = &s.packSums.Mut().heaps
	}
	at := sums.top
	sums.top += 1 << size
	s.heaps.entries.Grow(sums.top)
	return at
}

// emptyHeap empties a heap.
func (s *State) emptyHeap(i uint32) {
	r := s.heaps.heaps.Mut(i)
	r.n, r.seen, r.width, r.floored, r.partial = 0, 0, s.scratch().narrow, false, false
	r.demand = s.packing.Get().demand
	r.prices = s.packSums.Get().prices
	if era := s.packSums.Get().heaps.era; r.era != era {
		r.era, r.size = era, 0
	}
}

// emptyExtent gives an emptied heap an extent for so many entries. It may forget
// all others.
func (s *State) emptyExtent(i, n uint32) {
	size := uint8(max(bits.Len32(max(n, 1)-1), minExtent))
	r := *s.heaps.heaps.Get(i)
	if r.size != size || r.era != s.packSums.Get().heaps.era {
		s.freeExtent(&r)
		r.at, r.size = s.allocExtent(size), size
		r.era = s.packSums.Get().heaps.era
	}
	r.n = 0
	*s.heaps.heaps.Mut(i) = r
}

// heapify orders n entries.
func (s *State) heapify(at, n uint32) {
	for k := n / 2; k > 0; k-- {
		e := *s.heaps.entries.Get(at + k - 1)
		s.siftDown(at, n, k-1, &e)
	}
}

// pushHeap adds an entry. False says that the store was full: all heaps are
// empty now, this one too, and must be filled from the beginning.
func (s *State) pushHeap(i uint32, e *heapEntry) bool {
	h := s.heaps
	if r := h.heaps.Get(i); r.size == 0 || r.n == 1<<r.size {
		if !s.growHeap(i) {
			return false
		}
	}
	r := h.heaps.Mut(i)
	k := r.n
	r.n++
	s.siftUp(r.at, k, e)
	return true
}

// growHeap gives a heap an extent of twice the size.
func (s *State) growHeap(i uint32) bool {
	h := s.heaps
	old := *h.heaps.Get(i)
	size := max(old.size+1, minExtent)
	era := s.packSums.Get().heaps.era
	at := s.allocExtent(size)
	if s.packSums.Get().heaps.era != era {
		s.emptyHeap(i)
		r := h.heaps.Mut(i)
		r.at, r.size = at, size
		return false
	}
	for k := range old.n {
		*h.entries.Mut(at + k) = *h.entries.Get(old.at + k)
	}
	s.freeExtent(&old)
	r := h.heaps.Mut(i)
	r.at, r.size, r.era = at, size, era
	return true
}

// popHeap removes the first entry.
func (s *State) popHeap(i uint32) {
	r := s.heaps.heaps.Mut(i)
	r.n--
	if r.n > 0 {
		last := *s.heaps.entries.Get(r.at + r.n)
		s.siftDown(r.at, r.n, 0, &last)
	}
}

// siftUp stores e at place k or above.
func (s *State) siftUp(at, k uint32, e *heapEntry) {
	t := s.heaps.entries
	for k > 0 {
		p := (k - 1) / 2
		up := t.Get(at + p)
		if !e.before(up) {
			break
		}
		*t.Mut(at + k) = *up
		k = p
	}
	*t.Mut(at + k) = *e
}

// siftDown stores e at place k or below, in a heap of n.
func (s *State) siftDown(at, n, k uint32, e *heapEntry) {
	t := s.heaps.entries
	for {
		c := 2*k + 1
		if c >= n {
			break
		}
		if c+1 < n && t.Get(at+c+1).before(t.Get(at+c)) {
			c++
		}
		down := t.Get(at + c)
		if !down.before(e) {
			break
		}
		*t.Mut(at + k) = *down
		k = c
	}
	*t.Mut(at + k) = *e
}
