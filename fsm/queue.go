package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// A bucketRec is the waiting groups of one priority, shape, gang size and, from
// LevelPlacement on, tenant, in the order of their jobs. Whether the first of
// them fits answers for all.
type bucketRec struct {
	shape    scheduler.ShapeID
	gang     uint32 // tasks of each gang; 0: not gangs
	first    ref    // group
	last     ref
	groups   uint32
	tasks    uint64 // ready ones
	priority gpuai.Priority
	used     bool
	// unseen: groups joined while there was a backlog, so that nobody has
	// looked yet whether they fit.
	unseen bool
	lanes  [numLanes]lane // derived
	tenant uint32         // string number; 0: made below LevelPlacement, of any tenant
}

func (r *bucketRec) put(b []byte) []byte {
	b = le.AppendUint32(b, uint32(r.shape))
	b = le.AppendUint32(b, r.gang)
	b = r.first.put(b)
	b = r.last.put(b)
	b = le.AppendUint32(b, r.groups)
	b = le.AppendUint64(b, r.tasks)
	tail := r.tenant != 0
	b = append(b, uint8(r.priority), bool8(r.used), bool8(r.unseen)|bool8(tail)<<1)
	if tail {
		b = le.AppendUint32(b, r.tenant)
	}
	return b
}

func (r *bucketRec) get(rd *wire.Reader) {
	r.shape = scheduler.ShapeID(rd.U32())
	r.gang = rd.U32()
	r.first = ref(rd.U32())
	r.last = ref(rd.U32())
	r.groups = rd.U32()
	r.tasks = rd.U64()
	r.priority = gpuai.Priority(rd.U8())
	r.used = rd.U8() != 0
	flags := rd.U8()
	r.unseen = flags&1 != 0
	if flags&2 != 0 {
		r.tenant = rd.U32()
	}
}

// A bucketKey is what the groups of a bucket have in common.
type bucketKey struct {
	shape    scheduler.ShapeID
	gang     uint32
	tenant   uint32
	priority gpuai.Priority
}

func (k *bucketKey) hash() uint64 {
	return mem.Mix(uint64(k.priority)<<32|uint64(k.shape), uint64(k.tenant)<<32+uint64(k.gang)+7)
}

func (r *bucketRec) key() bucketKey { return bucketKey{r.shape, r.gang, r.tenant, r.priority} }

// keyOfBucket returns the key of the bucket that a group belongs in.
func (m *Machine) keyOfBucket(g *groupRec) bucketKey {
	j := m.jobs.Get(g.job.slot())
	k := bucketKey{shape: g.shape, gang: g.gangOf(), priority: j.priority}
	if m.Level() >= LevelPlacement {
		k.tenant = j.tenant
	}
	return k
}

// gangOf returns what a group adds to its bucket's key.
func (g *groupRec) gangOf() uint32 {
	if g.gang {
		return g.count
	}
	return 0
}

func (m *Machine) findBucket(k bucketKey) (uint32, bool) {
	return m.bucketByKey.Find(k.hash(), func(s uint32) bool { return m.buckets.Get(s).key() == k })
}

// enqueue puts a group that has ready tasks into its bucket, or counts tasks
// that became ready of a group that is there. n is how many became ready.
func (m *Machine) enqueue(group, n uint32) {
	g := m.groups.Get(group)
	if g.bucket != 0 {
		m.buckets.Mut(g.bucket.slot()).tasks += uint64(n)
		return
	}
	j := m.jobs.Get(g.job.slot())
	if m.throttled(j) {
		return // until a lease of the array ends
	}
	key := m.keyOfBucket(g)
	slot, ok := m.findBucket(key)
	if !ok {
		slot = m.newBucket(key)
		m.look(slot) // beside others that wait, it would wait too
	}
	m.insertGroup(slot, group)
	b := m.buckets.Mut(slot)
	b.groups++
	b.tasks += uint64(m.groups.Get(group).ready())
}

// newBucket makes a bucket. There is one for every group at most, and submits
// are refused before the buckets run out.
func (m *Machine) newBucket(k bucketKey) uint32 {
	slot, _ := m.bucketSlots.Alloc()
	m.buckets.Put(slot, bucketRec{shape: k.shape, gang: k.gang, tenant: k.tenant, priority: k.priority, used: true})
	m.bucketByKey.Insert(k.hash(), slot)
	return slot
}

// look notes that a bucket's first group must be tried everywhere, not only on
// nodes that gained room.
func (m *Machine) look(bucket uint32) {
	if b := m.buckets.Get(bucket); !b.unseen {
		m.unlink(bucket)
		m.buckets.Mut(bucket).unseen = true
		m.unseen.Set(bucket)
	}
}

// lookAtGangs has every gang tried again.
func (m *Machine) lookAtGangs() {
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		if m.now.work -= workLook; m.buckets.Get(b).gang > 0 {
			m.look(b)
		}
	}
}

// seen ends what look began.
func (m *Machine) seen(bucket uint32) {
	if b := m.buckets.Get(bucket); b.unseen {
		m.buckets.Mut(bucket).unseen = false
		m.unseen.Clear(bucket)
		m.link(bucket)
		m.wantReservation(bucket)
	}
}

// groupBefore is the order of a bucket: by job, then by group.
func (m *Machine) groupBefore(a, b uint32) bool {
	x, y := m.groups.Get(a), m.groups.Get(b)
	if x.job != y.job {
		return m.place(m.jobs.Get(x.job.slot())) < m.place(m.jobs.Get(y.job.slot()))
	}
	return x.idx < y.idx
}

// insertGroup links a group into a bucket in order. A new job goes last; one
// that is placed again is older than those that wait and goes near the front.
func (m *Machine) insertGroup(bucket, group uint32) {
	b := m.buckets.Mut(bucket)
	g := m.groups.Mut(group)
	g.bucket = refTo(bucket)
	if b.last == 0 || m.groupBefore(b.last.slot(), group) {
		if g.qprev = b.last; b.last != 0 {
			m.groups.Mut(b.last.slot()).qnext = refTo(group)
		} else {
			b.first = refTo(group)
		}
		b.last = refTo(group)
		m.appendLanes(bucket, group)
		return
	}
	at, lanes, steps := m.seekLanes(bucket, group)
	if m.Level() < LevelPlacement { // what a walk through the list cost is in the log
		steps = 0
		for x := b.first; x != at; x = m.groups.Get(x.slot()).qnext {
			steps++
		}
	}
	m.now.work -= workLook * steps
	m.joinLanes(bucket, group, lanes)
	next := m.groups.Mut(at.slot())
	g.qprev, g.qnext = next.qprev, at
	if next.qprev != 0 {
		m.groups.Mut(next.qprev.slot()).qnext = refTo(group)
	} else {
		b.first = refTo(group)
		m.relink(bucket)
	}
	next.qprev = refTo(group)
}

// dequeue takes n ready tasks of a group out of its bucket's count, and the
// group itself when none is left.
func (m *Machine) dequeue(group, n uint32) {
	g := m.groups.Mut(group)
	if g.bucket == 0 {
		return
	}
	slot := g.bucket.slot()
	b := m.buckets.Mut(slot)
	b.tasks -= uint64(n)
	if j := m.jobs.Get(g.job.slot()); g.ready() > 0 && !g.ended && j.status < gpuai.JobSucceeded && !m.throttled(j) {
		return
	}
	b.tasks -= uint64(g.ready())
	m.leaveLanes(slot, group)
	if g.qprev != 0 {
		m.groups.Mut(g.qprev.slot()).qnext = g.qnext
	} else {
		b.first = g.qnext
	}
	if g.qnext != 0 {
		m.groups.Mut(g.qnext.slot()).qprev = g.qprev
	} else {
		b.last = g.qprev
	}
	g.bucket, g.qprev, g.qnext = 0, 0, 0
	if m.holds(refTo(group)) {
		m.unreserve()
		b = m.buckets.Mut(slot)
	}
	if b.groups--; b.groups == 0 {
		m.unlink(slot)
		m.unseen.Clear(slot)
		k := b.key()
		m.bucketByKey.Delete(k.hash(), slot)
		*m.buckets.Mut(slot) = bucketRec{}
		m.bucketSlots.Free(slot)
	} else {
		m.relink(slot)
	}
}
