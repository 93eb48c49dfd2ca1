package fsm

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

func compareModels(a, b gpuai.ModelQuota) int { return cmp.Compare(a.Model, b.Model) }

// Quota returns a tenant's quota and what it uses of it; false when it has none.
func (m *Machine) Quota(tenant gpuai.TenantID) (gpuai.QuotaStatus, bool) {
	name, ok := m.strs.Find(string(tenant))
	if !ok {
		return gpuai.QuotaStatus{}, false
	}
	slot, ok := m.quotaSlot(name)
	if !ok {
		return gpuai.QuotaStatus{}, false
	}
	return m.quotaStatus(slot), true
}

// Quotas returns the quotas from a slot on, limit of them, and the slot to go on
// from; 0 at the end.
func (m *Machine) Quotas(from, limit uint32) (out []gpuai.QuotaStatus, next uint32) {
	for s := from; s < m.quotas.Len(); s++ {
		if s-from == limit {
			return out, s
		}
		out = append(out, m.quotaStatus(s))
	}
	return out, 0
}

func (m *Machine) quotaStatus(slot uint32) gpuai.QuotaStatus {
	q, u, t := m.quotas.Get(slot), m.quotaUses.Get(slot), m.tally(slot)
	s := gpuai.QuotaStatus{Tenant: gpuai.TenantID(m.strs.Get(q.name)), Quota: m.quota(q)}
	s.Use = gpuai.QuotaUse{
		GPUMilli: t.of[ofGPUs], CPU: gpuai.MilliCPU(t.of[ofCPU]), Memory: gpuai.Bytes(t.of[ofMemory]),
		RunningJobs: t.running, PendingJobs: t.pending,
	}
	for i := range q.models {
		if q.models[i].name != 0 {
			s.Use.Models = append(s.Use.Models, gpuai.ModelUse{Model: m.strs.Get(q.models[i].name), GPUMilli: u.models[i]})
		}
	}
	m.curbs.each(u.curbed, func(b uint32) {
		if m.buckets.Get(b).parked() {
			s.Waiting += m.buckets.Get(b).groups
		}
	})
	return s
}

// RequestRate returns how many requests by the second a tenant may make; false when
// that is not bounded.
func (m *Machine) RequestRate(tenant gpuai.TenantID) (uint32, bool) {
	name, ok := m.strs.Find(string(tenant))
	if !ok {
		return 0, false
	}
	slot, ok := m.quotaSlot(name)
	if !ok || m.quotas.Get(slot).rate == noBound {
		return 0, false
	}
	return uint32(m.quotas.Get(slot).rate), true
}

// curbedBy returns the bits of the bucket that a group waits in, or stands in for.
func (m *Machine) curbedBy(group uint32) uint8 {
	g := m.groups.Get(group)
	if g.together == togetherOther {
		g = m.groups.Get(m.jobs.Get(g.job.slot()).group.slot())
	}
	if g.bucket == 0 {
		return 0
	}
	return m.buckets.Get(g.bucket.slot()).curb
}

// reasonQuota says what a tenant's quota or budget means for a group that waits.
func (m *Machine) reasonQuota(group uint32) (gpuai.Reason, bool) {
	curb := m.curbedBy(group)
	slot, ok := m.quotaOfGroup(group)
	if curb == 0 || !ok {
		return gpuai.Reason{}, false
	}
	if curb&curbBudget != 0 {
		return m.reasonBudget(group), true
	}
	f := m.Fork() // the verdict counts its work
	f.now = entryState{work: WorkPerEntry}
	v := f.admit(slot, group)
	q := m.quotas.Get(slot)
	if v.ok && v.barred == 0 {
		return gpuai.Reason{}, false // something came free just now
	}
	r := gpuai.Reason{Code: gpuai.QuotaExhausted, Message: m.quotaMessage(q, &v), Fix: "a larger quota, or wait until jobs of the tenant end"}
	if v.owed {
		r.Fix = "wait until those who borrowed it have left"
	}
	return r, true
}

// quotaMessage says what is in the way, with counts.
func (m *Machine) quotaMessage(q *quotaRec, v *verdict) string {
	unit, of := "", func(n uint64) string { return strconv.FormatUint(n, 10) }
	devices := func(n uint64) string { return decimal(n, 1_000) }
	switch v.by {
	case boundGPUs:
		unit, of = "GPUs", devices
	case boundModel:
		unit, of = m.strs.Get(q.models[v.model].name), devices
	case boundCPU:
		unit, of = "CPUs", devices
	case boundMemory:
		unit, of = "GiB of memory", func(n uint64) string { return decimal(n/(1<<20)*1_000/1_024, 1_000) }
	case boundRunning:
		unit = "running jobs"
	case boundOwed:
		return fmt.Sprintf("what is idle of cohort %s is owed to tenants who wait for what is their own: nobody borrows it", m.strs.Get(q.cohort))
	}
	who := "tenant " + m.strs.Get(q.name)
	if v.cohort {
		who = "cohort " + m.strs.Get(q.cohort)
	}
	s := fmt.Sprintf("%s uses %s of %s %s; waits for %s", who, of(v.have), of(v.most), unit, of(v.need))
	if v.owed {
		s += ": it is the tenant's own, and others who borrowed it are being asked to leave"
	}
	return s
}

// decimal writes n units, a power of ten of which are one, with as many decimals as
// it has.
func decimal(n, unit uint64) string {
	s := strconv.FormatUint(n/unit, 10)
	if rest := n % unit; rest > 0 {
		s += "." + strings.TrimRight(strconv.FormatUint(unit+rest, 10)[1:], "0")
	}
	return s
}
