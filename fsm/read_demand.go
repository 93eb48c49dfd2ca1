package fsm

import (
	"cmp"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// Demand returns what the packing policy expects: at most MaxDemand kinds of
// tasks, those with the most first. It only reads.
func (m *Machine) Demand() gpuai.DemandStatus {
	st := m.sched.PackingStatus()
	out := gpuai.DemandStatus{
		Packing: st.Policy, Active: m.sched.Packing(), Fixed: st.Fixed, Epoch: st.Epoch,
		Groups: st.Arrivals, NextFreeze: st.NextFreeze, Classes: []gpuai.ExpectedClass{},
	}
	m.sched.Expects(func(e scheduler.Expected) {
		c := gpuai.ExpectedClass{WeightPPM: e.WeightPPM}
		c.Tasks = e.Tasks
		c.Resources, c.Constraints = m.sched.ShapeOf(e.Shape)
		out.Classes = append(out.Classes, c)
	})
	slices.SortStableFunc(out.Classes, func(a, b gpuai.ExpectedClass) int {
		return cmp.Or(cmp.Compare(b.Tasks, a.Tasks), cmp.Compare(b.WeightPPM, a.WeightPPM))
	})
	return out
}
