package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// Where the devices of a node are within it decides which of those that are free a
// task gets, never on which node it is placed. Nodes that say nothing of it have no
// rows here, and give their first devices.

// Levels at which devices are near one another, the nearest first.
const (
	placeIsland = iota // joined by NVLink or xGMI
	placePCIe          // behind PCIe switches
	placeNUMA
	numPlaceLevels
)

// A placeRow is the groups of eight devices at each level, numbered from 1; 0: none.
type placeRow struct {
	groups [numPlaceLevels][rowLen]uint8
	next   uint32 // row of the node + 1, of the next eight devices
}

// setPlaces notes where the devices of a node are; units are marked by it.
func (s *State) setPlaces(slot uint32, n *NodeInfo) {
	s.dropPlaces(slot)
	for d := range n.Devices {
		if n.Devices[d].Place != (gpuai.DevicePlace{}) {
			s.addPlaces(slot, n)
			return
		}
	}
}

// addPlaces is setPlaces for a node that says where its devices are.
func (s *State) addPlaces(slot uint32, n *NodeInfo) {
	var groups [numPlaceLevels][gpuai.MaxGPUs]uint8
	placed := uint64(0)
	var seen [numPlaceLevels][1 << 8]uint8 // number + 1 of a group, as it was said
	var count [numPlaceLevels]uint8
	for d := range n.Devices {
		p := &n.Devices[d].Place
		for l, g := range [numPlaceLevels]uint8{p.LinkIsland, p.PCIeGroup, uint8(p.NUMA)} {
			if g == 0 {
				continue
			}
			if seen[l][g] == 0 {
				count[l]++
				seen[l][g] = count[l]
			}
			groups[l][d] = seen[l][g]
			placed |= 1 << d
		}
	}
	s.placeOf.Grow(slot + 1)
	for at := (len(n.Devices) - 1) / rowLen; at >= 0; at-- {
		row, _ := s.placeSlots.Alloc()
		s.places.Grow(row + 1)
		r := placeRow{next: *s.placeOf.Get(slot)}
		for l := range groups {
			copy(r.groups[l][:], groups[l][at*rowLen:])
		}
		*s.places.Mut(row) = r
		*s.placeOf.Mut(slot) = row + 1
	}
	w := s.nodes.Mut(slot)
	w.unit.placed = w.unit.devs&placed != 0
	for at := w.unit.next; at != 0; at = s.units.Get(at - 1).next {
		u := s.units.Mut(at - 1)
		u.placed = u.devs&placed != 0
	}
}

// placesOf returns the first row + 1 of a node.
func (s *State) placesOf(slot uint32) uint32 {
	if slot >= s.placeOf.Len() {
		return 0
	}
	return *s.placeOf.Get(slot)
}

func (s *State) dropPlaces(slot uint32) {
	if s.placesOf(slot) == 0 {
		return
	}
	for at := s.placesOf(slot); at != 0; {
		next := s.places.Get(at - 1).next
		*s.places.Mut(at - 1) = placeRow{}
		s.placeSlots.Free(at - 1)
		at = next
	}
	*s.placeOf.Mut(slot) = 0
}

// choose returns n of the devices of a unit that are in m, at least as many: those
// nearest to one another, else the first.
func (s *State) choose(node uint32, u *unitRec, m uint64, n uint16) uint64 {
	if !u.placed || n == 0 {
		return lowest(m, n)
	}
	var p placement
	for at, d := *s.placeOf.Get(node), 0; at != 0; d += rowLen {
		r := s.places.Get(at - 1)
		for l := range p.group {
			copy(p.group[l][d:], r.groups[l][:])
		}
		at = r.next
	}
	return p.nearest(m, int(n))
}

// A placement chooses among the devices of one node. size is how many of those that
// are looked at are in each group.
type placement struct {
	group [numPlaceLevels][gpuai.MaxGPUs]uint8
	size  [numPlaceLevels][gpuai.MaxGPUs + 1]uint8
}

// nearest returns k of the devices in m:
//
//  1. of one island, if any has so many; of these of one PCIe group, then of one
//     NUMA node, if any has,
//  2. each time of the group with the fewest devices left, so that the others stay
//     whole; of equal ones where the next level has the fewest, then the first,
//  3. where no island has so many, those of as few islands as can be, in one PCIe
//     group or NUMA node if that takes no more of them: all of the fullest island,
//     and the rest as if it were asked for alone; likewise by PCIe group, then by
//     NUMA node where there are no islands,
//  4. the first devices of these.
func (p *placement) nearest(m uint64, k int) (out uint64) {
	for bits.OnesCount64(m) > k {
		split := -1 // the nearest level of which no group has enough
		for l := range p.group {
			if !p.count(m, l) {
				continue
			}
			if g, ok := p.tightest(m, l, k, split); ok {
				m = g
			} else if split < 0 {
				split = l
			}
		}
		if split < 0 {
			return out | lowest(m, uint16(k))
		}
		p.count(m, split)
		g := p.fullest(m, split)
		out |= g
		m &^= g
		k -= bits.OnesCount64(g)
	}
	return out | m
}

// count counts the groups of the devices in m at a level and those further away. It
// reports false when the level says nothing of any.
func (p *placement) count(m uint64, level int) (known bool) {
	for l := level; l < numPlaceLevels; l++ {
		p.size[l] = [gpuai.MaxGPUs + 1]uint8{}
		for x := m; x != 0; x &= x - 1 {
			g := p.group[l][bits.TrailingZeros64(x)]
			p.size[l][g]++
			known = known || l == level && g != 0
		}
	}
	return known
}

// sizeAt is how many devices are in the group of one; in none it is by itself.
func (p *placement) sizeAt(level, d int) int {
	if g := p.group[level][d]; g != 0 {
		return int(p.size[level][g])
	}
	return 1
}

// of returns the devices in m of the group of one.
func (p *placement) of(m uint64, level, d int) uint64 {
	g := p.group[level][d]
	if g == 0 {
		return 1 << d
	}
	out := uint64(0)
	for x := m; x != 0; x &= x - 1 {
		if i := bits.TrailingZeros64(x); p.group[level][i] == g {
			out |= 1 << i
		}
	}
	return out
}

// tightest returns the group of a level with the fewest devices in m, but k. Where a
// nearer level is split already, it is one in which that needs no more groups.
func (p *placement) tightest(m uint64, level, k, split int) (uint64, bool) {
	best, at, most := 1<<30, -1, 0
	if split >= 0 {
		most = p.needed(m, split, k)
	}
	for x := m; x != 0; x &= x - 1 {
		d := bits.TrailingZeros64(x)
		size := p.sizeAt(level, d)
		if size < k {
			continue
		}
		key := 0
		for l := level; l < numPlaceLevels; l++ {
			key = key<<8 | p.sizeAt(l, d)
		}
		if key < best && (split < 0 || p.needed(p.of(m, level, d), split, k) <= most) {
			best, at = key, d
		}
	}
	if at < 0 {
		return 0, false
	}
	return p.of(m, level, at), true
}

// needed is the least number of groups of a level that k of the devices in m are in.
func (p *placement) needed(m uint64, level, k int) (n int) {
	var size [gpuai.MaxGPUs + 1]int
	groups := 0
	for x := m; x != 0; x &= x - 1 {
		g := int(p.group[level][bits.TrailingZeros64(x)])
		size[g]++
		groups = max(groups, g)
	}
	for ; k > 0; n++ {
		at := 0
		for g := 1; g <= groups; g++ {
			if at == 0 || size[g] > size[at] {
				at = g
			}
		}
		if at == 0 || size[at] <= 1 { // the rest are by themselves
			return n + k
		}
		k, size[at] = k-size[at], 0
	}
	return n
}

// fullest returns the group of a level with the most devices in m, the first of
// equal ones.
func (p *placement) fullest(m uint64, level int) uint64 {
	best, at := 0, 0
	for x := m; x != 0; x &= x - 1 {
		if d := bits.TrailingZeros64(x); p.sizeAt(level, d) > best {
			best, at = p.sizeAt(level, d), d
		}
	}
	return p.of(m, level, at)
}
