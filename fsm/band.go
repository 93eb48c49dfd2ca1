package fsm

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// The turns of one priority are a band: a tree by tenant whose nodes know which
// turn is first in the order of the queue, of their own and those below, and until
// when. A tenant's claim is a line in time until the next step of the decay, so
// that the instant is known at which one line crosses another: a tree that nothing
// has touched need not be looked at before. All of it is derived, and the shape of a tree is
// a function of its tenants: a machine that was restored walks it as one that was
// not.
type bandRec struct {
	root    ref    // turn
	touched ref    // first of the turns whose place may be another now
	turns   uint32 // that have buckets
}

// A standing is a turn's place in its band's tree.
type standing struct {
	left, right ref            // turns
	best        ref            // the first in order of this and all below; 0: none has buckets
	until       gpuai.Instant  // from when on it may be another
	since       gpuai.Instant  // of the oldest group of this and all below
	least       scheduler.Need // of this and all below
	line        line           // of its own tenant
}

// A line is a tenant's claim as it grows within one step of the decay.
type line struct {
	usage   uint64 // at the instant at
	held    uint64 // what usage grows by in a millisecond
	weight  uint32
	at, end gpuai.Instant
}

// unmet is a need that no node has room for.
var unmet = scheduler.Need{CPU: math.MaxInt64, Memory: math.MaxInt64, Size: math.MaxUint8}

// bands is how many bands there may be, and workBand what one costs to enter.
const (
	numBands = 2 * (math.MaxUint8 + 1)
	workBand = 8
)

// bandOf numbers the bands in the order of the queue.
func bandOf(p gpuai.Priority, grows bool) uint32 {
	return uint32(^uint8(p))<<1 | uint32(bool8(grows))
}

// lineOf returns the line of a tenant from now on.
func (m *Machine) lineOf(tenant uint32) line {
	now, c := m.meta.Get().time, m.claimOf(tenant)
	l := line{usage: c.usage, weight: c.weight, at: now, end: gpuai.MaxInstant}
	if tenant >= m.tenantOf.Len() || *m.tenantOf.Get(tenant) == 0 {
		return l
	}
	r := m.tenants.Get(m.tenantOf.Get(tenant).slot())
	if l.held = r.held; l.held == 0 && l.usage == 0 {
		return l
	}
	step := int64(max(m.policy.Get().HalfLife()/decaySteps, 1))
	l.end = gpuai.Instant((int64(now)/step + 1) * step)
	if addSat(l.usage, mulSat(l.held, uint64(l.end-now))) >= 1<<63 {
		l.end = now + 1 // it may reach the greatest number: no line
	}
	return l
}

// claimAt returns the claim at an instant from at to end.
func (l *line) claimAt(now gpuai.Instant) claim {
	return claim{addSat(l.usage, mulSat(l.held, uint64(now-l.at))), l.weight}
}

// crosses returns when l, which is not above o now, may first be as high or
// higher.
func (l *line) crosses(o *line, now gpuai.Instant) gpuai.Instant {
	hi, fast := bits.Mul64(l.held, uint64(o.weight))
	hj, slow := bits.Mul64(o.held, uint64(l.weight))
	switch {
	case hi|hj != 0:
		return now + 1
	case fast <= slow:
		return gpuai.MaxInstant
	}
	low, high := l.claimAt(now), o.claimAt(now)
	ahi, alo := bits.Mul64(high.usage, uint64(low.weight))
	bhi, blo := bits.Mul64(low.usage, uint64(high.weight))
	lo, borrow := bits.Sub64(alo, blo, 0)
	hi, _ = bits.Sub64(ahi, bhi, borrow)
	if hi >= fast-slow {
		return gpuai.MaxInstant
	}
	ms, rest := bits.Div64(hi, lo, fast-slow)
	if ms >= uint64(gpuai.MaxInstant-now) {
		return gpuai.MaxInstant
	}
	return now + max(gpuai.Instant(ms)+gpuai.Instant(min(rest, 1)), 1)
}

// first returns which of two turns is first, and until when.
func (m *Machine) first(a, b ref, now gpuai.Instant) (ref, gpuai.Instant) {
	t := m.turns
	x, y := &t.standings.Get(a.slot()).line, &t.standings.Get(b.slot()).line
	c := x.claimAt(now).compare(y.claimAt(now))
	if c > 0 || c == 0 && t.recs.Get(b.slot()).first.before(t.recs.Get(a.slot()).first) {
		a, x, y = b, y, x
	}
	return a, x.crosses(y, now)
}

// stand computes what a turn's standing knows of it and of those below, whose
// own must be right. It reports whether anything is another than before.
func (m *Machine) stand(at ref) bool {
	t, now := m.turns, m.meta.Get().time
	turn, s := t.recs.Get(at.slot()), t.standings.Get(at.slot())
	if s.line.end <= now {
		l := m.lineOf(turn.tenant)
		s = t.standings.Mut(at.slot())
		s.line = l
	}
	best, until, since, least := ref(0), s.line.end, gpuai.MaxInstant, unmet
	if turn.buckets > 0 {
		best, since, least = at, turn.first.since, t.leafs.Get(turn.root.slot()).least
	}
	for _, c := range [...]ref{s.left, s.right} {
		if c == 0 {
			continue
		}
		below := t.standings.Get(c.slot())
		until, since, least = min(until, below.until), min(since, below.since), least.Least(&below.least)
		switch {
		case best == 0:
			best = below.best
		case below.best != 0:
			b, until2 := m.first(best, below.best, now)
			best, until = b, min(until, until2)
		}
	}
	if s.best == best && s.until == until && s.since == since && s.least == least {
		return false
	}
	s = t.standings.Mut(at.slot())
	s.best, s.until, s.since, s.least = best, until, since, least
	return true
}

// freshen computes anew what may have changed by time alone.
func (m *Machine) freshen(at ref) {
	if at == 0 || m.turns.standings.Get(at.slot()).until > m.meta.Get().time {
		return
	}
	s := m.turns.standings.Get(at.slot())
	left, right := s.left, s.right
	m.freshen(left)
	m.freshen(right)
	m.stand(at)
}

// refresh computes anew what a turn and those above it know, as far up as that
// is another. It reports whether it is at the root.
func (m *Machine) refresh(root, turn ref) bool {
	t := m.turns
	if root == turn {
		l := m.lineOf(t.recs.Get(turn.slot()).tenant)
		t.standings.Mut(turn.slot()).line = l
		m.stand(turn)
		return true
	}
	s := t.standings.Get(root.slot())
	next, was := s.left, s.best
	if t.recs.Get(turn.slot()).tenant > t.recs.Get(root.slot()).tenant {
		next = s.right
	}
	if !m.refresh(next, turn) {
		return false
	}
	return m.stand(root) || was == turn
}

// settleBand brings a band's tree to the present state and instant, but for turns
// that are not in it yet. It returns its root.
func (m *Machine) settleBand(band uint32) ref {
	r := *m.turns.bands.Get(band)
	m.freshen(r.root)
	if r.touched == 0 {
		return r.root
	}
	m.turns.bands.Mut(band).touched = 0
	for x := r.touched; x != 0; {
		t, turn := m.turns.recs.Mut(x.slot()), x
		x, t.nextTouched, t.touched = t.nextTouched, 0, false
		if t.placed {
			m.refresh(r.root, turn)
		}
	}
	return r.root
}

// arrange puts turns that are new into the trees of their bands, and takes those
// out that have no buckets any more. Not while places in the trees are in the heap.
func (m *Machine) arrange() {
	t := m.turns
	x := *t.changed.Get()
	if x == 0 {
		return
	}
	*t.changed.Mut() = 0
	for x != 0 {
		r := t.recs.Mut(x.slot())
		at, band := x, bandOf(r.priority, r.grows)
		x, r.nextChanged, r.changed = r.nextChanged, 0, false
		switch {
		case r.buckets == 0:
			root := m.settleBand(band)
			if r = t.recs.Get(at.slot()); r.placed {
				t.bands.Mut(band).root = m.takeOut(root, at)
			}
			t.free(at.slot())
		case !r.placed:
			r.placed = true
			root := t.bands.Get(band).root
			t.bands.Mut(band).root = m.putIn(root, at)
		}
	}
}

// above reports whether a turn is above another in the tree of their band.
func (t *turns) above(a, b ref) bool {
	x, y := t.recs.Get(a.slot()).tenant, t.recs.Get(b.slot()).tenant
	if rx, ry := mem.Mix(uint64(x), 17), mem.Mix(uint64(y), 17); rx != ry {
		return rx > ry
	}
	return x > y
}

// putIn puts a turn into the tree at root and returns the new root.
func (m *Machine) putIn(root, turn ref) ref {
	t := m.turns
	if root == 0 || t.above(turn, root) {
		left, right := m.cut(root, t.recs.Get(turn.slot()).tenant)
		t.standings.Grow(turn.slot() + 1)
		*t.standings.Mut(turn.slot()) = standing{left: left, right: right}
		m.stand(turn)
		return turn
	}
	if t.recs.Get(turn.slot()).tenant < t.recs.Get(root.slot()).tenant {
		left := m.putIn(t.standings.Get(root.slot()).left, turn)
		t.standings.Mut(root.slot()).left = left
	} else {
		right := m.putIn(t.standings.Get(root.slot()).right, turn)
		t.standings.Mut(root.slot()).right = right
	}
	m.stand(root)
	return root
}

// cut parts a tree into the tenants below one and the rest.
func (m *Machine) cut(root ref, tenant uint32) (left, right ref) {
	t := m.turns
	if root == 0 {
		return 0, 0
	}
	if t.recs.Get(root.slot()).tenant < tenant {
		left, right = m.cut(t.standings.Get(root.slot()).right, tenant)
		t.standings.Mut(root.slot()).right = left
		left = root
	} else {
		left, right = m.cut(t.standings.Get(root.slot()).left, tenant)
		t.standings.Mut(root.slot()).left = right
		right = root
	}
	m.stand(root)
	return left, right
}

// takeOut takes a turn out of the tree at root and returns the new root.
func (m *Machine) takeOut(root, turn ref) ref {
	t := m.turns
	s := *t.standings.Get(root.slot())
	if root == turn {
		*t.standings.Mut(root.slot()) = standing{}
		return m.join(s.left, s.right)
	}
	if t.recs.Get(turn.slot()).tenant < t.recs.Get(root.slot()).tenant {
		left := m.takeOut(s.left, turn)
		t.standings.Mut(root.slot()).left = left
	} else {
		right := m.takeOut(s.right, turn)
		t.standings.Mut(root.slot()).right = right
	}
	m.stand(root)
	return root
}

// join joins two trees, all tenants of the one below all of the other.
func (m *Machine) join(a, b ref) ref {
	t := m.turns
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	case t.above(a, b):
		right := m.join(t.standings.Get(a.slot()).right, b)
		t.standings.Mut(a.slot()).right = right
		m.stand(a)
		return a
	default:
		left := m.join(a, t.standings.Get(b.slot()).left)
		t.standings.Mut(b.slot()).left = left
		m.stand(b)
		return b
	}
}

// touch notes that a turn's place in its band may be another now.
func (t *turns) touch(turn uint32) {
	if t.recs.Get(turn).touched {
		return
	}
	r := t.recs.Mut(turn)
	b := t.bands.Mut(bandOf(r.priority, r.grows))
	r.touched, r.nextTouched = true, b.touched
	b.touched = refTo(turn)
}

// touchTenant does so for all turns of a tenant: its claim is another.
func (t *turns) touchTenant(tenant uint32) {
	if tenant >= t.ofTenant.Len() {
		return
	}
	for x := *t.ofTenant.Get(tenant); x != 0; x = t.recs.Get(x.slot()).peer {
		t.touch(x.slot())
	}
}

// touchAll does so for all turns: the half-life is another.
func (t *turns) touchAll() {
	for x, ok := t.slots.Next(0); ok; x, ok = t.slots.Next(x + 1) {
		t.touch(x)
	}
}

// change notes that a turn has its first bucket, or none any more.
func (t *turns) change(turn uint32) {
	if r := t.recs.Mut(turn); !r.changed {
		c := t.changed.Mut()
		r.changed, r.nextChanged = true, *c
		*c = refTo(turn)
	}
}

// count counts a turn of a band that has buckets now, or none any more.
func (t *turns) count(r *turnRec, by int32) {
	band := bandOf(r.priority, r.grows)
	b := t.bands.Mut(band)
	b.turns = uint32(int32(b.turns) + by)
	if b.turns == 0 {
		t.inUse.Clear(band)
	} else {
		t.inUse.Set(band)
	}
}

// make makes the turn of a priority and tenant.
func (t *turns) make(r turnRec) uint32 {
	turn, _ := t.slots.Alloc() // no more than buckets
	t.ofTenant.Grow(r.tenant + 1)
	head := t.ofTenant.Mut(r.tenant)
	r.peer, *head = *head, refTo(turn)
	t.recs.Put(turn, r)
	t.byKey.Insert(hashTurn(r.priority, r.grows, r.tenant), turn)
	return turn
}

// free forgets a turn that is in no tree.
func (t *turns) free(turn uint32) {
	r := *t.recs.Get(turn)
	t.byKey.Delete(hashTurn(r.priority, r.grows, r.tenant), turn)
	at := t.ofTenant.Mut(r.tenant)
	for *at != refTo(turn) {
		at = &t.recs.Mut(at.slot()).peer
	}
	*at = r.peer
	*t.recs.Mut(turn) = turnRec{}
	t.slots.Free(turn)
}

// enterBands puts the trees of the bands from one on into the heap: of the first
// only, with what is to follow it, unless aging may raise others above that.
func (m *Machine) enterBands(from uint32, room *scheduler.Need) {
	aging := m.policy.Get().AgingEvery > 0
	for band, ok := m.turns.inUse.Next(from); ok; {
		root := m.settleBand(band)
		m.now.work -= workBand
		m.offerBelow(root, room)
		if band, ok = m.turns.inUse.Next(band + 1); ok && !aging {
			p := gpuai.Priority(^uint8(band >> 1))
			m.push(candidate{inTurn: true, opens: true, base: p, priority: p, grows: band&1 != 0, claim: claim{weight: 1}})
			return
		}
	}
}

// below returns the candidate that stands for a turn of a band's tree and all
// below: nothing there is before it.
func (m *Machine) below(at ref) candidate {
	s := m.turns.standings.Get(at.slot())
	t := m.turns.recs.Get(s.best.slot())
	c := candidate{
		inTurn: true, below: at, base: t.priority, priority: t.priority, grows: t.grows,
		claim: m.turns.standings.Get(s.best.slot()).line.claimAt(m.meta.Get().time),
	}
	switch {
	case m.policy.Get().AgingEvery == 0:
		c.seq, c.idx = t.first.place, t.first.idx
	case !t.grows:
		c.priority = m.agedBy(t.priority, s.since)
	}
	return c
}

// offerBelow puts a turn of a band's tree and all below into the heap, unless the
// room is too small for any.
func (m *Machine) offerBelow(at ref, room *scheduler.Need) {
	if at == 0 {
		return
	}
	if s := m.turns.standings.Get(at.slot()); s.best != 0 && room.Covers(&s.least) {
		m.push(m.below(at))
	}
}

// descend puts the turn that is first below a place in a band's tree into the
// heap, with what is left there behind it.
func (m *Machine) descend(c *candidate, room *scheduler.Need) {
	m.settleBand(bandOf(c.base, c.grows))
	if c.but == 0 {
		s := m.turns.standings.Get(c.below.slot())
		if s.best == 0 {
			return
		}
		if now := m.below(c.below); now != *c { // something was granted
			m.offerBelow(c.below, room)
			return
		}
		c.but, c.bucket = s.best, math.MaxUint32 // behind the turn itself
		if m.offerTurn(c.but.slot(), room) {
			m.push(*c)
			return
		}
	}
	m.part(c.below, c.but, room)
}

// part puts what is below a place in a band's tree into the heap, but for one
// turn: the turns on the way to that, and the trees beside it.
func (m *Machine) part(at, but ref, room *scheduler.Need) {
	t := m.turns
	for tenant := t.recs.Get(but.slot()).tenant; at != but; {
		m.now.work -= workLook
		m.offerTurn(at.slot(), room)
		s := t.standings.Get(at.slot())
		next, other := s.left, s.right
		if tenant > t.recs.Get(at.slot()).tenant {
			next, other = other, next
		}
		m.offerBelow(other, room)
		at = next
	}
	m.now.work -= workLook
	s := t.standings.Get(but.slot())
	left, right := s.left, s.right
	m.offerBelow(left, room)
	m.offerBelow(right, room)
}

// checkBands holds that the trees of the bands hold the turns that have buckets, in
// order, and that those which nothing has touched know which turn is first.
func (m *Machine) checkBands() error {
	t := m.turns
	used := make([]uint32, numBands)
	for s, ok := t.slots.Next(0); ok; s, ok = t.slots.Next(s + 1) {
		r := t.recs.Get(s)
		if found, ok := t.find(r.priority, r.grows, r.tenant); !ok || found != s || r.buckets == 0 && !r.changed || r.buckets > 0 && !r.placed && !r.changed {
			return fmt.Errorf("turn %d of %d buckets is not found, or forgotten", s, r.buckets)
		}
		if r.buckets > 0 {
			used[bandOf(r.priority, r.grows)]++
		}
	}
	for band := range uint32(numBands) {
		b := t.bands.Get(band)
		if b.turns != used[band] || t.inUse.Has(band) != (b.turns > 0) {
			return fmt.Errorf("band %d has %d turns, recorded %d", band, used[band], b.turns)
		}
		if _, err := m.checkBand(band, b.root); err != nil {
			return fmt.Errorf("band %d: %w", band, err)
		}
	}
	return nil
}

// checkBand checks a tree of a band and returns its turns in the order of tenants.
func (m *Machine) checkBand(band uint32, at ref) (all []ref, err error) {
	if at == 0 {
		return nil, nil
	}
	t, now := m.turns, m.meta.Get().time
	s := *t.standings.Get(at.slot())
	left, err := m.checkBand(band, s.left)
	if err != nil {
		return nil, err
	}
	right, err := m.checkBand(band, s.right)
	if err != nil {
		return nil, err
	}
	all = append(append(left, at), right...)
	var best ref
	for i, x := range all {
		r := t.recs.Get(x.slot())
		if !r.placed || bandOf(r.priority, r.grows) != band || x != at && t.above(x, at) || i > 0 && r.tenant <= t.recs.Get(all[i-1].slot()).tenant {
			return nil, fmt.Errorf("turn %d is out of place", x.slot())
		}
		if r.buckets > 0 && (best == 0 || m.turnBefore(x, best)) {
			best = x
		}
	}
	if t.bands.Get(band).touched == 0 && s.until > now && s.best != best {
		return nil, fmt.Errorf("turn %d is first below turn %d, recorded %d", best, at, s.best)
	}
	return all, nil
}

// turnBefore is the order of the turns of a band.
func (m *Machine) turnBefore(a, b ref) bool {
	x, y := m.turns.recs.Get(a.slot()), m.turns.recs.Get(b.slot())
	if c := m.claimOf(x.tenant).compare(m.claimOf(y.tenant)); c != 0 {
		return c < 0
	}
	return x.first.before(y.first)
}
