package scheduler

import "github.com/gpuai/gpuai"

// A Picker chooses the places of the tasks of one shape, one after the other,
// within a scope and in as few domains of a closer level as there is room for.
// What it chose must have been taken before it is asked again.
type Picker struct {
	Scope Scope
	Near  gpuai.Topology

	sub  Scope  // domain that is being filled
	most uint64 // room of sub when it was chosen: no other has more; 0 before
	node uint32
	has  bool // sub is set
	at   bool // node is set
}

// Pick returns the place of the next task, of which rest are to come with this
// one.
//
// Without a wish the order is that of Find. Within a domain a node is filled
// before the next is chosen. With Near, the domain with the fewest free devices
// that has room for all the rest is chosen, or else the one with the most room.
func (s *State) Pick(p *Picker, id ShapeID, rest uint32) (Fit, bool) {
	if p.at {
		if f, ok := s.FitsOn(id, p.node); ok {
			return f, true
		}
		p.at = false
	}
	if p.Near == gpuai.TopologyNone || p.Scope.level != gpuai.TopologyNone && p.Near >= p.Scope.level {
		return s.pickIn(p, p.Scope, id)
	}
	if p.has {
		if f, ok := s.pickIn(p, p.sub, id); ok {
			return f, true
		}
	}
	q := s.query(id)
	q.most = p.most
	best := q.nearest(p.Scope, p.Near, uint64(rest))
	s.charge(&q)
	if best.room == 0 {
		return Fit{}, false
	}
	p.sub, p.most, p.has = best.sc, best.room, true
	return s.pickIn(p, p.sub, id)
}

func (s *State) pickIn(p *Picker, sc Scope, id ShapeID) (Fit, bool) {
	f, ok := s.FindIn(sc, id)
	if ok && sc.level != gpuai.TopologyNone && sc.level != gpuai.TopologyZone {
		p.node, p.at = f.Node, true
	}
	return f, ok
}

// A roomy is the best domain for the rest of a gang seen so far.
type roomy struct {
	sc   Scope
	room uint64
}

// better reports whether room for so many tasks is more use than the best: the
// least that is enough for want, or else the most.
func (b *roomy) better(room, want uint64) bool {
	if b.room >= want {
		return room >= want && room < b.room
	}
	return room > b.room
}

// nearest returns the domain of a level in a scope to put the rest of a gang in.
func (q *query) nearest(sc Scope, level gpuai.Topology, rest uint64) roomy {
	var best roomy
	l, kept := keptLevel(level)
	_, inner := keptLevel(sc.level)
	switch {
	case sc.level == gpuai.TopologyNode:
		best = roomy{sc, q.roomIn(sc, rest)}
	case inner:
		best = q.nearestInside(sc, level, rest)
	case level == gpuai.TopologyZone:
		best = q.nearestZone(rest)
	case kept:
		best = q.nearestKept(sc, l, level, rest)
		if best.room < rest { // nodes without a domain may have more
			if n := q.nearestNode(sc, rest); n.room > best.room {
				best = n
			}
		}
	default:
		best = q.nearestNode(sc, rest)
	}
	return best
}

// nearestKept looks at the domains of a level: first, from the fewest free
// devices on, for one with room for the rest, then from the most on for the one
// with the most.
func (q *query) nearestKept(sc Scope, l int, level gpuai.Topology, rest uint64) (best roomy) {
	t := &q.topo[l]
	sum := t.sum.Get()
	k := uint64(q.r.count)
	for row, ok := sum.rowFrom(uint32(min(rest*k, maxRow))); ok; row, ok = sum.rowFrom(row + 1) {
		for d, ok := t.nextIn(row, 0); ok; d, ok = t.nextIn(row, d+1) {
			at := Scope{level: level, at: d}
			if q.covers(sc, l, d) && q.mayHold(l, d, rest) && q.roomIn(at, rest) >= rest {
				return roomy{at, rest}
			}
		}
	}
	for row, ok := sum.rowUpTo(maxRow); ok; row, ok = sum.rowBelow(row) {
		if row < maxRow && k > 0 && uint64(row)/k <= best.room && q.r.share == 0 {
			return best // no room for more in what is left
		}
		for d, ok := t.nextIn(row, 0); ok; d, ok = t.nextIn(row, d+1) {
			if !q.covers(sc, l, d) || !q.mayHold(l, d, best.room+1) {
				continue
			}
			if room := q.roomIn(Scope{level: level, at: d}, rest); room > best.room {
				best = roomy{Scope{level: level, at: d}, room}
			}
			if best.room > 0 && best.room == q.most {
				return best
			}
		}
	}
	return best
}

// covers reports whether a zone, or everywhere, has a domain in it.
func (q *query) covers(sc Scope, l int, d uint32) bool {
	first := q.topo[l].domains.Get(d).first
	return sc.level == gpuai.TopologyNone || q.ScopeOf(gpuai.TopologyZone, first-1) == sc
}

// nearestNode returns the node that Find would give to one task as large as the
// rest, or else one with the most wholly free devices.
func (q *query) nearestNode(sc Scope, rest uint64) roomy {
	n := query{State: q.State}
	if sc.level == gpuai.TopologyZone {
		n.confine(sc.at)
	}
	r := *q.r
	n.r = &r
	if k := rest * uint64(r.count); k <= gpuai.MaxGPUs && r.share == 0 && rest <= r.scalable() {
		r.count, r.cpu, r.mem, r.scratch = uint16(k), r.cpu*int64(rest), r.mem*rest, r.scratch*int64(rest)
		if f, ok := n.find(); ok {
			q.ticks += n.ticks
			return roomy{Scope{level: gpuai.TopologyNode, at: f.Node}, rest}
		}
		r = *q.r
	}
	if r.count == 0 {
		return q.nodeForMost(&n, rest)
	}
	f, ok := n.findMost()
	q.ticks += n.ticks + tickNode
	if !ok {
		return roomy{}
	}
	return roomy{Scope{level: gpuai.TopologyNode, at: f.Node}, min(q.roomOn(f.Node), rest)}
}

// nodeForMost returns the node that has room for the most tasks without devices,
// fewer than rest; n searches where the gang may go.
func (q *query) nodeForMost(n *query, rest uint64) (best roomy) {
	for low, high := uint64(1), min(rest-1, q.r.scalable()); low <= high; {
		tasks := low + (high-low)/2
		n.r.cpu, n.r.mem, n.r.scratch = q.r.cpu*int64(tasks), q.r.mem*tasks, q.r.scratch*int64(tasks)
		if f, ok := n.find(); ok {
			best, low = roomy{Scope{level: gpuai.TopologyNode, at: f.Node}, tasks}, tasks+1
		} else {
			high = tasks - 1
		}
	}
	q.ticks += n.ticks + tickNode
	return best
}

// scalable returns how many tasks' CPU and memory a record can hold.
func (r *shapeRec) scalable() uint64 {
	return min(uint64(gpuai.MaxCPU)/uint64(max(r.cpu, 1)), uint64(gpuai.MaxMemory)/max(r.mem, uint64(r.scratch), 1)) - 1
}

// findMost is find from the other end: the class with the most free devices
// first.
func (q *query) findMost() (Fit, bool) {
	sum := q.sums.Get()
	for n := numClasses; n > int(q.r.firstClass()); n-- {
		c := uint32(n) - 1
		if sum.classes[c>>6]>>(c&63)&1 == 0 || !q.r.usesClass(c) {
			continue
		}
		for alt := range q.r.alts {
			if key, pool, ok := q.findClass(alt, c); ok {
				return q.fit(q.r, place{key, c, pool, alt}), true
			}
		}
	}
	return Fit{}, false
}

// nearestZone compares the zones by a bound of their room.
func (q *query) nearestZone(rest uint64) (best roomy) {
	var first uint32
	for z := range q.zonePools.Len() {
		pool, ok := q.firstPool(z)
		if !ok {
			continue
		}
		at := Scope{level: gpuai.TopologyZone, at: z}
		room := q.roomIn(at, gpuai.MaxTasks)
		if _, ok := q.findIn(at); !ok { // room is a bound
			continue
		}
		if best.better(room, rest) || room == best.room && pool < first {
			best, first = roomy{at, room}, pool
		}
	}
	q.only = nil
	return best
}

// nearestInside compares the domains of a level, and the nodes that have none,
// of a rack or an NVLink domain.
func (q *query) nearestInside(sc Scope, level gpuai.Topology, rest uint64) (best roomy) {
	l, kept := keptLevel(level)
	if kept && len(q.rooms) < int(q.topo[l].domains.Len()) {
		q.State.rooms = make([]uint64, q.topo[l].domains.Len())
	}
	least := ^uint32(0) // the order of what has the same room: by number
	for n := q.members(sc); n != 0; n = q.after(sc, n) {
		if !q.inside(sc, n-1) {
			continue
		}
		room := q.roomOn(n - 1)
		if d := uint32(0); kept {
			if d = q.topo[l].domainOf(n - 1); d != 0 {
				q.rooms[d-1] += room
				continue
			}
		}
		if room > 0 && (best.better(room, rest) || room == best.room && n < least) {
			best, least = roomy{Scope{level: gpuai.TopologyNode, at: n - 1}, room}, n
		}
	}
	if kept {
		q.roomsInside(sc, level, rest, &best)
	}
	return best
}

// roomsInside compares the domains whose rooms were summed up, and clears them.
func (q *query) roomsInside(sc Scope, level gpuai.Topology, rest uint64, best *roomy) {
	l, _ := keptLevel(level)
	least := ^uint32(0)
	for n := q.members(sc); n != 0; n = q.after(sc, n) {
		d := q.topo[l].domainOf(n - 1)
		if d == 0 || q.rooms[d-1] == 0 {
			continue
		}
		room := q.rooms[d-1]
		q.rooms[d-1] = 0
		if best.better(room, rest) || room == best.room && d < least {
			at := Scope{level: level, at: d - 1}
			if sc.level == gpuai.TopologyRack {
				at.outer, at.in = gpuai.TopologyRack, sc.at
			}
			*best, least = roomy{at, room}, d
		}
	}
}
