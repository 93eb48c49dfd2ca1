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
}

func hashSeen(_ []byte, i uint32, r *seenRec) uint64 {
	if *r == (seenRec{}) {
		return 0
	}
	return mem.Mix(mem.Mix(uint64(i), 0x7365656e), mem.Mix(r.births, r.cold))
}

// unseen returns in how many buckets a shape has not been scored, at most, and
// notes that it will be.
func (s *State) unseen(id ShapeID) uint64 {
	p := s.packing.Get()
	now := seenRec{p.births, p.cold}
	s.seen.Grow(uint32(id) + 1)
	old := *s.seen.Get(uint32(id))
	if old != now {
		*s.seen.Mut(uint32(id)) = now
	}
	n := uint64(s.packSums.Get().live)
	if old.cold == now.cold {
		n = min(n, now.births-old.births)
	}
	return n
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
		r := seenRec{births: c.u64(), cold: c.u64()}
		if c.short || !s.shapeSlots.Has(i) || s.seen.Len() > i || r == (seenRec{}) {
			return false
		}
		s.seen.Grow(i + 1)
		*s.seen.Mut(i) = r
	}
	return !c.short
}
