package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// A turn orders the buckets of one (priority, tenant) that have been tried and
// wait for room, by their first groups. It is a treap whose nodes know the least
// need below them, so that the first bucket that a node may have room for is
// found without a look at the others. Buckets that nobody has tried (unseen) are
// in none. All of it is derived: from LevelPlacement on, restore builds it anew.
type turnRec struct {
	root     ref      // bucket
	first    queueKey // of the first bucket
	tenant   uint32
	buckets  uint32
	bigs     uint32 // buckets that may need a reservation
	priority gpuai.Priority
	grows    bool // of gangs that run, behind all that waits to start
	used     bool
	// Of its band (see bandRec).
	placed      bool // it is in the tree
	touched     bool // it is in the list of those whose place may be another
	changed     bool // it is in the list of those to be put into the tree, or taken out
	nextTouched ref
	nextChanged ref
	peer        ref // next turn of the tenant
}

// A leafRec is a bucket's place in its turn.
type leafRec struct {
	left, right ref // buckets
	turn        ref
	key         queueKey
	need, least scheduler.Need // its own, and of all below it
	big         bool
}

// A queueKey orders the groups of one priority and tenant.
type queueKey struct {
	place uint64        // of the job
	since gpuai.Instant // from when it has it
	idx   uint8         // of the group in it
}

func (a queueKey) before(b queueKey) bool {
	return a.place < b.place || a.place == b.place && a.idx < b.idx
}

// A treap has the leafs of trees, which are known by their roots.
type treap struct {
	leafs *mem.Table[leafRec] // by bucket
}

// turns are all turns of a machine.
type turns struct {
	treap
	recs  *mem.Table[turnRec]
	slots *mem.Slots
	byKey *mem.Hash
	sizes mem.Var[[66 + 1]uint32] // buckets in turns by the size of their need

	standings *mem.Table[standing] // by turn
	bands     *mem.Table[bandRec]
	inUse     *mem.Bitmap     // bands that have turns with buckets
	changed   mem.Var[ref]    // first of the turns to be put into trees, or taken out
	ofTenant  *mem.Table[ref] // first turn, by string number
}

func newTurns(s *mem.Space) *turns {
	t := &turns{
		recs: mem.NewTable[turnRec](s, 6), slots: mem.NewSlots(s), byKey: mem.NewHash(s),
		treap: treap{mem.NewTable[leafRec](s, 6)}, sizes: mem.NewVar(s, [67]uint32{}),
		standings: mem.NewTable[standing](s, 5), bands: mem.NewTable[bandRec](s, 6), inUse: mem.NewBitmap(s),
		changed: mem.NewVar[ref](s, 0), ofTenant: mem.NewTable[ref](s, 10),
	}
	t.bands.Grow(numBands)
	return t
}

func (t *turns) fork(ns *mem.Space) *turns {
	return &turns{
		recs: t.recs.Fork(ns), slots: t.slots.Fork(ns), byKey: t.byKey.Fork(ns),
		treap: treap{t.leafs.Fork(ns)}, sizes: t.sizes.Fork(ns),
		standings: t.standings.Fork(ns), bands: t.bands.Fork(ns), inUse: t.inUse.Fork(ns),
		changed: t.changed.Fork(ns), ofTenant: t.ofTenant.Fork(ns),
	}
}

// rank is a leaf's rank in its treap: a parent's is higher.
func rank(bucket uint32) uint64 { return mem.Mix(uint64(bucket), 11) }

func hashTurn(p gpuai.Priority, grows bool, tenant uint32) uint64 {
	return mem.Mix(uint64(bool8(grows))<<40|uint64(p)<<32|uint64(tenant), 13)
}

// has reports whether a bucket is in a turn.
func (t *turns) has(bucket uint32) bool {
	return bucket < t.leafs.Len() && t.leafs.Get(bucket).turn != 0
}

// mayTake reports whether any bucket could have a place in a room, going by the
// number of devices alone.
func (t *turns) mayTake(room *scheduler.Need) bool {
	if room.CPU < 0 {
		return false
	}
	for _, n := range t.sizes.Get()[:room.Size+1] {
		if n > 0 {
			return true
		}
	}
	return false
}

// find returns the turn of a priority and tenant. One without buckets is kept
// until arrange.
func (t *turns) find(p gpuai.Priority, grows bool, tenant uint32) (uint32, bool) {
	return t.byKey.Find(hashTurn(p, grows, tenant), func(s uint32) bool {
		x := t.recs.Get(s)
		return x.priority == p && x.tenant == tenant && x.grows == grows
	})
}

// add puts a bucket into the turn of a priority and tenant.
func (t *turns) add(bucket uint32, r *bucketRec, key queueKey, need scheduler.Need) {
	turn, ok := t.find(r.priority, r.grows, r.tenant)
	if !ok {
		turn = t.make(turnRec{tenant: r.tenant, priority: r.priority, grows: r.grows, used: true})
	}
	t.leafs.Grow(bucket + 1)
	*t.leafs.Mut(bucket) = leafRec{turn: refTo(turn), key: key, need: need, least: need, big: r.isBig(&need)}
	x := t.recs.Mut(turn)
	x.buckets++
	if r.isBig(&need) {
		x.bigs++
	}
	x.root = t.insert(x.root, bucket)
	t.sizes.Mut()[need.Size]++
	if x.buckets == 1 {
		t.count(x, 1)
		t.change(turn)
	}
	t.moved(turn)
}

// drop takes a bucket out of its turn.
func (t *turns) drop(bucket uint32) {
	l := *t.leafs.Get(bucket)
	turn := l.turn.slot()
	x := t.recs.Mut(turn)
	x.root = t.remove(x.root, bucket, l.key)
	t.sizes.Mut()[l.need.Size]--
	if l.big {
		x.bigs--
	}
	*t.leafs.Mut(bucket) = leafRec{}
	if x.buckets--; x.buckets == 0 {
		t.count(x, -1)
		t.change(turn)
	}
	t.moved(turn)
}

// move gives a bucket another place in its turn.
func (t *turns) move(bucket uint32, key queueKey) {
	l := *t.leafs.Get(bucket)
	x := t.recs.Mut(l.turn.slot())
	x.root = t.remove(x.root, bucket, l.key)
	l.left, l.right, l.key, l.least = 0, 0, key, l.need
	*t.leafs.Mut(bucket) = l
	x.root = t.insert(x.root, bucket)
	t.moved(l.turn.slot())
}

// renew gives a bucket another need.
func (t *turns) renew(bucket uint32, need scheduler.Need) {
	t.leafs.Mut(bucket).need = need
	t.move(bucket, t.leafs.Get(bucket).key)
}

// moved notes that a turn has other buckets, or others first.
func (t *turns) moved(turn uint32) {
	x := t.recs.Mut(turn)
	x.first = queueKey{}
	if at := x.root; at != 0 {
		for t.leafs.Get(at.slot()).left != 0 {
			at = t.leafs.Get(at.slot()).left
		}
		x.first = t.leafs.Get(at.slot()).key
	}
	t.touch(turn)
}

// insert puts a leaf into the treap at root and returns the new root.
func (t treap) insert(root ref, bucket uint32) ref {
	if root == 0 {
		return refTo(bucket)
	}
	l := t.leafs.Mut(bucket)
	if rank(bucket) > rank(root.slot()) {
		l.left, l.right = t.split(root, l.key)
		t.sum(refTo(bucket))
		return refTo(bucket)
	}
	r := t.leafs.Mut(root.slot())
	if l.key.before(r.key) {
		r.left = t.insert(r.left, bucket)
	} else {
		r.right = t.insert(r.right, bucket)
	}
	t.sum(root)
	return root
}

// split cuts a treap into what is before a key and the rest.
func (t treap) split(root ref, key queueKey) (left, right ref) {
	if root == 0 {
		return 0, 0
	}
	r := t.leafs.Mut(root.slot())
	if r.key.before(key) {
		r.right, right = t.split(r.right, key)
		left = root
	} else {
		left, r.left = t.split(r.left, key)
		right = root
	}
	t.sum(root)
	return left, right
}

// remove takes a leaf out of the treap at root and returns the new root.
func (t treap) remove(root ref, bucket uint32, key queueKey) ref {
	r := t.leafs.Mut(root.slot())
	switch {
	case root == refTo(bucket):
		return t.merge(r.left, r.right)
	case key.before(r.key):
		r.left = t.remove(r.left, bucket, key)
	default:
		r.right = t.remove(r.right, bucket, key)
	}
	t.sum(root)
	return root
}

// merge joins two treaps, all of the one before all of the other.
func (t treap) merge(a, b ref) ref {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	case rank(a.slot()) > rank(b.slot()):
		x := t.leafs.Mut(a.slot())
		x.right = t.merge(x.right, b)
		t.sum(a)
		return a
	default:
		x := t.leafs.Mut(b.slot())
		x.left = t.merge(a, x.left)
		t.sum(b)
		return b
	}
}

// sum makes the least need below a leaf anew.
func (t treap) sum(at ref) {
	l := t.leafs.Mut(at.slot())
	l.least = l.need
	for _, c := range [...]ref{l.left, l.right} {
		if c != 0 {
			l.least = l.least.Least(&t.leafs.Get(c.slot()).least)
		}
	}
}

// next returns the first bucket behind a key whose need a room covers. It counts
// the leafs that it looks at.
func (t treap) next(root ref, after queueKey, room *scheduler.Need, looks *int64) ref {
	for root != 0 {
		l := t.leafs.Get(root.slot())
		*looks++
		if !room.Covers(&l.least) {
			return 0
		}
		if !after.before(l.key) {
			root = l.right
			continue
		}
		if found := t.next(l.left, after, room, looks); found != 0 {
			return found
		}
		if room.Covers(&l.need) {
			return root
		}
		root = l.right
	}
	return 0
}

// link puts a bucket that was tried and waits into its turn.
func (m *Machine) link(bucket uint32) {
	r := m.buckets.Get(bucket)
	if m.Level() >= LevelPlacement && r.used && !r.unseen && !r.parked() && !m.turns.has(bucket) {
		m.turns.add(bucket, r, m.queueKeyOf(r.first.slot()), m.needOf(r))
	}
}

// needOf bounds what a node must have to be of use to a bucket: the least of what
// the groups need that start together.
func (m *Machine) needOf(r *bucketRec) scheduler.Need {
	n := m.sched.Need(r.shape)
	first := m.groups.Get(r.first.slot())
	if first.together == 0 {
		return n
	}
	for x := m.jobs.Get(first.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		other := m.sched.Need(m.groups.Get(x.slot()).shape)
		n = n.Least(&other)
	}
	return n
}

// unlink takes a bucket out of its turn, if it is in one.
func (m *Machine) unlink(bucket uint32) {
	if m.turns.has(bucket) {
		m.turns.drop(bucket)
	}
}

// relink moves a bucket to where its first group, which may be another now,
// belongs.
func (m *Machine) relink(bucket uint32) {
	if !m.turns.has(bucket) {
		return
	}
	if key := m.queueKeyOf(m.buckets.Get(bucket).first.slot()); m.turns.leafs.Get(bucket).key != key {
		m.turns.move(bucket, key)
	}
}

// renewNeeds computes the needs of all buckets in turns anew: pools came or went.
func (m *Machine) renewNeeds() {
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		m.now.work -= workLook
		if !m.turns.has(b) {
			continue
		}
		if need := m.needOf(m.buckets.Get(b)); need != m.turns.leafs.Get(b).need {
			m.turns.renew(b, need)
		}
	}
}

// linkAll builds all turns: the level was raised, or the machine restored.
func (m *Machine) linkAll() {
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		m.now.work -= workLook
		m.link(b)
	}
}

func (m *Machine) queueKeyOf(group uint32) queueKey {
	g := m.groups.Get(group)
	j := m.jobs.Get(g.job.slot())
	return queueKey{place: m.place(j), since: m.since(j), idx: g.idx}
}
