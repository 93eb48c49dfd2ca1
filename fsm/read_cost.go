package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
	"github.com/gpuai/gpuai/scheduler"
)

// PlannedCost is what a job would cost that was submitted to a fork; nil below
// LevelTenants. Tasks with a lease cost what that does. Those that wait are taken to
// cost the highest price on the list that their group's models have.
func (m *Machine) PlannedCost(id gpuai.JobID, spec *gpuai.JobSpec) *gpuai.PlannedCost {
	slot, ok := m.jobSlot(id)
	if !ok || m.Level() < LevelTenants {
		return nil
	}
	j := m.jobs.Get(slot)
	c := &gpuai.PlannedCost{HeldFor: j.runTime}
	if j.runTime == 0 {
		c.HeldFor = holdSlice
	}
	for g := j.group; g != 0; g = m.groups.Get(g.slot()).next {
		r := m.groups.Get(g.slot())
		placed := uint32(0)
		for t := r.first; t != 0; t = m.tasks.Get(t.slot()).next {
			l := m.tasks.Get(t.slot()).lease
			if l == 0 || !m.leases.Get(l.slot()).live() {
				continue
			}
			placed++
			if b := m.leases.Get(l.slot()).bill; b != 0 {
				addCost(c, &m.bills.Get(b.slot()).meter, 1)
			}
		}
		if waits := r.count - min(r.count, placed); waits > 0 && int(r.idx) < len(spec.Groups) {
			c.Waiting += waits
			x := billing.Meter{
				Price: m.dearest(&spec.Groups[r.idx]), Milli: m.needOfTask(g.slot())[ofGPUs], FeeBps: m.money.Get().feeBps, From: m.now.time,
			}
			addCost(c, &x, waits)
		}
	}
	return c
}

// addCost adds what some equal tasks cost.
func addCost(c *gpuai.PlannedCost, x *billing.Meter, tasks uint32) {
	fresh := billing.Meter{Price: x.Price, Milli: x.Milli, FeeBps: x.FeeBps, From: x.From}
	add := func(to *gpuai.Micros, d gpuai.Duration) {
		due := fresh.Cost(d)
		for _, n := range [...]gpuai.Micros{due.Amount, due.Fee} {
			if n > 0 && int64(n) > (maxMicros-int64(*to))/int64(tasks) {
				*to = maxMicros
				return
			}
			*to += n * gpuai.Micros(tasks)
		}
	}
	add(&c.Hourly, gpuai.Hour)
	add(&c.Held, c.HeldFor)
}

const maxMicros = 1<<63 - 1

// dearest is the highest price on the list of the models that a group may run on.
func (m *Machine) dearest(g *gpuai.Group) (price gpuai.Micros) {
	prices := &m.money.Get().prices
	for i := range prices {
		p := &prices[i]
		if p.model == 0 {
			break
		}
		fits := len(g.Resources.GPU.Any) == 0
		for _, a := range g.Resources.GPU.Any {
			fits = fits || a.Model == "" || scheduler.ModelHash(a.Model) == scheduler.ModelHash(m.strs.Get(p.model))
		}
		if fits {
			price = max(price, p.price)
		}
	}
	return price
}
