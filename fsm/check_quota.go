package fsm

import "fmt"

// checkQuotas counts what all tenants with a quota have, and compares.
func (m *Machine) checkQuotas() error {
	if slot, some := m.freed.Next(0); some {
		return fmt.Errorf("something of quota %d came free, and nobody was looked at", slot)
	}
	want := make([]quotaUse, m.quotas.Len())
	for s := range m.quotas.Len() {
		if at, ok := m.quotaSlot(m.quotas.Get(s).name); !ok || at != s {
			return fmt.Errorf("quota %d is not found by its tenant", s)
		}
	}
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		if !l.live() {
			continue
		}
		if slot, ok := m.quotaSlot(m.tenantOfLease(l)); ok {
			want[slot].add(m.leaseUse(slot, s))
		}
	}
	for s, ok := m.holdSlots.Next(0); ok; s, ok = m.holdSlots.Next(s + 1) {
		h := m.holds.Get(s)
		if slot, ok := m.quotaSlot(m.tenantOfHold(h)); ok {
			want[slot].add(m.holdUse(slot, h))
		}
	}
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		if slot, ok := m.quotaSlot(m.jobs.Get(s).tenant); ok {
			want[slot].status(m.jobs.Get(s).status, 1)
		}
	}
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
			want[slot].owed++
		}
	}
	for s := range want {
		if err := m.checkQuota(uint32(s), &want[s]); err != nil {
			return fmt.Errorf("tenant %q: %w", m.strs.Get(m.quotas.Get(uint32(s)).name), err)
		}
	}
	return nil
}

// checkQuota compares what a tenant has with what is recorded, and walks its lists.
func (m *Machine) checkQuota(slot uint32, want *quotaUse) error {
	got := *m.quotaUses.Get(slot)
	leases, last := uint64(0), ref(0)
	for l := got.first; l != 0; last, l = l, m.leases.Get(l.slot()).quotaNewer {
		x := m.leases.Get(l.slot())
		if x.quotaOlder != last || !x.live() || last != 0 && m.leases.Get(last.slot()).token >= x.token {
			return fmt.Errorf("lease %d is out of place among its leases", x.token)
		}
		leases += x.held()
	}
	if got.last != last {
		return fmt.Errorf("its leases do not end where they should")
	}
	prev := ref(0)
	for b := got.curbed; b != 0; prev, b = b, m.buckets.Get(b.slot()).curbNext {
		if x := m.buckets.Get(b.slot()); !x.curbed() || x.curbPrev != prev || x.tenant != m.quotas.Get(slot).name {
			return fmt.Errorf("bucket %d is out of place among those that wait for its quota", b.slot())
		}
	}
	want.first, want.last, want.curbed, want.peer = got.first, got.last, got.curbed, got.peer
	if got != *want {
		return fmt.Errorf("it has %+v, recorded %+v", *want, got)
	}
	if leases > got.of[ofGPUs] {
		return fmt.Errorf("its leases have %d milli, recorded %d", leases, got.of[ofGPUs])
	}
	return nil
}
