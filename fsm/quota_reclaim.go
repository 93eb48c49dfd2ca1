package fsm

import (
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// What a tenant leaves idle of its quota others of its cohort may borrow. When it
// wants it back, leases of those that have more than their own are revoked, the
// newest first, until what is leaving suffices: first those on whose nodes it then has
// the room, for a task or for all that start with it. Nobody borrows what it waits for
// until it was placed (curbOwed), so what comes free of the quota is its owner's, and
// nobody is asked to leave for it twice. A tenant within its own quota loses nothing,
// what is taken back was lent (nobody takes from one who took from him), and nobody is
// asked to leave when all that could be taken would not suffice.

const (
	lentScan    = 65_536 // leases that are looked at for one group
	lentVictims = 1_024  // that are revoked for it at a time
	lentNodes   = 16     // nodes that are looked at for room for a task, at least
	lentOfOne   = 64     // leases of one borrower that name those, at least
	lentTasks   = 128    // tasks that start as a whole for which nodes are looked at
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

// A taking is what of something is taken back.
type taking struct {
	lent
	need  uint64 // of those for whom it is taken
	lacks uint64 // beyond what is free and leaving
}

// takeBackLent has those of a cohort leave what a group of one of its members needs
// that is its own, if they have all of it.
func (m *Machine) takeBackLent(slot, group uint32, v *verdict) {
	var buf [numBounds + 1]taking
	ts, ok := m.takings(buf[:0], slot, group, v)
	if !ok || len(ts) == 0 {
		return
	}
	if m.needOfStart(group)[ofGPUs] > 0 {
		m.takeBackWhere(slot, group, v)
	}
	by := m.jobs.Get(m.groups.Get(group).job.slot()).id
	for i := range ts {
		m.takeBackOf(slot, &ts[i], by)
	}
}

// takings appends to ts what lacks for a group of what is its tenant's own; ok is
// false when something could not be had back.
func (m *Machine) takings(ts []taking, slot, group uint32, v *verdict) (_ []taking, ok bool) {
	n := m.needOfStart(group)
	for i := range n {
		if n[i] > 0 {
			ts = append(ts, taking{lent: lent{of: i}, need: n[i]})
		}
	}
	if v.by == boundModel {
		ts = append(ts, taking{lent: lent{model: m.quotas.Get(slot).models[v.model].name}, need: n[ofGPUs]})
	}
	lack := ts[:0]
	for _, t := range ts {
		if _, _, _, ok := m.boundsOf(slot, t.lent); !ok {
			continue
		}
		own, all := m.lacksOf(slot, t.lent, t.need)
		if all == 0 {
			continue
		}
		if slices.ContainsFunc(m.barren, func(b taking) bool { return b.lent == t.lent && b.lacks <= own }) {
			return nil, false
		}
		if t.lacks = own; m.mayTake(slot, t.lent, all) < own {
			m.barren = append(m.barren, t)
			return nil, false
		}
		lack = append(lack, t)
	}
	return lack, true
}

// lacksOf returns how much must be taken back for a need beyond what is free and
// leaving, and how much for that and all else that is owed to members of the cohort.
func (m *Machine) lacksOf(slot uint32, x lent, need uint64) (own, all uint64) {
	var have, most, kept uint64
	m.eachPeer(slot, func(p uint32) {
		if top, has, leaving, ok := m.boundsOf(p, x); ok {
			have, most, kept = have+has-min(leaving, has), addSat(most, top), kept+m.keptOf(p, x)
		}
	})
	own = have + need - min(have+need, most)
	return own, max(own, have+kept-min(have+kept, most))
}

// keptOf returns what nobody may borrow since it is owed to a tenant.
func (m *Machine) keptOf(slot uint32, x lent) uint64 {
	q, u := m.quotas.Get(slot), m.quotaUses.Get(slot)
	if x.model == 0 {
		return u.kept[x.of]
	}
	for i := range q.models {
		if q.models[i].name == x.model {
			return u.keptModels[i]
		}
	}
	return 0
}

// mayTake returns how much of x may be taken from others of a cohort, as far as it is
// wanted.
func (m *Machine) mayTake(slot uint32, x lent, want uint64) (sum uint64) {
	scan := lentScan
	m.eachPeer(slot, func(p uint32) {
		over := m.lentTo(p, x)
		if p == slot {
			return
		}
		has := uint64(0)
		for l := m.tally(p).last; l != 0 && has < over && sum < want && scan > 0; l = m.tallies.links.Get(l.slot()).older {
			m.now.work -= workLook
			scan--
			n := m.lentBy(p, l.slot(), x)
			has, sum = has+n, sum+n
		}
	})
	return sum
}

// takeBackOf has the newest leases go of those who borrowed something, until nothing
// lacks.
func (m *Machine) takeBackOf(slot uint32, t *taking, by gpuai.JobID) {
	if _, t.lacks = m.lacksOf(slot, t.lent, t.need); t.lacks == 0 {
		return
	}
	scan := lentScan
	var peers, newest [gpuai.MaxCohortMembers]ref // by place in the cohort
	n := 0
	m.eachPeer(slot, func(p uint32) {
		if n < len(peers) && p != slot {
			peers[n], newest[n] = refTo(p), m.newestLent(p, t.lent, &scan)
			n++
		}
	})
	for range lentVictims {
		best := -1
		for i, l := range newest[:n] {
			if l != 0 && (best < 0 || m.leases.Get(l.slot()).token > m.leases.Get(newest[best].slot()).token) {
				best = i
			}
		}
		m.now.work -= workLook
		if best < 0 || t.lacks == 0 {
			return
		}
		p := peers[best].slot()
		before, v := m.staysOf(p, t.lent), m.victimOf(newest[best].slot())
		m.preempt(&v, by)
		t.lacks -= min(t.lacks, before-m.staysOf(p, t.lent))
		newest[best] = m.newestLent(p, t.lent, &scan)
	}
}

// newestLent returns the newest lease of a tenant that may be taken and has some of x,
// of which the tenant has more than its own.
func (m *Machine) newestLent(slot uint32, x lent, scan *int) ref {
	if m.lentTo(slot, x) == 0 {
		return 0
	}
	for l := m.tally(slot).last; l != 0 && *scan > 0; l = m.tallies.links.Get(l.slot()).older {
		m.now.work -= workLook
		*scan--
		if m.lentBy(slot, l.slot(), x) > 0 {
			return l
		}
	}
	return 0
}

// lentBy returns how much of x a tenant's lease has.
func (m *Machine) lentBy(slot, lease uint32, x lent) uint64 {
	u := m.leaseUse(lease)
	if x.model == 0 {
		return u.of[x.of]
	}
	if i := m.quotas.Get(slot).modelIn(u.model); i >= 0 && m.quotas.Get(slot).models[i].name == x.model {
		return u.of[ofGPUs]
	}
	return 0
}

// takeBackWhere has those leave who borrowed devices where a group then has the room
// for a task, or for all that start with it, and no more of them than that takes: else
// the newest may go on many nodes, and none has it. It asks nobody where room is free,
// or where no such nodes are found.
func (m *Machine) takeBackWhere(slot, group uint32, v *verdict) {
	x := lent{of: ofGPUs}
	if v.by == boundModel {
		x.model = m.quotas.Get(slot).models[v.model].name
	}
	old := m.members
	m.members = nil
	m.gather(group)
	tasks := uint64(0)
	for _, g := range m.members {
		tasks += m.startsNow(slot, g)
	}
	same := m.groups.Get(group).same
	if tasks <= lentTasks && same != gpuai.TopologyZone {
		barred := v.barred
		if v.by == boundModel {
			barred &^= 1 << v.model
		}
		nodes := m.lentOn(slot, x, int(tasks))
		m.barModels(slot, barred, m.endsBy(group))
		going := m.planTaking(slot, same, x, nodes)
		m.sched.Unbar()
		by := m.jobs.Get(m.groups.Get(group).job.slot()).id
		for _, lease := range going {
			if m.leases.Get(lease).state < gpuai.LeaseRevoking {
				v := m.victimOf(lease)
				m.preempt(&v, by)
			}
		}
	}
	m.members = old
}

// planTaking returns the leases that would have to go from some nodes for m.members to
// have room, in the first domain where they would; none where it is free.
func (m *Machine) planTaking(slot uint32, same gpuai.Topology, x lent, nodes []uint32) (going []uint32) {
	var tried []scheduler.Scope
	for _, node := range nodes {
		sc := m.sched.ScopeOf(same, node)
		if slices.Contains(tried, sc) {
			continue
		}
		if len(tried) == displaceTries || m.now.work < -WorkPerEntry {
			return nil
		}
		tried = append(tried, sc)
		if going, ok := m.tryTaking(slot, sc, x, nodes); ok {
			return going
		}
	}
	return nil
}

// tryTaking is planTaking in one domain. It takes back all that it tried.
func (m *Machine) tryTaking(slot uint32, sc scheduler.Scope, x lent, nodes []uint32) (going []uint32, ok bool) {
	level := gpuai.TopologyNone
	if !sc.Everywhere() {
		level = m.groups.Get(m.members[0]).same
	}
	m.attempt(func() bool {
		for _, group := range m.members {
			on := slices.Clone(nodes)
			for range m.startsNow(slot, group) {
				if fit, free := m.findFree(sc, m.groups.Get(group).shape); free {
					if !m.keepFree(group, &fit) {
						return false
					}
					continue
				}
				for len(on) > 0 && (m.sched.ScopeOf(level, on[0]) != sc || !m.takeOn(slot, group, on[0], x, &going)) {
					on = on[1:]
				}
				if len(on) == 0 {
					return false
				}
				ok = !m.startsWhole(group) // some of them may start
			}
		}
		ok = true
		return false
	})
	return going, ok
}

// takeOn makes room for one task of a group on a node, of what others have borrowed
// there, and adds who goes for it to those who do.
func (m *Machine) takeOn(slot, group, node uint32, x lent, going *[]uint32) bool {
	if !m.nodes.Get(node).open() || !m.mayKeep(node) || m.holdSlots.Len() >= MaxHolds {
		return false
	}
	m.listLent(slot, node, x)
	fit, ok := m.sched.Displace(m.groups.Get(group).shape, node, m.holdings, m.gone)
	if !ok || !m.lentSuffices(x) || !m.payable(group, &fit) {
		return false
	}
	for i := range m.victims {
		if m.gone[i] {
			m.now.work -= workEnd
			*going = append(*going, m.victims[i].slot)
			m.preempt(&m.victims[i], gpuai.JobID{})
		}
	}
	m.keep(group, &fit)
	return true
}

// startsNow is for how many tasks of a group room is looked for: for all that start
// with it, else for some that its tenant may have of its own.
func (m *Machine) startsNow(slot, group uint32) uint64 {
	g := m.groups.Get(group)
	if m.startsWhole(group) {
		return uint64(g.least())
	}
	tasks := min(uint64(g.ready()), lentNodes)
	for i, n := range m.needOfTask(group) {
		if most, has := m.quotas.Get(slot).bounds[i], m.tally(slot).of[i]; n > 0 && most != noBound {
			tasks = min(tasks, (most-min(most, has))/n)
		}
	}
	return max(tasks, 1)
}

// lentOn returns the nodes of the newest leases of those who borrow from a cohort: some
// for each of so many tasks.
func (m *Machine) lentOn(slot uint32, x lent, tasks int) (nodes []uint32) {
	most := max(lentNodes, 2*tasks)
	m.eachPeer(slot, func(p uint32) {
		if p == slot || m.lentTo(p, x) == 0 {
			return
		}
		l := m.tally(p).last
		for range max(lentOfOne, 4*tasks) {
			if l == 0 || len(nodes) == most {
				return
			}
			m.now.work -= workLook
			if node := m.leases.Get(l.slot()).node; m.lentBy(p, l.slot(), x) > 0 && !slices.Contains(nodes, node) {
				nodes = append(nodes, node)
			}
			l = m.tallies.links.Get(l.slot()).older
		}
	})
	return nodes
}

// lentTo returns what stays of what a tenant has beyond its own.
func (m *Machine) lentTo(slot uint32, x lent) uint64 {
	top, _, _, ok := m.boundsOf(slot, x)
	if !ok {
		return 0
	}
	stays := m.staysOf(slot, x)
	return stays - min(top, stays)
}

// staysOf returns what a tenant has of x and is not leaving.
func (m *Machine) staysOf(slot uint32, x lent) uint64 {
	_, has, leaving, _ := m.boundsOf(slot, x)
	return has - min(leaving, has)
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
			if !ok || p == slot || !m.givesWay(lease) || m.quotaUses.Get(p).cohort != m.quotaUses.Get(slot).cohort || m.lentTo(p, x) == 0 || m.lentBy(p, lease, x) == 0 {
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
