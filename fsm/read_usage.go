package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
)

// reasonBudget says that a tenant's budget does not suffice for a group.
func (m *Machine) reasonBudget(group uint32) gpuai.Reason {
	tenant := m.jobs.Get(m.groups.Get(group).job.slot()).tenant
	r := gpuai.Reason{
		Code: gpuai.BudgetExhausted, Fix: "a larger budget, a shorter run-time limit, or wait until leases of the tenant end or the period does",
		Message: fmt.Sprintf("the budget of tenant %s does not suffice for what a task may cost", m.strs.Get(tenant)),
	}
	slot, ok := m.purseSlot(tenant)
	if !ok {
		return r
	}
	p := m.purses.Get(slot)
	for k, period := range [numPeriods]string{"day", "month", "total"} {
		if most := p.most[inTime][k]; most != noBound {
			r.Message += fmt.Sprintf("; %s: %s of %s GPU-hours are spent, %s held", period, hours(p.spent[inTime][k]), hours(most), hours(p.held))
		}
		if most := p.most[inMoney][k]; most != noBound {
			r.Message += fmt.Sprintf("; %s: %s of %s USD are spent, %s held", period, dollars(p.spent[inMoney][k]), dollars(most), dollars(uint64(p.account.Held)))
		}
	}
	return r
}

func hours(t uint64) string { return decimal(billing.MilliHours(t), 1_000) }

func dollars(micros uint64) string { return decimal(micros/10_000, 100) }

// Usage returns what a tenant has spent; false of one that the region does not know.
func (m *Machine) Usage(tenant gpuai.TenantID) (gpuai.TenantUsage, bool) {
	name, ok := m.strs.Find(string(tenant))
	if !ok || name >= m.tenantOf.Len() || *m.tenantOf.Get(name) == 0 {
		return gpuai.TenantUsage{}, false
	}
	return m.usage(m.tenantOf.Get(name).slot()), true
}

// Usages returns the usage of tenants from a slot on, limit of them, and the slot to
// go on from; 0 at the end.
func (m *Machine) Usages(from, limit uint32) (out []gpuai.TenantUsage, next uint32) {
	for s := from; s < m.tenants.Len(); s++ {
		if s-from == limit {
			return out, s
		}
		out = append(out, m.usage(s))
	}
	return out, 0
}

func (m *Machine) usage(slot uint32) gpuai.TenantUsage {
	r := m.tenants.Get(slot)
	u := gpuai.TenantUsage{Tenant: gpuai.TenantID(m.strs.Get(r.name))}
	total := r.total
	if m.Level() >= LevelTenants {
		total = r.totalAt(max(m.Time(), r.at))
	}
	u.Total.GPUMilliHours = billing.MilliHours(total)
	u.Day.GPUMilliHours, u.Month.GPUMilliHours = billing.MilliHours(total-r.day), billing.MilliHours(total-r.month)
	at, ok := m.purseSlot(r.name)
	if !ok {
		return u
	}
	p := m.purses.Get(at)
	for k, x := range [numPeriods]struct{ use, billed *gpuai.PeriodUse }{
		{&u.Day, &u.Billed.Day}, {&u.Month, &u.Billed.Month}, {&u.Total, &u.Billed.Total},
	} {
		x.use.Money = gpuai.Micros(p.spent[inMoney][k])
		*x.billed = gpuai.PeriodUse{GPUMilliHours: billing.MilliHours(p.spent[inTime][k]), Money: x.use.Money}
	}
	u.Budget = p.budget()
	u.HeldGPUMilliHours, u.HeldMoney = billing.MilliHours(p.held), p.account.Held
	return u
}

// budget returns the bounds of a purse.
func (p *purseRec) budget() (b gpuai.Budget) {
	for k, most := range [numPeriods]*gpuai.BudgetLimit{&b.Day, &b.Month, &b.Total} {
		if n := p.most[inTime][k]; n != noBound {
			h := uint32(billing.MilliHours(n) / uint64(gpuai.WholeDevice))
			most.GPUHours = &h
		}
		if n := gpuai.Micros(p.most[inMoney][k]); p.most[inMoney][k] != noBound {
			most.Money = &n
		}
	}
	return b
}

// Prices returns the price list.
func (m *Machine) Prices() (p gpuai.Prices) {
	w := m.money.Get()
	p.FeeBps = w.feeBps
	for i := range w.prices {
		if w.prices[i].model != 0 {
			p.Models = append(p.Models, gpuai.ModelPrice{Model: m.strs.Get(w.prices[i].model), Price: w.prices[i].price})
		}
	}
	return p
}

// cost sums up what a job has cost and may yet cost; nil below LevelTenants.
func (m *Machine) cost(slot uint32) *gpuai.JobCost {
	if m.Level() < LevelTenants {
		return nil
	}
	j := m.jobs.Get(slot)
	c := gpuai.JobCost{Billed: j.billed}
	time := j.heldTime
	for g := j.group; g != 0 && j.live > 0; g = m.groups.Get(g.slot()).next {
		for t := m.groups.Get(g.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
			l := m.tasks.Get(t.slot()).lease
			if l == 0 || !m.leases.Get(l.slot()).live() {
				continue
			}
			x := m.leases.Get(l.slot())
			time = addSat(time, billing.DeviceTime(x.held(), gpuai.Duration(m.Time()-x.granted)))
			if x.bill != 0 {
				b := m.bills.Get(x.bill.slot())
				c.Held += b.hold
				c.Hourly += billing.Due(b.meter.Price, billing.DeviceTime(b.meter.Milli, gpuai.Hour))
			}
		}
	}
	c.GPUMilliHours = billing.MilliHours(time)
	return &c
}
