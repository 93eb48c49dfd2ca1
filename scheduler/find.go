package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// firstClass returns the tightest class that can serve a shape.
func (r *shapeRec) firstClass() uint32 {
	if r.share != 0 {
		return uint32(r.share) / levelStep
	}
	return wholeClass + uint32(r.count)
}

// prefix returns the least prefix of a key that can serve a shape in a class.
func (r *shapeRec) prefix(class uint32) uint64 {
	if r.share != 0 && class == uint32(r.share)/levelStep {
		return uint64(r.share) % levelStep
	}
	return 0
}

// usesClass reports whether units of a class from firstClass on can serve a
// shape: a share needs a device.
func (r *shapeRec) usesClass(class uint32) bool { return class != wholeClass || r.share == 0 }

// A query is one search: it reads the state and counts its ticks.
type query struct {
	*State
	r     *shapeRec
	only  *[poolWords]uint64 // the pools that are looked at; nil: all
	most  uint64             // no domain has room for more tasks; 0: unknown
	ticks uint64
	band  Band // that a search for what may be taken looks at
}

func (s *State) query(id ShapeID) query { return query{State: s, r: s.shapes.Get(uint32(id))} }

// charge counts a search as work done.
func (s *State) charge(q *query) { s.work += workSearch + q.ticks/ticksPerUnit }

// Find returns the best place for a task of a shape now: the first by the
// order in DESIGN.md. It takes nothing. It counts as work, so it is for the
// goroutine that changes the state.
func (s *State) Find(id ShapeID) (Fit, bool) {
	q := s.query(id)
	f, ok := q.find()
	s.charge(&q)
	return f, ok
}

func (q *query) find() (Fit, bool) {
	sum := q.sums.Get()
	for alt := range q.r.alts {
		for c := sum.nextClass(q.r.firstClass()); c < numClasses; c = sum.nextClass(c + 1) {
			if !q.r.usesClass(c) {
				continue
			}
			if key, pool, ok := q.findClass(alt, c); ok {
				return q.fit(q.r, place{key, c, pool, alt}), true
			}
		}
	}
	return Fit{}, false
}

// findClass returns the best unit of a class.
func (q *query) findClass(alt uint8, class uint32) (key uint64, pool uint16, ok bool) {
	sum := q.sums.Get()
	for t := sum.tiers; t != 0; t &= t - 1 {
		tier := uint32(bits.TrailingZeros64(t)) * poolWords
		for w := range sum.words {
			m := *q.filled.Get(filledWord(w, class)) & q.mask(q.r.filters[alt], w) & *q.tiers.Get(tier + w)
			if q.only != nil {
				m &= q.only[w]
			}
			if key, pool, ok = q.findPools(w, m, class); ok {
				return key, pool, true
			}
		}
	}
	return 0, 0, false
}

// findPools returns the best unit of a class in the first of the pools m of
// word w that has one.
func (q *query) findPools(w uint32, m uint64, class uint32) (key uint64, pool uint16, ok bool) {
	for ; m != 0; m &= m - 1 {
		pool = poolAt(w, m)
		if key, ok = q.findTree(spot{pool, class}, q.r.prefix(class)); ok {
			return key, pool, true
		}
	}
	return 0, 0, false
}

// findTree returns the least key of a tree with at least this prefix, and the
// shape's CPU and memory.
func (q *query) findTree(at spot, prefix uint64) (uint64, bool) {
	t := q.trees.Get(at.tree())
	lo := makeKey(prefix, q.r.cpu, 0)
	q.ticks += tickTree
	if t.maxMem < q.r.mem || t.maxKey < lo {
		return 0, false
	}
	level := at.class < wholeClass
	if level && keyCPU(q.levelTree(at).maxKey) < uint64(q.r.cpu) {
		return 0, false
	}
	for first := true; ; first = false {
		q.ticks += tickSeek
		key, ok := q.forest.seek(&t.tree, lo, q.r.mem)
		if !ok {
			return 0, false
		}
		if keyCPU(key) >= uint64(q.r.cpu) {
			if q.serves(keyNode(key), at.class) {
				return key, true
			}
			lo = key + 1
			continue
		}
		if first && level && !q.inLevel(at) {
			return 0, false
		}
		// The next prefix; its units with too little CPU come first.
		lo = makeKey(keyPrefix(key), q.r.cpu, 0)
	}
}

// levelTree returns the tree of a level's units without their remainders.
func (q *query) levelTree(at spot) *treeRec {
	return q.trees.Get(spot{at.pool, levelTrees + at.class}.tree())
}

// inLevel reports whether any unit of a level has the shape's CPU and memory.
func (q *query) inLevel(at spot) bool {
	q.ticks += tickSeek
	_, ok := q.forest.seek(&q.levelTree(at).tree, makeKey(0, q.r.cpu, 0), q.r.mem)
	return ok
}

// A place is a unit in its class.
type place struct {
	key   uint64
	class uint32
	pool  uint16
	alt   uint8
}

// fit chooses the devices at a place.
func (s *State) fit(r *shapeRec, p place) Fit {
	f := Fit{Node: keyNode(p.key), Share: r.share, Alt: p.alt}
	n := s.nodes.Get(f.Node)
	x := &n.unit
	for x.next != 0 && x.pool != p.pool {
		x = s.next(x)
	}
	if p.class >= wholeClass {
		f.Devices = s.choose(f.Node, x, x.whole, r.count)
		return f
	}
	left := int16(p.class*levelStep) + int16(keyPrefix(p.key))
	for m := x.parts; m != 0; m &= m - 1 {
		if d := uint8(bits.TrailingZeros64(m)); s.free(n, d) == left {
			f.Devices = 1 << d
			break
		}
	}
	return f
}

// lowest returns the n lowest bits of m.
func lowest(m uint64, n uint16) uint64 {
	rest := m
	for range n {
		rest &= rest - 1
	}
	return m &^ rest
}

// FitsOn returns the best place for a task of a shape on one node: what Find
// would return if there were no other. It only reads.
func (s *State) FitsOn(id ShapeID, node uint32) (Fit, bool) {
	if !s.Known(node) || !s.nodes.Get(node).open {
		return Fit{}, false
	}
	return s.FitsIn(id, node)
}

// FitsIn is FitsOn for a node that may be closed.
func (s *State) FitsIn(id ShapeID, node uint32) (Fit, bool) {
	if !s.Known(node) {
		return Fit{}, false
	}
	r := s.shapes.Get(uint32(id))
	p, ok := s.placeInside(r, node)
	if !ok {
		return Fit{}, false
	}
	return s.fit(r, p), true
}

// placeOn returns the best place for a task of a shape on one known node that is
// open.
func (s *State) placeOn(r *shapeRec, node uint32) (place, bool) {
	if !s.nodes.Get(node).open {
		return place{}, false
	}
	return s.placeInside(r, node)
}

// placeInside is placeOn for a node that may be closed.
func (s *State) placeInside(r *shapeRec, node uint32) (place, bool) {
	n := s.nodes.Get(node)
	if n.freeCPU < 0 || n.freeMem < 0 || n.freeCPU < r.cpu || uint64(n.freeMem) < r.mem || !n.lends(r) {
		return place{}, false
	}
	for alt := range r.alts {
		best, found := place{alt: alt}, false
		for u := &n.unit; u != nil; u = s.next(u) {
			if !s.passes(r, alt, uint32(u.pool)) {
				continue
			}
			if p, ok := s.placeIn(r, n, u); ok && (!found || p.tighter(&best)) {
				p.alt, p.key = alt, p.key|makeKey(0, n.freeCPU, node)
				best, found = p, true
			}
		}
		if found {
			return best, true
		}
	}
	return place{}, false
}

// passes reports whether a pool passes the filter of a shape's alternative.
func (s *State) passes(r *shapeRec, alt uint8, pool uint32) bool {
	return s.mask(r.filters[alt], pool>>6)>>(pool&63)&1 != 0
}

// tighter orders the units of one node, which have one price.
func (a *place) tighter(b *place) bool {
	return a.class < b.class || a.class == b.class && a.pool < b.pool
}

// placeIn returns the tightest class in which a unit can serve a shape; the
// key has only its prefix.
func (s *State) placeIn(r *shapeRec, n *nodeRec, u *unitRec) (place, bool) {
	p := place{pool: u.pool}
	g := uint32(bits.OnesCount64(u.whole))
	p.class = wholeClass + g
	if r.share == 0 {
		return p, g >= uint32(r.count)
	}
	best := int16(gpuai.WholeDevice)
	for m := u.parts; m != 0; m &= m - 1 {
		if f := s.free(n, uint8(bits.TrailingZeros64(m))); f >= int16(r.share) && f < best {
			best = f
		}
	}
	if best < int16(gpuai.WholeDevice) {
		p.class = uint32(best) / levelStep
		p.key = makeKey(uint64(best)%levelStep, 0, 0)
		return p, true
	}
	return p, g > 0
}
