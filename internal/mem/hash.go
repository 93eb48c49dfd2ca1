package mem

const (
	// lineSlots is how many slots a line holds: with its links it fills one
	// cache line of 64 bytes.
	lineSlots = 7
	// lineLoad is how many slots a bucket holds in the mean. With linear
	// hashing those that wait for their split hold up to twice as many, so that
	// some of them overflow.
	lineLoad = 4
)

// A line is a bucket, or a full line that a bucket has put aside.
type line struct {
	hash [lineSlots]uint32
	slot [lineSlots]uint32
	n    uint32 // used, from the front
	next uint32 // line + 1 of those put aside; also links those that are free
}

// hashShape says how many buckets a Hash has: 2^level + split, of which the
// first split and the last split are addressed by one more bit.
type hashShape struct {
	level uint32
	split uint32
	count uint32
	free  uint32 // line + 1 of aside
}

// A Hash finds slots by a hash of their key: a hash table that grows by one
// bucket at a time, so that no command pays for a rehash (linear hashing,
// W. Litwin, VLDB 1980). A bucket is one cache line; when it is full, its
// content is put aside in a line of its own. The key itself stays in the
// caller's table. A slot is in the table once at most.
type Hash struct {
	buckets *Table[line]
	aside   *Table[line] // full, or free
	shape   Var[hashShape]
}

// NewHash returns an empty table.
func NewHash(s *Space) *Hash {
	h := &Hash{buckets: NewTable[line](s, 6), aside: NewTable[line](s, 4), shape: NewVar(s, hashShape{})}
	h.buckets.Append(line{})
	return h
}

// Fork returns the copy of h in ns.
func (h *Hash) Fork(ns *Space) *Hash {
	return &Hash{h.buckets.Fork(ns), h.aside.Fork(ns), h.shape.Fork(ns)}
}

// Reserve gives an empty table the buckets that it would have with n slots, so
// that filling it splits none. With slots in it, it does nothing.
func (h *Hash) Reserve(n uint32) {
	if h.Len() > 0 {
		return
	}
	s := h.shape.Mut()
	for uint64(h.buckets.Len())*lineLoad < uint64(n) {
		h.buckets.Append(line{})
		if s.split++; s.split == 1<<s.level {
			s.level, s.split = s.level+1, 0
		}
	}
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
	for l := h.buckets.Get(h.bucket(k)); ; l = h.aside.Get(l.next - 1) {
		for i := range min(l.n, lineSlots) {
			if l.hash[i] == k && eq(l.slot[i]) {
				return l.slot[i], true
			}
		}
		if l.next == 0 {
			return 0, false
		}
	}
}

// Insert adds a slot, which must not be in the table.
func (h *Hash) Insert(hash uint64, slot uint32) {
	k := fold(hash)
	h.push(h.bucket(k), k, slot)
	s := h.shape.Mut()
	if s.count++; s.count > h.buckets.Len()*lineLoad {
		h.grow()
	}
}

// push adds a slot to a bucket.
func (h *Hash) push(b, hash, slot uint32) {
	l := h.buckets.Mut(b)
	if l.n == lineSlots {
		*l = line{next: h.putAside(l)}
	}
	l.hash[l.n], l.slot[l.n] = hash, slot
	l.n++
}

// putAside keeps a copy of l and returns its link.
func (h *Hash) putAside(l *line) uint32 {
	free := h.shape.Get().free
	if free == 0 {
		return h.aside.Append(*l) + 1
	}
	a := h.aside.Mut(free - 1)
	h.shape.Mut().free = a.next
	*a = *l
	return free
}

// takeAside frees a line that was put aside and returns what it held.
func (h *Hash) takeAside(link uint32) line {
	a := h.aside.Mut(link - 1)
	l := *a
	s := h.shape.Mut()
	*a = line{next: s.free}
	s.free = link
	return l
}

// grow splits the next bucket in two.
func (h *Hash) grow() {
	s := h.shape.Mut()
	from, bit := s.split, uint32(1)<<s.level
	if s.split++; s.split == bit {
		s.level, s.split = s.level+1, 0
	}
	to := h.buckets.Append(line{})
	l := *h.buckets.Get(from)
	*h.buckets.Mut(from) = line{}
	for {
		for i := range min(l.n, lineSlots) {
			b := from
			if l.hash[i]&bit != 0 {
				b = to
			}
			h.push(b, l.hash[i], l.slot[i])
		}
		if l.next == 0 {
			return
		}
		l = h.takeAside(l.next)
	}
}

// Delete removes a slot that was inserted with this hash, if it is there.
func (h *Hash) Delete(hash uint64, slot uint32) {
	k := fold(hash)
	b := h.bucket(k)
	if l := *h.buckets.Get(b); l.n == 0 && l.next != 0 {
		l = h.takeAside(l.next)
		*h.buckets.Mut(b) = l
	}
	link := uint32(0) // the bucket itself
	for l := h.buckets.Get(b); ; l = h.aside.Get(link - 1) {
		for i := range min(l.n, lineSlots) {
			if l.slot[i] == slot && l.hash[i] == k {
				h.remove(b, link, i)
				return
			}
		}
		if link = l.next; link == 0 {
			return
		}
	}
}

// remove fills place i of a bucket's line with the bucket's last slot.
func (h *Hash) remove(b, link, i uint32) {
	l := h.buckets.Mut(b)
	l.n--
	hash, slot := l.hash[l.n], l.slot[l.n]
	l.hash[l.n], l.slot[l.n] = 0, 0
	if link != 0 {
		l = h.aside.Mut(link - 1)
	}
	if link != 0 || i != h.buckets.Get(b).n {
		l.hash[i], l.slot[i] = hash, slot
	}
	h.shape.Mut().count--
}

func fold(h uint64) uint32 { return uint32(h) ^ uint32(h>>32) }
