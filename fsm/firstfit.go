package fsm

import "github.com/gpuai/gpuai/scheduler"

// firstFit returns a place on the first node, by the order of registration,
// that has one. It looks at every node before that: a baseline for simulations.
func (m *Machine) firstFit(sh scheduler.ShapeID) (scheduler.Fit, bool) {
	for node := range m.nodes.Len() {
		m.now.work -= workLook
		if fit, ok := m.sched.FitsOn(sh, node); ok {
			return fit, true
		}
	}
	return scheduler.Fit{}, false
}
