package fsm

import (
	"cmp"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// Bounds of what is tried for what must be in one domain.
const (
	displaceTries = maxTries // domains, the best by what it would take
	displaceBands = 16       // steps in which more and more is taken of a domain
)

// displaceGroup makes room for all tasks of a group that have none; ok says
// whether it could, for what starts as a whole for all or for none. Nodes that are reserved list
// nobody who may have to go, so the reservation ends when it is for the group.
func (m *Machine) displaceGroup(group uint32, limit scheduler.Band) (ok, final bool) {
	m.now.group = refTo(group)
	if m.held(group) >= m.wants(group) {
		return true, true
	}
	if m.reservedFor(m.now.group) {
		m.attempt(func() bool {
			m.unreserve()
			ok, final = m.displaceTasks(group, limit)
			return ok || !final || m.held(group) > 0
		})
		return ok, final
	}
	ok, final = m.displaceTasks(group, limit)
	if v := m.meta.Get().reserve; !ok && final && v.group != 0 && m.startsWhole(group) && m.priorityOf(group) > m.priorityOf(v.group.slot()) {
		ok = m.attempt(func() bool {
			m.unreserve()
			return m.displaceWhole(group, limit)
		})
	}
	return ok, final
}

// startsWhole reports whether all tasks of a group start in one step: it is a gang,
// or starts together with others.
func (m *Machine) startsWhole(group uint32) bool {
	g := m.groups.Get(group)
	return g.gang || g.together != 0
}

func (m *Machine) displaceTasks(group uint32, limit scheduler.Band) (ok, final bool) {
	if m.startsWhole(group) {
		return m.withinQuota(group, func() bool { return m.displaceWhole(group, limit) }), true
	}
	for n := m.wants(group) - m.held(group); n > 0; n-- {
		if m.now.work <= 0 {
			return false, false
		}
		if !m.withinQuota(group, func() bool { return m.displaceOne(group, limit) || m.displaceOnReserved(group, limit) }) {
			return false, true
		}
	}
	return true, true
}

// withinQuota makes room for a group by f, of what its tenant may have. It reports
// what f does; false when that is nothing, and the group's bucket is parked.
func (m *Machine) withinQuota(group uint32, f func() bool) bool {
	slot, ok := m.quotaOfGroup(group)
	if !ok {
		return m.lasting(group, f)
	}
	bucket := m.groups.Get(group).bucket.slot()
	v := m.admit(slot, group)
	if !v.ok {
		m.park(bucket, &v)
		return false
	}
	ends := m.endsBy(group)
	if v.barred == 0 && ends == 0 {
		return m.withinBudget(bucket, f)
	}
	m.looked(bucket, v.barred != 0)
	m.barModels(slot, v.barred, ends)
	ok = m.withinBudget(bucket, f)
	m.sched.Unbar()
	return ok
}

// lasting does f on nodes whose hours are long enough for a group.
func (m *Machine) lasting(group uint32, f func() bool) bool {
	ends := m.endsBy(group)
	if ends == 0 {
		return f()
	}
	m.bar(nil, ends)
	ok := f()
	m.sched.Unbar()
	return ok
}

// withinBudget makes room by f of what its tenant's budget suffices for. The bucket
// waits for that when it does not.
func (m *Machine) withinBudget(bucket uint32, f func() bool) bool {
	m.overBudget = false
	if f() {
		return true
	}
	if m.overBudget {
		m.tooDear(bucket)
	}
	return false
}

// displaceOnReserved makes room for one task on a node that is reserved for a job
// of lower priority, where FindReclaim does not look. The reservation stays: to
// begin it anew with each such task would keep its job waiting for ever.
func (m *Machine) displaceOnReserved(group uint32, limit scheduler.Band) bool {
	v := m.meta.Get().reserve
	if v.group == 0 || m.priorityOf(group) <= m.priorityOf(v.group.slot()) {
		return false
	}
	for n, ok := m.reserved.Next(0); ok; n, ok = m.reserved.Next(n + 1) {
		if m.displaceOn(group, n, limit) {
			return true
		}
	}
	return false
}

// displaceWhole makes room for a gang, or for all groups that start together with
// one, in one domain when they must be: for all, of which some may be free, or
// for none.
func (m *Machine) displaceWhole(group uint32, limit scheduler.Band) bool {
	m.gather(group)
	switch same := m.groups.Get(group).same; same {
	case gpuai.TopologyNone:
		return m.attempt(func() bool { return m.displaceIn(scheduler.Scope{}, limit) })
	case gpuai.TopologyZone:
		for _, z := range m.tried(m.displaceZones(limit)) {
			if m.attempt(func() bool { return m.displaceIn(z.sc, limit) }) {
				return true
			}
		}
	default:
		for _, d := range m.tried(m.displaceDomains(same, limit)) {
			if m.attempt(func() bool { return m.displaceAmong(d.sc, limit) }) {
				return true
			}
		}
	}
	return false
}

// tried returns those of targets that are tried: the first, fewer for many tasks.
func (m *Machine) tried(ts []target) []target { return ts[:min(len(ts), m.tries())] }

// A target is a domain in which others might make room for m.members.
type target struct {
	sc scheduler.Scope
	scheduler.Taking
}

// compare orders domains: those first where the lowest bands would have to go,
// then those where room lacks for the fewest tasks.
func (a *target) compare(b *target) int {
	return cmp.Or(cmp.Compare(a.Band, b.Band), cmp.Compare(a.Lacks, b.Lacks))
}

// addTarget keeps the first displaceTries of targets, and of equal ones those that
// came first.
func addTarget(ts []target, t target) []target {
	at, _ := slices.BinarySearchFunc(ts, &t, func(x target, t *target) int {
		if x.compare(t) <= 0 {
			return -1
		}
		return 1
	})
	if at == displaceTries {
		return ts
	}
	ts = slices.Insert(ts, at, t)
	return ts[:min(len(ts), displaceTries)]
}

// displaceDomains returns the domains of a level to be tried.
func (m *Machine) displaceDomains(same gpuai.Topology, limit scheduler.Band) (ts []target) {
	if _, ok := m.takingIn(scheduler.Scope{}, limit); !ok {
		return nil
	}
	until := m.now.work - WorkPerEntry
	m.eachDomain(same, func(sc scheduler.Scope, nodes []uint32) bool {
		m.now.work -= workLook * int64(len(nodes)*len(m.members))
		if t, ok := m.sched.TakingIn(nodes, m.needs, limit); ok {
			ts = addTarget(ts, target{sc, t})
		}
		return m.now.work > until
	})
	return ts
}

// displaceZones returns the zones to be tried.
func (m *Machine) displaceZones(limit scheduler.Band) (ts []target) {
	for _, z := range m.sched.Zones(nil) {
		if t, ok := m.takingIn(z, limit); ok {
			ts = addTarget(ts, target{z, t})
		}
	}
	return ts
}

func (m *Machine) roomIn(sc scheduler.Scope, sh scheduler.ShapeID, limit uint32) uint32 {
	if sc.Everywhere() {
		return m.capacity(sh, limit)
	}
	before := m.sched.Work()
	room := m.sched.RoomIn(sc, sh, limit)
	m.now.work -= int64(m.sched.Work()-before) + workLook
	return room
}

// takingIn bounds what it would take to make room for m.members in a zone, or
// everywhere, before anything is written; false when it is not enough that all
// below limit go.
func (m *Machine) takingIn(sc scheduler.Scope, limit scheduler.Band) (t scheduler.Taking, ok bool) {
	for _, group := range m.members {
		g := m.groups.Get(group)
		room := m.roomIn(sc, g.shape, g.least())
		if room >= g.least() {
			continue
		}
		lacks := g.least() - room
		before := m.sched.Work()
		more, band := m.sched.ReclaimRoomIn(sc, g.shape, limit, lacks)
		m.now.work -= int64(m.sched.Work() - before)
		if more < lacks {
			return t, false
		}
		t.Band = max(t.Band, band)
		t.Lacks += lacks
	}
	return t, true
}

// mayDisplaceAround reports whether those who wait in a bucket may find what they
// need in the domain of a node that changed, if they must be in one.
func (m *Machine) mayDisplaceAround(b *bucketRec, node uint32, limit scheduler.Band) bool {
	group := b.first.slot()
	same := m.groups.Get(group).same
	if same == gpuai.TopologyNone || same == gpuai.TopologyZone {
		return true
	}
	m.gather(group)
	m.needs = m.needsOf(m.needs[:0])
	m.scan = m.sched.NodesIn(m.sched.ScopeOf(same, node), m.scan[:0])
	m.now.work -= workLook * int64(len(m.scan)*len(m.members))
	_, ok := m.sched.TakingIn(m.scan, m.needs, limit)
	return ok
}

// displaceIn makes room for m.members in a zone, or anywhere. After false the
// caller rolls back.
func (m *Machine) displaceIn(sc scheduler.Scope, limit scheduler.Band) bool {
	if _, ok := m.takingIn(sc, limit); !ok {
		return false
	}
	lacked := false // else it was no lack of room that it waits for
	for _, group := range m.members {
		g := *m.groups.Get(group)
		for i := range g.least() {
			if fit, ok := m.findFree(sc, g.shape); ok {
				if !m.keepFree(group, &fit) {
					return false
				}
			} else if lacked = m.displaceOneIn(sc, group, limit); !lacked {
				return false
			}
			if g.gang && !m.meets(group, i == 0, i+1 == g.least()) {
				return false
			}
		}
	}
	return lacked
}

func (m *Machine) findFree(sc scheduler.Scope, sh scheduler.ShapeID) (scheduler.Fit, bool) {
	if sc.Everywhere() {
		return m.find(sh)
	}
	before := m.sched.Work()
	fit, ok := m.sched.FindIn(sc, sh)
	m.now.work -= int64(m.sched.Work()-before) + workLook
	return fit, ok
}

// keepFree keeps a place for one task that nobody need leave.
func (m *Machine) keepFree(group uint32, fit *scheduler.Fit) bool {
	if !m.mayKeep(fit.Node) || m.holdSlots.Len() >= MaxHolds || !m.payable(group, fit) {
		return false
	}
	m.keep(group, fit)
	return true
}

// displaceAmong makes room for m.members in a domain: what is free first, then of
// all its nodes the lowest bands. After false the caller rolls back.
func (m *Machine) displaceAmong(sc scheduler.Scope, limit scheduler.Band) bool {
	nodes := m.sched.NodesIn(sc, nil)
	m.now.work -= workLook * int64(len(nodes))
	lacked := false
	for _, group := range m.members {
		left := m.groups.Get(group).least()
		if !m.keepAmong(nodes, group, &left) {
			return false
		}
		if left > 0 {
			lacked = true
		}
		for _, b := range m.sched.ReclaimBands(nodes, limit, displaceBands) {
			if !m.takeAmong(nodes, group, &left, b+1) {
				return false
			}
		}
		if left > 0 {
			return false
		}
	}
	return lacked
}

// keepAmong keeps what is free of some nodes for up to left tasks. It reports
// false when there is no port for a gang's first.
func (m *Machine) keepAmong(nodes []uint32, group uint32, left *uint32) bool {
	shape := m.groups.Get(group).shape
	for _, n := range nodes {
		for *left > 0 {
			m.now.work -= workLook
			fit, ok := m.sched.FitsOn(shape, n)
			if !ok || !m.keepFree(group, &fit) {
				break
			}
			if !m.keptFor(group, left) {
				return false
			}
		}
	}
	return true
}

// takeAmong makes room on some nodes for up to left tasks, of holders below a band.
func (m *Machine) takeAmong(nodes []uint32, group uint32, left *uint32, below scheduler.Band) bool {
	shape := m.groups.Get(group).shape
	for _, n := range nodes {
		m.now.work -= workLook
		for *left > 0 && m.sched.FitsReclaim(shape, n, below) && m.displaceOn(group, n, below) {
			if !m.keptFor(group, left) {
				return false
			}
		}
	}
	return true
}

// keptFor counts a task for which room is kept; false when there is no port for its
// gang.
func (m *Machine) keptFor(group uint32, left *uint32) bool {
	g := m.groups.Get(group)
	*left--
	return !g.gang || m.meets(group, *left+1 == g.least(), *left == 0)
}
