package mem

// none marks the end of a chain.
const none = ^uint32(0)

type hashEnt struct {
	hash uint32
	slot uint32
	next uint32
}

// hashShape says how many buckets a Hash has: 2^level + split, of which the
// first split and the last split are addressed by one more bit.
type hashShape struct {
	level uint32
	split uint32
}

// A Hash finds slots by a hash of their key: a hash table that grows by one
// bucket per insert, so that no command pays for a rehash (linear hashing,
// W. Litwin, VLDB 1980). The key itself stays in the caller's table.
type Hash struct {
	buckets *Table[uint32]
	ents    *Table[hashEnt]
	slots   *Slots
	shape   Var[hashShape]
}

// NewHash returns an empty table.
func NewHash(s *Space) *Hash {
	h := &Hash{
		buckets: NewTable[uint32](s, 10), ents: NewTable[hashEnt](s, 9),
		slots: NewSlots(s), shape: NewVar(s, hashShape{}),
	}
	h.buckets.Append(none)
	return h
}

// Fork returns the copy of h in ns.
func (h *Hash) Fork(ns *Space) *Hash {
	return &Hash{h.buckets.Fork(ns), h.ents.Fork(ns), h.slots.Fork(ns), h.shape.Fork(ns)}
}

// Len returns how many slots are in the table.
func (h *Hash) Len() uint32 { return h.slots.Len() }

func (h *Hash) bucket(hash uint32) uint32 {
	s := h.shape.Get()
	b := hash & (1<<s.level - 1)
	if b < s.split {
		b = hash & (2<<s.level - 1)
	}
	return b
}

// Find returns the slot with this hash for which eq holds.
func (h *Hash) Find(hash uint64, eq func(slot uint32) bool) (uint32, bool) {
	k := fold(hash)
	for e := *h.buckets.Get(h.bucket(k)); e != none; {
		x := h.ents.Get(e)
		if x.hash == k && eq(x.slot) {
			return x.slot, true
		}
		e = x.next
	}
	return 0, false
}

// Insert adds a slot, which must not be in the table; false when it is full.
func (h *Hash) Insert(hash uint64, slot uint32) bool {
	e, ok := h.slots.Alloc()
	if !ok {
		return false
	}
	k := fold(hash)
	h.ents.Grow(e + 1)
	head := h.buckets.Mut(h.bucket(k))
	next := *head
	*head = e
	*h.ents.Mut(e) = hashEnt{k, slot, next}
	if h.slots.Len() > h.buckets.Len() {
		h.grow()
	}
	return true
}

// grow splits the next bucket in two.
func (h *Hash) grow() {
	s := h.shape.Mut()
	from, bit := s.split, uint32(1)<<s.level
	if s.split++; s.split == bit {
		s.level, s.split = s.level+1, 0
	}
	to := h.buckets.Append(none)
	e := *h.buckets.Get(from)
	*h.buckets.Mut(from) = none
	for e != none {
		x := h.ents.Mut(e)
		next, b := x.next, from
		if x.hash&bit != 0 {
			b = to
		}
		head := h.buckets.Mut(b)
		x.next, *head = *head, e
		e = next
	}
}

// Delete removes a slot that was inserted with this hash, if it is there.
func (h *Hash) Delete(hash uint64, slot uint32) {
	k := fold(hash)
	b := h.bucket(k)
	prev := none
	for e := *h.buckets.Get(b); e != none; {
		x := h.ents.Get(e)
		if x.slot == slot && x.hash == k {
			if prev == none {
				*h.buckets.Mut(b) = x.next
			} else {
				next := x.next
				h.ents.Mut(prev).next = next
			}
			*h.ents.Mut(e) = hashEnt{}
			h.slots.Free(e)
			return
		}
		prev, e = e, x.next
	}
}

func fold(h uint64) uint32 { return uint32(h) ^ uint32(h>>32) }
