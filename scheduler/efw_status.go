package scheduler

import "github.com/gpuai/gpuai"

// An Expected is a shape of the demand, and its part of the frozen one.
type Expected struct {
	Demand
	WeightPPM uint32 // millionths; 0: not frozen
}

// A PackingStatus says what the packing policy expects, and how it came to.
type PackingStatus struct {
	Policy     gpuai.Packing
	Fixed      bool   // the demand was given and is not learnt
	Epoch      uint32 // how often it was frozen
	Arrivals   uint64 // counted since it was given or forgotten
	NextFreeze uint64 // arrivals at which it may be frozen next; 0: never
}

// PackingStatus only reads.
func (s *State) PackingStatus() PackingStatus {
	p := s.packing.Get()
	out := PackingStatus{Policy: p.want, Fixed: p.fixed, Epoch: p.epoch, Arrivals: p.arrivals}
	switch {
	case p.fixed || p.want == gpuai.PackingBestFit:
	case p.arrivals >= freezeEvery/2:
		out.NextFreeze = (p.arrivals/freezeEvery + 1) * freezeEvery
	default:
		for out.NextFreeze = firstFreeze; out.NextFreeze <= p.arrivals; {
			out.NextFreeze *= 2
		}
	}
	return out
}

// Expects calls f with each shape of the demand, in no order that means
// anything. It only reads.
func (s *State) Expects(f func(Expected)) {
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		r := s.demand.Get(i)
		f(Expected{
			Demand:    Demand{ShapeID(r.shape.id()), r.count},
			WeightPPM: uint32(uint64(r.weight) * 1_000_000 >> weightBits),
		})
	}
}
