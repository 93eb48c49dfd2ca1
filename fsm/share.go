package fsm

import (
	"fmt"
	"math/bits"

	"github.com/gpuai/gpuai"
)

// A shareSum sums up tenants.
type shareSum struct {
	usage, weight uint64
}

// permille returns a part of a whole in thousandths, rounded down; 0 of nothing.
func permille(part, whole uint64) uint32 {
	if whole == 0 {
		return 0
	}
	hi, lo := bits.Mul64(min(part, whole), 1_000)
	q, _ := bits.Div64(hi, lo, whole)
	return uint32(q)
}

// fairShare returns where the tenant of a job that waits stands. It looks at all
// tenants and buckets: call it on a fork.
func (m *Machine) fairShare(job uint32) gpuai.FairShare {
	j := m.jobs.Get(job)
	waits := map[uint32]bool{} // by string number; looked up only
	out := gpuai.FairShare{Tenant: gpuai.TenantID(m.strs.Get(j.tenant)), Place: 1, Tenants: 1}
	me := m.claimOf(j.tenant)
	out.Weight = me.weight
	var wanting []uint32
	peers := map[uint32]bool{j.tenant: true}
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		r := m.buckets.Get(b)
		of := m.jobs.Get(m.groups.Get(r.first.slot()).job.slot())
		if !waits[of.tenant] {
			waits[of.tenant] = true
			wanting = append(wanting, of.tenant)
		}
		if of.priority != j.priority || r.grows || peers[of.tenant] {
			continue
		}
		peers[of.tenant] = true
		out.Tenants++
		if m.claimOf(of.tenant).compare(me) < 0 {
			out.Place++
		}
	}
	sum := m.shareSum(waits)
	for _, tenant := range wanting { // those that were never granted anything have no record
		if !m.hasShare(tenant) {
			sum.weight += DefaultWeight
		}
	}
	if m.hasShare(j.tenant) {
		r := m.tenants.Get(m.tenantOf.Get(j.tenant).slot())
		usage := r.usageAt(max(m.Time(), r.at), m.policy.Get().HalfLife())
		out.UsageMilliHours, out.SharePermille = usage/uint64(gpuai.Hour), permille(usage, sum.usage)
	}
	out.DuePermille = permille(uint64(out.Weight), sum.weight)
	return out
}

// shareSum sums the usage of all tenants, and the weights of those that run or wait.
func (m *Machine) shareSum(waits map[uint32]bool) (sum shareSum) {
	half := m.policy.Get().HalfLife()
	for s := range m.tenants.Len() {
		r := m.tenants.Get(s)
		sum.usage = addSat(sum.usage, r.usageAt(max(m.Time(), r.at), half))
		if r.held > 0 || waits[r.name] {
			sum.weight += uint64(r.weight)
		}
	}
	return sum
}

// hasShare reports whether a tenant has a record, by its string number.
func (m *Machine) hasShare(tenant uint32) bool {
	return tenant < m.tenantOf.Len() && *m.tenantOf.Get(tenant) != 0
}

// explainShare says where the tenant of a waiting job stands, and has it among the
// reasons when that is why others go first.
func (m *Machine) explainShare(x *gpuai.Explanation) {
	slot, ok := m.jobSlot(x.Job)
	if !ok || m.Level() < LevelPlacement || x.Position == 0 {
		return
	}
	s := m.fairShare(slot)
	if x.Share = &s; s.Place == 1 {
		return
	}
	x.Reasons = append(x.Reasons, gpuai.Reason{
		Code: gpuai.QueueOrder, Message: fmt.Sprintf(
			"tenant %s is number %d of %d that wait at this priority, those with less usage for their weight first: of weight %d it is due %s of what there is, and has %s of the usage, %s GPU-hours",
			s.Tenant, s.Place, s.Tenants, s.Weight, percentText(s.DuePermille), percentText(s.SharePermille), milliText(int64(min(s.UsageMilliHours, 1<<62)))),
		Fix: "wait, or have the tenant's weight raised: gpuai tenant weight",
	})
}

// percentText writes thousandths as a percentage.
func percentText(permille uint32) string {
	return fmt.Sprintf("%d.%d %%", permille/10, permille%10)
}
