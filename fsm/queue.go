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
	// starved: one of its groups found no room, and nobody to take it from.
	starved bool
	// What follows is zero below LevelPlacement.
	tenant uint32 // string number; 0: made below it, of any tenant
	min    uint32 // tasks of each gang that are enough; 0: all
	same   gpuai.Topology
	grows  bool           // elastic gangs that run, and want more tasks
	sig    uint64         // tells apart what the fields above do not; 0: nothing
	curb   uint8          // bits of what the tenant's quota means for it; zero below LevelTenants
	debtOf uint8          // of curbOwed: which model of the quota, 1 more; 0: none; or debtBriefly
	debt   uint32         // of curbOwed: version of the quota that it was judged by
	lanes  [numLanes]lane // derived
}

// A bucketKey is what the groups of a bucket have in common.
type bucketKey struct {
	sig      uint64
	shape    scheduler.ShapeID
	gang     uint32
	min      uint32
	tenant   uint32
	priority gpuai.Priority
	same     gpuai.Topology
	grows    bool
}

func (r *bucketRec) key() bucketKey {
	return bucketKey{r.sig, r.shape, r.gang, r.min, r.tenant, r.priority, r.same, r.grows}
}

func (k *bucketKey) hash() uint64 {
	h := mem.Mix(uint64(k.priority)<<32|uint64(k.shape), uint64(k.tenant)<<32+uint64(k.gang)+7)
	return mem.Mix(h^k.sig, uint64(k.min)<<16|uint64(k.same)<<8|uint64(bool8(k.grows))|1<<63)
}

// bucketStarved is set in the byte of a bucket's unseen.
const bucketStarved = 1 << 2

func (r *bucketRec) put(b []byte) []byte {
	b = le.AppendUint32(b, uint32(r.shape))
	b = le.AppendUint32(b, r.gang)
	b = r.first.put(b)
	b = r.last.put(b)
	b = le.AppendUint32(b, r.groups)
	b = le.AppendUint64(b, r.tasks)
	flags := bool8(r.unseen)
	if r.starved {
		flags |= bucketStarved
	}
	flags |= r.curb << curbShift
	b = append(b, uint8(r.priority), bool8(r.used))
	if r.tenant == 0 && r.min == 0 && r.same == 0 && !r.grows && r.sig == 0 {
		return append(b, flags)
	}
	b = append(b, flags|flagTail)
	b = le.AppendUint32(b, r.tenant)
	b = le.AppendUint32(b, r.min)
	b = append(b, uint8(r.same), bool8(r.grows))
	b = le.AppendUint64(b, r.sig)
	if r.curb&curbOwed != 0 {
		b = le.AppendUint32(append(b, r.debtOf), r.debt)
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
	r.unseen, r.starved, r.curb = flags&1 != 0, flags&bucketStarved != 0, flags>>curbShift
	if flags&flagTail != 0 {
		r.tenant = rd.U32()
		r.min = rd.U32()
		r.same, r.grows = gpuai.Topology(rd.U8()), rd.U8() != 0
		r.sig = rd.U64()
		if r.curb&curbOwed != 0 {
			r.debtOf, r.debt = rd.U8(), rd.U32()
		}
	}
}

// keyOf returns the key of the bucket that a group waits in.
func (m *Machine) keyOf(group uint32) bucketKey {
	k := m.plainKeyOf(group)
	if m.owners.schedules.Len() > 0 { // how long it may run decides where
		k.sig = mem.Mix(k.sig, uint64(lastsMinutes(m.jobs.Get(m.groups.Get(group).job.slot()))))
	}
	return k
}

// plainSig is the number of a group's bucket where no node has a schedule.
func (m *Machine) plainSig(group uint32) uint64 {
	k := m.plainKeyOf(group)
	return k.sig
}

func (m *Machine) plainKeyOf(group uint32) bucketKey {
	g := m.groups.Get(group)
	j := m.jobs.Get(g.job.slot())
	k := bucketKey{priority: j.priority, shape: g.shape}
	if m.Level() >= LevelPlacement {
		k.tenant = j.tenant
	}
	switch {
	case g.together != 0:
		k.gang, k.sig = m.togetherKey(g.job.slot())
	case g.grows():
		k.grows = true
		if g.same != gpuai.TopologyNone {
			k.sig = uint64(refTo(group)) // what it may grow on is its own affair
		}
	case g.gang:
		k.gang, k.min, k.same = g.count, g.min, g.same
	}
	return k
}

func (m *Machine) findBucket(k *bucketKey) (uint32, bool) {
	return m.bucketByKey.Find(k.hash(), func(s uint32) bool { return m.buckets.Get(s).key() == *k })
}

// enqueue puts a group that has ready tasks into its bucket, or counts tasks
// that became ready of a group that is there. n is how many became ready.
func (m *Machine) enqueue(group, n uint32) {
	g := m.groups.Get(group)
	if g.bucket != 0 {
		m.buckets.Mut(g.bucket.slot()).tasks += uint64(n)
		m.recountDebt(g.bucket.slot())
		m.joinedStarving(g.bucket.slot())
		return
	}
	if g.together == togetherOther {
		return // the first group stands for the job
	}
	if j := m.jobs.Get(g.job.slot()); j.stopping || m.throttled(j) {
		return // until a lease of the array ends
	}
	k := m.keyOf(group)
	slot, ok := m.findBucket(&k)
	if !ok {
		slot = m.newBucket(&k)
		m.look(slot) // beside others that wait, it would wait too
	} else {
		m.joinedStarving(slot)
	}
	m.insertGroup(slot, group)
	b := m.buckets.Mut(slot)
	b.groups++
	b.tasks += uint64(m.groups.Get(group).ready())
	m.recountDebt(slot)
}

// newBucket makes a bucket. There is one for every group at most, and submits
// are refused before the buckets run out.
func (m *Machine) newBucket(k *bucketKey) uint32 {
	slot, _ := m.bucketSlots.Alloc()
	m.buckets.Put(slot, bucketRec{
		shape: k.shape, gang: k.gang, priority: k.priority, used: true,
		tenant: k.tenant, min: k.min, same: k.same, grows: k.grows, sig: k.sig,
	})
	m.bucketByKey.Insert(k.hash(), slot)
	return slot
}

// look notes that a bucket's first group must be tried everywhere, not only on
// nodes that gained room.
func (m *Machine) look(bucket uint32) {
	if b := m.buckets.Get(bucket); !b.unseen && !b.parked() {
		m.unlink(bucket)
		m.buckets.Mut(bucket).unseen = true
		m.unseen.Set(bucket)
	}
}

// lookAtGangs has every gang tried again that could be anywhere.
func (m *Machine) lookAtGangs() {
	old := m.Level() < LevelPlacement
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		if m.now.work -= workLook; m.buckets.Get(b).gang > 0 && (old || m.everHolds(m.buckets.Get(b).first.slot())) {
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
		m.firstCurbed(bucket)
	}
	next.qprev = refTo(group)
}

// dequeue takes n ready tasks of a group out of its bucket's count, and the
// group itself when none is left.
func (m *Machine) dequeue(group, n uint32) {
	m.trimHolds(group)
	g := m.groups.Mut(group)
	if g.bucket == 0 {
		return
	}
	slot := g.bucket.slot()
	b := m.buckets.Mut(slot)
	b.tasks -= uint64(n)
	if j := m.jobs.Get(g.job.slot()); g.ready() > 0 && !g.ended && !j.stopping && j.status < gpuai.JobSucceeded && !m.throttled(j) {
		m.recountDebt(slot)
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
	if m.reservedFor(refTo(group)) && !m.now.onReserved { // else when all that start with it have
		m.unreserve()
		b = m.buckets.Mut(slot)
	}
	if b.groups--; b.groups == 0 {
		m.unlink(slot)
		m.unseen.Clear(slot)
		m.setStarved(slot, false)
		m.setCurb(slot, 0)
		k := b.key()
		m.bucketByKey.Delete(k.hash(), slot)
		*m.buckets.Mut(slot) = bucketRec{}
		m.bucketSlots.Free(slot)
	} else {
		m.relink(slot)
		m.firstCurbed(slot)
	}
}
