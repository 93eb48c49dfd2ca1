package scheduler

import (
	"math"

	"github.com/gpuai/gpuai"
)

// A Members is the tasks of one shape that a gang, or one group of a job whose
// groups start together, has: Count of them if there is room, at least Min.
type Members struct {
	Shape      ShapeID
	Count, Min uint32
}

// A Search goes over the domains of one level that have room for all that is
// needed, in the order in which they are to be tried: those with room for every
// Count before those that have it only for every Min.
type Search struct {
	Level gpuai.Topology
	Needs []Members

	step   uint8
	row    uint32
	domain uint32 // next one of the row
	zone   zoneKey
	zoned  bool // zone is of one that was given
	tried  bool // the step's node was given
}

// Steps of a search.
const (
	stepNode       = iota // one node, the tightest, for every Count
	stepDomain            // the domain with the fewest free devices
	stepDomainMost        // the domain with the most free devices, for every Min
	stepNodeFewer         // as many as one node has room for
	stepEnd
)

// Next returns the next domain to try. For a single need, and any level but a
// zone, the first one has the room; a zone, and several needs, must be tried.
// At a node only the first of each step is given.
func (s *State) Next(x *Search) (Scope, bool) {
	if x.Level == gpuai.TopologyNone {
		first := x.step == stepNode
		x.step = stepEnd
		return Scope{}, first
	}
	s.spent = 0
	sc, ok := s.nextStep(x)
	s.work += workSearch + s.spent/ticksPerUnit
	return sc, ok
}

func (s *State) nextStep(x *Search) (Scope, bool) {
	for ; x.step < stepEnd; x.step++ {
		if sc, ok := s.nextOf(x); ok {
			return sc, true
		}
		x.row, x.domain, x.zoned, x.tried = 0, 0, false, false
	}
	return Scope{}, false
}

func (s *State) nextOf(x *Search) (Scope, bool) {
	fewer := x.step >= stepDomainMost
	node := x.step == stepNode || x.step == stepNodeFewer
	zone := x.Level == gpuai.TopologyZone
	l, kept := keptLevel(x.Level)
	switch {
	case fewer && !x.elastic(), node && (x.tried || zone), !node && !zone && !kept:
		return Scope{}, false
	case zone:
		return s.nextZone(x, fewer)
	case node:
		x.tried = true
		if fewer {
			return s.nodeWithFewer(x)
		}
		return s.nodeFor(x.Needs, false)
	case fewer:
		return s.roomiest(x, l)
	}
	return s.tightest(x, l)
}

func (x *Search) elastic() bool {
	for _, n := range x.Needs {
		if n.Min < n.Count {
			return true
		}
	}
	return false
}

// want returns how many tasks a search asks for at its step.
func (n *Members) want(fewer bool) uint32 {
	if fewer {
		return n.Min
	}
	return n.Count
}

// devices returns how many whole devices all that is needed takes.
func (s *State) devices(needs []Members, fewer bool) uint64 {
	var sum uint64
	for i := range needs {
		if r := s.shapes.Get(uint32(needs[i].Shape)); r.share == 0 {
			sum += uint64(needs[i].want(fewer)) * uint64(r.count)
		}
	}
	return sum
}

// tightest returns the next domain of a level, by its free devices and then its
// number, that has room for each need.
func (s *State) tightest(x *Search, l int) (Scope, bool) {
	t := &s.topo[l]
	sum := t.sum.Get()
	least := s.devices(x.Needs, false)
	if x.row == 0 {
		x.row = uint32(min(least, maxRow))
	}
	for row, ok := sum.rowFrom(x.row); ok; row, ok = sum.rowFrom(row + 1) {
		if row != x.row {
			x.row, x.domain = row, 0
		}
		for d, ok := t.nextIn(row, x.domain); ok; d, ok = t.nextIn(row, d+1) {
			if uint64(*t.free.Get(d)) >= least && s.holds(x, l, d, false) {
				x.domain = d + 1
				return Scope{level: x.Level, at: d}, true
			}
		}
	}
	return Scope{}, false
}

// roomiest returns the next domain of a level that has room for the least of
// each need: the one with the most free devices first.
func (s *State) roomiest(x *Search, l int) (Scope, bool) {
	t := &s.topo[l]
	sum := t.sum.Get()
	least := s.devices(x.Needs, true)
	if least == 0 && len(x.Needs) == 1 {
		return s.mostRoom(x, l)
	}
	if x.row == 0 && x.domain == 0 {
		x.row = maxRow
	}
	for row, ok := sum.rowUpTo(x.row); ok && uint64(row) >= min(least, maxRow); row, ok = sum.rowBelow(row) {
		if row != x.row {
			x.row, x.domain = row, 0
		}
		for d, ok := t.nextIn(row, x.domain); ok; d, ok = t.nextIn(row, d+1) {
			if uint64(*t.free.Get(d)) >= least && s.holds(x, l, d, true) {
				x.domain = d + 1
				return Scope{level: x.Level, at: d}, true
			}
		}
	}
	return Scope{}, false
}

// mostRoom is roomiest for a single need without devices: the domain with room for
// the most of it, which free devices say nothing of.
func (s *State) mostRoom(x *Search, l int) (Scope, bool) {
	n, t := &x.Needs[0], &s.topo[l]
	best, at := uint64(n.Min)-1, uint32(0)
	q := s.query(n.Shape)
	for d, ok := t.slots.Next(0); ok && !x.tried; d, ok = t.slots.Next(d + 1) {
		if !q.mayHold(l, d, best+1) {
			continue
		}
		if room := q.roomIn(Scope{level: x.Level, at: d}, uint64(n.Count)); room > best {
			best, at = room, d
		}
	}
	s.spent += q.ticks
	found := !x.tried && best >= uint64(n.Min)
	x.tried = true
	return Scope{level: x.Level, at: at}, found
}

// holds reports whether a domain has room for each need by itself.
func (s *State) holds(x *Search, l int, d uint32, fewer bool) bool {
	for i := range x.Needs {
		n := &x.Needs[i]
		want := uint64(n.want(fewer))
		q := s.query(n.Shape)
		ok := q.mayHold(l, d, want) && q.roomIn(Scope{level: x.Level, at: d}, want) >= want
		s.spent += q.ticks
		if !ok {
			return false
		}
	}
	return true
}

// nodeFor returns the node that Find would give to one task that needs all at
// once, on devices of one kind.
func (s *State) nodeFor(needs []Members, fewer bool) (Scope, bool) {
	var all shapeRec
	if !s.sumUp(&all, needs, fewer) {
		return Scope{}, false
	}
	q := query{State: s, r: &all}
	q.only = &s.only
	s.passingAll(needs)
	f, ok := q.find()
	s.spent += q.ticks
	return Scope{level: gpuai.TopologyNode, at: f.Node}, ok
}

// sumUp writes what all needs are together, with the filters of the first that
// asks for whole devices; false when no node can have that much.
func (s *State) sumUp(all *shapeRec, needs []Members, fewer bool) bool {
	var cpu, mem, scratch, devices uint64
	found := false
	for i := range needs {
		r, n := s.shapes.Get(uint32(needs[i].Shape)), uint64(needs[i].want(fewer))
		cpu, mem = cpu+n*uint64(r.cpu), mem+n*r.mem
		scratch = min(scratch+n*uint64(r.scratch), math.MaxInt64)
		if r.share == 0 {
			devices += n * uint64(r.count)
		}
		if whole := r.share == 0 && r.count > 0; i == 0 || whole && !found {
			all.filters, all.alts, found = r.filters, r.alts, whole
		}
	}
	if devices > gpuai.MaxGPUs || cpu >= uint64(gpuai.MaxCPU) || mem >= uint64(gpuai.MaxMemory) {
		return false
	}
	all.cpu, all.mem, all.scratch, all.count = int64(cpu), mem, int64(scratch), uint16(devices)
	return true
}

// passingAll leaves in only the pools that pass for each need.
func (s *State) passingAll(needs []Members) {
	for w := range s.sums.Get().words {
		s.only[w] = ^uint64(0)
		for i := range needs {
			r, any := s.shapes.Get(uint32(needs[i].Shape)), uint64(0)
			for alt := range r.alts {
				any |= s.mask(r.filters[alt], w)
			}
			s.only[w] &= any
		}
	}
}

// nodeWithFewer returns a node with room for as many tasks of a single need as
// any has, or for the least of several.
func (s *State) nodeWithFewer(x *Search) (Scope, bool) {
	if len(x.Needs) != 1 {
		return s.nodeFor(x.Needs, true)
	}
	n := x.Needs[0]
	r := s.shapes.Get(uint32(n.Shape))
	if r.count == 0 {
		return s.nodeWithMost(n)
	}
	n.Count = min(n.Count, gpuai.MaxGPUs/uint32(r.count)+1)
	for n.Count--; n.Count >= n.Min && n.Count > 0; n.Count-- {
		one := [1]Members{n}
		if sc, ok := s.nodeFor(one[:], false); ok {
			return sc, true
		}
	}
	return Scope{}, false
}

// nodeWithMost is nodeWithFewer for tasks without devices, of which a node may
// take thousands.
func (s *State) nodeWithMost(n Members) (best Scope, found bool) {
	for low, high := n.Min, n.Count-1; low <= high && high > 0; {
		one := [1]Members{n}
		one[0].Count = low + (high-low)/2
		if sc, ok := s.nodeFor(one[:], false); ok {
			best, found, low = sc, true, one[0].Count+1
		} else {
			high = one[0].Count - 1
		}
	}
	return best, found
}

// A zoneKey orders zones: by what they have room for, then by their first pool.
type zoneKey struct {
	room uint64
	pool uint32
}

func (a zoneKey) before(b zoneKey) bool {
	return a.room < b.room || a.room == b.room && a.pool < b.pool
}

// nextZone returns the next zone that may have room for each need: the one with
// the least room first, or with fewer the one with the most.
func (s *State) nextZone(x *Search, fewer bool) (Scope, bool) {
	var best zoneKey
	at, found := uint32(0), false
	for z := range s.zonePools.Len() {
		first, ok := s.firstPool(z)
		if !ok {
			continue
		}
		k := zoneKey{pool: first}
		if k.room, ok = s.zoneRoom(x, z, fewer); !ok {
			continue
		}
		if fewer {
			k.room = ^k.room
		}
		if x.zoned && !x.zone.before(k) {
			continue
		}
		if !found || k.before(best) {
			best, at, found = k, z, true
		}
	}
	x.zone, x.zoned = best, found
	return Scope{level: gpuai.TopologyZone, at: at}, found
}

// zoneRoom returns how much of the first need a zone may have room for; false
// when it is certain to lack it for any.
func (s *State) zoneRoom(x *Search, zone uint32, fewer bool) (room uint64, ok bool) {
	for i := range x.Needs {
		q := s.query(x.Needs[i].Shape)
		have := q.roomIn(Scope{level: gpuai.TopologyZone, at: zone}, gpuai.MaxTasks)
		s.spent += q.ticks
		if have < uint64(x.Needs[i].want(fewer)) {
			return 0, false
		}
		if i == 0 {
			room = have
		}
	}
	return room, true
}
