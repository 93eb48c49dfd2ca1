package fsm

import (
	"slices"

	"github.com/gpuai/gpuai"
)

// What a tenant leaves idle of its quota others of its cohort may borrow. When it
// wants it back, leases of those that have more than their own are revoked, the
// newest first, until what is leaving suffices. Nobody borrows meanwhile (curbOwed),
// so what comes free is its owner's. A tenant within its own quota loses nothing, and
// what is taken back was lent: nobody takes from one who took from him.

const (
	lentScan    = 65_536 // leases that are looked at for one group
	lentVictims = 1_024  // that are revoked for it at a time
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
		r := m.leases.Get(l.slot())
		job := m.jobs.Get(m.groups.Get(m.tasks.Get(r.task.slot()).group.slot()).job.slot())
		if r.state >= gpuai.LeaseRevoking || !job.preemptible {
			continue
		}
		u := m.leaseUse(l.slot())
		i := m.quotas.Get(slot).modelIn(u.model)
		if x.model == 0 && u.of[x.of] > 0 || x.model != 0 && i >= 0 && m.quotas.Get(slot).models[i].name == x.model {
			return l.slot(), true
		}
	}
	return 0, false
}
