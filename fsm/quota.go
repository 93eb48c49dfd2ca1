package fsm

import (
	"cmp"
	"math"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// What a quota bounds: the first three of a lease, in the units of its record.
const (
	ofGPUs = iota // thousandths of a device
	ofCPU
	ofMemory
	numBounds
)

// noBound is a bound that nobody reaches.
const noBound = math.MaxUint64

// A quotaRec is what a tenant may have at a time. A tenant without one has no
// bounds, and costs nothing.
type quotaRec struct {
	name    uint32 // string number of the tenant
	cohort  uint32 // string number; 0: none
	bounds  [numBounds]uint64
	borrow  uint64 // thousandths of a device beyond its bound
	running uint64 // jobs
	pending uint64
	rate    uint64 // requests by the second
	models  [gpuai.MaxQuotaModels]modelBound
}

// A modelBound bounds the devices of one model.
type modelBound struct {
	name uint32 // string number; 0: none
	most uint64 // thousandths of a device
	hash uint64 // scheduler.ModelHash; derived
}

func (r *quotaRec) put(b []byte) []byte {
	b = le.AppendUint32(b, r.name)
	b = le.AppendUint32(b, r.cohort)
	for _, x := range r.bounds {
		b = le.AppendUint64(b, x)
	}
	for _, x := range [...]uint64{r.borrow, r.running, r.pending, r.rate} {
		b = le.AppendUint64(b, x)
	}
	for i := range r.models {
		b = le.AppendUint32(b, r.models[i].name)
		b = le.AppendUint64(b, r.models[i].most)
	}
	return b
}

func (r *quotaRec) get(rd *wire.Reader) {
	r.name = rd.U32()
	r.cohort = rd.U32()
	for i := range r.bounds {
		r.bounds[i] = rd.U64()
	}
	for _, x := range [...]*uint64{&r.borrow, &r.running, &r.pending, &r.rate} {
		*x = rd.U64()
	}
	for i := range r.models {
		r.models[i] = modelBound{name: rd.U32(), most: rd.U64()}
	}
}

// unbounded is the quota of a tenant that is bounded by its budget alone.
func unbounded(tenant uint32) quotaRec {
	r := quotaRec{name: tenant, borrow: noBound, running: noBound, pending: noBound, rate: noBound}
	for i := range r.bounds {
		r.bounds[i] = noBound
	}
	return r
}

// A quotaUse is what counts against a quota: what live leases have, and holds. All
// of it is derived.
type quotaUse struct {
	of            [numBounds]uint64
	leaving       [numBounds]uint64 // of it, by leases that are being revoked
	models        [gpuai.MaxQuotaModels]uint64
	modelsLeaving [gpuai.MaxQuotaModels]uint64
	running       uint32 // jobs
	pending       uint32
	owed          uint32 // its buckets that are kept from what is theirs
	first, last   ref    // live leases, in the order of their grants
	curbed        ref    // first bucket that waits for the quota
	peer          ref    // next member of the cohort
}

// quotaSlot returns a tenant's quota by its string number.
func (m *Machine) quotaSlot(tenant uint32) (uint32, bool) {
	if m.quotas.Len() == 0 || tenant >= m.quotaOf.Len() || *m.quotaOf.Get(tenant) == 0 {
		return 0, false
	}
	return m.quotaOf.Get(tenant).slot(), true
}

// quotaFor is quotaSlot that makes one without bounds, and counts what the tenant
// has: a look at all jobs, if it has any that have not ended.
func (m *Machine) quotaFor(tenant uint32) uint32 {
	if slot, ok := m.quotaSlot(tenant); ok {
		return slot
	}
	slot := m.quotas.Append(unbounded(tenant))
	m.linkQuota(slot)
	if tenant < m.kinds.weight.Len() && *m.kinds.weight.Get(tenant) > 0 {
		m.scan = m.scan[:0]
		for j, ok := m.jobSlots.Next(0); ok; j, ok = m.jobSlots.Next(j + 1) {
			if m.jobs.Get(j).tenant == tenant {
				m.countJob(slot, j)
			}
		}
		m.listLeases()
	}
	return slot
}

// linkQuota makes a quota known by its tenant, and to its cohort.
func (m *Machine) linkQuota(slot uint32) {
	q := m.quotas.Get(slot)
	m.quotaOf.Grow(q.name + 1)
	*m.quotaOf.Mut(q.name) = refTo(slot)
	m.quotaUses.Grow(slot + 1)
	m.hashModels(slot)
	m.joinCohort(slot)
}

func (m *Machine) hashModels(slot uint32) {
	q := m.quotas.Mut(slot)
	for i := range q.models {
		if x := &q.models[i]; x.name != 0 {
			x.hash = scheduler.ModelHash(m.strs.Get(x.name))
		}
	}
}

// joinCohort puts a quota among the members of its cohort, in the order of slots.
func (m *Machine) joinCohort(slot uint32) {
	c := m.quotas.Get(slot).cohort
	if c == 0 {
		return
	}
	m.cohortOf.Grow(c + 1)
	at := m.cohortOf.Mut(c)
	for *at != 0 && at.slot() < slot {
		at = &m.quotaUses.Mut(at.slot()).peer
	}
	next := *at
	*at = refTo(slot)
	m.quotaUses.Mut(slot).peer = next
}

func (m *Machine) leaveCohort(slot uint32) {
	c := m.quotas.Get(slot).cohort
	if c == 0 {
		return
	}
	at := m.cohortOf.Mut(c)
	for *at != refTo(slot) {
		at = &m.quotaUses.Mut(at.slot()).peer
	}
	u := m.quotaUses.Mut(slot)
	*at, u.peer = u.peer, 0
}

// eachPeer calls f with each member of a quota's cohort, or with the quota alone.
func (m *Machine) eachPeer(slot uint32, f func(slot uint32)) {
	c := m.quotas.Get(slot).cohort
	if c == 0 {
		f(slot)
		return
	}
	for x := *m.cohortOf.Get(c); x != 0; x = m.quotaUses.Get(x.slot()).peer {
		m.now.work -= workLook
		f(x.slot())
	}
}

// cohortLen returns how many members a cohort has.
func (m *Machine) cohortLen(cohort uint32) (n int) {
	if cohort >= m.cohortOf.Len() {
		return 0
	}
	for x := *m.cohortOf.Get(cohort); x != 0; x = m.quotaUses.Get(x.slot()).peer {
		n++
	}
	return n
}

// countJob counts a job of a quota's tenant, and what its leases have.
func (m *Machine) countJob(slot, job uint32) {
	j := m.jobs.Get(job)
	if j.status.Final() {
		return
	}
	m.countStatus(slot, j.status, 1)
	for g := j.group; g != 0; g = m.groups.Get(g.slot()).next {
		for t := m.groups.Get(g.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
			if l := m.tasks.Get(t.slot()).lease; l != 0 && m.leases.Get(l.slot()).live() {
				m.use(slot, m.leaseUse(slot, l.slot()))
				m.scan = append(m.scan, l.slot())
			}
		}
		for h := m.newestHold(g.slot()); h != 0; h = m.holds.Get(h.slot()).older {
			m.use(slot, m.holdUse(slot, m.holds.Get(h.slot())))
		}
	}
}

// countStatus counts a job in a state, or no longer.
func (m *Machine) countStatus(slot uint32, s gpuai.JobStatus, by int32) {
	m.quotaUses.Mut(slot).status(s, by)
}

func (u *quotaUse) status(s gpuai.JobStatus, by int32) {
	switch s {
	case gpuai.JobPending:
		u.pending = uint32(int32(u.pending) + by)
	case gpuai.JobRunning:
		u.running = uint32(int32(u.running) + by)
	}
}

// jobMoved counts a job that moved to another state.
func (m *Machine) jobMoved(tenant uint32, from, to gpuai.JobStatus) {
	slot, ok := m.quotaSlot(tenant)
	if !ok {
		return
	}
	m.countStatus(slot, from, -1)
	m.countStatus(slot, to, 1)
	if from == gpuai.JobRunning || m.quotas.Get(slot).running != noBound { // other groups of a job that runs may start
		m.freed.Set(slot)
	}
}

// A used is what one lease or hold has of a quota.
type used struct {
	of      [numBounds]uint64
	model   int  // index among the models of the quota; -1: none of them
	leaving bool // it is being revoked
	less    bool // it is no more
}

func (m *Machine) leaseUse(slot, lease uint32) used {
	l := m.leases.Get(lease)
	u := used{model: m.modelIn(slot, l.node, l.devices), leaving: l.state == gpuai.LeaseRevoking}
	u.of = [numBounds]uint64{l.held(), uint64(l.cpu), uint64(l.memory)}
	return u
}

func (m *Machine) holdUse(slot uint32, h *holdRec) used {
	l := leaseRec{devices: h.devices, share: h.share}
	u := used{model: m.modelIn(slot, h.node, h.devices)}
	u.of = [numBounds]uint64{l.held(), uint64(h.cpu), uint64(h.memory)}
	return u
}

// modelIn returns which bounded model some devices are of; -1: none.
func (m *Machine) modelIn(slot, node uint32, devices uint64) int {
	q := m.quotas.Get(slot)
	if q.models[0].name == 0 || devices == 0 {
		return -1
	}
	h := m.sched.ModelOf(node, devices)
	for i := range q.models {
		if q.models[i].name != 0 && q.models[i].hash == h {
			return i
		}
	}
	return -1
}

// use counts what a lease or hold has, or has no longer.
func (m *Machine) use(slot uint32, x used) {
	m.quotaUses.Mut(slot).add(x)
	if x.less {
		m.freed.Set(slot)
	}
}

func (u *quotaUse) add(x used) {
	for i, n := range x.of {
		if x.less {
			n = -n
		}
		u.of[i] += n
		if x.leaving {
			u.leaving[i] += n
		}
	}
	u.countModel(&x)
}

// countModel counts the devices of x by their model.
func (u *quotaUse) countModel(x *used) {
	if x.model < 0 {
		return
	}
	n := x.of[ofGPUs]
	if x.less {
		n = -n
	}
	u.models[x.model] += n
	if x.leaving {
		u.modelsLeaving[x.model] += n
	}
}

// useLease counts a new lease.
func (m *Machine) useLease(lease uint32) {
	if m.quotas.Len() == 0 {
		return
	}
	slot, ok := m.quotaSlot(m.tenantOfLease(m.leases.Get(lease)))
	if !ok {
		return
	}
	m.use(slot, m.leaseUse(slot, lease))
	m.listLease(slot, lease)
}

// listLease puts a lease behind all others of a quota.
func (m *Machine) listLease(slot, lease uint32) {
	u := m.quotaUses.Mut(slot)
	l := m.leases.Mut(lease)
	if l.quotaOlder = u.last; u.last != 0 {
		m.leases.Mut(u.last.slot()).quotaNewer = refTo(lease)
	} else {
		u.first = refTo(lease)
	}
	u.last = refTo(lease)
}

// unuseLease counts a lease that ends.
func (m *Machine) unuseLease(lease uint32) {
	if m.quotas.Len() == 0 {
		return
	}
	slot, ok := m.quotaSlot(m.tenantOfLease(m.leases.Get(lease)))
	if !ok {
		return
	}
	x := m.leaseUse(slot, lease)
	x.less = true
	m.use(slot, x)
	u := m.quotaUses.Mut(slot)
	l := m.leases.Mut(lease)
	if l.quotaOlder != 0 {
		m.leases.Mut(l.quotaOlder.slot()).quotaNewer = l.quotaNewer
	} else {
		u.first = l.quotaNewer
	}
	if l.quotaNewer != 0 {
		m.leases.Mut(l.quotaNewer.slot()).quotaOlder = l.quotaOlder
	} else {
		u.last = l.quotaOlder
	}
	l.quotaOlder, l.quotaNewer = 0, 0
}

// leavingQuota counts a lease that is being revoked from now on.
func (m *Machine) leavingQuota(lease uint32) {
	if m.quotas.Len() == 0 {
		return
	}
	slot, ok := m.quotaSlot(m.tenantOfLease(m.leases.Get(lease)))
	if !ok {
		return
	}
	x := m.leaseUse(slot, lease)
	u := m.quotaUses.Mut(slot)
	for i := range x.of {
		u.leaving[i] += x.of[i]
	}
	if x.model >= 0 {
		u.modelsLeaving[x.model] += x.of[ofGPUs]
	}
}

// useHold counts a hold, or one that ends.
func (m *Machine) useHold(h *holdRec, less bool) {
	if m.quotas.Len() == 0 {
		return
	}
	if slot, ok := m.quotaSlot(m.tenantOfHold(h)); ok {
		x := m.holdUse(slot, h)
		x.less = less
		m.use(slot, x)
	}
}

// recountModels counts the leases of a node by their models, or counts them no
// longer: its devices are about to be others.
func (m *Machine) recountModels(node uint32, less bool) {
	if m.quotas.Len() == 0 {
		return
	}
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		slot, ok := m.quotaSlot(m.tenantOfLease(m.leases.Get(l.slot())))
		if !ok {
			continue
		}
		x := m.leaseUse(slot, l.slot())
		x.less = less
		m.quotaUses.Mut(slot).countModel(&x)
		m.freed.Set(slot)
	}
}

// recountQuota counts by the models of a quota, which may be others now.
func (m *Machine) recountQuota(slot uint32) {
	u := m.quotaUses.Mut(slot)
	u.models, u.modelsLeaving = [gpuai.MaxQuotaModels]uint64{}, [gpuai.MaxQuotaModels]uint64{}
	if m.quotas.Get(slot).models[0].name == 0 {
		return
	}
	for l := u.first; l != 0; l = m.leases.Get(l.slot()).quotaNewer {
		m.now.work -= workLook
		x := m.leaseUse(slot, l.slot())
		u.countModel(&x)
	}
	for h, ok := m.holdSlots.Next(0); ok; h, ok = m.holdSlots.Next(h + 1) {
		if r := m.holds.Get(h); m.tenantOfHold(r) == m.quotas.Get(slot).name {
			x := m.holdUse(slot, r)
			u.countModel(&x)
		}
	}
}

func (m *Machine) tenantOfHold(h *holdRec) uint32 {
	return m.jobs.Get(m.groups.Get(h.group.slot()).job.slot()).tenant
}

// listLeases puts the leases in m.scan into the lists of their quotas, in the order
// of their grants: tokens grow.
func (m *Machine) listLeases() {
	slices.SortFunc(m.scan, func(a, b uint32) int { return cmp.Compare(m.leases.Get(a).token, m.leases.Get(b).token) })
	for _, l := range m.scan {
		if slot, ok := m.quotaSlot(m.tenantOfLease(m.leases.Get(l))); ok {
			m.listLease(slot, l)
		}
	}
}

// rebuildQuotas counts what all tenants with a quota have: the machine was restored.
func (m *Machine) rebuildQuotas() error {
	if m.quotas.Len() == 0 {
		return nil
	}
	for s := range m.quotas.Len() {
		q := m.quotas.Get(s)
		if _, twice := m.quotaSlot(q.name); twice || q.name == 0 || q.name >= m.strs.Len() || q.cohort >= m.strs.Len() {
			return errSnapshot("a quota is of no tenant, or one of two")
		}
		for i := range q.models {
			if q.models[i].name >= m.strs.Len() {
				return errSnapshot("a quota bounds a model without a name")
			}
		}
		m.linkQuota(s)
	}
	m.scan = m.scan[:0]
	for j, ok := m.jobSlots.Next(0); ok; j, ok = m.jobSlots.Next(j + 1) {
		if slot, ok := m.quotaSlot(m.jobs.Get(j).tenant); ok {
			m.countJob(slot, j)
		}
	}
	m.listLeases()
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		if m.buckets.Get(b).curbed() {
			if _, ok := m.quotaSlot(m.buckets.Get(b).tenant); !ok {
				return errSnapshot("a bucket waits for a quota that nobody has")
			}
			m.listCurbed(b)
			if slot, _ := m.quotaSlot(m.buckets.Get(b).tenant); m.buckets.Get(b).curb&curbOwed != 0 {
				m.quotaUses.Mut(slot).owed++
			}
		}
	}
	return nil
}
