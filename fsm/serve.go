package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// serve places what waits on a node that gained room, in queue order, and what
// nobody has tried yet wherever it fits; false when the budget ended first. Each
// turn stands in the heap with the first of its buckets that the node may have
// room for, so that what is looked at is a bucket for each turn, and what comes
// behind in the turns that have nothing for the node.
func (m *Machine) serve(node uint32) bool {
	m.cands = m.cands[:0]
	for b, ok := m.starving.Next(0); ok; b, ok = m.starving.Next(b + 1) {
		if m.now.work -= workLook; m.mayDisplaceOn(b, node) {
			m.look(b)
		}
	}
	for b, ok := m.unseen.Next(0); ok; b, ok = m.unseen.Next(b + 1) {
		m.now.work -= workLook
		m.offer(b)
	}
	room := m.sched.Room(node)
	if m.turns.mayTake(&room) {
		for t, ok := m.turns.slots.Next(0); ok; t, ok = m.turns.slots.Next(t + 1) {
			m.now.work -= workLook
			m.offerTurn(t, &room)
		}
	}
	for len(m.cands) > 0 {
		if m.now.work <= 0 || m.now.ordinal >= MaxLeasesPerEntry {
			m.now.work = min(m.now.work, 0)
			return false
		}
		c := m.take()
		if now := m.claimOf(c.tenant); now != c.claim { // it was granted something
			c.claim = now
			m.push(c)
			continue
		}
		ok := true
		switch {
		case !c.inTurn:
			ok = m.serveUnseen(&c)
		case c.lazy:
			m.follow(&c, queueKey{}, &room)
		default:
			ok = m.serveTurn(&c, node, &room)
		}
		if !ok {
			m.now.work = min(m.now.work, 0)
			return false
		}
	}
	return true
}

// serveUnseen tries a bucket that nobody has tried.
func (m *Machine) serveUnseen(c *candidate) (final bool) {
	placed, final := m.placeGroup(c.group)
	switch {
	case !final:
		return false
	case !m.buckets.Get(c.bucket).used:
	case placed:
		m.offer(c.bucket)
	case m.displace(c.bucket):
		m.seen(c.bucket)
	default:
		return false // it must be tried everywhere
	}
	return true
}

// serveTurn tries the first bucket of a turn on a node, and puts the next of the
// turn into the heap.
func (m *Machine) serveTurn(c *candidate, node uint32, room *scheduler.Need) (final bool) {
	m.now.work -= workLook
	b := m.buckets.Get(c.bucket)
	if !m.turns.has(c.bucket) || b.first != refTo(c.group) {
		m.follow(c, queueKey{c.seq, c.idx}, room)
		return true
	}
	if m.mayServe(b, node) {
		if _, final := m.placeGroup(c.group); !final {
			if m.buckets.Get(c.bucket).used {
				m.look(c.bucket) // cut short: it must be tried everywhere
			}
			return false
		}
		if *room = m.sched.Room(node); !m.turns.mayTake(room) {
			m.forgetTurns()
			return true
		}
	}
	m.follow(c, queueKey{c.seq, c.idx}, room)
	return true
}

// offerTurn puts a turn into the heap by its first bucket, whether the room is
// enough for that or not: those of most turns are never looked at. With aging, it
// is the first that the room may be enough for.
func (m *Machine) offerTurn(turn uint32, room *scheduler.Need) {
	t := m.turns.recs.Get(turn)
	if m.policy.Get().AgingEvery > 0 {
		m.advance(turn, queueKey{}, room)
		return
	}
	if room.Covers(&m.turns.leafs.Get(t.root.slot()).least) {
		m.push(candidate{
			inTurn: true, lazy: true, base: t.priority, of: t.tenant, priority: t.priority, grows: t.grows, tenant: t.tenant, claim: m.claimOf(t.tenant),
			seq: t.first.place, idx: t.first.idx,
		})
	}
}

// follow puts the next bucket of a candidate's turn into the heap.
func (m *Machine) follow(c *candidate, after queueKey, room *scheduler.Need) {
	if turn, ok := m.turns.find(c.base, c.grows, c.of); ok {
		m.advance(turn, after, room)
	}
}

// advance puts the first bucket of a turn behind a key that the room may be
// enough for into the heap.
func (m *Machine) advance(turn uint32, after queueKey, room *scheduler.Need) {
	t := m.turns.recs.Get(turn)
	if !t.used {
		return
	}
	if b := m.turns.next(t.root, after, room, &m.now.looks); b != 0 {
		c := m.candidate(b.slot(), m.buckets.Get(b.slot()).first.slot())
		c.inTurn, c.base, c.of, c.grows = true, t.priority, t.tenant, t.grows
		m.push(c)
	}
	m.now.work -= m.now.looks * workLook
	m.now.looks = 0
}

// forgetTurns leaves only the buckets that nobody has tried in the heap: the
// node has no room for any other.
func (m *Machine) forgetTurns() {
	all := m.cands
	m.cands = m.cands[:0]
	for i := range all {
		if !all[i].inTurn {
			m.push(all[i])
		}
	}
}

// aged returns a job's priority with what it is raised for its time in the
// queue. Within a turn the oldest job has the highest.
func (m *Machine) aged(j *jobRec) gpuai.Priority {
	every := m.policy.Get().AgingEvery
	if every == 0 {
		return j.priority
	}
	waited := max(gpuai.Duration(m.meta.Get().time-m.since(j)), 0) / every
	return gpuai.Priority(min(int64(j.priority)+int64(waited), int64(max(gpuai.MaxPriority, j.priority))))
}
