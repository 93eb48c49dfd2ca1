package scheduler

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// EverHolds reports whether the registered nodes could hold the least of each
// need in one domain of a level if they were open, healthy and empty. A single
// need is judged as EverCapacity does; of several, each alone and the devices
// of all. It only reads.
func (s *State) EverHolds(level gpuai.Topology, needs []Members) bool {
	l, kept := keptLevel(level)
	switch {
	case level == gpuai.TopologyNone:
		return s.everIn(needs, nil)
	case level == gpuai.TopologyZone:
		return s.everZone(needs)
	case s.everNode(needs):
		return true
	case kept:
		return s.everDomain(l, needs)
	}
	return false
}

// everIn judges each need over the pools of only.
func (s *State) everIn(needs []Members, only *[poolWords]uint64) bool {
	for i := range needs {
		q := s.query(needs[i].Shape)
		q.only = only
		if q.everCapacity(uint64(needs[i].Min)) < uint64(needs[i].Min) {
			return false
		}
	}
	return true
}

func (s *State) everZone(needs []Members) bool {
	var only [poolWords]uint64
	for z := range s.zonePools.Len() {
		if _, ok := s.firstPool(z); !ok {
			continue
		}
		for w := range s.sums.Get().words {
			only[w] = *s.zoneMasks.Get(z*poolWords + w)
		}
		if s.everIn(needs, &only) {
			return true
		}
	}
	return false
}

// everNode reports whether one node could hold all at once.
func (s *State) everNode(needs []Members) bool {
	var all shapeRec
	if !s.sumUp(&all, needs, true) {
		return false
	}
	q := query{State: s, r: &all}
	return q.canEver()
}

func (s *State) everDomain(l int, needs []Members) bool {
	t, devices := &s.topo[l], s.devices(needs, true)
	for d, ok := t.slots.Next(0); ok; d, ok = t.slots.Next(d + 1) {
		if uint64(t.domains.Get(d).devices) < devices {
			continue
		}
		holds := true
		for i := 0; i < len(needs) && holds; i++ {
			q := s.query(needs[i].Shape)
			holds = q.couldHold(l, d, uint64(needs[i].Min))
		}
		if holds {
			return true
		}
	}
	return false
}

// couldHold reports whether a domain's nodes could hold so many tasks if they
// were open, healthy and empty.
func (q *query) couldHold(l int, d uint32, want uint64) bool {
	t := &q.topo[l]
	r := t.domains.Get(d)
	pass := r.mixed
	for _, p := range r.pools[:r.numPool] {
		pass = pass || q.passesAny(uint32(p))
	}
	var have uint64
	for n := r.first; n != 0 && pass && have < want; n = t.seats.Get(n - 1).next {
		have += q.mostOn(n - 1)
	}
	return have >= want
}

// mostOn returns how many tasks of the shape a node could take if it were open,
// healthy and empty.
func (q *query) mostOn(slot uint32) uint64 {
	n, r := q.nodes.Get(slot), q.r
	most := r.within(n.capCPU, n.capMem)
	if n.scratch != 0 {
		most = min(most, r.lentBy(n.scratch))
	}
	var have uint64
	for u := &n.unit; u != nil && have < most; u = q.next(u) {
		if q.passesAny(uint32(u.pool)) {
			have += r.tasksOn(uint32(bits.OnesCount64(u.devs)))
		}
	}
	return min(have, most)
}

// A Closest is the domain of a level that has room for the most tasks.
type Closest struct {
	Name    string // of a node: none
	Zone    string
	Node    uint32 // when the domain is one node
	Room    uint32 // tasks that could start there now
	Domains uint32 // looked at, nodes without a domain too
}

// ClosestTo returns which domain of a level has room for the most tasks of a
// shape, at most limit. It looks at every node, so call it on a fork. It only
// reads, and allocates.
func (s *State) ClosestTo(level gpuai.Topology, id ShapeID, limit uint32) Closest {
	q := s.query(id)
	rooms := map[Scope]uint64{}
	var best Closest
	for slot := range s.nodes.Len() {
		if !s.nodes.Get(slot).known {
			continue
		}
		sc := s.ScopeOf(level, slot)
		if _, seen := rooms[sc]; !seen {
			best.Domains++
		}
		rooms[sc] += q.roomOn(slot)
		if room := uint32(min(rooms[sc], uint64(limit))); room > best.Room {
			best.Room, best.Node = room, slot
			best.Zone, best.Name = s.nameOf(sc, slot)
		}
	}
	return best
}

// nameOf returns the zone and the name of a domain that a node is in.
func (s *State) nameOf(sc Scope, slot uint32) (zone, name string) {
	if l, ok := keptLevel(sc.level); ok {
		return domainName(s.poolBytes.Append(nil, s.topo[l].domains.Get(sc.at).def))
	}
	v := viewPool(s.poolBytes.Append(nil, s.pools.Get(uint32(s.nodes.Get(slot).unit.pool)).def))
	if sc.level == gpuai.TopologyZone {
		return string(v.zone), string(v.zone)
	}
	return string(v.zone), ""
}
