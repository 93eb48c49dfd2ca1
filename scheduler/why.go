package scheduler

import (
	"fmt"

	"github.com/gpuai/gpuai"
)

// numOrder is how many parts the order of places has, but for the node's slot.
const numOrder = 6

// An orderKey is a place by the parts of the order in DESIGN.md: alternative,
// class, price tier, pool, remainder, free CPU.
type orderKey [numOrder]uint64

// Why says how the order of places leads to f for a task of a shape: how many
// nodes there are, how many would take the task, and how many are still as good
// after each rule. exact is false when another place is before f in that order:
// then another policy chose it. It looks at every node and only reads; ask
// before f is taken.
func (s *State) Why(id ShapeID, f Fit) (why gpuai.PlacedWhy, exact bool) {
	r := s.shapes.Get(uint32(id))
	mine, ok := s.orderOf(id, r, f.Node)
	if !ok {
		return why, false
	}
	exact = true
	var as [numOrder]uint32
	for slot := range s.nodes.Len() {
		if s.nodes.Get(slot).known {
			why.Nodes++
		}
		k, ok := s.orderOf(id, r, slot)
		if !ok {
			continue
		}
		why.Fits++
		same := 0
		for same < numOrder && k[same] == mine[same] {
			as[same]++
			same++
		}
		if same < numOrder && k[same] < mine[same] || same == numOrder && slot < f.Node {
			exact = false
		}
	}
	why.Steps = s.steps(r, &mine, &as)
	return why, exact
}

// orderOf returns the best place of a node; false when the task does not fit
// there.
func (s *State) orderOf(id ShapeID, r *shapeRec, slot uint32) (k orderKey, ok bool) {
	f, ok := s.FitsOn(id, slot)
	if !ok {
		return k, false
	}
	n := s.nodes.Get(slot)
	for u := &n.unit; u != nil; u = s.next(u) {
		if r.count > 0 && f.Devices&u.devs == 0 || !s.passes(r, f.Alt, uint32(u.pool)) {
			continue
		}
		p, fits := s.placeIn(r, n, u)
		if !fits {
			continue
		}
		tier := s.pools.Get(uint32(u.pool)).tier
		return orderKey{uint64(f.Alt), uint64(p.class), uint64(tier), uint64(u.pool), keyPrefix(p.key), uint64(n.freeCPU)}, true
	}
	return k, false
}

// steps writes the rules that told places apart, and those that describe the
// one chosen.
func (s *State) steps(r *shapeRec, k *orderKey, as *[numOrder]uint32) []gpuai.PlaceStep {
	tight := fmt.Sprintf("%d free devices, the fewest that do", k[1]-wholeClass)
	switch {
	case k[1] < wholeClass:
		tight = fmt.Sprintf("a partly used device with %d milli free", k[1]*levelStep+k[4])
	case r.count == 0:
		tight = fmt.Sprintf("%d free devices, the fewest", k[1]-wholeClass)
	}
	all := [numOrder]gpuai.PlaceStep{
		{Rule: "alternative", Value: fmt.Sprintf("%d of %d", k[0]+1, max(r.alts, 1))},
		{Rule: "class", Value: tight},
		{Rule: "price", Value: fmt.Sprintf("tier %d, the cheapest", k[2])},
		{Rule: "pool", Value: fmt.Sprintf("pool %d, the lowest", k[3])},
		{Rule: "remainder", Value: fmt.Sprintf("%d milli above the class", k[4])},
		{Rule: "cpu", Value: fmt.Sprintf("%d.%03d cores free, the least", k[5]/1000, k[5]%1000)},
	}
	var out []gpuai.PlaceStep
	for i := range all {
		if all[i].Nodes = as[i]; i == 0 && r.alts <= 1 || i == 4 && k[1] >= wholeClass {
			continue
		}
		out = append(out, all[i])
		if as[i] == 1 {
			return out
		}
	}
	return append(out, gpuai.PlaceStep{Rule: "node", Value: "the first registered", Nodes: 1})
}

// Models returns the kinds of devices that registered nodes have, by pool.
func (s *State) Models() (out []gpuai.GPUAlternative) {
	for p, ok := s.poolSlots.Next(0); ok; p, ok = s.poolSlots.Next(p + 1) {
		v := viewPool(s.poolBytes.Append(nil, s.pools.Get(p).def))
		if !v.hasDevice {
			continue
		}
		k := gpuai.GPUAlternative{Vendor: string(v.vendor), Model: string(v.model), MemoryMin: gpuai.Bytes(v.memory)}
		known := false
		for i := range out {
			known = known || out[i] == k
		}
		if !known {
			out = append(out, k)
		}
	}
	return out
}
