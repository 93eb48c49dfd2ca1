package scheduler

import (
	"fmt"

	"github.com/gpuai/gpuai"
)

// appendPacking appends what packing cannot learn from the nodes again: nothing
// while the policy is best fit and no index is left.
func (s *State) appendPacking(b []byte) []byte {
	p := s.packing.Get()
	if *p == (packRec{}) {
		return b
	}
	b = append(b, byte(p.want), byte(p.have), p.flags())
	b = le.AppendUint32(b, p.epoch)
	b = le.AppendUint32(b, p.cursor)
	b = le.AppendUint64(b, p.arrivals)
	b = le.AppendUint64(b, p.demand)
	b = le.AppendUint32(b, s.demandSlots.Len())
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		r := s.demand.Get(i)
		b = le.AppendUint32(b, i)
		b = le.AppendUint32(b, r.shape.id())
		b = le.AppendUint32(b, r.weight)
		b = le.AppendUint64(b, r.count)
	}
	b = le.AppendUint32(b, p.slots)
	for j := range p.slots {
		r := s.slotClasses.Get(j)
		b = le.AppendUint32(b, r.class)
		b = le.AppendUint32(b, r.cpu)
		b = le.AppendUint32(b, r.share)
		b = le.AppendUint32(b, r.lambda)
		b = append(b, r.count)
	}
	return s.appendSeen(b)
}

// restorePacking reads what appendPacking wrote, when there is any.
func (s *State) restorePacking(c *cursor) error {
	if c.whole() {
		return nil
	}
	p := packRec{want: gpuai.Packing(c.byte()), have: gpuai.Packing(c.byte())}
	flags := c.byte()
	p.fixed, p.stale = flags&1 != 0, flags&2 != 0
	p.epoch, p.cursor, p.arrivals, p.demand = c.u32(), c.u32(), c.u64(), c.u64()
	if p.want > gpuai.PackingFGD || p.have > gpuai.PackingFGD || p.cursor > MaxNodes || flags > 3 || p == (packRec{}) {
		return fmt.Errorf("packing: %w", errState)
	}
	*s.packing.Mut() = p
	for n := c.u32(); n > 0; n-- {
		i, shape := c.u32(), c.u32()
		r := demandRec{shape: shapeRef(shape + 1), weight: c.u32(), count: c.u64()}
		ok := !c.short && i < maxDemand && !s.demandSlots.Has(i) && s.shapeSlots.Has(shape) &&
			s.shapes.Get(shape).refs > 0 && r.weight <= 1<<weightBits && r.count <= maxCount
		if ok {
			s.demandOf.Grow(shape + 1)
			ok = *s.demandOf.Get(shape) == 0
		}
		if !ok {
			return fmt.Errorf("demand class %d: %w", i, errState)
		}
		s.demandSlots.Take(i)
		s.demand.Grow(i + 1)
		*s.demand.Mut(i) = r
		*s.demandOf.Mut(shape) = i + 1
	}
	return s.restoreSlots(c)
}

func (s *State) restoreSlots(c *cursor) error {
	n := c.u32()
	if n > maxSlotClasses {
		return fmt.Errorf("%d slot classes: %w", n, errState)
	}
	s.slotClasses.Grow(n)
	for j := range n {
		r := slotRec{class: c.u32(), cpu: c.u32(), share: c.u32(), lambda: c.u32(), count: c.byte(), used: true}
		if c.short || r.count == 0 || r.lambda > maxPrice || !s.demandSlots.Has(r.class) {
			return fmt.Errorf("slot class %d: %w", j, errState)
		}
		*s.slotClasses.Mut(j) = r
	}
	p := s.packing.Mut()
	p.slots, p.births, p.cold = n, c.u64(), c.u64()
	if !s.restoreSeen(c) {
		return fmt.Errorf("what shapes have been scored in: %w", errState)
	}
	if p := s.packing.Get(); p.demand != 0 && p.demand != s.demandHash() {
		return fmt.Errorf("the frozen demand is not the one it says: %w", errState)
	}
	return nil
}
