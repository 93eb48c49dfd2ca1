package fsm

import (
	"math"

	"github.com/gpuai/gpuai"
)

// What a bucket waits for that is its tenant's own, and lent to others, is owed to it:
// see curbOwed. So much of the cohort's idle quota nobody borrows, resource by
// resource and model by model; all else is lent as before. A tenant is owed no more
// than what it may still have of its own, however many of its requests wait.
//
// A debt is counted in the terms of the quota under which it was judged: whoever sets
// another quota voids the debts of its tenant without a look at any, and they are
// counted anew as its buckets are judged.

// What a member is about to take of its own is owed to it, too, from when its bucket is
// judged until it is looked at: who borrowed it meanwhile would be asked to leave at once.

// debtBriefly is bucketRec.debtOf of a bucket that is owed something until it is looked at.
const debtBriefly = math.MaxUint8

// A debtRec is what one bucket is owed; derived, but for what its bucketRec says.
type debtRec struct {
	of      [numBounds]uint64
	model   uint8  // index among the quota's models, 1 more; 0: none
	version uint32 // of the quota; 0: there is no debt
}

// owe notes that the first group of a bucket waits for what is its tenant's own, by a
// verdict, and gives the bucket its bits.
func (m *Machine) owe(bucket uint32, curb uint8, v *verdict) {
	m.setCurb(bucket, curb|curbOwed)
	b := m.buckets.Mut(bucket)
	slot, _ := m.quotaSlot(b.tenant)
	b.debt, b.debtOf = m.quotas.Get(slot).version, 0
	if v.by == boundModel {
		b.debtOf = uint8(v.model) + 1
	}
	m.countDebt(bucket)
}

// oweBriefly has nobody borrow what a bucket may take of its tenant's own, until it is
// looked at.
func (m *Machine) oweBriefly(bucket uint32, curb uint8) {
	m.owe(bucket, curb, &verdict{ok: true})
	m.buckets.Mut(bucket).debtOf = debtBriefly
}

// mayBeOwed reports whether a group could start with what is owed to it: its tenant shares
// a quota and has money left, and nodes could hold it. Else others would be asked to leave
// in vain.
func (m *Machine) mayBeOwed(group uint32) bool {
	slot, ok := m.quotaSlot(m.jobs.Get(m.groups.Get(group).job.slot()).tenant)
	return ok && m.quotaUses.Get(slot).cohort != 0 && m.hasMoney(group) && m.everHolds(group)
}

// stillOwed returns curbOwed if a bucket that was looked at is owed something still.
func (m *Machine) stillOwed(bucket uint32) uint8 {
	b := m.buckets.Get(bucket)
	if b.curb&curbOwed == 0 || b.debtOf == debtBriefly || !m.mayBeOwed(b.first.slot()) {
		return 0
	}
	return curbOwed
}

// countDebt counts what a bucket is owed by what its record says, in place of what was
// counted for it.
func (m *Machine) countDebt(bucket uint32) {
	m.dropDebt(bucket)
	b := m.buckets.Get(bucket)
	slot, _ := m.quotaSlot(b.tenant)
	if b.debt != m.quotas.Get(slot).version {
		return
	}
	d := debtRec{of: m.dueOf(bucket), version: b.debt}
	if b.debtOf != debtBriefly {
		d.model = b.debtOf
	}
	m.debts.Put(bucket, d)
	m.addDebt(slot, &d, 1)
}

// recountDebt is countDebt where other tasks wait in a bucket now, if it is owed any.
func (m *Machine) recountDebt(bucket uint32) {
	if m.buckets.Get(bucket).curb&curbOwed != 0 {
		m.countDebt(bucket)
	}
}

// dueOf returns what a bucket waits for: what its first group needs to start, and where
// tasks start one by one what all of them need.
func (m *Machine) dueOf(bucket uint32) [numBounds]uint64 {
	b := m.buckets.Get(bucket)
	n := m.needOfStart(b.first.slot())
	if b.gang == 0 && m.groups.Get(b.first.slot()).together == 0 {
		for i := range n {
			n[i] = mulSat(n[i], b.tasks)
		}
	}
	return n
}

// dropDebt counts nothing for a bucket any more.
func (m *Machine) dropDebt(bucket uint32) {
	if bucket >= m.debts.Len() || m.debts.Get(bucket).version == 0 {
		return
	}
	d := *m.debts.Get(bucket)
	*m.debts.Mut(bucket) = debtRec{}
	slot, _ := m.quotaSlot(m.buckets.Get(bucket).tenant)
	if d.version == m.quotas.Get(slot).version {
		m.addDebt(slot, &d, -1)
	}
}

// addDebt adds a debt to what a tenant is owed, or takes it off: then by is -1.
func (m *Machine) addDebt(slot uint32, d *debtRec, by int64) {
	u := m.quotaUses.Mut(slot)
	u.owed = uint32(int64(u.owed) + by)
	for i, n := range d.of {
		u.due[i] += uint64(by) * n
	}
	if d.model != 0 {
		u.dueModels[d.model-1] += uint64(by) * d.of[ofGPUs]
	}
	m.tellDebts(slot)
}

// voidDebts forgets what a tenant is owed, whose quota is about to be another.
func (m *Machine) voidDebts(slot uint32) {
	u := m.quotaUses.Mut(slot)
	u.owed, u.due, u.dueModels = 0, [numBounds]uint64{}, [gpuai.MaxQuotaModels]uint64{}
	m.tellDebts(slot)
}

// tellDebts tells the cohort of a quota what its tenant is owed now: what it may have
// more changes with what it has.
func (m *Machine) tellDebts(slot uint32) {
	q, u, t := m.quotas.Get(slot), m.quotaUses.Mut(slot), m.tally(slot)
	for i, most := range q.bounds {
		kept := uint64(0)
		if u.owed > 0 && most != noBound {
			kept = min(u.due[i], most-min(most, t.of[i]))
		}
		if u.cohort != 0 && kept != u.kept[i] {
			m.cohorts.recs.Mut(u.cohort.slot()).kept[i] += kept - u.kept[i]
		}
		u.kept[i] = kept
	}
	for i := range q.models {
		x := &q.models[i]
		if x.name == 0 {
			break
		}
		kept := uint64(0)
		if u.owed > 0 {
			kept = min(u.dueModels[i], x.most-min(x.most, u.models[i]))
		}
		if u.cohort != 0 && kept != u.keptModels[i] {
			lent, _ := m.cohorts.model(u.cohort.slot(), x.name)
			m.cohorts.models.Mut(lent).kept += kept - u.keptModels[i]
		}
		u.keptModels[i] = kept
	}
}
