package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// What a budget does not suffice for depends on where: other models and nodes may cost
// less. What was found too dear is left out, and looked for again; where nothing else is
// free the bucket stays in its turn, and each node that gains room is offered to it that
// it could pay. It is parked when no money, or no time, is left at all.

// dearTries is for how many nodes with prices of their own a search is begun anew.
const dearTries = 2 * gpuai.MaxQuotaModels

// A dear is what the present search leaves out.
type dear struct {
	at     scheduler.Fit // found last
	models []uint64      // scheduler.ModelHash
	nodes  []uint32
}

// noteDear notes that a place was found that the budget does not suffice for.
func (m *Machine) noteDear(fit *scheduler.Fit) {
	m.overBudget = true
	m.dear.at = *fit
}

// avoid leaves out what was found too dear last: the node if it has a price of its own,
// else the model. It reports whether that may find something else.
func (m *Machine) avoid() bool {
	node := m.dear.at.Node
	if n := m.nodes.Get(node); n.price > 0 || n.priced || n.asked {
		if !m.opens(node) || len(m.dear.nodes) == dearTries {
			return false
		}
		m.sched.SetOpen(node, false)
		m.dear.nodes = append(m.dear.nodes, node)
		return true
	}
	model := m.sched.ModelOf(node, m.dear.at.Devices)
	if model == 0 || len(m.dear.models) == gpuai.MaxPrices {
		return false
	}
	m.dear.models = append(m.dear.models, model)
	return true
}

// avoidNothing ends what avoid left out.
func (m *Machine) avoidNothing() {
	for _, n := range m.dear.nodes {
		m.sched.SetOpen(n, m.opens(n)) // it gained nothing
		m.relisted(n)
		m.now.work -= workLook
	}
	m.dear.nodes, m.dear.models = m.dear.nodes[:0], m.dear.models[:0]
}

// tooDear has a bucket wait whose first group found only what is too dear.
func (m *Machine) tooDear(bucket uint32) {
	b := m.buckets.Get(bucket)
	if !m.hasMoney(b.first.slot()) {
		m.park(bucket, &verdict{by: boundBudget})
		return
	}
	m.setCurb(bucket, m.stillOwed(bucket)|curbBudget)
}

// hasMoney reports whether a group's tenant has some money left, and the time for a task.
func (m *Machine) hasMoney(group uint32) bool {
	g := m.groups.Get(group)
	purse, has := m.purseSlot(m.jobs.Get(g.job.slot()).tenant)
	if !has {
		return true
	}
	milli := m.needOfTask(group)[ofGPUs]
	d := m.jobs.Get(g.job.slot()).runTime
	if d == 0 {
		d = holdSlice
	}
	return m.affords(purse, 1, mulSat(milli, uint64(d)))
}

// mayPay reports whether a bucket that waits for its budget could pay for a place on a
// node.
func (m *Machine) mayPay(b *bucketRec, node uint32) bool {
	if b.curb&curbBudget == 0 {
		return true
	}
	m.now.work -= workLook
	fit, ok := m.sched.FitsIn(b.shape, node)
	if !ok {
		return true // of those that start together another may have room
	}
	_, _, ok = m.newBill(m.groups.Get(b.first.slot()).job.slot(), &fit, m.priceAt(&fit))
	return ok
}
