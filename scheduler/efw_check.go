package scheduler

import "fmt"

// checkPacking verifies that the index of packing is what the nodes imply.
func (s *State) checkPacking() error {
	p, sums := s.packing.Get(), s.packSums.Get()
	nodes := make([]uint32, s.packBuckets.Len())
	var idle int64
	var supply supplyRec
	for slot := range s.nodes.Len() {
		var in uint32
		if slot < s.packOf.Len() {
			in = *s.packOf.Get(slot)
		}
		n := s.nodes.Get(slot)
		t, ok := s.packStateOf(n, p.grid())
		if ok = ok && p.have != 0 && slot < p.cursor && n.known && n.indexed(); ok != (in != 0) {
			return fmt.Errorf("packing: node %d is in bucket %d, want in any: %v", slot, in, ok)
		}
		if !ok {
			continue
		}
		if b := s.packBuckets.Get(in - 1); b.key != t.key() {
			return fmt.Errorf("packing: node %d is in the bucket of %+v, is %+v", slot, b.key.state(), t)
		}
		nodes[in-1]++
		idle += t.idle()
		for j := range p.slots {
			if r := s.slotClasses.Get(j); s.passesAny(s.shapes.Get(s.demand.Get(r.class).shape.id()), uint32(t.pool)) {
				supply.slots[j] += r.on(t.whole, t.cpu)
			}
		}
	}
	if idle != sums.idle || p.demand != 0 && supply != *s.supply.Get() {
		return fmt.Errorf("packing: %d milli idle and slots %v, counted %d and %v", idle, supply, sums.idle, *s.supply.Get())
	}
	return s.checkBuckets(nodes)
}

// checkBuckets verifies the buckets, given how many nodes each has.
func (s *State) checkBuckets(nodes []uint32) error {
	sums := s.packSums.Get()
	live, birth := uint32(0), sums.births+1
	for b := sums.newest; b != 0; b = s.packBuckets.Get(b - 1).older {
		r := s.packBuckets.Get(b - 1)
		if r.nodes == 0 || r.birth >= birth {
			return fmt.Errorf("packing: bucket %d has %d nodes, born %d before %d", b-1, r.nodes, r.birth, birth)
		}
		birth = r.birth
		live++
	}
	filled := uint32(0)
	for b, n := range nodes {
		r := s.packBuckets.Get(uint32(b))
		if r.nodes != n || s.packSlots.Has(uint32(b)) != (n > 0) {
			return fmt.Errorf("packing: bucket %d has %d nodes, counts %d", b, n, r.nodes)
		}
		if n > 0 {
			filled++
		}
	}
	if live != filled || live != sums.live || live != s.packHash.Len() {
		return fmt.Errorf("packing: %d buckets, %d listed, %d counted, %d hashed", filled, live, sums.live, s.packHash.Len())
	}
	return s.checkDemand()
}

func (s *State) checkDemand() error {
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		r := s.demand.Get(i)
		if r.shape == 0 || *s.demandOf.Get(r.shape.id()) != i+1 || s.shapes.Get(r.shape.id()).refs == 0 {
			return fmt.Errorf("packing: demand class %d is of shape %d, which does not say so", i, r.shape.id())
		}
	}
	if p := s.packing.Get(); p.demand != 0 && p.demand != s.demandHash() {
		return fmt.Errorf("packing: the demand has hash %x, noted %x", s.demandHash(), p.demand)
	}
	return nil
}
