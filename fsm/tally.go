package fsm

import (
	"cmp"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// What tenants have is counted for all of them, also for those without a quota: so
// the first quota of one that has a million jobs costs no look at any of them. All of
// it is derived.

// A tallyRec is what live leases, and holds, of a tenant have, and its jobs.
type tallyRec struct {
	of          [numBounds]uint64
	leaving     [numBounds]uint64 // of it, by leases that are being revoked
	running     uint32            // jobs
	pending     uint32
	first, last ref // leases that may be taken back, in the order of their grants
	quota       ref
	models      ref // first
}

// A modelTally is what a tenant has of one model.
type modelTally struct {
	next        ref    // of the tenant
	uses        uint32 // leases and holds; 0: it is free
	model       uint64 // scheduler.ModelHash
	of, leaving uint64
}

// A leaseLink is the place of a lease that gives way, and is not being revoked, among
// those of its tenant: who takes something back looks at no other. It is no field of the
// lease, whose neighbours would be hashed anew with each grant.
type leaseLink struct{ older, newer ref }

// tallies are what all tenants have.
type tallies struct {
	recs   *mem.Table[tallyRec]
	byName *mem.Table[ref]       // by string number of the tenant
	links  *mem.Table[leaseLink] // by lease
	models *mem.Table[modelTally]
}

func newTallies(s *mem.Space) *tallies {
	return &tallies{
		recs: mem.NewTable[tallyRec](s, 5), byName: mem.NewTable[ref](s, 10), links: mem.NewTable[leaseLink](s, 8),
		models: mem.NewTable[modelTally](s, 6),
	}
}

func (t *tallies) fork(ns *mem.Space) *tallies {
	return &tallies{
		recs: t.recs.Fork(ns), byName: t.byName.Fork(ns), links: t.links.Fork(ns),
		models: t.models.Fork(ns),
	}
}

// slot returns the tally of a tenant by its string number; it makes one.
func (t *tallies) slot(tenant uint32) uint32 {
	if tenant < t.byName.Len() {
		if at := *t.byName.Get(tenant); at != 0 {
			return at.slot()
		}
	}
	slot := t.recs.Append(tallyRec{})
	t.byName.Grow(tenant + 1)
	*t.byName.Mut(tenant) = refTo(slot)
	return slot
}

// model returns where a tenant's devices of one model are counted: it has few. free is
// a place of a model that it has none of any more.
func (t *tallies) model(tally uint32, model uint64) (at, free ref) {
	for at = t.recs.Get(tally).models; at != 0; at = t.models.Get(at.slot()).next {
		r := t.models.Get(at.slot())
		if r.model == model && r.uses > 0 {
			return at, 0
		}
		if r.uses == 0 {
			free = at
		}
	}
	return 0, free
}

// countModel counts the devices of x by their model.
func (t *tallies) countModel(tally uint32, x *used) {
	at, free := t.model(tally, x.model)
	if at == 0 {
		if at = free; at == 0 {
			r := t.recs.Mut(tally)
			at = refTo(t.models.Append(modelTally{next: r.models}))
			r.models = at
		}
		t.models.Mut(at.slot()).model = x.model
	}
	r := t.models.Mut(at.slot())
	n := x.devices()
	r.of, r.leaving = r.of+n.of, r.leaving+n.leaving
	switch x.is {
	case usedAnew:
		r.uses++
	case usedNoMore:
		r.uses--
	}
}

// What happens to what a used tells of.
const (
	usedAnew   = iota
	usedLeaves // it is being revoked from now on
	usedNoMore
)

// A used is what one lease or hold has.
type used struct {
	of      [numBounds]uint64
	model   uint64 // scheduler.ModelHash of its devices; 0: it has none
	leaving bool   // it is being revoked
	is      uint8
}

// A change is by how much what a tenant has changes: modulo 2^64.
type change struct{ of, leaving uint64 }

func (x *used) change(i int) (c change) {
	n := x.of[i]
	if x.is == usedNoMore {
		n = -n
	}
	if x.is != usedLeaves {
		c.of = n
	}
	if x.leaving {
		c.leaving = n
	}
	return c
}

func (x *used) devices() change { return x.change(ofGPUs) }

func (t *tallyRec) add(x *used) {
	for i := range x.of {
		c := x.change(i)
		t.of[i] += c.of
		t.leaving[i] += c.leaving
	}
}

func (t *tallyRec) status(s gpuai.JobStatus, by int32) {
	switch s {
	case gpuai.JobPending:
		t.pending = uint32(int32(t.pending) + by)
	case gpuai.JobRunning:
		t.running = uint32(int32(t.running) + by)
	}
}

// tally returns what the tenant of a quota has.
func (m *Machine) tally(quota uint32) *tallyRec {
	return m.tallies.recs.Get(m.quotaUses.Get(quota).tally)
}

func (m *Machine) leaseUse(lease uint32) used {
	l := m.leases.Get(lease)
	return used{
		of:    [numBounds]uint64{l.held(), uint64(l.cpu), uint64(l.memory)},
		model: m.sched.ModelOf(l.node, l.devices), leaving: l.state == gpuai.LeaseRevoking,
	}
}

func (m *Machine) holdUse(h *holdRec) used {
	l := leaseRec{devices: h.devices, share: h.share}
	return used{of: [numBounds]uint64{l.held(), uint64(h.cpu), uint64(h.memory)}, model: m.sched.ModelOf(h.node, h.devices)}
}

// count counts what a lease or hold of a tenant has.
func (m *Machine) count(tenant uint32, x *used) (tally uint32) {
	tally = m.tallies.slot(tenant)
	t := m.tallies.recs.Mut(tally)
	t.add(x)
	if t.quota != 0 {
		m.countQuota(t.quota.slot(), x)
	}
	m.countModel(tally, t.quota, x)
	return tally
}

// countModel counts devices by their model.
func (m *Machine) countModel(tally uint32, quota ref, x *used) {
	if x.model == 0 {
		return
	}
	m.tallies.countModel(tally, x)
	if quota != 0 {
		m.countQuotaModel(quota.slot(), x)
	}
}

// countJob counts a job that moved to another state.
func (m *Machine) countJob(tenant uint32, from, to gpuai.JobStatus) {
	t := m.tallies.recs.Mut(m.tallies.slot(tenant))
	t.status(from, -1)
	t.status(to, 1)
	if t.quota == 0 {
		return
	}
	if slot := t.quota.slot(); from == gpuai.JobRunning || m.quotas.Get(slot).running != noBound { // other groups of a job that runs may start
		m.freed.Set(slot)
	}
}

// useLease counts a new lease.
func (m *Machine) useLease(lease uint32) {
	x := m.leaseUse(lease)
	if tally := m.count(m.tenantOfLease(m.leases.Get(lease)), &x); m.givesWay(lease) {
		m.listLease(tally, lease)
	}
}

// givesWay reports whether a lease may be taken back.
func (m *Machine) givesWay(lease uint32) bool {
	l := m.leases.Get(lease)
	return l.state < gpuai.LeaseRevoking && m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot()).preemptible
}

// listLease puts a lease behind all others of a tenant.
func (m *Machine) listLease(tally, lease uint32) {
	t, links := m.tallies.recs.Mut(tally), m.tallies.links
	older := t.last
	if older != 0 {
		links.Mut(older.slot()).newer = refTo(lease)
	} else {
		t.first = refTo(lease)
	}
	t.last = refTo(lease)
	links.Put(lease, leaseLink{older: older})
}

// unlistLease takes a lease out of those that may be taken back, if it is there.
func (m *Machine) unlistLease(tally, lease uint32) {
	t, links := m.tallies.recs.Mut(tally), m.tallies.links
	if lease >= links.Len() {
		return
	}
	l := *links.Get(lease)
	if l == (leaseLink{}) && t.first != refTo(lease) {
		return
	}
	if l.older != 0 {
		links.Mut(l.older.slot()).newer = l.newer
	} else {
		t.first = l.newer
	}
	if l.newer != 0 {
		links.Mut(l.newer.slot()).older = l.older
	} else {
		t.last = l.older
	}
	*links.Mut(lease) = leaseLink{}
}

// unuseLease counts a lease that ends.
func (m *Machine) unuseLease(lease uint32) {
	x := m.leaseUse(lease)
	x.is = usedNoMore
	m.unlistLease(m.count(m.tenantOfLease(m.leases.Get(lease)), &x), lease)
}

// leaseLeaves counts a lease that is being revoked from now on.
func (m *Machine) leaseLeaves(lease uint32) {
	x := m.leaseUse(lease)
	x.is = usedLeaves
	m.unlistLease(m.count(m.tenantOfLease(m.leases.Get(lease)), &x), lease)
}

// useHold counts a hold, or one that ends.
func (m *Machine) useHold(h *holdRec, less bool) {
	x := m.holdUse(h)
	if less {
		x.is = usedNoMore
	}
	m.count(m.tenantOfHold(h), &x)
}

func (m *Machine) tenantOfHold(h *holdRec) uint32 {
	return m.jobs.Get(m.groups.Get(h.group.slot()).job.slot()).tenant
}

// recountModels counts the leases of a node by their models, or counts them no
// longer: its devices are about to be others.
func (m *Machine) recountModels(node uint32, less bool) {
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		x := m.leaseUse(l.slot())
		if less {
			x.is = usedNoMore
		}
		tally := m.tallies.slot(m.tenantOfLease(m.leases.Get(l.slot())))
		quota := m.tallies.recs.Get(tally).quota
		m.countModel(tally, quota, &x)
		if quota != 0 {
			m.freed.Set(quota.slot())
		}
	}
}

// rebuildTallies counts what all tenants have: the machine was restored.
func (m *Machine) rebuildTallies() {
	for j, ok := m.jobSlots.Next(0); ok; j, ok = m.jobSlots.Next(j + 1) {
		if r := m.jobs.Get(j); !r.status.Final() {
			m.tallies.recs.Mut(m.tallies.slot(r.tenant)).status(r.status, 1)
		}
	}
	for h, ok := m.holdSlots.Next(0); ok; h, ok = m.holdSlots.Next(h + 1) {
		m.useHold(m.holds.Get(h), false)
	}
	m.scan = m.scan[:0]
	for l, ok := m.leaseSlots.Next(0); ok; l, ok = m.leaseSlots.Next(l + 1) {
		if m.leases.Get(l).live() {
			m.scan = append(m.scan, l)
		}
	}
	slices.SortFunc(m.scan, func(a, b uint32) int { return cmp.Compare(m.leases.Get(a).token, m.leases.Get(b).token) }) // tokens grow
	for _, l := range m.scan {
		m.useLease(l)
	}
}
