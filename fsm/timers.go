package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A timerKind says whose timer it is and what it does.
type timerKind uint8

const (
	timerTask      timerKind = iota + 1 // a task's back-off ends
	timerGroup                          // a gang's back-off ends
	timerJob                            // a job's queue-time limit
	timerLease                          // a task's run-time limit
	timerNode                           // a node's quarantine ends
	timerBegin                          // a job's time to begin comes
	timerBarrier                        // a gang's members must be ready
	timerBill                           // the next slice of a lease is to be held
	timerToken                          // an access token is forgotten; in expiries
	timerJoinToken                      // the same for a join token
	timerIdentity                       // and for a node or server that joined
	timerUsedJoin                       // a used join token expires; in usedJoins

	numTimerKinds
)

type timerEnt struct {
	at   gpuai.Instant
	slot uint32
	kind timerKind
}

func (a *timerEnt) before(b *timerEnt) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	if a.kind != b.kind {
		return a.kind < b.kind
	}
	return a.slot < b.slot
}

// timers is a binary heap of (instant, kind, slot). Each record keeps its place
// in the heap, so that a timer which is no longer wanted leaves at once. The
// heap is derived: a snapshot does not hold it.
type timers struct {
	heap  *mem.Table[timerEnt]
	n     mem.Var[uint32]
	place func(kind timerKind, slot uint32) *uint32 // the record's own place, for writing
}

func newTimers(s *mem.Space) *timers {
	return &timers{heap: mem.NewTable[timerEnt](s, 8), n: mem.NewVar[uint32](s, 0)}
}

func (t *timers) fork(ns *mem.Space) *timers {
	return &timers{heap: t.heap.Fork(ns), n: t.n.Fork(ns)}
}

// next returns the earliest timer.
func (t *timers) next() (timerEnt, bool) {
	if *t.n.Get() == 0 {
		return timerEnt{}, false
	}
	return *t.heap.Get(0), true
}

// set starts a record's timer, or moves it.
func (t *timers) set(at gpuai.Instant, kind timerKind, slot uint32) {
	p := t.place(kind, slot)
	i := *p - 1
	if *p == 0 {
		n := t.n.Mut()
		i = *n
		*n++
		t.heap.Grow(*n)
	}
	t.put(i, timerEnt{at, slot, kind})
	t.down(t.up(i))
}

// clear stops the timer whose place is p, if it runs.
func (t *timers) clear(p *uint32) {
	if *p == 0 {
		return
	}
	i := *p - 1
	*p = 0
	n := t.n.Mut()
	*n--
	last := *t.heap.Get(*n)
	*t.heap.Mut(*n) = timerEnt{}
	if i == *n {
		return
	}
	t.put(i, last)
	t.down(t.up(i))
}

func (t *timers) put(i uint32, e timerEnt) {
	*t.heap.Mut(i) = e
	*t.place(e.kind, e.slot) = i + 1
}

// up moves entry i towards the root, to where it belongs, and returns its place.
func (t *timers) up(i uint32) uint32 {
	e, from := *t.heap.Get(i), i
	for i > 0 {
		parent := *t.heap.Get((i - 1) / 2)
		if !e.before(&parent) {
			break
		}
		t.put(i, parent)
		i = (i - 1) / 2
	}
	if i != from {
		t.put(i, e)
	}
	return i
}

// down moves entry i away from the root, to where it belongs.
func (t *timers) down(i uint32) {
	e, from, n := *t.heap.Get(i), i, *t.n.Get()
	for c := 2*i + 1; c < n; c = 2*i + 1 {
		if c+1 < n && t.heap.Get(c+1).before(t.heap.Get(c)) {
			c++
		}
		kid := *t.heap.Get(c)
		if !kid.before(&e) {
			break
		}
		t.put(i, kid)
		i = c
	}
	if i != from {
		t.put(i, e)
	}
}

// placeTimers has the heaps find their records.
func (m *Machine) placeTimers() {
	m.timers.place, m.expiries.place, m.usedJoins.place = m.timerPlace, m.timerPlace, m.timerPlace
}

// timerPlace returns where a record keeps its place in the heap.
func (m *Machine) timerPlace(kind timerKind, slot uint32) *uint32 {
	switch kind {
	case timerTask:
		return &m.tasks.Mut(slot).timer
	case timerGroup:
		return &m.groups.Mut(slot).timer
	case timerJob, timerBegin: // a job has one or the other
		return &m.jobs.Mut(slot).timer
	case timerLease:
		return &m.leases.Mut(slot).timer
	case timerBarrier:
		return &m.groups.Mut(slot).barrier
	case timerBill:
		return &m.bills.Mut(slot).timer
	case timerToken:
		return &m.tokens.Mut(slot).timer
	case timerJoinToken:
		return &m.joinTokens.Mut(slot).timer
	case timerIdentity:
		return &m.identities.Mut(slot).timer
	case timerUsedJoin:
		return &m.joinTokens.Mut(slot).usedAt
	default:
		return &m.nodes.Mut(slot).timer
	}
}

// fireTimers runs every timer that is due, within the entry's budget.
func (m *Machine) fireTimers() {
	for m.now.work > 0 {
		e, ok := m.timers.next()
		if !ok || e.at > m.now.time {
			return
		}
		m.now.work -= workEnd
		m.timers.clear(m.timers.place(e.kind, e.slot))
		switch e.kind {
		case timerTask:
			m.backOffOver(e.slot)
		case timerGroup:
			m.gangBackOffOver(e.slot)
		case timerJob:
			m.queueTimeOver(e.slot)
		case timerLease:
			m.revoke(e.slot, gpuai.CauseRunTime)
		case timerNode:
			m.quarantineOver(e.slot)
		case timerBegin:
			m.beginOver(e.slot)
		case timerBarrier:
			m.barrierOver(e.slot)
		case timerBill:
			m.extendBill(e.slot)
		}
	}
}
