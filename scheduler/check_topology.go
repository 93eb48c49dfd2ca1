package scheduler

import (
	"fmt"
	"math/bits"
)

// checkDomains compares the domains with what their nodes imply.
func (s *State) checkDomains() error {
	for l := range s.topo {
		t := &s.topo[l]
		var inRows, listed, seated uint32
		for i := range t.rows.Len() {
			inRows += uint32(bits.OnesCount64(*t.rows.Get(i)))
		}
		for d := range t.domains.Len() {
			r := t.domains.Get(d)
			if r.used != t.slots.Has(d) || r.used != (r.nodes > 0) {
				return fmt.Errorf("domain %d has %d nodes, in use %v", d, r.nodes, r.used)
			}
			if !r.used {
				continue
			}
			if got, ok := s.findDomain(l, s.poolBytes.Append(nil, r.def)); !ok || got != d {
				return fmt.Errorf("domain %d is found as %d, %v", d, got, ok)
			}
			if err := s.checkDomain(l, d); err != nil {
				return fmt.Errorf("domain %d: %w", d, err)
			}
			listed++
			seated += r.nodes
		}
		for n := range t.seats.Len() {
			if t.seats.Get(n).domain != 0 {
				seated--
			}
		}
		if inRows != listed || seated != 0 {
			return fmt.Errorf("%d domains, %d are in rows; %d nodes more are counted than sit", listed, inRows, int32(seated))
		}
	}
	return nil
}

func (s *State) checkDomain(l int, d uint32) error {
	t := &s.topo[l]
	r := t.domains.Get(d)
	var nodes, free uint32
	var sizes [numSizes]uint16
	prev, want := uint32(0), domainRec{}
	for n := r.first; n != 0; n = t.seats.Get(n - 1).next {
		x, node := t.seats.Get(n-1), s.nodes.Get(n-1)
		if x.domain != d+1 || x.prev != prev || !node.known || !node.seated {
			return fmt.Errorf("node %d is out of place: %+v", n-1, *x)
		}
		prev = n
		nodes++
		s.addDevices(&want, n-1)
		if node.indexed() {
			sizes[s.wholeOn(node)]++
			free += s.wholeOn(node)
		}
	}
	if nodes != r.nodes || want.devices != r.devices || want.widest != r.widest || free != *t.free.Get(d) || want.mixed != r.mixed || want.numPool != r.numPool {
		return fmt.Errorf("%d nodes, %d devices, %d free, recorded %+v", nodes, want.devices, free, *r)
	}
	for g := range uint32(numSizes) {
		if got := *t.sizes.Get(d*numSizes + g); got != sizes[g] {
			return fmt.Errorf("%d nodes have %d free, %d are counted", sizes[g], g, got)
		}
	}
	row := min(free, maxRow)
	if *t.rows.Get(row*domainWords + d>>6)>>(d&63)&1 == 0 || t.sum.Get().filled[row>>6]>>(row&63)&1 == 0 {
		return fmt.Errorf("it is not in row %d", row)
	}
	return nil
}

// checkZones compares the zones of the pools with their descriptions.
func (s *State) checkZones() error {
	zones := map[string]uint16{}
	counts := make([]uint32, s.zonePools.Len())
	for p, ok := s.poolSlots.Next(0); ok; p, ok = s.poolSlots.Next(p + 1) {
		r := s.pools.Get(p)
		v := viewPool(s.poolBytes.Append(nil, r.def))
		if z, ok := zones[string(v.zone)]; ok && z != r.zone {
			return fmt.Errorf("pool %d is of zone %d, other pools of %s are of %d", p, r.zone, v.zone, z)
		}
		zones[string(v.zone)] = r.zone
		counts[r.zone]++
		if *s.zoneMasks.Get(uint32(r.zone)*poolWords + p>>6)>>(p&63)&1 == 0 {
			return fmt.Errorf("pool %d is not in its zone %d", p, r.zone)
		}
	}
	for z, n := range counts {
		if *s.zonePools.Get(uint32(z)) != n {
			return fmt.Errorf("zone %d has %d pools, %d are counted", z, n, *s.zonePools.Get(uint32(z)))
		}
	}
	return nil
}
