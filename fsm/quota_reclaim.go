package fsm

import (
	"slices"

	"github.com/gpuai/gpuai"
)

// What a tenant leaves idle of its quota others of its cohort may borrow. When it
// wants it back, leases of those that have more than their own are revoked, the
// newest first, until what is leaving suffices: first those of one node that then has
// the room for a task. Nobody borrows until it was placed (curbOwed), so what comes free
// of the quota is its owner's, and nobody is asked to leave for it twice. A tenant within its own quota loses nothing, and
// what is taken back was lent: nobody takes from one who took from him.

const (
	lentScan    = 65_536 // leases that are looked at for one group
	lentVictims = 1_024  // that are revoked for it at a time
	lentNodes   = 16     // nodes that are looked at for room for it
	lentOfOne   = 64     // leases of one borrower that name those
)

// A lent names what is taken back: devices, CPU or memory, or devices of one model.
type lent struct {
	of    int
	model uint32 // string number; 0: of all models
}

// boundsOf returns what a quota says of it; ok is false when it bounds it not.
func (m *Machine) boundsOf(slot uint32, x lent) (most, have, leaving uint64, ok bool) {
	q, u := m.quotas.Get(slot), m.quotaUses.Get(slot)
	if x.model == 0 {
		t := m.tally(slot)
		return q.bounds[x.of], t.of[x.of], t.leaving[x.of], q.bounds[x.of] != noBound
	}
	for i := range q.models {
		if q.models[i].name == x.model {
			return q.models[i].most, u.models[i], u.modelsLeaving[i], true
		}
	}
	return 0, 0, 0, false
}

// takeBackLent has those of a cohort leave what a group of one of its members needs
// that is its own, if they have it.
func (m *Machine) takeBackLent(slot, group uint32, v *verdict) {
	n := m.needOfStart(group)
	if g := m.groups.Get(group); !g.gang && g.together == 0 && n[ofGPUs] > 0 {
		m.takeBackOnOne(slot, group, v, n[ofGPUs])
	}
	for i := range n {
		if n[i] > 0 {
			m.takeBackOf(slot, group, lent{of: i}, n[i])
		}
	}
	if v.by == boundModel {
		m.takeBackOf(slot, group, lent{model: m.quotas.Get(slot).models[v.model].name}, n[ofGPUs])
	}
}

func (m *Machine) takeBackOf(slot, group uint32, x lent, need uint64) {
	if _, _, _, ok := m.boundsOf(slot, x); !ok || slices.Contains(m.barren, x) {
		return
	}
	by := m.jobs.Get(m.groups.Get(group).job.slot()).id
	scan := lentScan
	spared := [gpuai.MaxCohortMembers]bool{} // by place in the cohort
	for range lentVictims {
		peer, place, lacks := m.lender(slot, x, need, &spared)
		if !lacks {
			return
		}
		if peer == 0 || scan <= 0 { // all that is left is their own, or must not be taken
			m.barren = append(m.barren, x)
			return
		}
		victim, ok := m.newestLent(peer.slot(), x, &scan)
		if !ok {
			spared[place] = true
			continue
		}
		v := m.victimOf(victim)
		m.preempt(&v, by)
	}
}

// lender returns the member of a cohort that has most beyond its own, of those that
// are not spared; lacks is false when what is free and leaving suffices.
func (m *Machine) lender(slot uint32, x lent, need uint64, spared *[gpuai.MaxCohortMembers]bool) (peer ref, place int, lacks bool) {
	var have, most, best uint64
	i := 0
	m.eachPeer(slot, func(p uint32) {
		at := i
		i++
		top, has, leaving, ok := m.boundsOf(p, x)
		if !ok {
			return
		}
		stays := has - min(leaving, has)
		have, most = have+stays, addSat(most, top)
		if over := stays - min(top, stays); p != slot && over > best && at < len(spared) && !spared[at] {
			best, peer, place = over, refTo(p), at
		}
	})
	return peer, place, have+need > most
}

// newestLent returns the newest lease of a tenant that may be taken and has some of x.
func (m *Machine) newestLent(slot uint32, x lent, scan *int) (uint32, bool) {
	for l := m.tally(slot).last; l != 0 && *scan > 0; l = m.tallies.links.Get(l.slot()).older {
		m.now.work -= workLook
		*scan--
		if m.hasLent(slot, l.slot(), x) {
			return l.slot(), true
		}
	}
	return 0, false
}

// hasLent reports whether a tenant's lease has something of x.
func (m *Machine) hasLent(slot, lease uint32, x lent) bool {
	u := m.leaseUse(lease)
	if x.model == 0 {
		return u.of[x.of] > 0
	}
	i := m.quotas.Get(slot).modelIn(u.model)
	return i >= 0 && m.quotas.Get(slot).models[i].name == x.model
}

// takeBackOnOne has those leave who borrowed devices on one node, and no more of them
// than a task of a group needs to find its room there: else the newest may go on many
// nodes, and none has it.
func (m *Machine) takeBackOnOne(slot, group uint32, v *verdict, need uint64) {
	x := lent{of: ofGPUs}
	if v.by == boundModel {
		x.model = m.quotas.Get(slot).models[v.model].name
	}
	if _, _, lacks := m.lender(slot, x, need, &[gpuai.MaxCohortMembers]bool{}); !lacks || slices.Contains(m.barren, x) {
		return
	}
	nodes := m.lentOn(slot, x)
	by := m.jobs.Get(m.groups.Get(group).job.slot()).id
	for _, node := range nodes {
		if !m.nodes.Get(node).open() {
			continue
		}
		m.listLent(slot, node, x)
		if _, ok := m.sched.Displace(m.groups.Get(group).shape, node, m.holdings, m.gone); !ok || !m.lentSuffices(x) {
			continue
		}
		m.now.emptying = refTo(node)
		for i := range m.victims {
			if m.gone[i] {
				m.preempt(&m.victims[i], by)
			}
		}
		m.now.emptying = 0
		m.relisted(node)
		return
	}
}

// lentOn returns the nodes of the newest leases of those who borrow from a cohort.
func (m *Machine) lentOn(slot uint32, x lent) (nodes []uint32) {
	m.eachPeer(slot, func(p uint32) {
		if p == slot || m.lentTo(p, x) == 0 {
			return
		}
		l := m.tally(p).last
		for range lentOfOne {
			if l == 0 || len(nodes) == lentNodes {
				return
			}
			m.now.work -= workLook
			if node := m.leases.Get(l.slot()).node; m.hasLent(p, l.slot(), x) && !slices.Contains(nodes, node) {
				nodes = append(nodes, node)
			}
			l = m.tallies.links.Get(l.slot()).older
		}
	})
	return nodes
}

// lentTo returns what stays of what a tenant has beyond its own.
func (m *Machine) lentTo(slot uint32, x lent) uint64 {
	top, has, leaving, ok := m.boundsOf(slot, x)
	if !ok {
		return 0
	}
	stays := has - min(leaving, has)
	return stays - min(top, stays)
}

// listLent lists what may be taken of a node for a member of a cohort, the most worth
// sparing first: what others of it may have borrowed, and what is leaving.
func (m *Machine) listLent(slot, node uint32, x lent) {
	vs := m.victims[:0]
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		lease := l.slot()
		if m.leases.Get(lease).state < gpuai.LeaseRevoking {
			p, ok := m.quotaSlot(m.tenantOfLease(m.leases.Get(lease)))
			if !ok || p == slot || !m.givesWay(lease) || m.quotaUses.Get(p).cohort != m.quotaUses.Get(slot).cohort || m.lentTo(p, x) == 0 || !m.hasLent(p, lease, x) {
				continue
			}
		}
		vs = append(vs, m.victimOf(lease))
	}
	slices.SortFunc(vs, func(a, b victim) int { return a.worthier(&b) })
	m.victims, m.holdings = vs, m.holdings[:0]
	for i := range vs {
		m.holdings = append(m.holdings, vs[i].holding)
	}
	m.gone = append(m.gone[:0], make([]bool, len(vs))...)
}

// lentSuffices reports whether no victim would lose what is its tenant's own.
func (m *Machine) lentSuffices(x lent) bool {
	for i := range m.victims {
		if !m.gone[i] {
			continue
		}
		tenant, sum := m.tenantOfLease(m.leases.Get(m.victims[i].slot)), uint64(0)
		for k := range m.victims[:i+1] {
			if l := m.leases.Get(m.victims[k].slot); m.gone[k] && m.tenantOfLease(l) == tenant {
				sum += l.held()
			}
		}
		if slot, _ := m.quotaSlot(tenant); sum >= m.lentTo(slot, x)+m.leases.Get(m.victims[i].slot).held() {
			return false
		}
	}
	return true
}
