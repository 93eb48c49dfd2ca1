package fsm

import "fmt"

// checkTallies counts what all tenants have, and compares.
func (m *Machine) checkTallies() error {
	want := make([]tallyRec, m.tallies.recs.Len())
	uses := make([]uint32, m.tallies.models.Len()) // by model of a tenant
	count := func(tenant uint32, x *used) {
		tally := m.tallies.slot(tenant)
		want[tally].add(x)
		if at, _ := m.tallies.model(tally, x.model); at != 0 && x.model != 0 {
			uses[at.slot()]++
		}
	}
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		if l := m.leases.Get(s); l.live() {
			x := m.leaseUse(s)
			count(m.tenantOfLease(l), &x)
		}
	}
	for s, ok := m.holdSlots.Next(0); ok; s, ok = m.holdSlots.Next(s + 1) {
		x := m.holdUse(m.holds.Get(s))
		count(m.tenantOfHold(m.holds.Get(s)), &x)
	}
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		if j := m.jobs.Get(s); !j.status.Final() { // the tenant of others may have no tally
			want[m.tallies.slot(j.tenant)].status(j.status, 1)
		}
	}
	for s := range m.tallies.recs.Len() {
		if err := m.checkTally(s, &want[s]); err != nil {
			return fmt.Errorf("tally %d: %w", s, err)
		}
	}
	return m.checkModels(uses)
}

// checkTally compares what a tenant has with what is recorded, and walks its leases.
func (m *Machine) checkTally(slot uint32, want *tallyRec) error {
	got := *m.tallies.recs.Get(slot)
	leases, last := uint64(0), ref(0)
	for l := got.first; l != 0; last, l = l, m.tallies.links.Get(l.slot()).newer {
		x := m.leases.Get(l.slot())
		if m.tallies.links.Get(l.slot()).older != last || !m.givesWay(l.slot()) || last != 0 && m.leases.Get(last.slot()).token >= x.token {
			return fmt.Errorf("lease %d is out of place among those of its tenant", x.token)
		}
		leases += x.held()
	}
	if got.last != last {
		return fmt.Errorf("its leases do not end where they should")
	}
	want.first, want.last, want.quota, want.models = got.first, got.last, got.quota, got.models
	if got != *want {
		return fmt.Errorf("the tenant has %+v, recorded %+v", *want, got)
	}
	if leases > got.of[ofGPUs] {
		return fmt.Errorf("its leases have %d milli, recorded %d", leases, got.of[ofGPUs])
	}
	return nil
}

// checkModels compares by how many each model is used, and what they have in all.
func (m *Machine) checkModels(uses []uint32) error {
	var have uint64
	for s := range m.tallies.models.Len() {
		r := *m.tallies.models.Get(s)
		if r.uses != uses[s] || r.leaving > r.of || r.uses == 0 && r.of > 0 {
			return fmt.Errorf("a model of a tenant is used %d times, recorded %+v", uses[s], r)
		}
		have += r.of
	}
	for s := range m.tallies.recs.Len() {
		have -= m.tallies.recs.Get(s).of[ofGPUs]
	}
	if have != 0 {
		return fmt.Errorf("by models tenants have %d milli more than in all", int64(have))
	}
	return nil
}

// checkQuotas compares what is recorded of quotas and cohorts with what tenants have.
func (m *Machine) checkQuotas() error {
	owed := make([]quotaUse, m.quotas.Len())
	for s, ok := m.bucketSlots.Next(0); ok; s, ok = m.bucketSlots.Next(s + 1) {
		b := m.buckets.Get(s)
		if b.parked() && (b.unseen || b.starved) {
			return fmt.Errorf("bucket %d is parked, and to be looked at", s)
		}
		slot, ok := m.quotaSlot(b.tenant)
		if b.curbed() && !ok {
			return fmt.Errorf("bucket %d waits for a quota that nobody has", s)
		}
		if b.curb&curbOwed != 0 {
			m.checkDebt(s, slot, &owed[slot])
		} else if s < m.debts.Len() && m.debts.Get(s).version != 0 {
			return fmt.Errorf("bucket %d is owed nothing, and counted as if it were", s)
		}
	}
	cohorts := make([]cohortRec, m.cohorts.recs.Len())
	for s := range m.quotas.Len() {
		if err := m.checkQuota(s, &owed[s]); err != nil {
			return fmt.Errorf("tenant %q: %w", m.strs.Get(m.quotas.Get(s).name), err)
		}
		if c := m.quotaUses.Get(s).cohort; c != 0 {
			m.checkMember(s, &cohorts[c.slot()])
		}
	}
	for s := range cohorts {
		got := *m.cohorts.recs.Get(uint32(s))
		if got.first = 0; got != cohorts[s] {
			return fmt.Errorf("cohort %d has %+v, recorded %+v", s, cohorts[s], got)
		}
	}
	return m.checkLent()
}

// checkMember adds a member of a cohort to what it has.
func (m *Machine) checkMember(slot uint32, c *cohortRec) {
	c.members++
	for i, kept := range m.quotaUses.Get(slot).kept {
		c.kept[i] += kept
	}
	for i, most := range m.quotas.Get(slot).bounds {
		if most != noBound {
			c.have[i] += m.tally(slot).of[i]
			c.most[i] += most
		}
	}
}

// checkLent compares what cohorts have of models with what their members have.
func (m *Machine) checkLent() error {
	want := make(map[[2]uint32]lentModel)
	for s := range m.quotas.Len() {
		q, u := m.quotas.Get(s), m.quotaUses.Get(s)
		for i := range q.models {
			if x := &q.models[i]; x.name != 0 && u.cohort != 0 {
				at := [2]uint32{u.cohort.slot(), x.name}
				r := want[at]
				want[at] = lentModel{cohort: at[0], name: at[1], members: r.members + 1, have: r.have + u.models[i], most: r.most + x.most, kept: r.kept + u.keptModels[i]}
			}
		}
	}
	if n := int(m.cohorts.modelSlots.Len()); n != len(want) {
		return fmt.Errorf("%d models are bounded in cohorts, recorded %d", len(want), n)
	}
	for s, ok := m.cohorts.modelSlots.Next(0); ok; s, ok = m.cohorts.modelSlots.Next(s + 1) {
		if r := *m.cohorts.models.Get(s); r != want[[2]uint32{r.cohort, r.name}] {
			return fmt.Errorf("a cohort has %+v, recorded %+v", want[[2]uint32{r.cohort, r.name}], r)
		}
	}
	return nil
}

// checkQuota compares what is recorded of a quota, and walks who waits for it.
func (m *Machine) checkQuota(slot uint32, owed *quotaUse) error {
	q, u := m.quotas.Get(slot), m.quotaUses.Get(slot)
	if at, ok := m.quotaSlot(q.name); !ok || at != slot || m.tally(slot).quota != refTo(slot) || u.tally != m.tallies.slot(q.name) {
		return fmt.Errorf("quota %d is not found by its tenant", slot)
	}
	if (u.cohort != 0) != (q.cohort != 0) || u.cohort != 0 && *m.cohorts.byName.Get(q.cohort) != u.cohort {
		return fmt.Errorf("quota %d is in cohort %d, which is another's", slot, u.cohort)
	}
	if err := m.checkKeptFor(slot, owed); err != nil {
		return err
	}
	if err := m.checkCurbed(slot); err != nil {
		return err
	}
	for i := range q.models {
		if at, _ := m.tallies.model(u.tally, q.models[i].hash); at != 0 && q.models[i].name != 0 && q.modelIn(q.models[i].hash) == i {
			if r := m.tallies.models.Get(at.slot()); r.of != u.models[i] || r.leaving != u.modelsLeaving[i] {
				return fmt.Errorf("it has %+v of model %d, recorded %d and %d", *r, i, u.models[i], u.modelsLeaving[i])
			}
		} else if u.models[i] != 0 || u.modelsLeaving[i] != 0 {
			return fmt.Errorf("it has nothing of model %d, recorded %d and %d", i, u.models[i], u.modelsLeaving[i])
		}
	}
	return nil
}

// checkCurbed walks the buckets that wait for a quota.
func (m *Machine) checkCurbed(slot uint32) error {
	u := m.quotaUses.Get(slot)
	var wrong error
	n, last := uint32(0), queueKey{}
	m.curbs.each(u.curbed, func(b uint32) {
		r, l := m.buckets.Get(b), m.curbs.leafs.Get(b)
		if !r.curbed() || l.turn != refTo(slot) || r.tenant != m.quotas.Get(slot).name || l.key != m.curbKey(b) || n > 0 && !last.before(l.key) || l.need != m.curbNeed(b, r.curb) {
			wrong = fmt.Errorf("bucket %d is out of place among those that wait for its quota", b)
		}
		n, last = n+1, l.key
	})
	if n != u.waiting {
		wrong = fmt.Errorf("%d buckets wait for its quota, recorded %d", n, u.waiting)
	}
	if !m.waking.Has(slot) && (u.again || u.woken != queueKey{}) {
		wrong = fmt.Errorf("nobody of it is judged again, and some were")
	}
	return wrong
}

// checkDebt adds what a bucket is owed to what its tenant is.
func (m *Machine) checkDebt(bucket, slot uint32, to *quotaUse) {
	b := m.buckets.Get(bucket)
	if b.debt != m.quotas.Get(slot).version {
		return
	}
	to.owed++
	need := m.dueOf(bucket)
	for i, n := range need {
		to.due[i] += n
	}
	if b.debtOf != 0 && b.debtOf != debtBriefly {
		to.dueModels[b.debtOf-1] += need[ofGPUs]
	}
}

// checkKeptFor compares what a tenant is owed, and what is kept from others for it.
func (m *Machine) checkKeptFor(slot uint32, want *quotaUse) error {
	q, u := m.quotas.Get(slot), m.quotaUses.Get(slot)
	if u.owed != want.owed || u.due != want.due || u.dueModels != want.dueModels {
		return fmt.Errorf("%d of its buckets are owed %v and %v, recorded %d, %v and %v", want.owed, want.due, want.dueModels, u.owed, u.due, u.dueModels)
	}
	for i, most := range q.bounds {
		if kept := min(want.due[i], most-min(most, m.tally(slot).of[i])); u.kept[i] != kept && most != noBound || most == noBound && u.kept[i] != 0 {
			return fmt.Errorf("%d of resource %d is kept for it, recorded %d", kept, i, u.kept[i])
		}
	}
	for i, x := range q.models {
		if kept := min(want.dueModels[i], x.most-min(x.most, u.models[i])); u.keptModels[i] != kept {
			return fmt.Errorf("%d of model %d is kept for it, recorded %d", kept, i, u.keptModels[i])
		}
	}
	return nil
}
