package mem

import "math/bits"

// slotLevels is the height of the tree of a Slots: 64^4 slots.
const slotLevels = 4

// MaxSlots is how many slots a Slots can hand out.
const MaxSlots = 1 << (6 * slotLevels)

// Slots hands out the lowest free slot. A bit of level 0 is a slot in use, a
// bit of level k a word of level k−1 that is full.
type Slots struct {
	level [slotLevels]*Table[uint64]
	sum   Var[slotSum]
}

// slotSum sums up a Slots.
type slotSum struct {
	used uint32
	low  uint32 // every slot below it is in use
}

// NewSlots returns a Slots with every slot free.
func NewSlots(s *Space) *Slots {
	x := &Slots{sum: NewVar(s, slotSum{})}
	for l := range x.level {
		x.level[l] = NewTable[uint64](s, 7)
	}
	return x
}

// Fork returns the copy of x in ns.
func (x *Slots) Fork(ns *Space) *Slots {
	f := &Slots{sum: x.sum.Fork(ns)}
	for l := range x.level {
		f.level[l] = x.level[l].Fork(ns)
	}
	return f
}

// Len returns how many slots are in use.
func (x *Slots) Len() uint32 { return x.sum.Get().used }

// End returns a bound above every slot in use.
func (x *Slots) End() uint32 { return x.level[0].Len() << 6 }

func (x *Slots) word(l int, i uint32) uint64 {
	if i >= x.level[l].Len() {
		return 0
	}
	return *x.level[l].Get(i)
}

// Lowest returns the lowest free slot; false when all are in use.
func (x *Slots) Lowest() (uint32, bool) {
	i := x.sum.Get().low >> 6 // most slots are taken one behind the other
	if w := x.word(0, i); w != ^uint64(0) && i < MaxSlots>>6 {
		return i<<6 | uint32(bits.TrailingZeros64(^w)), true
	}
	i = 0
	for l := slotLevels - 1; l >= 0; l-- {
		b := uint32(bits.TrailingZeros64(^x.word(l, i)))
		if b == 64 {
			return 0, false
		}
		i = i<<6 | b
	}
	return i, true
}

// Alloc takes the lowest free slot; false when all are in use.
func (x *Slots) Alloc() (uint32, bool) {
	i, ok := x.Lowest()
	if ok {
		x.Take(i)
		x.sum.Mut().low = i + 1
	}
	return i, ok
}

// Take marks slot i as in use. It must be free and below MaxSlots.
func (x *Slots) Take(i uint32) {
	sum := x.sum.Mut()
	sum.used++
	if i == sum.low {
		sum.low++
	}
	for l := range x.level {
		t := x.level[l]
		if i>>6 >= t.Len() {
			t.Grow(i>>6 + 1)
		}
		w := t.Mut(i >> 6)
		*w |= 1 << (i & 63)
		if *w != ^uint64(0) {
			return
		}
		i >>= 6
	}
}

// Free gives slot i back. It must be in use.
func (x *Slots) Free(i uint32) {
	sum := x.sum.Mut()
	sum.used--
	sum.low = min(sum.low, i)
	for l := range x.level {
		w := x.level[l].Mut(i >> 6)
		full := *w == ^uint64(0)
		*w &^= 1 << (i & 63)
		if !full {
			return
		}
		i >>= 6
	}
}

// Has reports whether slot i is in use.
func (x *Slots) Has(i uint32) bool { return x.word(0, i>>6)>>(i&63)&1 != 0 }

// Next returns the lowest slot in use that is at least from.
func (x *Slots) Next(from uint32) (uint32, bool) { return nextBit(x.level[0], from) }

// nextBit returns the lowest set bit of t that is at least from.
func nextBit(t *Table[uint64], from uint32) (uint32, bool) {
	i := from >> 6
	if i >= t.Len() {
		return 0, false
	}
	w := *t.Get(i) >> (from & 63) << (from & 63)
	for w == 0 {
		if i++; i >= t.Len() {
			return 0, false
		}
		w = *t.Get(i)
	}
	return i<<6 | uint32(bits.TrailingZeros64(w)), true
}

// A Bitmap is a growing set of small numbers.
type Bitmap struct {
	t    *Table[uint64]
	top  *Table[uint64] // which words of t are not 0
	peak *Table[uint64] // which words of top are not 0: most sets are empty most of the time
}

// NewBitmap returns an empty set.
func NewBitmap(s *Space) *Bitmap {
	return &Bitmap{NewTable[uint64](s, 6), NewTable[uint64](s, 4), NewTable[uint64](s, 2)}
}

// Fork returns the copy of b in ns.
func (b *Bitmap) Fork(ns *Space) *Bitmap {
	return &Bitmap{b.t.Fork(ns), b.top.Fork(ns), b.peak.Fork(ns)}
}

// Has reports whether i is in the set.
func (b *Bitmap) Has(i uint32) bool {
	return i>>6 < b.t.Len() && *b.t.Get(i >> 6)>>(i&63)&1 != 0
}

// Set adds i.
func (b *Bitmap) Set(i uint32) {
	if b.Has(i) {
		return
	}
	b.t.Grow(i>>6 + 1)
	b.top.Grow(i>>12 + 1)
	b.peak.Grow(i>>18 + 1)
	w := b.t.Mut(i >> 6)
	if *w == 0 {
		top := b.top.Mut(i >> 12)
		if *top == 0 {
			*b.peak.Mut(i >> 18) |= 1 << (i >> 12 & 63)
		}
		*top |= 1 << (i >> 6 & 63)
	}
	*w |= 1 << (i & 63)
}

// Clear removes i.
func (b *Bitmap) Clear(i uint32) {
	if !b.Has(i) {
		return
	}
	w := b.t.Mut(i >> 6)
	if *w &^= 1 << (i & 63); *w == 0 {
		top := b.top.Mut(i >> 12)
		if *top &^= 1 << (i >> 6 & 63); *top == 0 {
			*b.peak.Mut(i >> 18) &^= 1 << (i >> 12 & 63)
		}
	}
}

// Next returns the lowest member that is at least from.
func (b *Bitmap) Next(from uint32) (uint32, bool) {
	if i := from >> 6; i < b.t.Len() {
		if w := *b.t.Get(i) >> (from & 63) << (from & 63); w != 0 {
			return i<<6 | uint32(bits.TrailingZeros64(w)), true
		}
	}
	at := from>>6 + 1
	if w := at >> 6; w < b.top.Len() {
		if m := *b.top.Get(w) >> (at & 63) << (at & 63); m != 0 {
			return b.lowest(w<<6 | uint32(bits.TrailingZeros64(m))), true
		}
	}
	w, ok := nextBit(b.peak, at>>6+1)
	if !ok {
		return 0, false
	}
	return b.lowest(w<<6 | uint32(bits.TrailingZeros64(*b.top.Get(w)))), true
}

// lowest returns the lowest member in a word that has some.
func (b *Bitmap) lowest(i uint32) uint32 {
	return i<<6 | uint32(bits.TrailingZeros64(*b.t.Get(i)))
}
