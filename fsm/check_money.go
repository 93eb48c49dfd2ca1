package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
)

// checkMoney holds that the ledger sums to zero, that each account is sound, and that
// what purses hold is what the bills of their live leases hold.
func (m *Machine) checkMoney() error {
	money := m.money.Get()
	sum := money.world.Balance() + money.fee.Balance() + money.provider.Balance()
	held, times := make([]gpuai.Micros, m.purses.Len()), make([]uint64, m.purses.Len())
	for s, ok := m.billSlots.Next(0); ok; s, ok = m.billSlots.Next(s + 1) {
		b := m.bills.Get(s)
		l := m.leases.Get(b.lease.slot())
		if l.bill != refTo(s) || !l.live() || m.purses.Get(b.purse).name != m.tenantOfLease(l) {
			return fmt.Errorf("bill %d is of no live lease of its tenant", s)
		}
		if (b.until != 0 && l.state < gpuai.LeaseRevoking) != (b.timer != 0) {
			return fmt.Errorf("bill %d holds until %d, its timer is %d", s, b.until, b.timer)
		}
		held[b.purse] += b.hold
		times[b.purse] += b.holdTime
	}
	for s := range m.purses.Len() {
		p := m.purses.Get(s)
		if at, ok := m.purseSlot(p.name); !ok || at != s {
			return fmt.Errorf("purse %d is not found by its tenant", s)
		}
		if p.account.Held != held[s] || p.held != times[s] || !p.account.Sound() || p.account.Kind != billing.Tenant {
			return fmt.Errorf("tenant %q: its leases hold %d and %d, its account %+v and %d", m.strs.Get(p.name), held[s], times[s], p.account, p.held)
		}
		sum += p.account.Balance()
	}
	earned, sound := m.checkOwners()
	if sum += earned; sum != 0 || !sound || m.purses.Len() > 0 && !(money.world.Sound() && money.fee.Sound() && money.provider.Sound()) {
		return fmt.Errorf("the balances of all accounts sum to %d", sum)
	}
	return nil
}

// rebuildMoney finds purses by their tenants, and bills by their leases.
func (m *Machine) rebuildMoney() error {
	for s := range m.purses.Len() {
		name := m.purses.Get(s).name
		if _, twice := m.purseSlot(name); twice || name == 0 || name >= m.strs.Len() {
			return errSnapshot("a purse is of no tenant, or one of two")
		}
		m.purseOf.Grow(name + 1)
		*m.purseOf.Mut(name) = refTo(s)
	}
	for i := range m.money.Get().prices {
		if m.money.Get().prices[i].model >= m.strs.Len() {
			return errSnapshot("a price is of a model without a name")
		}
	}
	for s, ok := m.billSlots.Next(0); ok; s, ok = m.billSlots.Next(s + 1) {
		b := m.bills.Get(s)
		if b.lease == 0 || !m.leaseSlots.Has(b.lease.slot()) || b.purse >= m.purses.Len() {
			return errSnapshot("a bill is of no lease")
		}
		l := m.leases.Mut(b.lease.slot())
		l.bill = refTo(s)
		if b.until != 0 && l.state < gpuai.LeaseRevoking {
			m.timers.set(b.until.Add(-holdNotice), timerBill, s)
		}
	}
	return m.rebuildKept()
}
