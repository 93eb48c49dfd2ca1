package scheduler

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/gpuai/gpuai"
)

// Check says whether the index equals what the nodes, pools and shapes imply,
// and what differs first. It looks at everything.
func (s *State) Check() error {
	for _, check := range []func() error{
		s.checkNodes, s.checkPools, s.checkFilters, s.checkShapes, s.checkTrees, s.checkDomains, s.checkZones, s.checkPacking, s.checkReclaim,
	} {
		if err := check(); err != nil {
			return fmt.Errorf("capacity index: %w", err)
		}
	}
	return nil
}

func (s *State) checkNodes() error {
	var nodes, units, rows, places uint32
	for slot := range s.nodes.Len() {
		n := s.nodes.Get(slot)
		if !n.known {
			if *n != (nodeRec{}) {
				return fmt.Errorf("node %d is not known but has a record", slot)
			}
			continue
		}
		nodes++
		if n.freeCPU > n.capCPU || n.freeMem > n.capMem {
			return fmt.Errorf("node %d has %d milli-CPU and %d bytes free of %d and %d", slot, n.freeCPU, n.freeMem, n.capCPU, n.capMem)
		}
		if n.lent < 0 {
			return fmt.Errorf("node %d lends %d bytes of scratch space", slot, n.lent)
		}
		for r := n.rows; r != 0; r = s.rows.Get(r - 1).next {
			rows++
		}
		for r := s.placesOf(slot); r != 0; r = s.places.Get(r - 1).next {
			places++
		}
		var all uint64
		units--
		for u := &n.unit; u != nil; u = s.next(u) {
			units++
			if u.devs&all != 0 || u.usable&^u.devs != 0 || !s.pools.Get(uint32(u.pool)).used {
				return fmt.Errorf("node %d: a unit is not as it should be: %+v", slot, *u)
			}
			all |= u.devs
			if err := s.checkDevices(slot, u); err != nil {
				return err
			}
		}
		if all != 1<<n.devices-1 {
			return fmt.Errorf("node %d: the units have devices %x, the node has %d", slot, all, n.devices)
		}
	}
	if got := s.sums.Get().nodes; got != nodes || s.unitSlots.Len() != units || s.rowSlots.Len() != rows || s.placeSlots.Len() != places {
		return fmt.Errorf("%d nodes, %d further units, %d rows, %d of places, but %d, %d, %d, %d are counted",
			nodes, units, rows, places, got, s.unitSlots.Len(), s.rowSlots.Len(), s.placeSlots.Len())
	}
	return nil
}

func (s *State) checkDevices(slot uint32, u *unitRec) error {
	for m := u.devs; m != 0; m &= m - 1 {
		d := uint8(bits.TrailingZeros64(m))
		f := s.free(s.nodes.Get(slot), d)
		if f > int16(gpuai.WholeDevice) {
			return fmt.Errorf("node %d: device %d has %d milli free", slot, d, f)
		}
		whole := f == int16(gpuai.WholeDevice) && u.usable>>d&1 != 0
		if whole != (u.whole>>d&1 != 0) {
			return fmt.Errorf("node %d: device %d with %d milli free is whole: %v", slot, d, f, !whole)
		}
		part := f > 0 && f < int16(gpuai.WholeDevice) && u.usable>>d&1 != 0
		if part != (u.parts>>d&1 != 0) {
			return fmt.Errorf("node %d: device %d with %d milli free is in part free: %v", slot, d, f, !part)
		}
	}
	return nil
}

func (s *State) checkPools() error {
	units := make([]uint32, s.pools.Len())
	for slot := range s.nodes.Len() {
		n := s.nodes.Get(slot)
		for u := &n.unit; n.known && u != nil; u = s.next(u) {
			units[u.pool]++
		}
	}
	var tiers uint64
	closing := uint32(0)
	for p := range s.pools.Len() {
		r := s.pools.Get(p)
		if r.used != s.poolSlots.Has(p) || r.units != units[p] || r.used != (r.units > 0) {
			return fmt.Errorf("pool %d has %d units, counts %d, in use %v", p, units[p], r.units, r.used)
		}
		if !r.used {
			continue
		}
		if got, ok := s.findPool(s.poolBytes.Append(nil, r.def)); !ok || got != p {
			return fmt.Errorf("pool %d is found as %d, %v", p, got, ok)
		}
		if *s.tiers.Get(uint32(r.tier)*poolWords + p>>6)>>(p&63)&1 == 0 {
			return fmt.Errorf("pool %d is not in its tier %d", p, r.tier)
		}
		tiers |= 1 << r.tier
		if r.closes != 0 {
			closing++
		}
	}
	var set uint32
	for i := range s.tiers.Len() {
		set += uint32(bits.OnesCount64(*s.tiers.Get(i)))
	}
	if s.sums.Get().closing != closing {
		return fmt.Errorf("%d pools close, recorded %d", closing, s.sums.Get().closing)
	}
	if sum := s.sums.Get(); set != s.poolSlots.Len() || sum.tiers != tiers || sum.words*64 < s.poolSlots.Len() {
		return fmt.Errorf("%d pools in tiers %x, want %d in %x", set, sum.tiers, s.poolSlots.Len(), tiers)
	}
	return nil
}

func (s *State) checkFilters() error {
	refs := make([]uint32, s.filters.Len())
	for i, ok := s.shapeSlots.Next(0); ok; i, ok = s.shapeSlots.Next(i + 1) {
		r := s.shapes.Get(i)
		for a := range r.alts {
			refs[r.filters[a]]++
		}
	}
	for f := range s.filters.Len() {
		r := s.filters.Get(f)
		if r.refs != refs[f] || s.filterSlots.Has(f) != (refs[f] > 0) {
			return fmt.Errorf("filter %d is used %d times, counts %d", f, refs[f], r.refs)
		}
		if r.refs == 0 {
			continue
		}
		def := s.shapeBytes.Append(nil, r.def)
		for p, ok := s.poolSlots.Next(0); ok; p, ok = s.poolSlots.Next(p + 1) {
			v := viewPool(s.poolBytes.Append(nil, s.pools.Get(p).def))
			got := *s.masks.Get(f*poolWords + p>>6)>>(p&63)&1 != 0
			if want := passes(def, &v); got != want {
				return fmt.Errorf("filter %d, pool %d: the mask says %v", f, p, got)
			}
		}
	}
	return nil
}

func (s *State) checkShapes() error {
	var idle uint32
	for i, ok := s.shapeSlots.Next(0); ok; i, ok = s.shapeSlots.Next(i + 1) {
		r := s.shapes.Get(i)
		if got, ok := s.FindShape(s.shapeBytes.Append(nil, r.key)); !ok || uint32(got) != i {
			return fmt.Errorf("shape %d is found as %d, %v", i, got, ok)
		}
		if r.refs == 0 {
			idle++
		}
	}
	var listed uint32
	for i := s.sums.Get().first; i != 0 && listed <= idle; i = s.shapes.Get(i.id()).next {
		listed++
		if r := s.shapes.Get(i.id()); r.refs != 0 || !r.used {
			return fmt.Errorf("shape %d is listed as idle, with %d users", i.id(), r.refs)
		}
	}
	if sum := s.sums.Get(); listed != idle || sum.idle != idle || idle > MaxIdleShapes {
		return fmt.Errorf("%d shapes are idle, %d listed, %d counted", idle, listed, sum.idle)
	}
	return nil
}

// A listed is a pair that a tree should have.
type listed struct {
	tree     uint32
	key, mem uint64
	weight   uint32
}

// implied returns what all trees should have, in order.
func (s *State) implied() []listed {
	found := make([]listed, 0, 2*s.nodes.Len())
	for slot := range s.nodes.Len() {
		n := s.nodes.Get(slot)
		for u := &n.unit; n.known && u != nil; u = s.next(u) {
			found = s.impliedBy(found, slot, u)
		}
	}
	// By tree first: within one, the pairs of nodes in use alike are in order.
	end := make([]uint32, s.trees.Len()+1)
	for i := range found {
		end[found[i].tree+1]++
	}
	for i := range s.trees.Len() {
		end[i+1] += end[i]
	}
	out := make([]listed, len(found))
	for i := range found {
		at := &end[found[i].tree]
		out[*at] = found[i]
		*at++
	}
	from := uint32(0)
	for _, to := range end[:s.trees.Len()] {
		slices.SortFunc(out[from:to], func(a, b listed) int { return cmp.Compare(a.key, b.key) })
		from = to
	}
	return out
}

// impliedBy appends what the trees should have of a unit.
func (s *State) impliedBy(out []listed, slot uint32, u *unitRec) []listed {
	n := s.nodes.Get(slot)
	count := uint64(bits.OnesCount64(u.devs))
	out = append(out, listed{spot{u.pool, capacityTree}.tree(), makeKey(count, n.capCPU, slot), uint64(n.capMem), 1})
	if !n.open || n.freeCPU < 0 || n.freeMem < 0 {
		return out
	}
	var left [gpuai.WholeDevice + 1]uint32
	parts := false // of most nodes no device is free in part
	for usable := u.usable; usable != 0; usable &= usable - 1 {
		f := max(s.free(n, uint8(bits.TrailingZeros64(usable))), 0)
		left[f]++
		parts = parts || f > 0 && f < int16(gpuai.WholeDevice)
	}
	whole := left[gpuai.WholeDevice]
	out = append(out, listed{spot{u.pool, wholeClass + whole}.tree(), makeKey(0, n.freeCPU, slot), uint64(n.freeMem), 1})
	level := uint32(numLevels)
	for f := uint32(1); parts && f < uint32(gpuai.WholeDevice); f++ {
		if left[f] > 0 && f/levelStep != level {
			level = f / levelStep
			out = append(out, listed{spot{u.pool, levelTrees + level}.tree(), makeKey(0, n.freeCPU, slot), uint64(n.freeMem), 1})
		}
		if left[f] > 0 {
			key := makeKey(uint64(f%levelStep), n.freeCPU, slot)
			out = append(out, listed{spot{u.pool, f / levelStep}.tree(), key, uint64(n.freeMem), left[f]})
		}
	}
	return out
}

func (s *State) checkTrees() error {
	want := s.implied()
	var blocks uint32
	var classes [2]uint64
	for i := range s.trees.Len() {
		n := 0
		for n < len(want) && want[n].tree == i {
			n++
		}
		t := s.trees.Get(i)
		pool, class := i>>6/numTrees<<6|i&63, i>>6%numTrees
		if filled := *s.filled.Get(i >> 6)>>(i&63)&1 != 0; filled != (n > 0) || t.empty() != (n == 0) {
			return fmt.Errorf("pool %d, class %d has %d units, marked %v", pool, class, n, filled)
		}
		if n > 0 {
			classes[class>>6] |= 1 << (class & 63)
			if err := s.checkTree(t, want[:n], &blocks); err != nil {
				return fmt.Errorf("pool %d, class %d: %w", pool, class, err)
			}
		} else if *t != (treeRec{}) {
			return fmt.Errorf("pool %d, class %d is empty, but its tree is %+v", pool, class, *t)
		}
		want = want[n:]
	}
	if got := s.sums.Get().classes; got != classes || len(want) > 0 || blocks != s.forest.slots.Len() {
		return fmt.Errorf("classes %x, want %x; %d blocks, %d are in use", got, classes, blocks, s.forest.slots.Len())
	}
	return nil
}

func (s *State) checkTree(t *treeRec, want []listed, blocks *uint32) error {
	got, err := s.forest.entries(t.root-1, t.height, nil, blocks)
	if err != nil {
		return err
	}
	var weight uint32
	var most uint64
	for i := range want {
		if i >= len(got) || got[i].key != want[i].key || got[i].mem != want[i].mem {
			return fmt.Errorf("pair %d of %d is not %x, %d", i, len(got), want[i].key, want[i].mem)
		}
		weight += want[i].weight
		most = max(most, want[i].mem)
	}
	if len(got) != len(want) || t.weight != weight || t.maxMem != most || t.maxKey != want[len(want)-1].key {
		return fmt.Errorf("%d pairs, want %d; %+v", len(got), len(want), *t)
	}
	return nil
}

// entries appends the pairs below a block, and counts the blocks.
func (f forest) entries(at uint32, height uint8, out []entry, blocks *uint32) ([]entry, error) {
	b := f.blocks.Get(at)
	*blocks++
	if b.n == 0 || b.n > fan || !f.slots.Has(at) {
		return out, fmt.Errorf("block %d has %d entries, in use %v", at, b.n, f.slots.Has(at))
	}
	var err error
	for i := range b.n {
		if height == 0 {
			out = append(out, entry{key: b.keys[i], mem: b.mems[i]})
			continue
		}
		if out, err = f.entries(b.kids[i], height-1, out, blocks); err != nil {
			return out, err
		}
		if sum := f.entryOf(b.kids[i]); sum.key != b.keys[i] || sum.mem != b.mems[i] {
			return out, fmt.Errorf("block %d: entry %d does not sum up its child", at, i)
		}
	}
	return out, nil
}
