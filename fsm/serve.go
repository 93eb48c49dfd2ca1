package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// serve places what waits on a node that gained room, in queue order, and what
// nobody has tried yet wherever it fits; false when the budget ended first. A turn
// comes into the heap when it is the first of its band that the node may have
// room for, and stands there with the first such of its buckets. So what is
// looked at are a few turns of a band's tree for each that has its turn but
// nothing that fits.
func (m *Machine) serve(node uint32) bool {
	m.cands = m.cands[:0]
	m.lookAtDisplacers(node)
	for b, ok := m.unseen.Next(0); ok; b, ok = m.unseen.Next(b + 1) {
		m.now.work -= workLook
		m.offer(b)
	}
	room := m.sched.Room(node)
	if m.turns.mayTake(&room) {
		m.arrange()
		m.enterBands(0, &room)
	}
	for len(m.cands) > 0 {
		if m.now.work <= 0 || m.now.ordinal >= MaxLeasesPerEntry {
			m.now.work = min(m.now.work, 0)
			return false
		}
		c := m.take()
		if c.opens {
			m.enterBands(bandOf(c.base, c.grows), &room)
			continue
		}
		if c.below != 0 {
			m.descend(&c, &room)
			continue
		}
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
		m.follow(c, queueKey{place: c.seq, idx: c.idx}, room)
		return true
	}
	if m.mayServe(b, node) && m.mayPay(b, node) {
		_, final := m.placeGroup(c.group)
		if !final {
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
	m.follow(c, queueKey{place: c.seq, idx: c.idx}, room)
	return true
}

// offerTurn puts a turn into the heap by its first bucket, whether the room is
// enough for that or not: those of most turns are never looked at. With aging, it
// is the first that the room may be enough for. It reports whether the room may
// be enough for any.
func (m *Machine) offerTurn(turn uint32, room *scheduler.Need) bool {
	t := m.turns.recs.Get(turn)
	if t.buckets == 0 || !room.Covers(&m.turns.leafs.Get(t.root.slot()).least) {
		return false
	}
	if m.policy.Get().AgingEvery > 0 {
		m.advance(turn, queueKey{}, room)
		return true
	}
	m.push(candidate{
		inTurn: true, lazy: true, base: t.priority, of: t.tenant, priority: t.priority, grows: t.grows, tenant: t.tenant,
		claim: m.turns.standings.Get(turn).line.claimAt(m.meta.Get().time),
		seq:   t.first.place, idx: t.first.idx,
	})
	return true
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
	if m.policy.Get().AgingEvery == 0 {
		return j.priority
	}
	return m.agedBy(j.priority, m.since(j))
}

// agedBy is aged of a job that is in the queue since an instant. AgingEvery is
// not 0.
func (m *Machine) agedBy(p gpuai.Priority, since gpuai.Instant) gpuai.Priority {
	waited := max(gpuai.Duration(m.meta.Get().time-since), 0) / m.policy.Get().AgingEvery
	return gpuai.Priority(min(int64(p)+int64(waited), int64(max(gpuai.MaxPriority, p))))
}
