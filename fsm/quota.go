package fsm

import (
	"math"

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
	version uint32 // 1 more each time that it is set
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
	b = le.AppendUint32(b, r.version)
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
	r.version = rd.U32()
	for i := range r.models {
		r.models[i] = modelBound{name: rd.U32(), most: rd.U64()}
	}
}

// unbounded is the quota of a tenant that is bounded by its budget alone.
func unbounded(tenant uint32) quotaRec {
	r := quotaRec{name: tenant, version: 1, borrow: noBound, running: noBound, pending: noBound, rate: noBound}
	for i := range r.bounds {
		r.bounds[i] = noBound
	}
	return r
}

// A quotaUse is what is known of a quota beside what its tenant has. All of it is
// derived.
type quotaUse struct {
	tally         uint32
	cohort        ref
	peer          ref               // next member of the cohort
	owed          uint32            // its buckets that are kept from what is theirs
	due           [numBounds]uint64 // what those wait for, in all: see debt.go
	dueModels     [gpuai.MaxQuotaModels]uint64
	kept          [numBounds]uint64 // of it, what nobody of the cohort may borrow
	keptModels    [gpuai.MaxQuotaModels]uint64
	curbed        ref                          // root of the buckets that wait for the quota
	waiting       uint32                       // how many those are
	woken         queueKey                     // up to which of them have been judged again; replicated, as again
	again         bool                         // from the first on, since more came free meanwhile
	models        [gpuai.MaxQuotaModels]uint64 // what live leases, and holds, have of the bounded models
	modelsLeaving [gpuai.MaxQuotaModels]uint64 // of it, by leases that are being revoked
}

// quotaSlot returns a tenant's quota by its string number.
func (m *Machine) quotaSlot(tenant uint32) (uint32, bool) {
	if m.quotas.Len() == 0 || tenant >= m.quotaOf.Len() || *m.quotaOf.Get(tenant) == 0 {
		return 0, false
	}
	return m.quotaOf.Get(tenant).slot(), true
}

// quotaFor is quotaSlot that makes one without bounds.
func (m *Machine) quotaFor(tenant uint32) uint32 {
	if slot, ok := m.quotaSlot(tenant); ok {
		return slot
	}
	slot := m.quotas.Append(unbounded(tenant))
	m.linkQuota(slot)
	return slot
}

// linkQuota makes a quota known by its tenant, and to its cohort.
func (m *Machine) linkQuota(slot uint32) {
	q := m.quotas.Get(slot)
	m.quotaOf.Grow(q.name + 1)
	*m.quotaOf.Mut(q.name) = refTo(slot)
	m.quotaUses.Grow(slot + 1)
	tally := m.tallies.slot(q.name)
	m.tallies.recs.Mut(tally).quota = refTo(slot)
	m.quotaUses.Mut(slot).tally = tally
	m.hashModels(slot)
	m.recountQuota(slot)
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

// modelIn returns which bounded model devices of a model are of; -1: none.
func (q *quotaRec) modelIn(hash uint64) int {
	for i := range q.models {
		if q.models[i].name == 0 {
			break
		}
		if q.models[i].hash == hash {
			return i
		}
	}
	return -1
}

// countQuota tells the cohort of a quota what its tenant has more, or less, and who
// waits for it of what came free.
func (m *Machine) countQuota(slot uint32, x *used) {
	if u := m.quotaUses.Get(slot); u.cohort != 0 && x.is != usedLeaves {
		q, c := m.quotas.Get(slot), m.cohorts.recs.Mut(u.cohort.slot())
		for i := range x.of {
			if q.bounds[i] != noBound {
				c.have[i] += x.change(i).of
			}
		}
	}
	if x.is != usedLeaves && m.quotaUses.Get(slot).owed > 0 {
		m.tellDebts(slot)
	}
	if x.is == usedNoMore {
		m.freed.Set(slot)
	}
}

// countQuotaModel counts devices of a model, if the quota bounds it.
func (m *Machine) countQuotaModel(slot uint32, x *used) {
	q := m.quotas.Get(slot)
	i := q.modelIn(x.model)
	if i < 0 {
		return
	}
	n, u := x.devices(), m.quotaUses.Mut(slot)
	u.models[i] += n.of
	u.modelsLeaving[i] += n.leaving
	if u.cohort == 0 {
		return
	}
	if lent, ok := m.cohorts.model(u.cohort.slot(), q.models[i].name); ok {
		m.cohorts.models.Mut(lent).have += n.of
	}
	if u.owed > 0 {
		m.tellDebts(slot)
	}
}

// recountQuota counts by the models of a quota, which may be others now. The quota is
// in no cohort meanwhile.
func (m *Machine) recountQuota(slot uint32) {
	q, u := m.quotas.Get(slot), m.quotaUses.Mut(slot)
	u.models, u.modelsLeaving = [gpuai.MaxQuotaModels]uint64{}, [gpuai.MaxQuotaModels]uint64{}
	for i := range q.models {
		if q.models[i].name == 0 {
			break
		}
		if at, _ := m.tallies.model(u.tally, q.models[i].hash); at != 0 && q.modelIn(q.models[i].hash) == i {
			t := m.tallies.models.Get(at.slot())
			u.models[i], u.modelsLeaving[i] = t.of, t.leaving
		}
	}
}

// rebuildQuotas finds quotas by their tenants, and who waits for them: the machine was
// restored, and its tallies rebuilt.
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
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		if m.buckets.Get(b).curbed() {
			if _, ok := m.quotaSlot(m.buckets.Get(b).tenant); !ok {
				return errSnapshot("a bucket waits for a quota that nobody has")
			}
			m.listCurbed(b, m.buckets.Get(b).curb)
			if m.buckets.Get(b).curb&curbOwed != 0 {
				if of := m.buckets.Get(b).debtOf; of > gpuai.MaxQuotaModels && of != debtBriefly {
					return errSnapshot("a bucket is owed a model that there is not")
				}
				m.countDebt(b)
			}
		}
	}
	return nil
}
