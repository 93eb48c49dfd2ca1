package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
	"github.com/gpuai/gpuai/scheduler"
)

// PlannedCost is what a job would cost that was submitted to a fork; nil below
// LevelTenants. Tasks with a lease cost what that does. Those that wait are taken to
// cost the highest price of the nodes that could take them, empty and healthy, or of
// their group's models on the list: at most that, while no price changes.
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
				addCost(&c.Hourly, &c.Held, c.HeldFor, &m.bills.Get(b.slot()).meter, 1)
				addCost(&c.HourlyLeast, &c.HeldLeast, c.HeldFor, &m.bills.Get(b.slot()).meter, 1)
			}
		}
		if waits := r.count - min(r.count, placed); waits > 0 && int(r.idx) < len(spec.Groups) {
			c.Waiting += waits
			low, high := m.priceBounds(r.shape, &spec.Groups[r.idx])
			x := billing.Meter{Price: high, Milli: m.needOfTask(g.slot())[ofGPUs], FeeBps: m.money.Get().feeBps, From: m.now.time}
			addCost(&c.Hourly, &c.Held, c.HeldFor, &x, waits)
			x.Price = low
			addCost(&c.HourlyLeast, &c.HeldLeast, c.HeldFor, &x, waits)
		}
	}
	return c
}

// addCost adds what some equal tasks cost by the hour, and for a time.
func addCost(hourly, held *gpuai.Micros, d gpuai.Duration, x *billing.Meter, tasks uint32) {
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
	add(hourly, gpuai.Hour)
	add(held, d)
}

const maxMicros = 1<<63 - 1

// priceBounds are the lowest and the highest price at which a task of a group may start:
// of the nodes that could take it, and the highest of what the list says of its models,
// for nodes that may come.
func (m *Machine) priceBounds(shape scheduler.ShapeID, g *gpuai.Group) (low, high gpuai.Micros) {
	prices, any := &m.money.Get().prices, false
	see := func(p gpuai.Micros) {
		if !any || p < low {
			low = p
		}
		high, any = max(high, p), true
	}
	for n := range m.nodes.Len() {
		own, has := m.ownPrice(n)
		m.sched.AdmitsModels(shape, n, func(model uint64) bool {
			if !has {
				own = m.listed(model)
			}
			see(own)
			return true
		})
	}
	for i := range prices {
		p := &prices[i]
		if p.model == 0 {
			break
		}
		fits := len(g.Resources.GPU.Any) == 0
		for _, a := range g.Resources.GPU.Any {
			fits = fits || a.Model == "" || scheduler.ModelHash(a.Model) == scheduler.ModelHash(m.strs.Get(p.model))
		}
		if fits && any {
			high = max(high, p.price)
		} else if fits {
			see(p.price)
		}
	}
	return low, high
}
