package fsm

import (
	"math"

	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// The buckets that wait for a quota are in a tree, in queue order, which knows the
// least need below each: so those that what is free of the quota cannot cover are
// passed over unseen. Who is judged again in an entry is bounded: a quarter of its
// work. What is left goes on in the next one, quota by quota, so that no tenant's many
// kinds of requests keep another's waiting; how far it has come is part of the state.

const (
	// workWake is what judging those who wait for quotas may take of an entry.
	workWake = WorkPerEntry / 4
	// wakeAtOnce is how many of a quota are judged before others have their turn.
	wakeAtOnce = 64
	// wakeOwn is how many of a member of a cohort are judged before the others of the
	// cohort: what it takes of its own those need not look at.
	wakeOwn = 4
)

// each calls f with all below a root, in order.
func (t treap) each(root ref, f func(bucket uint32)) {
	for root != 0 {
		l := *t.leafs.Get(root.slot())
		t.each(l.left, f)
		f(root.slot())
		root = l.right
	}
}

// curbKey is a bucket's place among those that wait for a quota: by priority, then in
// the order of the queue.
func (m *Machine) curbKey(bucket uint32) queueKey {
	b := m.buckets.Get(bucket)
	g := m.groups.Get(b.first.slot())
	return queueKey{place: uint64(math.MaxUint8-b.priority)<<56 | m.place(m.jobs.Get(g.job.slot())), idx: g.idx}
}

// curbNeed bounds what of a quota must be free for a bucket to be judged anew. What is
// owed something is judged always.
func (m *Machine) curbNeed(bucket uint32, curb uint8) scheduler.Need {
	if curb&curbOwed != 0 {
		return scheduler.Need{}
	}
	b := m.buckets.Get(bucket)
	least := uint64(1)
	if b.gang > 0 && m.groups.Get(b.first.slot()).together == 0 {
		if least = uint64(b.gang); b.min > 0 {
			least = uint64(b.min)
		}
	}
	n := m.needOfTask(b.first.slot())
	for i := range n {
		n[i] = mulSat(n[i], least)
	}
	return quotaNeed(&n)
}

// quotaNeed puts what a quota bounds into the form of a need; its size counts whole
// devices.
func quotaNeed(n *[numBounds]uint64) scheduler.Need {
	return scheduler.Need{
		CPU: int64(min(n[ofCPU], math.MaxInt64)), Memory: int64(min(n[ofMemory], math.MaxInt64)), Pools: math.MaxUint64,
		Size: uint8(min(n[ofGPUs]/1_000, math.MaxUint8)),
	}
}

// quotaRoom bounds what a tenant may have more, of its own and borrowed.
func (m *Machine) quotaRoom(slot uint32) scheduler.Need {
	q, u, t := m.quotas.Get(slot), m.quotaUses.Get(slot), m.tally(slot)
	var room [numBounds]uint64
	for i, most := range q.bounds {
		if room[i] = most - min(most, t.of[i]); most == noBound {
			room[i] = noBound
		} else if u.cohort != 0 {
			c := m.cohorts.recs.Get(u.cohort.slot())
			lent := c.most[i] - min(c.most[i], c.have[i]+c.kept[i])
			if i == ofGPUs {
				may := addSat(most, q.borrow)
				lent = min(lent, may-min(may, t.of[i]))
			}
			room[i] = max(room[i], lent)
		}
	}
	return quotaNeed(&room)
}

// relistCurbed puts a bucket among those that wait for its tenant's quota, or takes it
// out, as its bits say that it is about to have.
func (m *Machine) relistCurbed(bucket uint32, curb uint8) {
	if bucket < m.curbs.leafs.Len() && m.curbs.leafs.Get(bucket).turn != 0 {
		l := *m.curbs.leafs.Get(bucket)
		if curb != 0 && l.need == m.curbNeed(bucket, curb) {
			return
		}
		m.unlistCurbed(bucket)
	}
	if curb != 0 {
		m.listCurbed(bucket, curb)
	}
}

func (m *Machine) listCurbed(bucket uint32, curb uint8) {
	slot, _ := m.quotaSlot(m.buckets.Get(bucket).tenant)
	m.putCurbed(slot, bucket, leafRec{turn: refTo(slot), key: m.curbKey(bucket), need: m.curbNeed(bucket, curb)})
}

func (m *Machine) putCurbed(slot, bucket uint32, l leafRec) {
	l.left, l.right, l.least = 0, 0, l.need
	m.curbs.leafs.Put(bucket, l)
	u := m.quotaUses.Mut(slot)
	u.waiting++
	u.curbed = m.curbs.insert(u.curbed, bucket)
}

func (m *Machine) unlistCurbed(bucket uint32) {
	l := *m.curbs.leafs.Get(bucket)
	u := m.quotaUses.Mut(l.turn.slot())
	u.waiting--
	u.curbed = m.curbs.remove(u.curbed, bucket, l.key)
	*m.curbs.leafs.Mut(bucket) = leafRec{}
}

// firstCurbed notes that a curbed bucket has another first group, which may be let
// in where the last one was not: its job runs already.
func (m *Machine) firstCurbed(bucket uint32) {
	b := m.buckets.Get(bucket)
	if !b.curbed() {
		return
	}
	slot, _ := m.quotaSlot(b.tenant)
	m.unlistCurbed(bucket)
	m.listCurbed(bucket, b.curb)
	if b.curb&curbOwed != 0 {
		m.countDebt(bucket)
	}
	if b.curb&(curbParked|curbOwed) != 0 {
		m.freed.Set(slot)
	}
}

// wakesSomebody reports whether those who wait for quotas are still to be judged.
func (m *Machine) wakesSomebody() bool {
	if _, ok := m.freed.Next(0); ok {
		return true
	}
	_, ok := m.waking.Next(0)
	return ok
}

// mayWake is wakesSomebody while the entry has work left for it.
func (m *Machine) mayWake() bool { return m.wakeable() && m.wakesSomebody() }

func (m *Machine) wakeable() bool { return m.now.work > 0 && m.now.woken < workWake }

// wakeQuotas judges the buckets again that wait for quotas of which something has been
// freed, as far as the entry's work goes: what is judged is parked as before, or looked
// at.
func (m *Machine) wakeQuotas() {
	for slot, ok := m.freed.Next(0); ok && m.wakeable(); slot, ok = m.freed.Next(0) {
		m.freed.Clear(slot)
		before := m.now.work
		m.eachPeer(slot, m.wakeQuota)
		if m.now.woken += before - m.now.work; m.waking.Has(slot) && m.quotaUses.Get(slot).cohort != 0 {
			m.wakeSome(slot, wakeOwn)
		}
	}
	if m.quotas.Len() == 0 {
		return
	}
	from := uint32(m.now.index * 7_919 % uint64(m.quotas.Len()))
	for m.wakeable() {
		at, ok := m.waking.Next(from)
		if !ok {
			if at, ok = m.waking.Next(0); !ok {
				return
			}
		}
		from = at + 1
		m.wakeSome(at, wakeAtOnce)
	}
}

// wakeQuota has all judged again who wait for a quota.
func (m *Machine) wakeQuota(slot uint32) {
	u := m.quotaUses.Get(slot)
	switch {
	case u.curbed == 0:
	case !m.waking.Has(slot):
		m.waking.Set(slot)
	case u.woken != (queueKey{}) && !u.again:
		m.quotaUses.Mut(slot).again = true
	}
}

// wakeSome judges the next of those who wait for a quota.
func (m *Machine) wakeSome(slot uint32, most int) {
	m.barren = m.barren[:0]
	for n := 0; n < most && m.wakeable(); n++ {
		before := m.now.work
		more := m.wakeNext(slot)
		if m.now.woken += before - m.now.work; !more {
			return
		}
	}
}

// wakeNext judges the next of those who wait for a quota. It reports whether there may
// be more.
func (m *Machine) wakeNext(slot uint32) bool {
	u, room, looks := m.quotaUses.Get(slot), m.quotaRoom(slot), int64(1)
	next := m.curbs.next(u.curbed, u.woken, &room, &looks)
	m.now.work -= looks * workLook
	if next != 0 {
		m.quotaUses.Mut(slot).woken = m.curbs.leafs.Get(next.slot()).key
		m.judge(slot, next.slot())
		return true
	}
	again := u.again
	if m.wokeAll(slot); again {
		m.waking.Set(slot)
	}
	return again
}

// wokeAll notes that nobody who waits for a quota is still to be judged.
func (m *Machine) wokeAll(slot uint32) {
	m.waking.Clear(slot)
	u := m.quotaUses.Mut(slot)
	u.woken, u.again = queueKey{}, false
}

// judge says anew what a quota means for a bucket that waits for it.
func (m *Machine) judge(slot, bucket uint32) {
	b := m.buckets.Get(bucket)
	m.now.work -= workLook
	if !b.parked() {
		m.judgeInTurn(slot, bucket)
		return
	}
	first, old := b.first.slot(), b.curb
	v := m.admit(slot, first)
	owed := v.owed && m.mayBeOwed(first)
	switch {
	case v.ok && !v.borrows && old == curbParked && m.quotaUses.Get(slot).cohort != 0 && m.hasMoney(first):
		m.oweBriefly(bucket, curbModels)
		m.look(bucket)
	case v.ok:
		m.setCurb(bucket, old&curbOwed|curbModels) // until it has been looked at
		m.look(bucket)
	case owed:
		m.owe(bucket, curbParked, &v)
		m.takeBackLent(slot, first, &v)
	case v.by != boundBudget && old != curbParked:
		m.setCurb(bucket, curbParked)
	}
}

// judgeInTurn is judge of a bucket that waits for room.
func (m *Machine) judgeInTurn(slot, bucket uint32) {
	b := m.buckets.Get(bucket)
	if b.curb&curbOwed != 0 && !b.unseen {
		if v := m.admit(slot, b.first.slot()); !v.ok {
			m.park(bucket, &v)
			return
		} else if v.borrows || !m.mayBeOwed(b.first.slot()) { // its quota is a smaller one now, or the nodes are gone, or the money
			m.setCurb(bucket, b.curb&^curbOwed|curbModels)
		} else if b.debt != m.quotas.Get(slot).version {
			m.owe(bucket, b.curb, &v)
		}
	}
	if m.buckets.Get(bucket).curb&(curbModels|curbBudget) != 0 {
		m.look(bucket)
	}
}

// Bits of a quota in a snapshot.
const (
	wakeFreed = 1 << iota
	wakeWaking
	wakeAgain
)

// writeWaking writes the quotas whose buckets are still to be judged.
func (m *Machine) writeWaking(f *frameWriter) {
	if !m.wakesSomebody() {
		return
	}
	f.begin(secWaking)
	for s := range m.quotas.Len() {
		u := m.quotaUses.Get(s)
		bits := bool8(m.freed.Has(s))*wakeFreed | bool8(m.waking.Has(s))*wakeWaking | bool8(u.again)*wakeAgain
		if bits == 0 {
			continue
		}
		f.buf = append(le.AppendUint32(f.buf, s), bits, u.woken.idx)
		f.buf = le.AppendUint64(f.buf, u.woken.place)
		f.added()
	}
	f.end()
}

// readWaking reads what writeWaking wrote.
func (m *Machine) readWaking(rd *wire.Reader) {
	slot, bits := rd.U32(), rd.U8()
	key := queueKey{idx: rd.U8(), place: rd.U64()}
	if slot >= m.quotas.Len() {
		rd.Fail("a quota is judged again that there is not")
		return
	}
	if bits&wakeFreed != 0 {
		m.freed.Set(slot)
	}
	if bits&wakeWaking != 0 {
		m.waking.Set(slot)
	}
	m.quotaUses.Grow(slot + 1)
	u := m.quotaUses.Mut(slot)
	u.woken, u.again = key, bits&wakeAgain != 0
}
