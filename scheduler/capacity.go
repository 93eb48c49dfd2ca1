package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// CanEver reports whether a registered node could take a task of a shape if it
// were open, healthy and empty. HasNodes tells "no node" apart. It only reads.
func (s *State) CanEver(id ShapeID) bool {
	q := s.query(id)
	return q.canEver()
}

func (q *query) canEver() bool {
	for w := range q.sums.Get().words {
		for m := q.passing(capacityTree, w); m != 0; m &= m - 1 {
			if _, ok := q.findTree(spot{poolAt(w, m), capacityTree}, uint64(q.r.count)); ok {
				return true
			}
		}
	}
	return false
}

// poolAt returns the pool of the lowest bit of word w of a bitmap.
func poolAt(w uint32, m uint64) uint16 { return uint16(w<<6 | uint32(bits.TrailingZeros64(m))) }

// passing returns word w of the pools that pass for any alternative and have
// units in a class.
func (q *query) passing(class, w uint32) uint64 {
	var m uint64
	for alt := range q.r.alts {
		m |= *q.masks.Get(q.r.filters[alt]*poolWords + w)
	}
	if q.only != nil {
		m &= q.only[w]
	}
	return m & *q.filled.Get(filledWord(w, class))
}

// EverCapacity returns an upper bound of how many tasks of a shape all
// registered nodes could hold at once if they were open, healthy and empty, at
// most limit. It is 0 when CanEver is false. It only reads.
func (s *State) EverCapacity(id ShapeID, limit uint32) uint32 {
	q := s.query(id)
	return uint32(q.everCapacity(uint64(limit)))
}

func (q *query) everCapacity(limit uint64) uint64 {
	var have uint64
	for w := range q.sums.Get().words {
		for m := q.passing(capacityTree, w); m != 0 && have < limit; m &= m - 1 {
			pool := poolAt(w, m)
			if _, ok := q.findTree(spot{pool, capacityTree}, uint64(q.r.count)); ok {
				have += q.poolHolds(uint32(pool))
			}
		}
	}
	return min(have, limit)
}

// poolHolds bounds how many tasks of the shape a pool could hold when empty.
func (q *query) poolHolds(pool uint32) uint64 {
	p, r := q.pools.Get(pool), q.r
	most := uint64(gpuai.MaxTasks)
	if r.cpu > 0 {
		most = min(most, p.cpu/uint64(r.cpu))
	}
	if r.mem > 0 {
		most = min(most, p.mem<<20/r.mem)
	}
	if r.count == 0 {
		return most
	}
	var have uint64
	for n := uint32(r.count); n < numSizes; n++ {
		have += uint64(*q.sizes.Get(pool*numSizes + n)) * r.tasksOn(n)
	}
	return min(most, have)
}

// tasksOn returns how many tasks of a shape n free devices serve.
func (r *shapeRec) tasksOn(n uint32) uint64 {
	switch {
	case r.share != 0:
		return uint64(n) * uint64(gpuai.WholeDevice/gpuai.Milli(r.share))
	case r.count != 0:
		return uint64(n / uint32(r.count))
	}
	return gpuai.MaxTasks
}

// Capacity returns an upper bound of how many tasks of a shape could start now,
// at most limit. It looks at no node: a gang that cannot start costs little. It
// counts as work, so it is for the goroutine that changes the state.
func (s *State) Capacity(id ShapeID, limit uint32) uint32 {
	q := s.query(id)
	have := q.capacity(uint64(limit))
	s.charge(&q)
	return uint32(have)
}

// CapacityNow is Capacity for those who only read: it counts no work.
func (s *State) CapacityNow(id ShapeID, limit uint32) uint32 {
	q := s.query(id)
	return uint32(q.capacity(uint64(limit)))
}

// MayStart reports whether Capacity is not 0. It only reads.
func (s *State) MayStart(id ShapeID) bool { return s.CapacityNow(id, 1) > 0 }

func (q *query) capacity(limit uint64) uint64 {
	sum := q.sums.Get()
	var have uint64
	for c := sum.nextClass(q.r.firstClass()); c < numClasses && have < limit; c = sum.nextClass(c + 1) {
		if !q.r.usesClass(c) {
			continue
		}
		for w := range sum.words {
			for m := q.passing(c, w); m != 0 && have < limit; m &= m - 1 {
				q.ticks += tickTree
				have += q.r.tasks(c, q.trees.Get(spot{poolAt(w, m), c}.tree()))
			}
		}
	}
	return min(have, limit)
}

// tasks bounds how many tasks of a shape the units of a tree could take.
func (r *shapeRec) tasks(class uint32, t *treeRec) uint64 {
	if t.maxMem < r.mem {
		return 0
	}
	if class < wholeClass {
		return uint64(t.weight) * uint64((class*levelStep+levelStep-1)/uint32(r.share))
	}
	each := r.tasksOn(class - wholeClass)
	if r.cpu > 0 {
		each = min(each, keyCPU(t.maxKey)/uint64(r.cpu))
	}
	if r.mem > 0 {
		each = min(each, t.maxMem/r.mem)
	}
	return uint64(t.weight) * each
}
