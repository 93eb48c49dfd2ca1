package scheduler

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

const (
	// maxDemand is how many shapes the demand is counted for, maxFrozen how
	// many of them, the most frequent, values are made of.
	maxDemand = 1_024
	maxFrozen = 512
	// firstFreeze is the number of arrivals at which the demand is frozen
	// first; then at each doubling, and from freezeEvery on at its multiples.
	firstFreeze = 128
	freezeEvery = 8_192
	// driftShift: a demand that has moved by less than 1/16 is not frozen anew,
	// since every value would have to be computed again.
	driftShift = 4
	maxCount   = 1 << 40 // of arrivals of one shape
	// workFreeze is the work of a frozen shape.
	workFreeze = 64
)

// A demandRec is a shape whose arrivals are counted. It keeps the shape alive.
type demandRec struct {
	shape  shapeRef
	weight uint32 // frozen, of 1<<weightBits; 0: not among the frozen
	count  uint64 // tasks that have arrived
}

func hashDemand(_ []byte, i uint32, r *demandRec) uint64 {
	if r.shape == 0 {
		return 0
	}
	return mem.Mix(mem.Mix(uint64(i), 0x64656d616e64), mem.Mix(uint64(r.shape)<<32|uint64(r.weight), r.count))
}

// A Demand is how many tasks of a shape are expected beside others.
type Demand struct {
	Shape ShapeID
	Tasks uint64
}

// Arrived counts the arrival of tasks of a shape in the demand that packing
// expects, and freezes the demand at the numbers of arrivals where that is due.
// It does nothing while the policy is best fit, or the demand was given.
func (s *State) Arrived(id ShapeID, tasks uint32) {
	p := s.packing.Get()
	if p.want == gpuai.PackingBestFit || p.fixed {
		return
	}
	s.countDemand(id, uint64(tasks))
	r := s.packing.Mut()
	r.arrivals++
	n := r.arrivals
	switch {
	case n >= freezeEvery && n%freezeEvery == 0:
		s.freezeDemand()
		s.forgetOldDemand()
	case n >= firstFreeze && n < freezeEvery && bits.OnesCount64(n) == 1:
		s.freezeDemand()
	}
}

// SeedDemand replaces what is known of the demand and freezes it. Fixed says
// that it is not learnt from arrivals any more. Shapes beyond the limit of
// 1,024 are passed over. It does nothing while the policy is best fit.
func (s *State) SeedDemand(demand []Demand, fixed bool) {
	if s.packing.Get().want == gpuai.PackingBestFit {
		return
	}
	s.dropDemand()
	for _, d := range demand {
		s.countDemand(d.Shape, d.Tasks)
	}
	s.packing.Mut().fixed = fixed
	s.freezeDemand()
}

// countDemand counts tasks of a shape.
func (s *State) countDemand(id ShapeID, tasks uint64) {
	s.demandOf.Grow(uint32(id) + 1)
	at := *s.demandOf.Get(uint32(id))
	if at == 0 {
		i, ok := s.demandSlots.Lowest()
		if !ok || i >= maxDemand || tasks == 0 {
			return
		}
		s.demandSlots.Take(i)
		s.demand.Grow(i + 1)
		*s.demand.Mut(i) = demandRec{shape: shapeRef(id + 1)}
		*s.demandOf.Mut(uint32(id)) = i + 1
		s.RetainShape(id)
		at = i + 1
	}
	r := s.demand.Mut(at - 1)
	r.count = min(r.count+min(tasks, maxCount), maxCount)
}

// dropDemand forgets all demand.
func (s *State) dropDemand() {
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		s.dropDemandOf(i)
	}
	for j := range s.slotClasses.Len() {
		if *s.slotClasses.Get(j) != (slotRec{}) {
			*s.slotClasses.Mut(j) = slotRec{}
		}
	}
	r := s.packing.Mut()
	r.demand, r.slots, r.fixed, r.arrivals = 0, 0, false, 0
}

func (s *State) dropDemandOf(i uint32) {
	id := s.demand.Get(i).shape.id()
	*s.demandOf.Mut(id) = 0
	*s.demand.Mut(i) = demandRec{}
	s.demandSlots.Free(i)
	s.ReleaseShape(ShapeID(id))
}

// forgetOldDemand halves all counts, so that demand of long ago weighs little.
func (s *State) forgetOldDemand() {
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		r := s.demand.Mut(i)
		if r.count /= 2; r.count == 0 && r.weight == 0 {
			s.dropDemandOf(i)
		}
	}
}

// freezeDemand makes the counts of now the demand that values are made of,
// unless it is nearly the one that is frozen.
func (s *State) freezeDemand() {
	order := s.frequent()
	s.work += workFreeze * uint64(len(order))
	var total uint64
	for _, i := range order {
		total += s.demand.Get(i).count
	}
	if total == 0 {
		return
	}
	var drift, left uint64
	weights := make([]uint32, maxDemand)
	for _, i := range order {
		weights[i] = uint32(s.demand.Get(i).count << weightBits / total)
	}
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		old, now := s.demand.Get(i).weight, weights[i]
		drift += uint64(max(old, now) - min(old, now))
		left += uint64(old)
	}
	if left > 0 && drift < 1<<(weightBits-driftShift) {
		return
	}
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		if r := s.demand.Get(i); r.weight != weights[i] {
			s.demand.Mut(i).weight = weights[i]
		}
	}
	s.packing.Mut().epoch++
	s.demandFrozen()
}

// demandFrozen makes what follows from the weights of the demand.
func (s *State) demandFrozen() {
	s.makeSlots()
	s.packing.Mut().cold++
	s.packing.Mut().demand = s.demandHash()
	s.supplyAnew()
}

// demandHash returns the hash of all that values of states are made of, but
// for the pools.
func (s *State) demandHash() uint64 {
	p := s.packing.Get()
	h := mem.Mix(uint64(p.epoch), uint64(p.have))
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		if r := s.demand.Get(i); r.weight > 0 {
			h = mem.Mix(h^uint64(i)<<32^uint64(r.weight), s.shapes.Get(r.shape.id()).hash)
		}
	}
	for j := range p.slots {
		r := *s.slotClasses.Get(j)
		r.lambda = 0
		h = mem.Mix(h, hashSlot(nil, j, &r))
	}
	return h | 1
}

// frequent returns the demand classes with the most arrivals, the most first.
func (s *State) frequent() []uint32 {
	var out []uint32
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		if s.demand.Get(i).count > 0 {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(s.demand.Get(b).count, s.demand.Get(a).count), cmp.Compare(a, b))
	})
	return out[:min(len(out), maxFrozen)]
}

// passesAny reports whether a pool passes the filter of any alternative of a
// shape.
func (s *State) passesAny(r *shapeRec, pool uint32) bool {
	for alt := range r.alts {
		if *s.masks.Get(r.filters[alt]*poolWords + pool>>6)>>(pool&63)&1 != 0 { // whatever is barred
			return true
		}
	}
	return false
}
