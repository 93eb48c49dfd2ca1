package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
	"github.com/gpuai/gpuai/fsm/wire"
)

// SetBudget replaces a tenant's budget whole. Leases that were granted go on: those
// without a run-time limit until the slice that is held for them ends.
//
// Rejected: InvalidSpec (see gpuai.Budget.Validate), TooLarge at a limit of tenants or
// names, malformed below LevelTenants.
type SetBudget struct {
	Tenant gpuai.TenantID
	Budget gpuai.Budget
}

// Append appends the encoded command to dst.
func (c *SetBudget) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetBudget, env, func(b []byte) []byte {
		return wire.AppendBudget(wire.AppendStr(b, string(c.Tenant)), &c.Budget)
	})
}

// SetPrices replaces the price list whole. Leases keep the price that they were
// granted at.
//
// Rejected: InvalidSpec (see gpuai.Prices.Validate), TooLarge at the limit of names,
// malformed below LevelTenants.
type SetPrices struct{ Prices gpuai.Prices }

// Append appends the encoded command to dst.
func (c *SetPrices) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetPrices, env, func(b []byte) []byte { return wire.AppendPrices(b, &c.Prices) })
}

// SetNodePrice gives a node a price of a device and hour that stands before what its
// agent says and the price list; below 0 it has none any more.
//
// Rejected: InvalidSpec above gpuai.MaxPrice, NotFound, TooLarge, malformed below
// LevelTenants.
type SetNodePrice struct {
	Node  gpuai.NodeID
	Price gpuai.Micros
}

// Append appends the encoded command to dst.
func (c *SetNodePrice) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetNodePrice, env, func(b []byte) []byte {
		return put64(wire.AppendStr(b, string(c.Node)), int64(c.Price))
	})
}

func (m *Machine) applySetBudget(r *wire.Reader) Result {
	tenant := r.Str()
	b, err := wire.ReadBudget(r)
	switch {
	case err != nil || r.Done() != nil || !gpuai.ValidName(tenant) || m.Level() < LevelTenants:
		return malformed
	case len(b.Validate()) > 0:
		return rejected(gpuai.InvalidSpec, "the budget is invalid")
	case m.strs.Len() >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	name := m.strs.Intern(tenant)
	if _, ok := m.tenantFor(name); !ok {
		return rejected(gpuai.TooLarge, "the region knows its maximum of tenants")
	}
	quota, slot := m.quotaFor(name), m.purseFor(name)
	p := m.purses.Mut(slot)
	p.warned = 0
	for k, l := range [...]*gpuai.BudgetLimit{&b.Day, &b.Month, &b.Total} {
		p.most[inTime][k], p.most[inMoney][k] = noBound, noBound
		if l.GPUHours != nil {
			p.most[inTime][k] = billing.DeviceTime(uint64(*l.GPUHours)*uint64(gpuai.WholeDevice), gpuai.Hour)
		}
		if l.Money != nil {
			p.most[inMoney][k] = uint64(*l.Money)
		}
	}
	m.freed.Set(quota)
	m.emit(gpuai.Event{Kind: gpuai.BudgetSet, Tenant: gpuai.TenantID(tenant)})
	m.warn(slot)
	return Result{}
}

func (m *Machine) applySetPrices(r *wire.Reader) Result {
	p, err := wire.ReadPrices(r)
	switch {
	case err != nil || r.Done() != nil || m.Level() < LevelTenants:
		return malformed
	case len(p.Validate()) > 0:
		return rejected(gpuai.InvalidSpec, "the price list is invalid")
	case m.strs.Len() >= MaxStrings-gpuai.MaxPrices:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	}
	w := m.money.Mut()
	w.feeBps, w.prices = p.FeeBps, [gpuai.MaxPrices]priceRec{}
	for i := range p.Models {
		w.prices[i] = priceRec{m.strs.Intern(p.Models[i].Model), p.Models[i].Price}
	}
	m.pricesMoved()
	return Result{}
}

func (m *Machine) applySetNodePrice(r *wire.Reader) Result {
	id, price := gpuai.NodeID(r.Str()), gpuai.Micros(r.I64())
	slot, ok := m.nodeSlot(id)
	switch {
	case r.Done() != nil || m.Level() < LevelTenants:
		return malformed
	case price > gpuai.MaxPrice:
		return rejected(gpuai.InvalidSpec, "the price is too high")
	case !ok:
		return rejected(gpuai.NotFound, "no such node")
	}
	body := m.nodeBody(slot)
	m.loseHolds(slot)
	n := m.nodes.Mut(slot)
	n.price, n.priced, n.modified = price, price >= 0, m.now.index
	n.price = m.priceOf(n, body.spec.Price)
	if code := m.tellScheduler(slot, &body); code != gpuai.OK {
		m.takeBack()
		return rejected(code, "the region has too many kinds of nodes")
	}
	m.pricesMoved()
	return Result{}
}

// pricesMoved has those judged again who wait for their budgets.
func (m *Machine) pricesMoved() {
	m.emit(gpuai.Event{Kind: gpuai.PricesSet})
	for s := range m.quotas.Len() {
		if m.now.work -= workLook; m.quotaUses.Get(s).curbed != 0 {
			m.wakeQuota(s)
		}
	}
}

// applyTerms applies a command of quotas and money.
func (m *Machine) applyTerms(typ uint8, r *wire.Reader) Result {
	switch typ {
	case typeSetQuota:
		return m.applySetQuota(r)
	case typeSetBudget:
		return m.applySetBudget(r)
	case typeSetPrices:
		return m.applySetPrices(r)
	default:
		return m.applySetNodePrice(r)
	}
}
