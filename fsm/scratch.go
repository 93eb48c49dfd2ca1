package fsm

import (
	"fmt"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// Scratch space is counted from LevelPlacement on: what a node lends is its label
// gpuai.LabelScratch, what a task is lent is of its shape. Neither leases nor
// holds record it.

// lentScratch returns how much scratch space a node lends; 0 when that is not
// counted: an agent that says none, or a level below.
func (m *Machine) lentScratch(n *gpuai.NodeSpec) int64 {
	if m.Level() < LevelPlacement {
		return 0
	}
	bytes, err := strconv.ParseInt(n.Labels[gpuai.LabelScratch], 10, 64)
	if err != nil || bytes < 0 {
		return 0
	}
	return bytes
}

// countScratch has the scratch space of all nodes be counted, at LevelPlacement.
func (m *Machine) countScratch() {
	for s := range m.nodes.Len() {
		body := m.nodeBody(s)
		m.sched.SetScratch(s, m.lentScratch(&body.spec))
	}
}

// relistScratch has those who may have to go be listed with their scratch space, at
// LevelTenants.
func (m *Machine) relistScratch() {
	for s := range m.nodes.Len() {
		m.relisted(s)
	}
}

// scratchOf returns what a lease holds of its node's scratch space.
func (m *Machine) scratchOf(l *leaseRec) int64 {
	return m.sched.Scratch(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).shape)
}

// keptScratch is what is kept for a hold of its node's scratch space and has to come
// free for it: nothing below LevelTenants, where nobody makes room for it.
func (m *Machine) keptScratch(h *holdRec) int64 {
	if m.Level() < LevelTenants {
		return 0
	}
	return m.sched.Scratch(m.groups.Get(h.group.slot()).shape)
}

// whoGoes decides which of the victims that are listed go for a task of a shape.
// Scratch space counts from LevelTenants on.
func (m *Machine) whoGoes(shape scheduler.ShapeID, node uint32) (scheduler.Fit, bool) {
	if m.Level() < LevelTenants {
		return m.sched.DisplaceUncounted(shape, node, m.holdings, m.gone)
	}
	return m.sched.Displace(shape, node, m.holdings, m.gone)
}

// giveRoom gives back to the scheduler what a lease holds.
func (m *Machine) giveRoom(l *leaseRec) {
	m.sched.Give(l.node, l.devices, l.share, int64(l.cpu), l.memory)
	m.sched.Lend(l.node, -m.scratchOf(l))
}

// freeUp adds what a lease holds to what would be free.
func (m *Machine) freeUp(f *scheduler.Free, l *leaseRec) {
	f.Give(l.devices, l.share, int64(l.cpu), l.memory)
	f.Lend(-m.scratchOf(l))
}

// checkScratch checks that a node lends what its leases hold and is kept, and what
// it said to lend.
func (m *Machine) checkScratch(node uint32, want int64) error {
	for h := m.firstHold(node); h != 0; h = m.holds.Get(h.slot()).next {
		want += m.sched.Scratch(m.groups.Get(m.holds.Get(h.slot()).group.slot()).shape)
	}
	body := m.nodeBody(node)
	if lent, of := m.sched.Lent(node); lent != want || of != m.lentScratch(&body.spec) {
		return fmt.Errorf("node %s lends %d of %d bytes of scratch space, its leases and holds have %d of %d", m.nodeName(node), lent, of, want, m.lentScratch(&body.spec))
	}
	if refuses := body.spec.Refuses != nil; refuses != m.nodes.Get(node).refuses {
		return fmt.Errorf("node %s says that it refuses tasks: %v, and is taken for the other", m.nodeName(node), refuses)
	}
	return nil
}
