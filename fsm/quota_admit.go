package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// What a tenant may not start now for its quota or budget waits in its bucket as
// before, but out of its turn: the bucket is parked. So nobody else's placement looks at it, however
// many jobs it has. A bucket is curbed, too, when it was looked at without devices of
// some model: it is in its turn and is to be looked at again when the tenant may have
// those. Whatever lowers what counts against a quota marks it freed; before anything
// else is placed, the curbed buckets of it, and of its cohort, are judged again: see
// quota_wake.go.

// Bits of bucketRec.curb.
const (
	curbParked = 1 << iota // out of its turn
	curbBudget             // for the budget; if not parked, what was found was too dear
	curbModels             // looked at without some models
	// curbOwed: what it waits for is within the tenant's own quota and lent to
	// others. It stays until the bucket's first group was placed, or no node can hold
	// it: until then nobody of the cohort may borrow what it needs (debt.go).
	curbOwed
	curbShift = 3 // place of the bits in the byte of a bucket's unseen
)

func (r *bucketRec) curbed() bool { return r.curb != 0 }
func (r *bucketRec) parked() bool { return r.curb&curbParked != 0 }

// bound names what a quota or budget bounds.
type bound uint8

const (
	boundGPUs bound = iota // in the order of quotaRec.bounds
	boundCPU
	boundMemory
	boundModel
	boundRunning
	boundOwed // what is idle of the cohort is owed to others of it
	boundBudget
)

// A verdict says whether a quota lets a group start, and if not what is in the way.
type verdict struct {
	ok      bool
	cohort  bool // the bound is the cohort's
	owed    bool // it is the tenant's own that is lent
	by      bound
	model   uint32 // boundModel: index among those of the quota
	most    uint64
	have    uint64
	need    uint64
	barred  uint32 // bits of the models that it may not have
	borrows bool
}

// needOf1 returns what one task of a group takes.
func (m *Machine) needOfTask(group uint32) [numBounds]uint64 {
	g := m.groups.Get(group)
	cpu, memory, devices := m.sched.Demand(g.shape)
	milli := uint64(devices) * uint64(gpuai.WholeDevice)
	if share := m.sched.ShareOf(g.shape); share != 0 {
		milli = uint64(share)
	}
	return [numBounds]uint64{milli, uint64(cpu), uint64(memory)}
}

// needOfStart returns what must be free for anything of a group to start: one task,
// all that are enough of a gang, or the same of all groups that start together.
func (m *Machine) needOfStart(group uint32) (n [numBounds]uint64) {
	g := m.groups.Get(group)
	if g.together == 0 {
		least := uint64(1)
		if g.gang && g.live() == 0 {
			least = uint64(g.least())
		}
		n = m.needOfTask(group)
		for i := range n {
			n[i] *= least
		}
		return n
	}
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		one := m.needOfTask(x.slot())
		for i := range n {
			n[i] += one[i] * uint64(m.groups.Get(x.slot()).least())
		}
	}
	return n
}

// admit says whether the quota and the budget of a group's tenant let it start.
func (m *Machine) admit(slot, group uint32) verdict {
	job := m.jobs.Get(m.groups.Get(group).job.slot())
	q := m.quotas.Get(slot)
	if running := uint64(m.tally(slot).running); job.status != gpuai.JobRunning && running >= q.running {
		return verdict{by: boundRunning, most: q.running, have: running, need: 1}
	}
	n := m.needOfStart(group)
	v := m.within(slot, n)
	if !v.ok || n[ofGPUs] == 0 || q.models[0].name == 0 {
		return v
	}
	for i := range q.models {
		if q.models[i].name == 0 {
			break
		}
		if x := m.withinModel(slot, i, n[ofGPUs]); !x.ok {
			v.barred |= 1 << i
		}
	}
	if v.barred == 0 || m.passesBarred(slot, group, v.barred) {
		return v
	}
	return m.byModel(slot, group, &v, n[ofGPUs])
}

// byModel returns the verdict on the models that a group may have: on the first of
// those that are its tenant's own, else on the first of all.
func (m *Machine) byModel(slot, group uint32, all *verdict, need uint64) (v verdict) {
	for i := range gpuai.MaxQuotaModels {
		if all.barred>>i&1 == 0 || m.quotas.Get(slot).models[i].name == 0 {
			continue
		}
		x := m.withinModel(slot, i, need)
		x.borrows = x.borrows || all.borrows
		x.owed = x.owed && !x.borrows
		m.now.work -= workLook
		if use := m.passesBarred(slot, group, all.barred&^(1<<i)); !use {
			x.owed = false
			if v.need > 0 {
				continue
			}
		}
		if v.need == 0 || x.owed && !v.owed {
			v = x
		}
	}
	v.barred = all.barred
	return v
}

// within judges the bounds on all devices, CPU and memory.
func (m *Machine) within(slot uint32, n [numBounds]uint64) verdict {
	q, u, t := m.quotas.Get(slot), m.quotaUses.Get(slot), m.tally(slot)
	v := verdict{ok: true}
	for i, need := range n {
		if need == 0 || t.of[i]+need <= q.bounds[i] {
			continue
		}
		if v.borrows = true; u.cohort == 0 || i == ofGPUs && t.of[i]+need > addSat(q.bounds[i], q.borrow) {
			return verdict{by: bound(i), most: q.bounds[i], have: t.of[i], need: need}
		}
	}
	if u.cohort == 0 {
		return v
	}
	m.now.work -= workLook
	c := m.cohorts.recs.Get(u.cohort.slot())
	for i, need := range n {
		if need > 0 && q.bounds[i] != noBound && c.have[i]+need > c.most[i] {
			return verdict{by: bound(i), cohort: true, owed: !v.borrows, most: c.most[i], have: c.have[i], need: need, borrows: v.borrows}
		}
	}
	for i, need := range n {
		if need > 0 && v.borrows && q.bounds[i] != noBound && t.of[i]+need > q.bounds[i] && c.have[i]+c.kept[i]+need > c.most[i] {
			return verdict{by: boundOwed, cohort: true, borrows: true}
		}
	}
	return v
}

// withinModel judges the bound on devices of the i-th model of a quota.
func (m *Machine) withinModel(slot uint32, i int, need uint64) verdict {
	q, u := m.quotas.Get(slot), m.quotaUses.Get(slot)
	most, have := q.models[i].most, u.models[i]
	v := verdict{by: boundModel, model: uint32(i), most: most, have: have, need: need, borrows: have+need > most}
	if u.cohort == 0 {
		v.ok = !v.borrows
		return v
	}
	m.now.work -= workLook
	at, _ := m.cohorts.model(u.cohort.slot(), q.models[i].name)
	lent := m.cohorts.models.Get(at)
	v.most, v.have, v.cohort = lent.most, lent.have, true
	v.ok = v.have+need <= v.most
	v.owed = !v.ok && !v.borrows
	if v.ok && v.borrows && v.have+lent.kept+need > v.most {
		v.ok, v.by = false, boundOwed
	}
	return v
}

// barModels leaves devices of some models of a quota, and those that are too dear, out
// of all searches, and nodes that close before the minute ends, until m.sched.Unbar.
func (m *Machine) barModels(slot uint32, barred, ends uint32) {
	var hashes [gpuai.MaxQuotaModels + gpuai.MaxPrices]uint64
	n, q := copy(hashes[:], m.dear.models), m.quotas.Get(slot)
	for i := range q.models {
		if barred>>i&1 != 0 {
			hashes[n] = q.models[i].hash
			n++
		}
	}
	m.bar(hashes[:n], ends)
}

// passesBarred reports whether a group may have devices of other models.
func (m *Machine) passesBarred(slot, group, barred uint32) bool {
	m.barModels(slot, barred, 0)
	ok := m.passesAny(group)
	m.sched.Unbar()
	return ok
}

// passesAny reports whether any pool passes for a group, and for all that start with
// it.
func (m *Machine) passesAny(group uint32) bool {
	g := m.groups.Get(group)
	if g.together == 0 {
		return m.sched.PassesAny(g.shape)
	}
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		if shape := m.groups.Get(x.slot()).shape; m.sched.TakesDevices(shape) && !m.sched.PassesAny(shape) {
			return false
		}
	}
	return true
}

// placeGroup gives leases to as many ready tasks of a group as fit and as its tenant
// may have: see placeFree. What the tenant may not have is parked.
func (m *Machine) placeGroup(group uint32) (placed, final bool) {
	slot, ok := m.quotaOfGroup(group)
	if !ok {
		return m.placeLasting(group)
	}
	m.dear.nodes, m.dear.models = m.dear.nodes[:0], m.dear.models[:0] // those of a command that panicked are taken back
	placed, final = m.placeBounded(slot, group)
	m.avoidNothing()
	return placed, final
}

// placeBounded is placeGroup for a tenant with a quota or a budget. It leaves out what
// it finds too dear until avoidNothing.
func (m *Machine) placeBounded(slot, group uint32) (placed, final bool) {
	bucket := m.groups.Get(group).bucket.slot()
	for range 2*gpuai.MaxQuotaModels + dearTries { // each time without one model, or one node, more
		v := m.admit(slot, group)
		if !v.ok {
			m.park(bucket, &v)
			return false, true
		}
		placed, final = m.placeBarred(slot, group, v.barred)
		left := m.groups.Get(group).bucket == refTo(bucket)
		switch {
		case !left || placed || !final:
			return placed, final
		case m.overBudget && m.avoid() || m.overQuota: // what was found it may not have: something else, or nothing
			continue
		case m.overBudget || len(m.dear.nodes)+len(m.dear.models) > 0:
			m.tooDear(bucket)
			return false, true
		}
		m.looked(bucket, v.barred != 0)
		return false, true
	}
	m.looked(bucket, true)
	return false, true
}

// kept reports whether a group that waits in a turn may not have all that it asks for:
// nothing is reserved for it.
func (m *Machine) kept(group uint32) bool {
	slot, ok := m.quotaOfGroup(group)
	if !ok {
		return false
	}
	bucket, v := m.groups.Get(group).bucket.slot(), m.admit(slot, group)
	switch {
	case !v.ok:
		m.park(bucket, &v)
	case v.barred != 0:
		m.looked(bucket, true)
	default:
		return m.buckets.Get(bucket).curb&curbBudget != 0
	}
	return true
}

func (m *Machine) quotaOfGroup(group uint32) (slot uint32, ok bool) {
	if m.quotas.Len() == 0 {
		return 0, false
	}
	if b := m.groups.Get(group).bucket; b != 0 && m.buckets.Get(b.slot()).tenant == 0 {
		return 0, false // it waits since before LevelPlacement, in one bucket with others'
	}
	return m.quotaSlot(m.jobs.Get(m.groups.Get(group).job.slot()).tenant)
}

// placeBarred is placeFree without devices of some models.
func (m *Machine) placeBarred(slot, group, barred uint32) (placed, final bool) {
	m.overQuota, m.overBudget = false, false
	ends := m.endsBy(group)
	if barred == 0 && ends == 0 && len(m.dear.models) == 0 {
		return m.placeFree(group)
	}
	m.barModels(slot, barred, ends)
	placed, final = m.placeFree(group)
	m.sched.Unbar()
	return placed, final
}

// grantable reports whether the quota of a group's tenant lets it have one task's
// place, and notes when not.
func (m *Machine) grantable(group uint32, fit *scheduler.Fit) bool {
	slot, ok := m.quotaOfGroup(group)
	if !ok {
		return true
	}
	n := m.needOfTask(group)
	if v := m.within(slot, n); !v.ok || m.startsBeyond(slot, group) {
		m.overQuota = true
		return false
	}
	if i := m.quotas.Get(slot).modelIn(m.sched.ModelOf(fit.Node, fit.Devices)); i >= 0 && !m.withinModel(slot, i, n[ofGPUs]).ok {
		m.overQuota = true
		return false
	}
	return true
}

// park takes a bucket out of its turn that its tenant may not have more of.
func (m *Machine) park(bucket uint32, v *verdict) {
	slot, _ := m.quotaSlot(m.buckets.Get(bucket).tenant)
	curb := uint8(curbParked)
	v.owed = v.owed && m.mayBeOwed(m.buckets.Get(bucket).first.slot())
	if v.by == boundBudget {
		curb |= curbBudget
	}
	m.unlink(bucket)
	m.unseen.Clear(bucket)
	m.setStarved(bucket, false)
	b := m.buckets.Mut(bucket)
	b.unseen = false
	if v.owed {
		m.owe(bucket, curb, v)
		m.barren = m.barren[:0]
		m.takeBackLent(slot, m.buckets.Get(bucket).first.slot(), v)
		return
	}
	m.setCurb(bucket, curb)
}

// looked notes that a bucket was looked at that its tenant may have more of: if it
// waits, it is for room. What was owed to it stays free for it until then: those who
// left would else borrow it again, and be asked to leave again.
func (m *Machine) looked(bucket uint32, barred bool) {
	curb := m.stillOwed(bucket)
	if barred {
		curb |= curbModels
	}
	m.setCurb(bucket, curb)
}

// setCurb gives a bucket other bits. Where it was owed something and is no longer,
// others of the cohort may borrow again.
func (m *Machine) setCurb(bucket uint32, curb uint8) {
	b := m.buckets.Get(bucket)
	old := b.curb
	if old == curb {
		return
	}
	slot, _ := m.quotaSlot(b.tenant)
	m.relistCurbed(bucket, curb)
	m.buckets.Mut(bucket).curb = curb
	if g := m.meta.Get().reserve.group; g != 0 && curb&(curbParked|curbModels|curbBudget) != 0 && m.groups.Get(g.slot()).bucket == refTo(bucket) {
		m.unreserve() // it may not have what is kept for it
	}
	if old&^curb&curbOwed != 0 {
		m.dropDebt(bucket)
		b := m.buckets.Mut(bucket)
		b.debtOf, b.debt = 0, 0
		m.freed.Set(slot)
	}
}

// poolsMoved has those judged again who may have devices of some models only: there
// are others now.
func (m *Machine) poolsMoved() {
	for s := range m.quotas.Len() {
		if m.now.work -= workLook; m.quotaUses.Get(s).curbed != 0 && m.quotas.Get(s).models[0].name != 0 {
			m.wakeQuota(s)
		}
	}
}
