package scheduler

import "github.com/gpuai/gpuai"

// FindReclaimIn is FindReclaim in a zone, or everywhere.
func (s *State) FindReclaimIn(sc Scope, id ShapeID, limit Band) (node uint32, ok bool) {
	q := s.query(id)
	q.confineTo(sc)
	node, ok = q.findReclaim(limit)
	s.charge(&q)
	return node, ok
}

// ReclaimRoomIn is ReclaimRoom in a zone, or everywhere. It says too which is the
// highest band that it counted.
func (s *State) ReclaimRoomIn(sc Scope, id ShapeID, limit Band, most uint32) (room uint32, upTo Band) {
	q := s.query(id)
	q.confineTo(sc)
	room, upTo = q.reclaimRoom(limit, most)
	s.charge(&q)
	return room, upTo
}

// confineTo has the search look at a zone only, if the scope is one.
func (q *query) confineTo(sc Scope) {
	if sc.level == gpuai.TopologyZone {
		q.confine(sc.at)
	}
}

// passingOf returns which pools of a word pass for an alternative, and are looked
// at.
func (q *query) passingOf(w uint32, alt uint8) uint64 {
	m := q.mask(q.r.filters[alt], w)
	if q.only != nil {
		m &= q.only[w]
	}
	return m
}

// A Taking says what it would take to make room in a domain.
type Taking struct {
	Band  Band   // the highest that must go; 0 when nothing need go
	Lacks uint32 // tasks that have no room now
}

// TakingIn returns up to which band holdings of some nodes must go so that the
// least of each need has room there by itself; false when it is not enough that
// all below limit go. Of shares, and of nodes with devices of several kinds, it
// may promise too much. It only reads, and looks at each node and its rows once for
// each need.
func (s *State) TakingIn(nodes []uint32, needs []Members, limit Band) (t Taking, ok bool) {
	for i := range needs {
		band, lacks, ok := s.takingOf(nodes, &needs[i], limit)
		if !ok {
			return Taking{}, false
		}
		t.Band = max(t.Band, band)
		t.Lacks += lacks
	}
	return t, true
}

func (s *State) takingOf(nodes []uint32, n *Members, limit Band) (band Band, lacks uint32, ok bool) {
	q := s.query(n.Shape)
	var gain [NumBands]uint64 // tasks more once a band has gone
	now, want := uint64(0), uint64(n.Min)
	for _, node := range nodes {
		room := q.roomOn(node)
		now += room
		if room >= want || !s.Reclaimable(node) {
			continue
		}
		q.gains(node, room, limit, &gain)
	}
	if now >= want {
		return 0, 0, true
	}
	lacks = uint32(want - now)
	for b := s.reclaim.bands.Get().next(0); b < limit; b = s.reclaim.bands.Get().next(b + 1) {
		if now += gain[b]; now >= want {
			return b, lacks, true
		}
	}
	return 0, lacks, false
}

// gains adds for how many tasks more than room a node has room with each band
// that goes.
func (q *query) gains(node uint32, room uint64, limit Band, gain *[NumBands]uint64) {
	n := q.nodes.Get(node)
	above, band := uint64(0), NumBands // tasks once band has gone, and the band: they come from the highest down
	x := &q.reclaim
	for at := *x.first.Get(node); at != 0; {
		row := x.rows.Get(at - 1)
		at = row.next
		if row.band >= limit {
			continue
		}
		tasks, b, scratch := q.tasksOf(row), int(row.band), row.scratch
		for at != 0 && x.rows.Get(at-1).band == row.band {
			tasks += q.tasksOf(x.rows.Get(at - 1))
			at = x.rows.Get(at - 1).next
		}
		tasks = max(min(tasks, q.r.within(int64(reclaimCPU(row.whole)), int64(row.mem)), q.r.lentBy(n.freeWith(scratch))), room)
		if band < NumBands {
			gain[band] += above - min(above, tasks)
		}
		above, band = tasks, b
	}
	if band < NumBands {
		gain[band] += above - room
	}
}

// tasksOf bounds how many tasks a unit would take, of its devices alone.
func (q *query) tasksOf(row *reclaimRow) uint64 {
	if !q.passesAny(uint32(row.pool)) {
		return 0
	}
	whole := reclaimPrefix(row.whole)
	switch {
	case q.r.share != 0 && (whole > 0 || reclaimPrefix(row.parts) >= uint64(q.r.share)):
		return gpuai.MaxTasks
	case q.r.share != 0:
		return 0
	}
	return q.r.tasksOn(uint32(whole))
}

// ReclaimBands returns the bands below limit of which some nodes have holdings
// listed, the lowest first: at most most of them, of more the first of each run
// is left out. It only reads.
func (s *State) ReclaimBands(nodes []uint32, limit Band, most int) []Band {
	var used [NumBands]bool
	count := 0
	for _, node := range nodes {
		if !s.Reclaimable(node) {
			continue
		}
		for at := *s.reclaim.first.Get(node); at != 0; at = s.reclaim.rows.Get(at - 1).next {
			if b := s.reclaim.rows.Get(at - 1).band; b < limit && !used[b] {
				used[b] = true
				count++
			}
		}
	}
	out := make([]Band, 0, min(count, most))
	left := count
	for b := Band(0); b < NumBands && left > 0; b++ {
		if !used[b] {
			continue
		}
		if left--; left*most < (most-len(out))*count || left == 0 { // evenly, the last one always
			out = append(out, b)
		}
	}
	return out
}
