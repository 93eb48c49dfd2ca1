package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// CanEver reports whether a registered node could take a task of a shape if it
// were open, healthy and empty. HasNodes tells "no node" apart.
func (s *State) CanEver(id ShapeID) bool {
	ok := s.canEver(s.shapes.Get(uint32(id)))
	s.charge()
	return ok
}

func (s *State) canEver(r *shapeRec) bool {
	sum := s.sums.Get()
	for w := range sum.words {
		m := *s.filled.Get(w*numTrees + capacityTree) & s.anyMask(r, w)
		for ; m != 0; m &= m - 1 {
			pool := w<<6 | uint32(bits.TrailingZeros64(m))
			if _, ok := s.findTree(pool*numTrees+capacityTree, uint64(r.count), r); ok {
				return true
			}
		}
	}
	return false
}

// anyMask returns word w of the pools that pass for any alternative.
func (s *State) anyMask(r *shapeRec, w uint32) uint64 {
	var m uint64
	for alt := range r.alts {
		m |= *s.masks.Get(r.filters[alt]*poolWords + w)
	}
	return m
}

// EverCapacity returns an upper bound of how many tasks of a shape all
// registered nodes could hold at once if they were open, healthy and empty, at
// most limit. It is 0 when CanEver is false.
func (s *State) EverCapacity(id ShapeID, limit uint32) uint32 {
	have := s.everCapacity(s.shapes.Get(uint32(id)), uint64(limit))
	s.charge()
	return uint32(min(have, uint64(limit)))
}

func (s *State) everCapacity(r *shapeRec, limit uint64) uint64 {
	sum := s.sums.Get()
	var have uint64
	for w := range sum.words {
		m := *s.filled.Get(w*numTrees + capacityTree) & s.anyMask(r, w)
		for ; m != 0 && have < limit; m &= m - 1 {
			pool := w<<6 | uint32(bits.TrailingZeros64(m))
			if _, ok := s.findTree(pool*numTrees+capacityTree, uint64(r.count), r); ok {
				have += s.poolHolds(pool, r)
			}
		}
	}
	return have
}

// poolHolds bounds how many tasks of a shape a pool could hold when empty.
func (s *State) poolHolds(pool uint32, r *shapeRec) uint64 {
	p := s.pools.Get(pool)
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
		have += uint64(*s.sizes.Get(pool*numSizes + n)) * r.tasksOn(n)
	}
	s.ticks += numSizes / 4
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
// at most limit. It looks at no node: a gang that cannot start costs little.
func (s *State) Capacity(id ShapeID, limit uint32) uint32 {
	have := s.capacity(s.shapes.Get(uint32(id)), uint64(limit))
	s.charge()
	return uint32(min(have, uint64(limit)))
}

func (s *State) capacity(r *shapeRec, limit uint64) uint64 {
	sum := s.sums.Get()
	var have uint64
	for c := sum.nextClass(r.firstClass()); c < numClasses && have < limit; c = sum.nextClass(c + 1) {
		if !r.usesClass(c) {
			continue
		}
		for w := range sum.words {
			m := *s.filled.Get(w*numTrees + c) & s.anyMask(r, w)
			for ; m != 0 && have < limit; m &= m - 1 {
				pool := w<<6 | uint32(bits.TrailingZeros64(m))
				s.ticks += tickTree
				have += r.tasks(c, s.trees.Get(pool*numTrees+c))
			}
		}
	}
	return have
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
