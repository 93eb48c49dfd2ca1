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
		m |= q.mask(q.r.filters[alt], w)
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
	have := q.capacity(uint64(limit), false)
	s.charge(&q)
	return uint32(have)
}

// CapacityNow is Capacity for those who only read: it counts no work.
func (s *State) CapacityNow(id ShapeID, limit uint32) uint32 {
	q := s.query(id)
	return uint32(q.capacity(uint64(limit), false))
}

// MayStart reports whether Capacity is not 0. It only reads.
func (s *State) MayStart(id ShapeID) bool { return s.CapacityNow(id, 1) > 0 }

// capacity sums up, to at most limit, for how many tasks there is room in each
// tree of the index that serves the shape: by a bound, or counted.
func (q *query) capacity(limit uint64, counted bool) uint64 {
	sum := q.sums.Get()
	var have uint64
	for c := sum.nextClass(q.r.firstClass()); c < numClasses && have < limit; c = sum.nextClass(c + 1) {
		if !q.r.usesClass(c) {
			continue
		}
		for w := range sum.words {
			for m := q.passing(c, w); m != 0 && have < limit; m &= m - 1 {
				q.ticks += tickTree
				t := q.trees.Get(spot{poolAt(w, m), c}.tree())
				if counted && c >= wholeClass {
					have += q.roomBelow(t, c-wholeClass, limit-have)
					continue
				}
				have += q.r.tasks(c, t)
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

// RoomFor is Capacity that looks at the nodes, as many as it counts: exact for
// tasks of whole devices, or of none, as long as no node has devices of several
// kinds; an upper bound otherwise. A gang that it refuses would fail at its last
// task. It counts as work.
func (s *State) RoomFor(id ShapeID, limit uint32) uint32 {
	q := s.query(id)
	have := q.capacity(uint64(limit), true)
	s.charge(&q)
	return uint32(have)
}

// roomBelow returns how many tasks the units of a tree, with so many whole
// devices each, have room for, or at least limit.
func (q *query) roomBelow(t *treeRec, devices uint32, limit uint64) uint64 {
	lo := makeKey(0, q.r.cpu, 0)
	if t.root == 0 || t.maxMem < q.r.mem || t.maxKey < lo {
		return 0
	}
	x := roomCount{s: q.State, r: q.r, lo: lo, each: q.r.tasksOn(devices), limit: limit}
	x.block(q.forest, t.root-1, t.height)
	q.ticks += x.nodes
	return x.have
}

// A roomCount adds up what the nodes of one tree have room for.
type roomCount struct {
	s     *State
	r     *shapeRec
	lo    uint64 // least key with the CPU of a task
	each  uint64 // tasks that the devices of a node serve
	limit uint64
	have  uint64
	nodes uint64
}

// block adds what is below a block. Keys order by CPU, and inner entries know
// the greatest memory: each block that is looked at has a node that counts.
func (x *roomCount) block(f forest, at uint32, height uint8) {
	b := f.blocks.Get(at)
	if height > 0 {
		for i := b.child(x.lo); i < b.n && x.have < x.limit; i++ {
			if b.mems[i] >= x.r.mem {
				x.block(f, b.kids[i], height-1)
			}
		}
		return
	}
	for i := range min(b.n, fan) {
		if b.keys[i] < x.lo || b.mems[i] < x.r.mem {
			continue
		}
		x.nodes++
		room := min(x.each, x.r.within(int64(keyCPU(b.keys[i])), int64(b.mems[i])))
		if x.r.scratch != 0 {
			room = min(room, x.r.lentBy(x.s.nodes.Get(keyNode(b.keys[i])).freeScratch()))
		}
		x.have += room
		if x.have >= x.limit {
			return
		}
	}
}
