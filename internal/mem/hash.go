package mem

// none marks the end of a chain.
const none = ^uint32(0)

// A hashEnt is a slot's link in its chain.
type hashEnt struct {
	hash uint32
	next uint32
}

// hashShape says how many buckets a Hash has: 2^level + split, of which the
// first split and the last split are addressed by one more bit.
type hashShape struct {
	level uint32
	split uint32
	count uint32
}

// A Hash finds slots by a hash of their key: a hash table that grows by one
// bucket per insert, so that no command pays for a rehash (linear hashing,
// W. Litwin, VLDB 1980). The key itself stays in the caller's table. A slot is
// in the table once at most.
type Hash struct {
	buckets *Table[uint32]
	ents    *Table[hashEnt] // by slot
	shape   Var[hashShape]
}

// NewHash returns an empty table.
func NewHash(s *Space) *Hash {
	h := &Hash{buckets: NewTable[uint32](s, 10), ents: NewTable[hashEnt](s, 9), shape: NewVar(s, hashShape{})}
	h.buckets.Append(none)
	return h
}

// Fork returns the copy of h in ns.
func (h *Hash) Fork(ns *Space) *Hash {
	return &Hash{h.buckets.Fork(ns), h.ents.Fork(ns), h.shape.Fork(ns)}
}

// Len returns how many slots are in the table.
func (h *Hash) Len() uint32 { return h.shape.Get().count }

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
	for slot := *h.buckets.Get(h.bucket(k)); slot != none; {
		x := h.ents.Get(slot)
		if x.hash == k && eq(slot) {
			return slot, true
		}
		slot = x.next
	}
	return 0, false
}

// Insert adds a slot, which must not be in the table.
func (h *Hash) Insert(hash uint64, slot uint32) {
	k := fold(hash)
	head := h.buckets.Mut(h.bucket(k))
	h.ents.Put(slot, hashEnt{k, *head})
	*head = slot
	s := h.shape.Mut()
	if s.count++; s.count > h.buckets.Len() {
		h.grow(s)
	}
}

// grow splits the next bucket in two.
func (h *Hash) grow(s *hashShape) {
	from, bit := s.split, uint32(1)<<s.level
	if s.split++; s.split == bit {
		s.level, s.split = s.level+1, 0
	}
	to := h.buckets.Append(none)
	slot := *h.buckets.Get(from)
	*h.buckets.Mut(from) = none
	for slot != none {
		x := h.ents.Mut(slot)
		next, b := x.next, from
		if x.hash&bit != 0 {
			b = to
		}
		head := h.buckets.Mut(b)
		x.next, *head = *head, slot
		slot = next
	}
}

// Delete removes a slot that was inserted with this hash, if it is there.
func (h *Hash) Delete(hash uint64, slot uint32) {
	k := fold(hash)
	b := h.bucket(k)
	prev := none
	for at := *h.buckets.Get(b); at != none; {
		x := h.ents.Get(at)
		if at != slot || x.hash != k {
			prev, at = at, x.next
			continue
		}
		next := x.next
		if prev == none {
			*h.buckets.Mut(b) = next
		} else {
			h.ents.Mut(prev).next = next
		}
		*h.ents.Mut(slot) = hashEnt{}
		h.shape.Mut().count--
		return
	}
}

func fold(h uint64) uint32 { return uint32(h) ^ uint32(h>>32) }
