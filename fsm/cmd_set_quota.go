package fsm

import (
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetQuota replaces a tenant's quota whole. Leases that are beyond it stay: nothing
// more starts until what the tenant has is within it. A member of a cohort that is
// beyond its own may lose what it has borrowed.
//
// Rejected: InvalidSpec (see gpuai.Quota.Validate), TooLarge at a limit of tenants,
// names or members of a cohort, malformed below LevelTenants.
type SetQuota struct {
	Tenant gpuai.TenantID
	Quota  gpuai.Quota
}

// Append appends the encoded command to dst.
func (c *SetQuota) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetQuota, env, func(b []byte) []byte {
		return wire.AppendQuota(wire.AppendStr(b, string(c.Tenant)), &c.Quota)
	})
}

func (m *Machine) applySetQuota(r *wire.Reader) Result {
	tenant := r.Str()
	q, err := wire.ReadQuota(r)
	switch {
	case err != nil || r.Done() != nil || !gpuai.ValidName(tenant) || m.Level() < LevelTenants:
		return malformed
	case len(q.Validate()) > 0:
		return rejected(gpuai.InvalidSpec, "the quota is invalid")
	case m.strs.Len() >= MaxStrings-gpuai.MaxQuotaModels-1:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	name := m.strs.Intern(tenant)
	if _, ok := m.tenantFor(name); !ok {
		return rejected(gpuai.TooLarge, "the region knows its maximum of tenants")
	}
	slot := m.quotaFor(name)
	rec := m.quotaRecOf(name, &q)
	rec.version = m.quotas.Get(slot).version + 1
	if old := m.quotas.Get(slot).cohort; rec.cohort != 0 && rec.cohort != old && m.cohorts.members(rec.cohort) >= gpuai.MaxCohortMembers {
		m.takeBack()
		return rejected(gpuai.TooLarge, "the cohort has its maximum of members")
	}
	m.eachPeer(slot, m.wakeQuota) // who stays may borrow less, or more
	m.voidDebts(slot)
	m.leaveCohort(slot)
	m.quotas.Put(slot, rec)
	m.hashModels(slot)
	m.recountQuota(slot)
	m.joinCohort(slot)
	m.freed.Set(slot)
	m.emit(gpuai.Event{Kind: gpuai.QuotaSet, Tenant: gpuai.TenantID(tenant)})
	return Result{}
}

// quotaRecOf converts a quota to its record.
func (m *Machine) quotaRecOf(tenant uint32, q *gpuai.Quota) quotaRec {
	r := unbounded(tenant)
	if q.GPUs != nil {
		r.bounds[ofGPUs] = uint64(*q.GPUs) * uint64(gpuai.WholeDevice)
	}
	if q.CPU != nil {
		r.bounds[ofCPU] = uint64(*q.CPU)
	}
	if q.Memory != nil {
		r.bounds[ofMemory] = uint64(*q.Memory)
	}
	if q.BorrowGPUs != nil {
		r.borrow = uint64(*q.BorrowGPUs) * uint64(gpuai.WholeDevice)
	}
	for _, x := range [...]struct {
		to   *uint64
		from *uint32
	}{{&r.running, q.RunningJobs}, {&r.pending, q.PendingJobs}, {&r.rate, q.RequestsPerSecond}} {
		if x.from != nil {
			*x.to = uint64(*x.from)
		}
	}
	for i, x := range slices.SortedFunc(slices.Values(q.Models), compareModels) {
		r.models[i] = modelBound{name: m.strs.Intern(x.Model), most: uint64(x.GPUs) * uint64(gpuai.WholeDevice)}
	}
	if q.Cohort != "" {
		r.cohort = m.strs.Intern(q.Cohort)
	}
	return r
}

// quota converts a record to its edge type.
func (m *Machine) quota(r *quotaRec) (q gpuai.Quota) {
	some := func(n, unit uint64) *uint32 {
		if n == noBound {
			return nil
		}
		x := uint32(n / unit)
		return &x
	}
	device := uint64(gpuai.WholeDevice)
	q.GPUs, q.BorrowGPUs = some(r.bounds[ofGPUs], device), some(r.borrow, device)
	q.RunningJobs, q.PendingJobs, q.RequestsPerSecond = some(r.running, 1), some(r.pending, 1), some(r.rate, 1)
	if n := gpuai.MilliCPU(r.bounds[ofCPU]); r.bounds[ofCPU] != noBound {
		q.CPU = &n
	}
	if n := gpuai.Bytes(r.bounds[ofMemory]); r.bounds[ofMemory] != noBound {
		q.Memory = &n
	}
	for i := range r.models {
		if x := &r.models[i]; x.name != 0 {
			q.Models = append(q.Models, gpuai.ModelQuota{Model: m.strs.Get(x.name), GPUs: uint32(x.most / device)})
		}
	}
	if r.cohort != 0 {
		q.Cohort = m.strs.Get(r.cohort)
	}
	return q
}

// pendingFull reports whether a tenant has as many jobs that wait as it may.
func (m *Machine) pendingFull(tenant []byte) bool {
	if m.quotas.Len() == 0 {
		return false
	}
	name, ok := m.strs.FindBytes(tenant)
	if !ok {
		return false
	}
	slot, ok := m.quotaSlot(name)
	return ok && uint64(m.tally(slot).pending) >= m.quotas.Get(slot).pending
}
