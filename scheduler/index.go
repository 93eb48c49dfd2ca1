package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A treeRec is the tree of one class of one pool.
type treeRec struct {
	tree
	// weight is the number of units in a class of whole devices, of devices
	// in a level.
	weight uint32
}

// indexed reports whether the node's units are in the classes of their pools.
// One that came back smaller than what runs on it takes nothing.
func (n *nodeRec) indexed() bool { return n.open && n.freeCPU >= 0 && n.freeMem >= 0 }

// index puts the units of a node in the classes of their pools.
func (s *State) index(slot uint32) {
	s.enter(slot)
	s.recount(slot, noDevices, s.counted(slot))
}

// enter is index but for what domains count.
func (s *State) enter(slot uint32) {
	s.each(slot, (*State).add)
	if s.packing.Get().have != 0 {
		s.packAdd(slot)
	}
}

// unindex takes out what index put in.
func (s *State) unindex(slot uint32) {
	s.leave(slot)
	s.recount(slot, s.counted(slot), noDevices)
}

// leave takes out what enter put in.
func (s *State) leave(slot uint32) {
	s.each(slot, (*State).drop)
	if s.packing.Get().have != 0 {
		s.packDrop(slot)
	}
}

// each calls f for all places of the trees where the units of a node belong.
func (s *State) each(slot uint32, f func(*State, spot, pair)) {
	n := *s.nodes.Get(slot)
	if !n.indexed() {
		return
	}
	for u := &n.unit; u != nil; u = s.next(u) {
		r := *u
		whole := wholeClass + uint32(bits.OnesCount64(r.whole))
		f(s, spot{r.pool, whole}, pair{makeKey(0, n.freeCPU, slot), uint64(n.freeMem), 1})
		level := uint32(numLevels)
		for parts := r.parts; parts != 0; {
			left, count := s.least(&n, &parts)
			key := makeKey(uint64(left%levelStep), n.freeCPU, slot)
			f(s, spot{r.pool, left / levelStep}, pair{key, uint64(n.freeMem), count})
			if left/levelStep != level {
				level = left / levelStep
				key = makeKey(0, n.freeCPU, slot)
				f(s, spot{r.pool, levelTrees + level}, pair{key, uint64(n.freeMem), 1})
			}
		}
	}
}

// least takes the devices with the least remainder out of parts, and returns
// that remainder and how many have it.
func (s *State) least(n *nodeRec, parts *uint64) (left, count uint32) {
	left = uint32(gpuai.WholeDevice)
	var which uint64
	for m := *parts; m != 0; m &= m - 1 {
		d := uint8(bits.TrailingZeros64(m))
		switch f := uint32(s.free(n, d)); {
		case f < left:
			left, count, which = f, 1, 1<<d
		case f == left:
			count++
			which |= 1 << d
		}
	}
	*parts &^= which
	return left, count
}

// list puts the units of a node in the capacity trees of their pools.
func (s *State) list(slot uint32) {
	n := *s.nodes.Get(slot)
	for u := &n.unit; u != nil; u = s.next(u) {
		pool, k := u.pool, uint32(bits.OnesCount64(u.devs))
		s.add(spot{pool, capacityTree}, pair{makeKey(uint64(k), n.capCPU, slot), uint64(n.capMem), 1})
		*s.sizes.Mut(uint32(pool)*numSizes + k) += 1
		p := s.pools.Mut(uint32(pool))
		p.cpu += uint64(n.capCPU)
		p.mem += mebibytes(n.capMem)
	}
}

// unlist takes a node out of all trees.
func (s *State) unlist(slot uint32) {
	s.unindex(slot)
	n := *s.nodes.Get(slot)
	for u := &n.unit; u != nil; u = s.next(u) {
		pool, k := u.pool, uint32(bits.OnesCount64(u.devs))
		s.drop(spot{pool, capacityTree}, pair{makeKey(uint64(k), n.capCPU, slot), uint64(n.capMem), 1})
		*s.sizes.Mut(uint32(pool)*numSizes + k) -= 1
		p := s.pools.Mut(uint32(pool))
		p.cpu -= uint64(n.capCPU)
		p.mem -= mebibytes(n.capMem)
	}
}

// A spot names a tree: a class or one of the further trees of a pool.
type spot struct {
	pool  uint16
	class uint32
}

// tree returns the place of the tree's record. The trees of one class of 64
// pools are neighbours: a search goes over them.
func (at spot) tree() uint32 { return at.word()<<6 | uint32(at.pool)&63 }

// word returns the place of the word of a bitmap of filled trees.
func (at spot) word() uint32 { return filledWord(uint32(at.pool)>>6, at.class) }

func filledWord(w, class uint32) uint32 { return w*numTrees + class }

// A pair is what a tree holds of a unit.
type pair struct {
	key, mem uint64
	weight   uint32
}

// add puts a pair in a tree.
func (s *State) add(at spot, p pair) {
	i := at.tree()
	r := *s.trees.Get(i)
	if r.empty() {
		*s.filled.Mut(at.word()) |= 1 << (at.pool & 63)
		if bit := uint64(1) << (at.class & 63); s.sums.Get().classes[at.class>>6]&bit == 0 {
			s.sums.Mut().classes[at.class>>6] |= bit
		}
	}
	s.forest.insert(&r.tree, p.key, p.mem)
	r.weight += p.weight
	*s.trees.Mut(i) = r
}

// drop takes a pair out of a tree.
func (s *State) drop(at spot, p pair) {
	i := at.tree()
	r := *s.trees.Get(i)
	if !s.forest.remove(&r.tree, p.key) {
		return
	}
	r.weight -= p.weight
	*s.trees.Mut(i) = r
	if !r.empty() {
		return
	}
	*s.filled.Mut(at.word()) &^= 1 << (at.pool & 63)
	for w := range s.sums.Get().words {
		if *s.filled.Get(filledWord(w, at.class)) != 0 {
			return
		}
	}
	s.sums.Mut().classes[at.class>>6] &^= 1 << (at.class & 63)
}

// mebibytes returns b in MiB, rounded up.
func mebibytes(b int64) uint64 { return (uint64(b) + 1<<20 - 1) >> 20 }
