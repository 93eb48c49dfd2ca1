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
	n := *s.nodes.Get(slot)
	if !n.indexed() {
		return
	}
	for u := &n.unit; u != nil; u = s.next(u) {
		r := *u
		p := pair{uint64(n.freeMem), 1}
		s.add(r.pool, wholeClass+uint32(bits.OnesCount64(r.whole)), makeKey(0, n.freeCPU, slot), p)
		parts := r.usable &^ r.whole
		for parts != 0 {
			var left uint32
			if left, p.weight = s.least(&n, &parts); p.weight > 0 {
				s.add(r.pool, left/levelStep, makeKey(uint64(left%levelStep), n.freeCPU, slot), p)
			}
		}
	}
}

// unindex takes out what index put in.
func (s *State) unindex(slot uint32) {
	n := *s.nodes.Get(slot)
	if !n.indexed() {
		return
	}
	for u := &n.unit; u != nil; u = s.next(u) {
		r := *u
		s.drop(r.pool, wholeClass+uint32(bits.OnesCount64(r.whole)), makeKey(0, n.freeCPU, slot), 1)
		parts := r.usable &^ r.whole
		for parts != 0 {
			if left, weight := s.least(&n, &parts); weight > 0 {
				s.drop(r.pool, left/levelStep, makeKey(uint64(left%levelStep), n.freeCPU, slot), weight)
			}
		}
	}
}

// least takes the devices with the least remainder out of parts, and returns
// that remainder and how many have it. Devices that are used up have none:
// they are taken out too, and the count may be 0.
func (s *State) least(n *nodeRec, parts *uint64) (left, count uint32) {
	left = uint32(gpuai.WholeDevice)
	var which uint64
	for m := *parts; m != 0; m &= m - 1 {
		d := uint8(bits.TrailingZeros64(m))
		f := s.free(n, d)
		switch {
		case f <= 0 || f >= int16(gpuai.WholeDevice):
			*parts &^= 1 << d
		case uint32(f) < left:
			left, count, which = uint32(f), 1, 1<<d
		case uint32(f) == left:
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
		s.add(pool, capacityTree, makeKey(uint64(k), n.capCPU, slot), pair{uint64(n.capMem), 1})
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
		s.drop(pool, capacityTree, makeKey(uint64(k), n.capCPU, slot), 1)
		*s.sizes.Mut(uint32(pool)*numSizes + k) -= 1
		p := s.pools.Mut(uint32(pool))
		p.cpu -= uint64(n.capCPU)
		p.mem -= mebibytes(n.capMem)
	}
}

// A pair is what a tree is told beside the key.
type pair struct {
	mem    uint64
	weight uint32
}

// add puts a key in the tree of a pool's class.
func (s *State) add(pool uint16, class uint32, key uint64, p pair) {
	i := uint32(pool)*numTrees + class
	r := *s.trees.Get(i)
	if r.empty() {
		w := uint32(pool)>>6*numTrees + class
		*s.filled.Mut(w) |= 1 << (pool & 63)
		if bit := uint64(1) << (class & 63); s.sums.Get().classes[class>>6]&bit == 0 {
			s.sums.Mut().classes[class>>6] |= bit
		}
	}
	s.forest.insert(&r.tree, key, p.mem)
	r.weight += p.weight
	*s.trees.Mut(i) = r
}

// drop takes a key out of the tree of a pool's class.
func (s *State) drop(pool uint16, class uint32, key uint64, weight uint32) {
	i := uint32(pool)*numTrees + class
	r := *s.trees.Get(i)
	if !s.forest.remove(&r.tree, key) {
		return
	}
	r.weight -= weight
	*s.trees.Mut(i) = r
	if !r.empty() {
		return
	}
	*s.filled.Mut(uint32(pool)>>6*numTrees + class) &^= 1 << (pool & 63)
	for w := range s.sums.Get().words {
		if *s.filled.Get(w*numTrees + class) != 0 {
			return
		}
	}
	s.sums.Mut().classes[class>>6] &^= 1 << (class & 63)
}

// mebibytes returns b in MiB, rounded up.
func mebibytes(b int64) uint64 { return (uint64(b) + 1<<20 - 1) >> 20 }
