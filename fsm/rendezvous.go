package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// A gang meets at its rank 0: on a port that this task's node lends. From
// LevelTenants on the first of its tasks in order of placement whose node has a port
// left becomes rank 0. Where none has one, it is the first if its node lends none at
// all, else one on another node with a port. Below the level it is always the first,
// and the gang waits for a port there.

// maxLeads bounds at how many nodes is looked for one with a port.
const maxLeads = 4_096

// fillMeeting is fillRanks for a gang that meets at a port: on the nodes where its
// tasks have room in any case, in another order, or with its rank 0 elsewhere.
func (m *Machine) fillMeeting(group uint32, sc scheduler.Scope) bool {
	if m.attempt(func() bool { return m.fillRanks(group, sc) && !m.meetsBetter() }) {
		return true
	}
	fits := m.fits
	if m.fellShort(group, len(fits)) {
		return false // there was no room
	}
	for i := range fits {
		if m.nodes.Get(fits[i].Node).lends() {
			lead := fits[i]
			copy(fits[1:i+1], fits[:i])
			fits[0] = lead
			return m.attempt(func() bool { return m.fillAs(group, fits) })
		}
	}
	lead, ok := m.findLead(sc, m.groups.Get(group).shape)
	return ok && m.attempt(func() bool {
		m.fits = m.fits[:0]
		return m.fillOne(group, lead) && m.fillRanks(group, sc)
	})
}

// meetsBetter reports whether the first of a gang's tasks is on a node that lends no
// ports while another's has one.
func (m *Machine) meetsBetter() bool {
	if m.nodes.Get(m.fits[0].Node).portCount > 0 {
		return false
	}
	for i := range m.fits {
		if m.nodes.Get(m.fits[i].Node).lends() {
			return true
		}
	}
	return false
}

// fellShort reports whether so many tasks with a place are too few.
func (m *Machine) fellShort(group uint32, tasks int) bool {
	g := m.groups.Get(group)
	return tasks < int(g.ready()) && (!g.elastic() || tasks < int(g.least()))
}

// fillAs places a gang where it was found to have room, the first as rank 0.
func (m *Machine) fillAs(group uint32, fits []scheduler.Fit) bool {
	ready := m.groups.Get(group).ready()
	for _, fit := range fits {
		if !m.grant(group, fit) {
			return false
		}
	}
	if !m.openRendezvous(group) {
		return false
	}
	m.gangStarted(group, ready, uint32(len(fits)))
	return true
}

// fillOne gives the next task of a gang a lease.
func (m *Machine) fillOne(group uint32, fit scheduler.Fit) bool {
	if !m.grant(group, fit) {
		return false
	}
	m.fits = append(m.fits, fit)
	return true
}

// findLead returns a place for a gang's rank 0 on the first open node that lends a
// port.
func (m *Machine) findLead(sc scheduler.Scope, sh scheduler.ShapeID) (scheduler.Fit, bool) {
	most := uint32(maxLeads)
	if !sc.Everywhere() {
		m.scan = m.sched.NodesIn(sc, m.scan[:0])
		most = min(most, uint32(len(m.scan)))
	}
	for i := range min(most, m.nodes.Len()) {
		node := i
		if !sc.Everywhere() {
			node = m.scan[i]
		}
		m.now.work -= workLook
		if !m.nodes.Get(node).lends() {
			continue
		}
		if fit, ok := m.sched.FitsOn(sh, node); ok {
			return fit, true
		}
	}
	return scheduler.Fit{}, false
}

// lends reports whether a node has a port left to lend.
func (r *nodeRec) lends() bool { return r.portCount > 0 && !r.portsOut() }

// openRendezvous lends the gang a port on the node of its rank 0.
func (m *Machine) openRendezvous(group uint32) bool {
	l := m.leases.Mut(m.tasks.Get(m.groups.Get(group).first.slot()).lease.slot())
	n := m.nodes.Mut(l.node)
	if n.portCount == 0 {
		return true // the node lends none: its gangs find each other by themselves
	}
	l.port = n.lendPort()
	return l.port != 0
}

// meets keeps a port for a gang with its newest hold, if there is none yet: from
// LevelTenants on with the first whose node has one left. It reports false when
// that was the last one that could, and the oldest hold's node lends ports.
func (m *Machine) meets(group uint32, first, last bool) bool {
	if m.Level() < LevelTenants {
		return !first || m.holdPort(group)
	}
	n := m.nodes.Get(m.holds.Get(m.newestHold(group).slot()).node)
	if first {
		m.now.met, m.now.meetless = false, n.portCount == 0
	}
	if m.now.met {
		return true
	}
	m.now.met = n.lends() && m.holdPort(group)
	return m.now.met || !last || m.now.meetless
}

// leadHold returns the hold of a gang with which a port is kept, else its oldest.
func (m *Machine) leadHold(group uint32) (lead, oldest ref) {
	for h := m.newestHold(group); h != 0; h = m.holds.Get(h.slot()).older {
		if oldest = h; m.holds.Get(h.slot()).port != 0 {
			lead = h
		}
	}
	if lead == 0 {
		lead = oldest
	}
	return lead, oldest
}

// withoutPort reports whether a gang has room but no port to meet at, and says so.
func (m *Machine) withoutPort(g *groupRec, rs *[]gpuai.Reason) bool {
	if m.sched.CapacityNow(g.shape, g.least()) < g.least() {
		return false
	}
	out := uint32(0)
	for n := range m.nodes.Len() {
		if _, fits := m.sched.FitsOn(g.shape, n); !fits {
			continue
		}
		if !m.nodes.Get(n).portsOut() {
			return false
		}
		out++
	}
	if out == 0 {
		return false
	}
	*rs = append(*rs, gpuai.Reason{
		Code: gpuai.NoRendezvousPort, Nodes: out,
		Message: fmt.Sprintf("there is room for it, but its rank 0 needs a port to meet at, and all ports of the %d nodes that would take it are lent to other gangs", out),
		Fix:     "give these nodes' agents a wider --ports range, or wait for a gang there to end",
	})
	return true
}
