package scheduler

import (
	"cmp"
	"math/bits"
	"slices"
)

// The value of a node's state: what of its idle devices is lost to the demand
// that is expected. A placement is good when it lowers the value of its node.

const (
	// weightBits: the weights of all demand classes sum up to about 1<<weightBits.
	weightBits = 20
	// packSequences is how many sequences of demand a state is filled with,
	// packDraws how long each is.
	packSequences = 32
	packDraws     = 20
	// fragWeight and wasteWeight weigh the two halves of a value.
	fragWeight  = 25
	wasteWeight = 75
	valueScale  = fragWeight + wasteWeight
)

// A packView is the frozen demand as a pool sees it: classes and draws that
// the pool's filter turns away are left out.
type packView struct {
	passing []uint64 // frozen classes that pass, a bitmap: what the view is of
	use     usableTable
	kinds   []packNeed // that are drawn, each once, by CPU
	fits    drawTable
	draws   [packSequences * packDraws]uint16
	rated   []ratedKind // kinds with devices, in the order of leastWaste
	slots   uint64      // slot classes that pass, by number
}

// frag is the fragmentation of FGD (Weng et al., USENIX ATC '23): over the
// demand classes, weight × idle milli-GPU that the class cannot use.
func (v *packView) frag(s *packState) int64 {
	idle := s.idle()
	if idle == 0 {
		return 0
	}
	return v.use.all*idle - v.use.of(s)
}

// waste is what stays idle when the state is filled with the sequences of
// demand, summed over them: each draw that fits is taken, on the device that it
// fits best. What does not fit at first does not fit later, and once no task
// with a device fits, nothing changes any more.
func (v *packView) waste(s *packState) int64 {
	idle := s.idle()
	cpu, mem, devices := v.fits.ofCPU(s.cpu), v.fits.ofMem(s.mem), v.fits.ofDevices(s)
	var sum int64
	for k := range uint32(packSequences) {
		m, with := cpu[k]&mem[k]&devices[k], v.fits.with[k]
		if m&with == 0 {
			sum += idle
			continue
		}
		t, left := *s, idle
		for m&with != 0 {
			n := &v.kinds[v.draws[k*packDraws+uint32(bits.TrailingZeros32(m))]]
			m &= m - 1
			if !t.room(n) || !t.take(n) {
				continue
			}
			if left -= n.milli(); left == 0 {
				break
			}
			m &= v.fits.ofCPU(t.cpu)[k] & v.fits.ofDevices(&t)[k]
		}
		sum += left
	}
	return sum
}

// least bounds value from below, at a fraction of its cost.
func (v *packView) least(s *packState) int64 {
	if s.used() {
		return 0
	}
	return fragWeight*v.frag(s) + wasteWeight*v.leastWaste(s)*(1<<weightBits/packSequences)
}

// leastWaste bounds waste from below: the sequences together take no more than
// all draws would, each as often as it is drawn and as far as it fits at first,
// if CPU were the only thing that they share and could be given in parts.
func (v *packView) leastWaste(s *packState) int64 {
	left := int64(s.cpu) * packSequences
	widest := s.widest()
	most := s.idle() * packSequences
	for i := range v.rated {
		r := &v.rated[i]
		n := &r.need
		if n.cpu > s.cpu || n.mem > s.mem || n.count > s.whole && (n.share == 0 || n.share > widest) {
			continue
		}
		if r.cpu > left {
			most -= (r.milli*left + r.cpu - 1) / r.cpu
			break
		}
		if most -= r.milli; most <= 0 {
			break
		}
		left -= r.cpu
	}
	return max(most, 0)
}

// A ratedKind is a kind of task with devices, and what all draws of it take.
type ratedKind struct {
	need       packNeed
	milli, cpu int64
}

// rate orders the kinds by what they take of devices for their CPU, the most
// first.
func (v *packView) rate(drawn []drawSet) {
	for i, n := range v.kinds {
		if n.count > 0 {
			times := int64(drawn[i].size())
			v.rated = append(v.rated, ratedKind{n, times * n.milli(), times * int64(n.cpu)})
		}
	}
	slices.SortStableFunc(v.rated, func(a, b ratedKind) int {
		return cmp.Compare(b.need.milli()*int64(a.need.cpu), a.need.milli()*int64(b.need.cpu))
	})
}

// widest returns the greatest remainder of a partly used device.
func (s *packState) widest() (p uint16) {
	for _, x := range s.parts {
		if x == 0 {
			break
		}
		p = x // they ascend
	}
	return p
}

// take takes a task that has room, on the device that it fits best; false when
// no device does.
func (s *packState) take(n *packNeed) bool {
	if n.share == 0 {
		if s.whole < n.count {
			return false
		}
		s.whole -= n.count
	} else if !s.takeShare(n.share) {
		return false
	}
	s.cpu -= n.cpu
	s.mem -= n.mem
	return true
}

func (s *packState) takeShare(share uint16) bool {
	for i, p := range s.parts {
		if p >= share {
			s.shrink(uint(i), p-share)
			return true
		}
	}
	if s.whole == 0 || s.parts[maxParts-1] != 0 {
		return false
	}
	s.whole--
	s.put(1000 - share)
	return true
}

// shrink has the remainder at place i be less; 0 is none.
func (s *packState) shrink(i uint, left uint16) {
	if left == 0 {
		s.cut(int(i))
		return
	}
	for ; i > 0 && s.parts[(i-1)%maxParts] > left; i-- {
		s.parts[i%maxParts] = s.parts[(i-1)%maxParts]
	}
	s.parts[i%maxParts] = left
}

// value returns V of a state; 0 when nothing is idle.
func (v *packView) value(s *packState) int64 {
	if s.used() {
		return 0
	}
	return fragWeight*v.frag(s) + wasteWeight*v.waste(s)*(1<<weightBits/packSequences)
}

// splitmix64 is the generator of the sequences (S. Vigna, public domain).
func splitmix64(x *uint64) uint64 {
	*x += 0x9e3779b97f4a7c15
	z := *x
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
