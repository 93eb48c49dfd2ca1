package scheduler

import (
	"bytes"
	"math"
	"strconv"

	"github.com/gpuai/gpuai"
)

// Scratch space is lent to tasks as CPU and memory are: a node whose capacity is
// counted never lends more. Few tasks ask for it and few nodes run out of it, so no
// tree knows it: a search for such a task passes over the nodes that have too
// little left, and costs the others nothing.
//
// What a task asks for is in its constraint on gpuai.LabelScratch, by which the
// nodes are chosen that have so much at all.

// scratchOf returns what a constraint asks for of scratch space; 0 when it is
// another one.
func (x constraintView) scratchOf() int64 {
	key, ok := bytes.CutPrefix(x.attribute, []byte(gpuai.LabelPrefix))
	if !ok || string(key) != gpuai.LabelScratch || x.op != gpuai.AtLeast {
		return 0
	}
	n, err := strconv.ParseInt(string(x.values.str()), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return min(n, int64(gpuai.MaxMemory)-1)
}

// scratchIn returns what the constraints of a filter ask for.
func scratchIn(filter []byte) (n int64) {
	c := cursor{b: filter}
	viewAlt(&c)
	for range min(c.num(), gpuai.MaxConstraints) {
		n = max(n, viewConstraint(&c).scratchOf())
	}
	return n
}

// Scratch returns how many bytes of scratch space a task of a shape is lent. It
// only reads.
func (s *State) Scratch(id ShapeID) int64 { return s.shapes.Get(uint32(id)).scratch }

// Lend notes that a lease holds so many bytes more of a node's scratch space, or
// fewer: what Hold and Give do not know. Take does it by itself.
func (s *State) Lend(node uint32, bytes int64) {
	if bytes != 0 && s.Known(node) {
		s.nodes.Mut(node).lent += bytes
	}
}

// SetScratch says how much a node lends; 0: it is not counted.
func (s *State) SetScratch(node uint32, bytes int64) {
	if s.Known(node) && s.nodes.Get(node).scratch != bytes {
		s.nodes.Mut(node).scratch = bytes
	}
}

// Lent returns how much scratch space of a node leases hold, and how much it lends;
// 0: it is not counted. It only reads.
func (s *State) Lent(node uint32) (lent, of int64) {
	n := s.nodes.Get(node)
	return n.lent, n.scratch
}

// freeScratch is what a node has not lent.
func (n *nodeRec) freeScratch() int64 {
	if n.scratch == 0 {
		return math.MaxInt64
	}
	return n.scratch - n.lent
}

// lends reports whether a node has a task's scratch space left.
func (n *nodeRec) lends(r *shapeRec) bool { return r.scratch == 0 || n.freeScratch() >= r.scratch }

// freeWith is freeScratch once so much more is given back.
func (n *nodeRec) freeWith(back int64) int64 {
	if n.scratch == 0 {
		return math.MaxInt64
	}
	return n.scratch - n.lent + back
}

// lendsWith is lends once so much more is given back.
func (n *nodeRec) lendsWith(r *shapeRec, back int64) bool {
	return r.scratch == 0 || n.freeWith(back) >= r.scratch
}

// lentBy returns how many tasks so much scratch space serves.
func (r *shapeRec) lentBy(free int64) uint64 {
	if r.scratch == 0 {
		return gpuai.MaxTasks
	}
	return uint64(max(free, 0)) / uint64(r.scratch)
}

// serves reports whether the node of a key has the scratch space of the shape: of
// a tree of capacities at all.
func (q *query) serves(node, class uint32) bool {
	if q.r.scratch == 0 {
		return true
	}
	q.ticks += tickNode
	n := q.nodes.Get(node)
	if class == capacityTree {
		return n.scratch == 0 || n.scratch >= q.r.scratch
	}
	return n.lends(q.r)
}

// givesBack reports whether a node has the scratch space of the shape once the
// holdings up to the band that is looked at have gone.
func (q *query) givesBack(node uint32) bool {
	n := q.nodes.Get(node)
	if q.r.scratch == 0 {
		return true
	}
	q.ticks += tickNode
	for at := *q.reclaim.first.Get(node); at != 0 && !n.lends(q.r); at = q.reclaim.rows.Get(at - 1).next {
		if row := q.reclaim.rows.Get(at - 1); row.band == q.band {
			return n.lendsWith(q.r, row.scratch)
		}
	}
	return n.lends(q.r)
}
