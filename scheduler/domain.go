package scheduler

import (
	"slices"

	"github.com/gpuai/gpuai"
)

// NumDomains returns one more than the highest number that a rack, or an NVLink
// domain, has; 0 of the other levels.
func (s *State) NumDomains(level gpuai.Topology) uint32 {
	if l, ok := keptLevel(level); ok {
		return s.topo[l].domains.Len()
	}
	return 0
}

// DomainAt returns the rack, or the NVLink domain, with a number; false when
// there is none, or its nodes, healthy and empty, have not the devices for the
// least of all needs. It only reads.
func (s *State) DomainAt(level gpuai.Topology, number uint32, needs []Members) (Scope, bool) {
	l, ok := keptLevel(level)
	if !ok || number >= s.topo[l].domains.Len() {
		return Scope{}, false
	}
	r := s.topo[l].domains.Get(number)
	if !r.used || uint64(r.devices) < s.devices(needs, true) {
		return Scope{}, false
	}
	return Scope{level: level, at: number}, true
}

// Node returns the node that a domain is; false when it is another one.
func (sc Scope) Node() (uint32, bool) { return sc.at, sc.level == gpuai.TopologyNode }

// NodesIn appends the nodes of a node, an NVLink domain or a rack to dst, in the
// order of their numbers. It only reads.
func (s *State) NodesIn(sc Scope, dst []uint32) []uint32 {
	l, ok := keptLevel(sc.level)
	if !ok {
		if n, one := sc.Node(); one {
			dst = append(dst, n)
		}
		return dst
	}
	from := len(dst)
	for n := s.topo[l].domains.Get(sc.at).first; n != 0; n = s.topo[l].seats.Get(n - 1).next {
		dst = append(dst, n-1)
	}
	slices.Sort(dst[from:])
	return dst
}

// Zones appends every zone that has nodes to dst, in the order of their first
// pools. It only reads.
func (s *State) Zones(dst []Scope) []Scope {
	from := len(dst)
	for z := range s.zonePools.Len() {
		if _, ok := s.firstPool(z); ok {
			dst = append(dst, Scope{level: gpuai.TopologyZone, at: z})
		}
	}
	slices.SortFunc(dst[from:], func(a, b Scope) int {
		x, _ := s.firstPool(a.at)
		y, _ := s.firstPool(b.at)
		return int(x) - int(y)
	})
	return dst
}

// ByZone parts nodes by their zones, in the order of Zones; nodes of one zone stay
// in their order. It only reads.
func (s *State) ByZone(nodes []uint32) [][]uint32 {
	zones := s.Zones(nil)
	place := make([]int, s.zonePools.Len())
	for i, z := range zones {
		place[z.at] = i + 1
	}
	out := make([][]uint32, len(zones))
	for _, n := range nodes {
		if i := place[s.ScopeOf(gpuai.TopologyZone, n).at]; i > 0 {
			out[i-1] = append(out[i-1], n)
		}
	}
	return out
}
