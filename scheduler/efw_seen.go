package scheduler

import "github.com/gpuai/gpuai/internal/mem"

// What a search costs depends on the buckets that its shape has not been scored
// in yet. Heaps know them, but a heap is no state: a restored machine has none.
// So it is counted beside them what they would know at best, in records that
// are hashed and written in snapshots: the budget of an entry may depend on it.

// A seenRec is how far a shape has been scored.
type seenRec struct {
	births uint64 // of buckets, when it was searched for last
	cold   uint64 // packRec.cold then; another one now: it knows nothing
	left   uint64 // of the buckets of then, those that were too many for one search
}

// maxUnseen is in how many buckets one search scores a shape at most: 7 ms. A
// shape that has not been scored in more is scored in so many at each search,
// and placed by best fit until it knows the rest.
const maxUnseen = 8_192

func hashSeen(_ []byte, i uint32, r *seenRec) uint64 {
	if *r == (seenRec{}) {
		return 0
	}
	return mem.Mix(mem.Mix(uint64(i), 0x7365656e), mem.Mix(mem.Mix(r.births, r.cold), r.left))
}

// unseen returns in how many buckets a shape is scored by this search, which it
// notes, and whether it knows all others.
func (s *State) unseen(id ShapeID) (n uint64, whole bool) {
	p := s.packing.Get()
	now := seenRec{births: p.births, cold: p.cold}
	s.seen.Grow(uint32(id) + 1)
	old := *s.seen.Get(uint32(id))
	n = uint64(s.packSums.Get().live)
	if old.cold == now.cold {
		n = min(n, now.births-old.births+old.left)
	}
	if most := s.scratch().most; n > most {
		n, now.left = most, n-most
	}
	if old != now {
		*s.seen.Mut(uint32(id)) = now
	}
	return n, now.left == 0
}

// forgetSeen forgets how far a shape was scored.
func (s *State) forgetSeen(id uint32) {
	if id < s.seen.Len() && *s.seen.Get(id) != (seenRec{}) {
		*s.seen.Mut(id) = seenRec{}
	}
}

// appendSeen appends how far shapes were scored, of those of which it matters.
func (s *State) appendSeen(b []byte) []byte {
	p := s.packing.Get()
	// Each bucket is born once more when the nodes are opened after a restore.
	b = le.AppendUint64(b, p.births-uint64(s.packSums.Get().live))
	b = le.AppendUint64(b, p.cold)
	at := len(b)
	b = le.AppendUint32(b, 0)
	n := uint32(0)
	for i := range s.seen.Len() {
		if r := s.seen.Get(i); *r != (seenRec{}) {
			b = le.AppendUint32(b, i)
			b = le.AppendUint64(b, r.births)
			b = le.AppendUint64(b, r.cold)
			b = le.AppendUint64(b, r.left)
			n++
		}
	}
	le.PutUint32(b[at:], n)
	return b
}

// restoreSeen reads the shapes of what appendSeen wrote.
func (s *State) restoreSeen(c *cursor) bool {
	for n := c.u32(); n > 0; n-- {
		i := c.u32()
		r := seenRec{births: c.u64(), cold: c.u64(), left: c.u64()}
		if c.short || !s.shapeSlots.Has(i) || s.seen.Len() > i || r == (seenRec{}) || r.left > MaxNodes {
			return false
		}
		s.seen.Grow(i + 1)
		*s.seen.Mut(i) = r
	}
	return !c.short
}
