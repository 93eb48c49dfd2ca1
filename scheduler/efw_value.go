package scheduler

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
	passing []uint64    // frozen classes that pass, a bitmap: what the view is of
	groups  []packGroup // of classes that ask for the same devices
	needs   []viewNeed  // of the groups, one after the other
	kinds   []packNeed  // that are drawn, each once
	draws   []uint16    // of all sequences, one after the other: places in kinds
	ends    []uint32    // where each sequence ends in draws
	barred  int64       // weight of the classes that never use this pool's devices
	slots   uint64      // slot classes that pass, by number
}

// A packGroup is classes that ask for the same devices.
type packGroup struct {
	weight  int64 // of them all
	classes uint32
	share   uint16
	count   uint8
}

// A viewNeed is a class of a group: the rest of what it asks for.
type viewNeed struct {
	cpu, mem uint32
	weight   int64
}

// frag is the fragmentation of FGD (Weng et al., USENIX ATC '23): over the
// demand classes, weight × idle milli-GPU that the class cannot use.
func (v *packView) frag(s *packState) int64 {
	idle := s.idle()
	sum := v.barred * idle
	at := uint32(0)
	for i := range v.groups {
		g := &v.groups[i]
		lost := g.lost(s, idle)
		needs := v.needs[at : at+g.classes]
		at += g.classes
		sum += lost * g.weight
		if lost == idle {
			continue
		}
		var without int64
		for j := range needs {
			if n := &needs[j]; s.cpu < n.cpu || s.mem < n.mem {
				without += n.weight
			}
		}
		sum += (idle - lost) * without
	}
	return sum
}

// lost is what of the idle devices a class with enough CPU and memory cannot
// use.
func (g *packGroup) lost(s *packState, idle int64) int64 {
	if g.share == 0 {
		if s.whole < g.count {
			return idle
		}
		return idle - int64(s.whole)*1000
	}
	var lost int64
	for _, p := range s.parts {
		if p < g.share {
			lost += int64(p)
		}
	}
	return lost // all of idle, when no device has enough
}

// waste is what stays idle when the state is filled with the sequences of
// demand, summed over them: each draw that fits is taken, on the device that it
// fits best. What does not fit at first does not fit later, and once no task
// with a device has the CPU, nothing changes any more.
func (v *packView) waste(s *packState) int64 {
	var fits [maxFrozen / 64]uint64
	least := uint32(1<<32 - 1) // CPU of a task with a device
	for i := range v.kinds {
		if n := &v.kinds[i]; s.room(n) && s.serves(n) {
			fits[i/64%len(fits)] |= 1 << (i % 64)
			if n.count > 0 {
				least = min(least, n.cpu)
			}
		}
	}
	idle := s.idle()
	if least > s.cpu {
		return idle * int64(len(v.ends))
	}
	var sum int64
	at := uint32(0)
	for _, end := range v.ends {
		t, left := *s, idle
		for _, k := range v.draws[at:end] {
			if fits[k/64%uint16(len(fits))]>>(k%64)&1 == 0 {
				continue
			}
			if n := &v.kinds[k]; t.room(n) && t.take(n) {
				if left -= n.milli(); left == 0 || t.cpu < least {
					break
				}
			}
		}
		at = end
		sum += left
	}
	return sum
}

// serves reports whether the state has the devices for a task.
func (s *packState) serves(n *packNeed) bool {
	if n.share == 0 || s.whole > 0 {
		return s.whole >= n.count
	}
	for _, p := range s.parts {
		if p >= n.share {
			return true
		}
	}
	return false
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
			s.cut(i)
			s.put(p - share)
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
