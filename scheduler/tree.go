package scheduler

import "github.com/gpuai/gpuai/internal/mem"

// A forest is the store of all trees of a State. A tree is a B+ tree of
// (key, memory) pairs that knows the greatest memory below each of its inner
// entries, so that "the least key from here on with that much memory" takes
// two descents at most, whatever the pairs are.
//
// The answers are functions of the set of pairs. The shape of a tree depends
// on its history; nothing that leaves this package does.
type forest struct {
	blocks *mem.Table[block]
	slots  *mem.Slots
}

const (
	fan = 16
	// mergeAt is how many entries two neighbours may have together to become
	// one. It is below fan, so that a unit that comes and goes does not split
	// and merge each time, and above fan/2, so that blocks are used.
	mergeAt = 12
	// maxHeight is beyond what MaxNodes units of MaxGPUs devices can build.
	maxHeight = 12
)

// A block is a leaf or an inner block: which of the two is known from its
// height. In an inner block, keys are the least of each child's, mems the
// greatest.
type block struct {
	n    uint8
	keys [fan]uint64
	mems [fan]uint64
	kids [fan]uint32 // inner blocks only
}

// A tree is the handle of one tree, kept by its owner. The zero tree is empty.
type tree struct {
	maxMem uint64 // of all its pairs
	maxKey uint64
	root   uint32 // block number + 1
	height uint8  // of the root; 0 is a leaf
}

func (t *tree) empty() bool { return t.root == 0 }

func newForest(s *mem.Space) forest {
	return forest{mem.NewTable[block](s, 4), mem.NewSlots(s)}
}

func (f forest) fork(ns *mem.Space) forest {
	return forest{f.blocks.Fork(ns), f.slots.Fork(ns)}
}

// place returns how many keys are at most key.
func (b *block) place(key uint64) uint8 {
	i := uint8(0)
	for i < b.n && i < fan && b.keys[i] <= key {
		i++
	}
	return i
}

// child returns which child key belongs to.
func (b *block) child(key uint64) uint8 {
	if i := b.place(key); i > 0 {
		return i - 1
	}
	return 0
}

// firstWith returns the first entry from i on with at least that much memory;
// n when there is none.
func (b *block) firstWith(i uint8, need uint64) uint8 {
	for i < b.n && i < fan && b.mems[i] < need {
		i++
	}
	return i
}

func (b *block) maxMem() uint64 {
	var m uint64
	for i := range min(b.n, fan) {
		m = max(m, b.mems[i])
	}
	return m
}

// An entry is one place of a block. Leaves have no kid.
type entry struct {
	key, mem uint64
	kid      uint32
}

func (b *block) insert(i uint8, e entry) {
	copy(b.keys[i+1:], b.keys[i:b.n])
	copy(b.mems[i+1:], b.mems[i:b.n])
	copy(b.kids[i+1:], b.kids[i:b.n])
	b.keys[i], b.mems[i], b.kids[i] = e.key, e.mem, e.kid
	b.n++
}

func (b *block) remove(i uint8) {
	copy(b.keys[i:], b.keys[i+1:b.n])
	copy(b.mems[i:], b.mems[i+1:b.n])
	copy(b.kids[i:], b.kids[i+1:b.n])
	b.n--
}

// take appends the entries of o from i on, and leaves o the ones before.
func (b *block) take(o *block, i uint8) {
	copy(b.keys[b.n:], o.keys[i:o.n])
	copy(b.mems[b.n:], o.mems[i:o.n])
	copy(b.kids[b.n:], o.kids[i:o.n])
	b.n, o.n = b.n+o.n-i, i
}

// seek returns the least key ≥ lo of the tree with at least that much memory.
func (f forest) seek(t *tree, lo, need uint64) (uint64, bool) {
	if t.root == 0 || t.maxMem < need || t.maxKey < lo {
		return 0, false
	}
	b := f.blocks.Get(t.root - 1)
	// later is the nearest block to the right of the descent that surely has
	// an answer: all its keys are above lo.
	var later uint32
	var laterHeight uint8
	found := false
	l := t.height
	for ; l > 0; l-- {
		i := b.child(lo)
		if j := b.firstWith(i+1, need); j < b.n {
			later, laterHeight, found = b.kids[j], l-1, true
		}
		if b.mems[i] < need {
			break
		}
		b = f.blocks.Get(b.kids[i])
	}
	if l == 0 {
		i := uint8(0)
		for i < b.n && b.keys[i] < lo {
			i++
		}
		if i = b.firstWith(i, need); i < b.n {
			return b.keys[i], true
		}
	}
	if !found {
		return 0, false
	}
	return f.firstWith(later, laterHeight, need)
}

// firstWith returns the least key below a block with that much memory.
func (f forest) firstWith(at uint32, height uint8, need uint64) (uint64, bool) {
	b := f.blocks.Get(at)
	for ; height > 0; height-- {
		i := b.firstWith(0, need)
		if i >= b.n {
			return 0, false
		}
		b = f.blocks.Get(b.kids[i])
	}
	i := b.firstWith(0, need)
	if i >= b.n {
		return 0, false
	}
	return b.keys[i], true
}

// alloc stores a new block. MaxNodes bounds how many there can be.
func (f forest) alloc(b block) uint32 {
	i, _ := f.slots.Alloc()
	f.blocks.Grow(i + 1)
	*f.blocks.Mut(i) = b
	return i
}

func (f forest) free(i uint32) {
	f.blocks.Mut(i).n = 0
	f.slots.Free(i)
}

// A step is a block on the way down and the child taken, or the place in it.
type step struct {
	at uint32
	i  uint8
}

type path [maxHeight + 1]step

// descend notes the way to key's leaf; p[0] is the place of the first key that
// is not less.
func (f forest) descend(t *tree, key uint64, p *path) *block {
	at := t.root - 1
	b := f.blocks.Get(at)
	for l := t.height; l > 0; l-- {
		i := b.child(key)
		p[l] = step{at, i}
		at = b.kids[i]
		b = f.blocks.Get(at)
	}
	i := uint8(0)
	for i < b.n && b.keys[i] < key {
		i++
	}
	p[0] = step{at, i}
	return b
}

// insert adds a pair, whose key must not be in the tree.
func (f forest) insert(t *tree, key, mem uint64) {
	if t.root == 0 {
		var b block
		b.insert(0, entry{key, mem, 0})
		*t = tree{maxMem: mem, maxKey: key, root: f.alloc(b) + 1}
		return
	}
	t.maxMem, t.maxKey = max(t.maxMem, mem), max(t.maxKey, key)
	edge := key == t.maxKey
	var p path
	f.descend(t, key, &p)
	kid, split := f.put(p[0], entry{key, mem, 0}, edge)
	for l := uint8(1); l <= t.height; l++ {
		at, i := p[l].at, p[l].i
		if split {
			f.resum(at, i)
			kid, split = f.put(step{at, i + 1}, f.entryOf(kid), edge)
			continue
		}
		if b := f.blocks.Get(at); b.keys[i] <= key && b.mems[i] >= mem {
			return
		}
		w := f.blocks.Mut(at)
		w.keys[i], w.mems[i] = min(w.keys[i], key), max(w.mems[i], mem)
	}
	if split {
		f.raise(t, kid)
	}
}

// entryOf returns the inner entry of a block.
func (f forest) entryOf(kid uint32) entry {
	b := f.blocks.Get(kid)
	return entry{b.keys[0], b.maxMem(), kid}
}

// put adds an entry at a place of a block. A full block is split: then kid is
// the new right half.
//
// At the right edge of the tree the whole block stays: keys that come in
// order, as those of nodes that register, leave full blocks behind.
func (f forest) put(p step, e entry, edge bool) (kid uint32, split bool) {
	if f.blocks.Get(p.at).n < fan {
		f.blocks.Mut(p.at).insert(p.i, e)
		return 0, false
	}
	left, right := *f.blocks.Get(p.at), block{}
	half := uint8(fan / 2)
	if edge && p.i == fan {
		half = fan
	}
	right.take(&left, half)
	if p.i > half || half == fan {
		right.insert(p.i-half, e)
	} else {
		left.insert(p.i, e)
	}
	*f.blocks.Mut(p.at) = left
	return f.alloc(right), true
}

// resum sets entry i of an inner block by its child anew; it reports whether
// that changed it.
func (f forest) resum(at uint32, i uint8) bool {
	b := f.blocks.Get(at)
	e := f.entryOf(b.kids[i])
	if b.keys[i] == e.key && b.mems[i] == e.mem {
		return false
	}
	w := f.blocks.Mut(at)
	w.keys[i], w.mems[i] = e.key, e.mem
	return true
}

// raise puts a new root above the old one and its new right neighbour.
func (f forest) raise(t *tree, kid uint32) {
	var b block
	b.insert(0, f.entryOf(t.root-1))
	b.insert(1, f.entryOf(kid))
	t.root = f.alloc(b) + 1
	t.height++
}

// remove takes a key out; false when it is not in the tree.
func (f forest) remove(t *tree, key uint64) bool {
	if t.root == 0 {
		return false
	}
	var p path
	b := f.descend(t, key, &p)
	if i := p[0].i; i >= b.n || b.keys[i] != key {
		return false
	}
	mem := b.mems[p[0].i]
	f.blocks.Mut(p[0].at).remove(p[0].i)
	for l := uint8(1); l <= t.height; l++ {
		merged := f.merge(p[l].at, p[l].i)
		if !merged && !f.resum(p[l].at, p[l].i) {
			break
		}
	}
	f.lower(t)
	if t.root == 0 {
		*t = tree{}
		return true
	}
	if mem == t.maxMem {
		t.maxMem = f.blocks.Get(t.root - 1).maxMem()
	}
	if key == t.maxKey {
		t.maxKey = f.last(t)
	}
	return true
}

// merge joins child i of a block with a neighbour when they fit, or drops it
// when it is empty; it reports whether it did.
func (f forest) merge(at uint32, i uint8) bool {
	b := f.blocks.Get(at)
	kid := b.kids[i]
	n := f.blocks.Get(kid).n
	if n >= mergeAt {
		return false
	}
	if n == 0 {
		f.free(kid)
		f.blocks.Mut(at).remove(i)
		return true
	}
	switch {
	case i+1 < b.n && n+f.blocks.Get(b.kids[i+1]).n <= mergeAt:
	case i > 0 && n+f.blocks.Get(b.kids[i-1]).n <= mergeAt:
		i--
	default:
		return false
	}
	l, r := b.kids[i], b.kids[i+1]
	right := *f.blocks.Get(r)
	f.blocks.Mut(l).take(&right, 0)
	f.free(r)
	f.blocks.Mut(at).remove(i + 1)
	f.resum(at, i)
	return true
}

// lower drops roots that have one child, or nothing.
func (f forest) lower(t *tree) {
	for t.height > 0 && f.blocks.Get(t.root-1).n == 1 {
		kid := f.blocks.Get(t.root - 1).kids[0]
		f.free(t.root - 1)
		t.root = kid + 1
		t.height--
	}
	if f.blocks.Get(t.root-1).n == 0 {
		f.free(t.root - 1)
		t.root = 0
	}
}

// last returns the greatest key of a tree that is not empty.
func (f forest) last(t *tree) uint64 {
	b := f.blocks.Get(t.root - 1)
	for l := t.height; l > 0; l-- {
		b = f.blocks.Get(b.kids[b.n-1])
	}
	return b.keys[b.n-1]
}
