package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai/internal/mem"
)

// A bar leaves devices of some models out of all searches, for one decision: a
// tenant may have all that it is to have of these. So it does with nodes that close
// before what is to be placed would end. It is no state: who sets it takes it away
// before anything else is decided.

// ModelHash is by what the index knows a model.
func ModelHash(model string) uint64 { return mem.HashBytes(19, []byte(model)) | 1 }

// Closing reports whether any node has NodeInfo.Closes.
func (s *State) Closing() bool { return s.sums.Get().closing > 0 }

// Bar leaves out the pools whose devices are of the models with these hashes, and
// those whose nodes close before the minute ends, until Unbar.
func (s *State) Bar(models []uint64, ends uint32) {
	sum := s.sums.Get()
	s.barring = len(models) > 0
	for w := range sum.words {
		s.barred[w] = 0
		var live uint64
		for t := sum.tiers; t != 0; t &= t - 1 {
			live |= *s.tiers.Get(uint32(bits.TrailingZeros64(t))*poolWords + w)
		}
		for ; live != 0; live &= live - 1 {
			s.work++
			p := poolAt(w, live)
			if c := s.pools.Get(uint32(p)).closes; c != 0 && c < ends {
				s.barred[w] |= 1 << (p & 63)
				s.barring = true
			}
			for _, h := range models {
				if s.pools.Get(uint32(p)).model == h {
					s.barred[w] |= 1 << (p & 63)
				}
			}
		}
	}
}

// Unbar ends Bar.
func (s *State) Unbar() { s.barring = false }

// mask returns word w of the pools that pass a filter and are not barred.
func (s *State) mask(filter, w uint32) uint64 {
	m := *s.masks.Get(filter*poolWords + w)
	if s.barring {
		m &^= s.barred[w]
	}
	return m
}

// barredPool reports whether a pool is barred.
func (s *State) barredPool(p uint32) bool {
	return s.barring && s.barred[p>>6]>>(p&63)&1 != 0
}

// PassesAny reports whether any pool passes for a shape that is not barred. It only
// reads.
func (s *State) PassesAny(id ShapeID) bool {
	r, sum := s.shapes.Get(uint32(id)), s.sums.Get()
	for w := range sum.words {
		var live uint64
		for t := sum.tiers; t != 0; t &= t - 1 {
			live |= *s.tiers.Get(uint32(bits.TrailingZeros64(t))*poolWords + w)
		}
		for _, f := range r.filters[:r.alts] {
			if s.mask(f, w)&live != 0 {
				return true
			}
		}
	}
	return false
}

// ModelOf returns the hash of the model of some devices of a node, which are of one
// kind; 0 of none. It only reads.
func (s *State) ModelOf(node uint32, devices uint64) uint64 {
	if devices == 0 || !s.Known(node) {
		return 0
	}
	u := s.unitWith(node, devices&-devices)
	if u.devs&devices == 0 {
		return 0
	}
	return s.pools.Get(uint32(u.pool)).model
}

// ShareOf returns what a task of a shape takes of its one device, in thousandths; 0
// of whole devices. It only reads.
func (s *State) ShareOf(id ShapeID) uint16 { return s.shapes.Get(uint32(id)).share }

// TakesDevices reports whether a task of a shape takes any device. It only reads.
func (s *State) TakesDevices(id ShapeID) bool { return s.shapes.Get(uint32(id)).count > 0 }
