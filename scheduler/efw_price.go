package scheduler

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// Scarce places have a price, so that tasks that could run elsewhere do not
// take them. A place is a slot of a slot class: room for one task that needs
// several devices of a node, or a device of a kind that constrained tasks need.

const (
	// maxSlotClasses is how many slot classes there may be, those of the
	// greatest demand.
	maxSlotClasses = 64
	// maxPrice is the highest λ, of which 256 is the worth of a slot's devices.
	maxPrice = 512
	minPrice = 4
	// priceUnit is one λ of one device in the scale of values.
	priceUnit = 1000 << weightBits / 256 * valueScale
)

// A slotRec is a slot class: tasks of k devices and so much CPU that pass the
// filters of one demand class.
type slotRec struct {
	class  uint32 // of the demand, whose filters it has
	cpu    uint32 // milli; 0: any, of single devices
	share  uint32 // of the demand for devices, of 1<<16
	lambda uint32 // price; path-dependent
	count  uint8  // devices
	used   bool
}

func hashSlot(_ []byte, i uint32, r *slotRec) uint64 {
	if !r.used {
		return 0
	}
	h := mem.Mix(uint64(i)<<32|uint64(r.class), 0x736c6f74<<8|uint64(r.count))
	return mem.Mix(h, mem.Mix(uint64(r.cpu)<<32|uint64(r.share), uint64(r.lambda)))
}

// A supplyRec is how many slots of each class the nodes have now. It follows
// from the nodes.
type supplyRec struct{ slots [maxSlotClasses]int64 }

// on returns how many slots of the class a state has, of a pool that passes.
func (r *slotRec) on(whole uint8, cpu uint32) int64 {
	if whole < r.count {
		return 0
	}
	n := uint32(whole)
	if r.count > 1 {
		n = uint32(whole) / uint32(r.count)
	}
	if r.cpu > 0 {
		n = min(n, cpu/r.cpu)
	}
	return int64(n)
}

// makeSlots makes the slot classes of a demand that was frozen just now. FGD has
// none.
func (s *State) makeSlots() {
	var found []slotRec
	var milli []uint64 // weight × milli of each
	var all uint64
	for i, ok := s.demandSlots.Next(0); ok && s.packing.Get().have == gpuai.PackingEFW; i, ok = s.demandSlots.Next(i + 1) {
		d := s.demand.Get(i)
		if d.weight == 0 {
			continue
		}
		r := s.shapes.Get(d.shape.id())
		need := r.needOf()
		amount := uint64(d.weight) * uint64(need.milli())
		all += amount
		slot := slotRec{class: i, cpu: need.cpu, count: need.count, used: true}
		if need.count == 0 || need.count == 1 && !s.constrained(r) {
			continue
		}
		if need.count == 1 {
			slot.cpu = 0
		}
		j := slices.IndexFunc(found, func(o slotRec) bool {
			return o.count == slot.count && o.cpu == slot.cpu && s.sameMask(r, s.shapes.Get(s.demand.Get(o.class).shape.id()))
		})
		if j < 0 {
			j = len(found)
			found, milli = append(found, slot), append(milli, 0)
		}
		milli[j] += amount
	}
	for j := range found {
		found[j].share = uint32(milli[j] << 16 / max(all, 1))
	}
	slices.SortStableFunc(found, func(a, b slotRec) int {
		return cmp.Or(cmp.Compare(b.share, a.share), cmp.Compare(a.class, b.class))
	})
	found = found[:min(len(found), maxSlotClasses)]
	s.slotClasses.Grow(uint32(len(found)))
	for j := range s.slotClasses.Len() {
		var r slotRec
		if old := *s.slotClasses.Get(j); j < uint32(len(found)) {
			r = found[j]
			r.lambda = old.lambda
			if r != old {
				r.lambda = 0
			}
		}
		*s.slotClasses.Mut(j) = r
	}
	p := s.packing.Mut()
	p.slots, p.stale = uint32(len(found)), false
	s.packSums.Mut().prices++
}

// poolsChanged notes that a pool came or went: which tasks are constrained may
// not be what it was.
func (s *State) poolsChanged() {
	s.sums.Mut().changes++
	if p := s.packing.Get(); p.demand != 0 && !p.stale {
		s.packing.Mut().stale = true
	}
}

// constrained reports whether some pool with devices does not pass.
func (s *State) constrained(r *shapeRec) bool {
	for p, ok := s.poolSlots.Next(0); ok; p, ok = s.poolSlots.Next(p + 1) {
		if !s.passesAny(r, p) && s.poolDevices(p) {
			return true
		}
	}
	return false
}

// poolDevices reports whether a pool's units have devices.
func (s *State) poolDevices(p uint32) bool {
	s.poolBuf = s.poolBytes.Append(s.poolBuf[:0], s.pools.Get(p).def)
	v := viewPool(s.poolBuf)
	return v.hasDevice
}

// sameMask reports whether two shapes pass the same pools.
func (s *State) sameMask(a, b *shapeRec) bool {
	for w := range s.sums.Get().words {
		if s.maskWord(a, w) != s.maskWord(b, w) {
			return false
		}
	}
	return true
}

func (s *State) maskWord(r *shapeRec, w uint32) uint64 {
	var m uint64
	for alt := range r.alts {
		m |= *s.masks.Get(r.filters[alt]*poolWords + w)
	}
	return m
}

// supplyAnew counts the slots of all nodes.
func (s *State) supplyAnew() {
	*s.supply.Mut() = supplyRec{}
	for b := s.packSums.Get().newest; b != 0; b = s.packBuckets.Get(b - 1).older {
		r := s.packBuckets.Get(b - 1)
		t := r.key.state()
		s.supplyOf(&t, int64(r.nodes))
	}
}

// supplyOf counts the slots of so many nodes of one state more.
func (s *State) supplyOf(t *packState, nodes int64) {
	n := s.packing.Get().slots
	if n == 0 || t.whole == 0 {
		return
	}
	sum := s.supply.Mut()
	for m := s.scratch().view(s, t.pool).slots; m != 0; m &= m - 1 {
		j := bits.TrailingZeros64(m)
		sum.slots[j] += nodes * s.slotClasses.Get(uint32(j)).on(t.whole, t.cpu)
	}
}

// setPrices sets the prices by what is scarce now.
func (s *State) setPrices(c *packScratch) {
	sums := s.packSums.Get()
	supply := s.supply.Get()
	c.priced = 0
	for j := range min(s.packing.Get().slots, maxSlotClasses) {
		r := s.slotClasses.Get(j)
		if now := r.price(sums.idle, supply.slots[j]); now != r.lambda {
			s.slotClasses.Mut(j).lambda = now
			s.packSums.Mut().prices++
		}
		if c.slots[j] = *s.slotClasses.Get(j); c.slots[j].lambda > 0 {
			c.priced |= 1 << j
		}
	}
}

// price returns λ of a slot class for so much idle milli-GPU in all and so many
// slots: a power of two, which stays while it is not far off.
func (r *slotRec) price(idle, slots int64) uint32 {
	best := uint64(maxPrice)
	if slots > 0 {
		need := uint64(max(idle, 0))*uint64(r.share)>>16*384/1000/uint64(r.count) + 512 // 256 × need
		ratio := min(need/uint64(slots), 4096)
		best = min(best, ratio*ratio/256)
	}
	if old := uint64(r.lambda); old > 0 && 4*best >= 3*old && 2*best < 5*old {
		return r.lambda
	}
	if best < minPrice {
		return 0
	}
	return 1 << (bits.Len64(best) - 1)
}

// priceOf returns what the scarcest slots cost that a node loses when it goes
// from (whole, cpu) to (whole2, cpu2), in the scale of values.
func (c *packScratch) priceOf(v *packView, from, to *packState) int64 {
	if from.whole == 0 {
		return 0
	}
	var most int64
	for m := v.slots & c.priced; m != 0; m &= m - 1 {
		r := &c.slots[bits.TrailingZeros64(m)]
		if from.whole < r.count {
			continue
		}
		if lost := r.on(from.whole, from.cpu) - r.on(to.whole, to.cpu); lost > 0 {
			most = max(most, int64(r.lambda)*lost*int64(r.count))
		}
	}
	return most * priceUnit
}
