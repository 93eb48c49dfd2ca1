package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A Scope is where the tasks of a gang may go. The zero scope is everywhere.
type Scope struct {
	level gpuai.Topology
	outer gpuai.Topology // a rack that the NVLink domain is looked at in
	at    uint32         // node, domain, or zone
	in    uint32         // the rack
}

// Everywhere reports whether a scope leaves nothing out.
func (sc Scope) Everywhere() bool { return sc.level == gpuai.TopologyNone }

// ScopeOf returns the domain of a level that a node is in. A node without a
// rack, or NVLink domain, is one of its own.
func (s *State) ScopeOf(level gpuai.Topology, node uint32) Scope {
	if l, ok := keptLevel(level); ok {
		if d := s.topo[l].domainOf(node); d != 0 {
			return Scope{level: level, at: d - 1}
		}
		return Scope{level: gpuai.TopologyNode, at: node}
	}
	switch level {
	case gpuai.TopologyZone:
		return Scope{level: level, at: uint32(s.pools.Get(uint32(s.nodes.Get(node).unit.pool)).zone)}
	case gpuai.TopologyNode:
		return Scope{level: level, at: node}
	}
	return Scope{}
}

// FindIn is Find among the nodes of a scope.
func (s *State) FindIn(sc Scope, id ShapeID) (Fit, bool) {
	q := s.query(id)
	f, ok := q.findIn(sc)
	s.charge(&q)
	return f, ok
}

func (q *query) findIn(sc Scope) (Fit, bool) {
	switch sc.level {
	case gpuai.TopologyNone:
		return q.find()
	case gpuai.TopologyZone:
		q.confine(sc.at)
		return q.find()
	case gpuai.TopologyNode:
		q.ticks += tickNode
		p, ok := q.placeOn(q.r, sc.at)
		return q.fitAt(p, ok)
	}
	var best place
	found := false
	for n := q.members(sc); n != 0; n = q.after(sc, n) {
		if !q.inside(sc, n-1) {
			continue
		}
		if p, ok := q.placeOn(q.r, n-1); ok && (!found || q.before(&p, &best)) {
			best, found = p, true
		}
	}
	return q.fitAt(best, found)
}

func (q *query) fitAt(p place, ok bool) (Fit, bool) {
	if !ok {
		return Fit{}, false
	}
	return q.fit(q.r, p), true
}

// before is the order of Find, of the places of two nodes.
func (q *query) before(a, b *place) bool {
	if a.alt != b.alt {
		return a.alt < b.alt
	}
	if a.class != b.class {
		return a.class < b.class
	}
	if x, y := q.pools.Get(uint32(a.pool)).tier, q.pools.Get(uint32(b.pool)).tier; x != y {
		return x < y
	}
	if a.pool != b.pool {
		return a.pool < b.pool
	}
	return a.key < b.key
}

// confine has the search look at the pools of one zone only.
func (q *query) confine(zone uint32) {
	q.only = &q.State.only
	for w := range q.sums.Get().words {
		q.only[w] = *q.zoneMasks.Get(zone*poolWords + w)
	}
}

// members returns the first node of a domain + 1, and charges for all of them.
func (q *query) members(sc Scope) uint32 {
	l, _ := keptLevel(sc.level)
	d := q.topo[l].domains.Get(sc.at)
	q.ticks += tickNode * uint64(d.nodes)
	return d.first
}

// after returns the node of a domain that follows n + 1.
func (s *State) after(sc Scope, n uint32) uint32 {
	l, _ := keptLevel(sc.level)
	return s.topo[l].seats.Get(n - 1).next
}

// inside reports whether a node of a scope's domain is in its rack too.
func (s *State) inside(sc Scope, node uint32) bool {
	return sc.outer == gpuai.TopologyNone || s.topo[levelRack].domainOf(node) == sc.in+1
}

// RoomIn returns how many tasks of a shape could start now in a scope, at most
// limit: exactly for a node, an NVLink domain and a rack, an upper bound for a
// zone and everywhere.
func (s *State) RoomIn(sc Scope, id ShapeID, limit uint32) uint32 {
	q := s.query(id)
	n := q.roomIn(sc, uint64(limit))
	s.charge(&q)
	return uint32(n)
}

func (q *query) roomIn(sc Scope, limit uint64) uint64 {
	switch sc.level {
	case gpuai.TopologyNone:
		return q.capacity(limit, false)
	case gpuai.TopologyZone:
		q.confine(sc.at)
		return q.capacity(limit, false)
	case gpuai.TopologyNode:
		q.ticks += tickNode
		return min(q.roomOn(sc.at), limit)
	}
	var have uint64
	for n := q.members(sc); n != 0 && have < limit; n = q.after(sc, n) {
		if q.inside(sc, n-1) {
			have += q.roomOn(n - 1)
		}
	}
	return min(have, limit)
}

// roomOn returns how many tasks of the shape a node could take now.
func (q *query) roomOn(slot uint32) uint64 {
	n, r := q.nodes.Get(slot), q.r
	if !n.indexed() {
		return 0
	}
	most := min(r.within(n.freeCPU, n.freeMem), r.lentBy(n.freeScratch()))
	var have uint64
	for u := &n.unit; u != nil && have < most; u = q.next(u) {
		if !q.passesAny(uint32(u.pool)) {
			continue
		}
		have += r.tasksOn(uint32(bits.OnesCount64(u.whole)))
		for m := u.parts; m != 0 && r.share != 0; m &= m - 1 {
			have += uint64(q.free(n, uint8(bits.TrailingZeros64(m)))) / uint64(r.share)
		}
	}
	return min(have, most)
}

// within returns how many tasks of a shape so much CPU and memory serve.
func (r *shapeRec) within(cpu, mem int64) uint64 {
	most := uint64(gpuai.MaxTasks)
	if r.cpu > 0 {
		most = min(most, uint64(cpu)/uint64(r.cpu))
	}
	if r.mem > 0 {
		most = min(most, uint64(mem)/r.mem)
	}
	return most
}

// passesAny reports whether a pool passes for any alternative.
func (q *query) passesAny(pool uint32) bool {
	for alt := range q.r.alts {
		if q.passes(q.r, alt, pool) {
			return true
		}
	}
	return false
}

// mayHold reports, of a domain's counts alone, whether it could hold so many
// tasks: false is certain.
func (q *query) mayHold(l int, d uint32, want uint64) bool {
	q.ticks += tickTree
	t := &q.topo[l]
	r := t.domains.Get(d)
	pass := r.mixed
	for _, p := range r.pools[:r.numPool] {
		pass = pass || q.passesAny(uint32(p))
	}
	if !pass || q.r.count == 0 || q.r.share != 0 {
		return pass
	}
	k, free := uint32(q.r.count), *t.free.Get(d)
	if uint64(free/k) < want {
		return false
	}
	var have uint64
	most := min(uint32(r.widest), free)
	for g := k; g <= most && have < want; g++ {
		have += uint64(*t.sizes.Get(d*numSizes + g)) * uint64(g/k)
	}
	return have >= want
}
