package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// The rules of an explanation beside a group's constraints, in the order of
// their bits; a constraint's bit is ruleConstraint plus its place.
const (
	ruleState = iota
	ruleVendor
	ruleModel
	ruleMemory
	ruleCount
	ruleHealth
	ruleFree
	ruleCPU
	ruleRAM
	ruleScratch
	ruleSchedule
	ruleConstraint
	numRules = ruleConstraint + gpuai.MaxConstraints
)

// RuleState is the name of the rule that closed nodes fail.
const RuleState = "node.state"

var ruleNames = [ruleConstraint]string{
	RuleState, "gpu.vendor", "gpu.model", "gpu.memory", "gpu.count", "gpu.health", "gpu.free", "cpu", "memory", "scratch", "node.schedule",
}

var ruleCodes = [ruleConstraint]gpuai.ReasonCode{
	gpuai.NodesUnhealthy, gpuai.ConstraintFiltered, gpuai.ConstraintFiltered, gpuai.ConstraintFiltered,
	gpuai.NoSuchDevice, gpuai.NodesUnhealthy, gpuai.InsufficientGPUs, gpuai.InsufficientCPU, gpuai.InsufficientMemory,
	gpuai.InsufficientScratch, gpuai.OutsideSchedule,
}

// Explain says for each rule how many nodes fail it, and how many fail nothing
// else. A node with several kinds of devices, and a shape with several
// alternatives, are judged by the pairing that fails the fewest rules. A node
// without devices fails gpu.count and no other rule of GPUs. gpu.count and the
// constraints hold for the node as it registered; gpu.health, gpu.free, cpu,
// memory and scratch for what can be taken now; node.state for nodes that are closed,
// node.schedule for those that Bar leaves out.
//
// The name of the group and its pending tasks are left to the caller. Explain
// looks at every node, so call it on a fork. It only reads, and allocates.
func (s *State) Explain(id ShapeID) gpuai.GroupWhy {
	e := explainer{s: s, r: s.shapes.Get(uint32(id))}
	e.why.Needs, e.cs = s.ShapeOf(id)
	e.judgePools()
	for slot := range s.nodes.Len() {
		if s.nodes.Get(slot).known {
			e.judge(slot)
		}
	}
	e.sum()
	return e.why
}

type explainer struct {
	s      *State
	r      *shapeRec
	cs     []gpuai.Constraint
	fails  []uint32 // of a pool by alternative: pool·MaxAlternatives + alt
	failed [numRules]uint32
	alone  [numRules]uint32
	why    gpuai.GroupWhy
}

// judgePools notes which rules that hold for a pool as a whole each one fails.
func (e *explainer) judgePools() {
	s := e.s
	e.fails = make([]uint32, s.pools.Len()*gpuai.MaxAlternatives)
	var filter, pool []byte
	for alt := range e.r.alts {
		filter = s.shapeBytes.Append(filter[:0], s.filters.Get(e.r.filters[alt]).def)
		for p, ok := s.poolSlots.Next(0); ok; p, ok = s.poolSlots.Next(p + 1) {
			pool = s.poolBytes.Append(pool[:0], s.pools.Get(p).def)
			v := viewPool(pool)
			e.fails[p*gpuai.MaxAlternatives+uint32(alt)] = poolFails(filter, &v)
		}
	}
}

func poolFails(filter []byte, v *poolView) (m uint32) {
	c := cursor{b: filter}
	a := viewAlt(&c)
	if v.hasDevice {
		m |= when(!a.vendorOK(v), ruleVendor) | when(!a.modelOK(v), ruleModel) | when(!a.memoryOK(v), ruleMemory)
	}
	for i := range min(c.num(), gpuai.MaxConstraints) {
		x := viewConstraint(&c)
		m |= when(!x.holds(v), ruleConstraint+uint(i))
	}
	return m
}

func when(fails bool, rule uint) uint32 {
	if fails {
		return 1 << rule
	}
	return 0
}

// judge counts what a node fails.
func (e *explainer) judge(slot uint32) {
	n := e.s.nodes.Get(slot)
	barred := e.s.barredPool(uint32(n.unit.pool))
	of := when(!n.open && !barred, ruleState) | when(barred, ruleSchedule) | when(n.freeCPU < e.r.cpu, ruleCPU) | when(n.freeMem < int64(e.r.mem), ruleRAM) | when(!n.lends(e.r), ruleScratch)
	least := ^uint32(0)
	for alt := range e.r.alts {
		for x := &n.unit; x != nil; x = e.s.next(x) {
			m := of | e.unitFails(n, x) | e.fails[uint32(x.pool)*gpuai.MaxAlternatives+uint32(alt)]
			if bits.OnesCount32(m) < bits.OnesCount32(least) {
				least = m
			}
		}
	}
	e.countFree(n)
	e.why.Nodes++
	if least == 0 {
		e.why.Feasible++
	}
	for m := least; m != 0; m &= m - 1 {
		e.failed[bits.TrailingZeros32(m)]++
	}
	if bits.OnesCount32(least) == 1 {
		e.alone[bits.TrailingZeros32(least)]++
	}
}

// unitFails returns the first rule of devices that a unit fails, if any: what
// comes later follows from it.
func (e *explainer) unitFails(n *nodeRec, u *unitRec) uint32 {
	k := int(e.r.count)
	if bits.OnesCount64(u.devs) < k {
		return 1 << ruleCount
	}
	if bits.OnesCount64(u.usable) < k {
		return 1 << ruleHealth
	}
	_, ok := e.s.placeIn(e.r, n, u)
	return when(!ok, ruleFree)
}

// countFree counts the free devices of a node that an alternative admits.
func (e *explainer) countFree(n *nodeRec) {
	if !n.open {
		return
	}
	for x := &n.unit; x != nil; x = e.s.next(x) {
		for alt := range e.r.alts {
			if e.fails[uint32(x.pool)*gpuai.MaxAlternatives+uint32(alt)] == 0 {
				g := uint32(bits.OnesCount64(x.whole))
				e.why.FreeGPUs += g
				e.why.LargestOn = max(e.why.LargestOn, g)
				break
			}
		}
	}
}

// sum writes the rules that a node fails, constraints by their attribute.
func (e *explainer) sum() {
	for i := range e.failed {
		if e.failed[i] == 0 {
			continue
		}
		r := gpuai.Rule{Nodes: e.failed[i], Alone: e.alone[i], Code: gpuai.ConstraintFiltered}
		if i < ruleConstraint {
			r.Name, r.Code = ruleNames[i], ruleCodes[i]
		} else {
			r.Name = e.cs[i-ruleConstraint].Attribute
		}
		if i == ruleFree && e.r.share == 0 && e.why.FreeGPUs >= uint32(e.r.count) && e.why.LargestOn < uint32(e.r.count) {
			r.Code = gpuai.Fragmented
		}
		e.why.Rules = append(e.why.Rules, r)
	}
}
