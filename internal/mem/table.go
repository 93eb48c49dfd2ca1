package mem

import "slices"

// A Table is a growing array of records of one pointer-free type, by index.
type Table[T any] struct {
	space *Space
	id    uint16
	bits  uint32 // of a record's place in its page; below 32
	mask  uint32
	n     uint32
	pages []page[T]
	undo  []undoRec
	olds  []T // the old values that undo names, in its order
	// The record of the newest old value, and the section it is of: a further
	// write to it needs no other.
	last        uint32
	lastSection uint64
	hash        func(buf []byte, i uint32, r *T) uint64 // nil: not hashed
	seen        []uint64                                // scratch of commit, all zero between calls
	buf         [256]byte
}

type page[T any] struct {
	recs  []T
	owner *owner
}

// An undoRec is a write: of record i, whose old value is olds[old−1]. With old 0
// it was appended.
type undoRec struct{ i, old uint32 }

// NewTable returns an empty table with pages of 1<<pageBits records.
func NewTable[T any](s *Space, pageBits uint8) *Table[T] {
	t := &Table[T]{space: s, bits: uint32(pageBits), mask: 1<<pageBits - 1}
	t.id = s.join(t)
	return t
}

// NewHashed is NewTable for records that count in the space's hash. The hash
// of a zero record must be 0; that of any other must depend on i and on every
// field that replicas must agree on. It is handed a buffer to append to.
func NewHashed[T any](s *Space, pageBits uint8, hash func(buf []byte, i uint32, r *T) uint64) *Table[T] {
	t := NewTable[T](s, pageBits)
	t.hash = hash
	return t
}

// Fork returns the table's copy in ns, a fork of its space.
func (t *Table[T]) Fork(ns *Space) *Table[T] {
	f := &Table[T]{space: ns, bits: t.bits, mask: t.mask, n: t.n, pages: slices.Clone(t.pages), hash: t.hash}
	f.id = ns.join(f)
	return f
}

// Len returns the number of records.
func (t *Table[T]) Len() uint32 { return t.n }

// Get returns record i for reading. It must not be kept over the next write.
func (t *Table[T]) Get(i uint32) *T {
	return &t.pages[i>>(t.bits&31)].recs[i&t.mask]
}

// Mut returns record i for writing. It must not be kept over the next Mut,
// Append, RollbackTo or Commit.
func (t *Table[T]) Mut(i uint32) *T {
	p := &t.pages[i>>(t.bits&31)]
	if p.owner != t.space.owner {
		t.claim(p)
	}
	r := &p.recs[i&t.mask]
	if (t.last != i || t.lastSection != t.space.section) && !t.space.loading {
		t.space.wrote(t.id, len(t.undo) == 0)
		t.olds = append(t.olds, *r)
		t.undo = append(t.undo, undoRec{i, uint32(len(t.olds))})
		t.last, t.lastSection = i, t.space.section
	}
	return r
}

// claim makes p writable in place.
func (t *Table[T]) claim(p *page[T]) {
	c := make([]T, len(p.recs))
	copy(c, p.recs)
	p.recs, p.owner = c, t.space.owner
}

// Append adds r and returns its index.
func (t *Table[T]) Append(r T) uint32 {
	i := t.n
	if i>>(t.bits&31) == uint32(len(t.pages)) {
		t.pages = append(t.pages, page[T]{make([]T, t.mask+1), t.space.owner})
	}
	p := &t.pages[i>>(t.bits&31)]
	if p.owner != t.space.owner {
		t.claim(p)
	}
	p.recs[i&t.mask] = r
	t.n++
	if t.space.loading {
		return i
	}
	t.space.wrote(t.id, len(t.undo) == 0)
	t.undo = append(t.undo, undoRec{i: i})
	t.last, t.lastSection = i, t.space.section
	return i
}

// Put sets record i, which may lie beyond the end: zero records fill the gap.
func (t *Table[T]) Put(i uint32, r T) {
	if i < t.n {
		*t.Mut(i) = r
		return
	}
	t.Grow(i)
	t.Append(r)
}

// Grow appends zero records until the table has at least n.
func (t *Table[T]) Grow(n uint32) {
	if t.space.loading {
		t.extend(n)
	}
	var zero T
	for t.n < n {
		t.Append(zero)
	}
}

// extend is Grow while the space is loaded: what is beyond the end of a page
// is zero, and no page is shared.
func (t *Table[T]) extend(n uint32) {
	t.n = max(t.n, n)
	for uint64(len(t.pages))<<t.bits < uint64(t.n) {
		t.pages = append(t.pages, page[T]{make([]T, t.mask+1), t.space.owner})
	}
}

func (t *Table[T]) undoOne() {
	u := &t.undo[len(t.undo)-1]
	if u.old == 0 {
		t.n--
		clear(t.pages[u.i>>(t.bits&31)].recs[u.i&t.mask : u.i&t.mask+1])
	} else {
		t.pages[u.i>>(t.bits&31)].recs[u.i&t.mask] = t.olds[u.old-1]
		t.olds = t.olds[:u.old-1]
	}
	t.undo = t.undo[:len(t.undo)-1]
}

// maxUndoKept bounds the old values whose memory is kept between commands.
const maxUndoKept = 4096

func (t *Table[T]) commit() uint64 {
	if len(t.undo) == 0 {
		return 0
	}
	var sum uint64
	if t.hash != nil {
		sum = t.hashChange()
	}
	t.undo, t.olds = t.undo[:0], t.olds[:0]
	if cap(t.undo) > maxUndoKept {
		t.undo, t.olds = nil, nil
	}
	return sum
}

// hashChange returns the sum over all written records of new hash − old hash.
// Only the first old value of a record counts.
func (t *Table[T]) hashChange() uint64 {
	var sum uint64
	if len(t.undo) <= 8 {
		for k := range t.undo {
			if !t.writtenBefore(k) {
				sum += t.change(t.undo[k])
			}
		}
		return sum
	}
	if need := int(t.n>>6) + 1; len(t.seen) < need {
		t.seen = make([]uint64, need+need/4)
	}
	for k := range t.undo {
		u := t.undo[k]
		if w := &t.seen[u.i>>6]; *w&(1<<(u.i&63)) == 0 {
			*w |= 1 << (u.i & 63)
			sum += t.change(u)
		}
	}
	for k := range t.undo {
		t.seen[t.undo[k].i>>6] = 0
	}
	return sum
}

// change returns what a record's first write changes of the sum of hashes.
func (t *Table[T]) change(u undoRec) uint64 {
	sum := t.hash(t.buf[:0], u.i, t.Get(u.i))
	if u.old != 0 { // what was not there hashes to 0
		sum -= t.hash(t.buf[:0], u.i, &t.olds[u.old-1])
	}
	return sum
}

func (t *Table[T]) writtenBefore(k int) bool {
	for j := range k {
		if t.undo[j].i == t.undo[k].i {
			return true
		}
	}
	return false
}

// Sum returns the sum of all records' hashes, computed anew: what a hashed
// table contributes to Space.Hash.
func (t *Table[T]) Sum() uint64 {
	var sum uint64
	for i := range t.n {
		sum += t.hash(t.buf[:0], i, t.Get(i))
	}
	return sum
}

func (t *Table[T]) sum() uint64 {
	if t.hash == nil {
		return 0
	}
	return t.Sum()
}

// A Var is a single value of a Space.
type Var[T any] struct{ t *Table[T] }

// NewVar returns a variable that holds v.
func NewVar[T any](s *Space, v T) Var[T] {
	x := Var[T]{NewTable[T](s, 0)}
	x.t.Append(v)
	return x
}

// NewHashedVar is NewVar for a value that counts in the space's hash.
func NewHashedVar[T any](s *Space, v T, hash func(buf []byte, i uint32, r *T) uint64) Var[T] {
	x := Var[T]{NewHashed(s, 0, hash)}
	x.t.Append(v)
	return x
}

// Fork returns the variable's copy in ns.
func (v Var[T]) Fork(ns *Space) Var[T] { return Var[T]{v.t.Fork(ns)} }

// Get returns the value for reading.
func (v Var[T]) Get() *T { return v.t.Get(0) }

// Mut returns the value for writing.
func (v Var[T]) Mut() *T { return v.t.Mut(0) }

// Sum returns the value's hash, computed anew.
func (v Var[T]) Sum() uint64 { return v.t.Sum() }
