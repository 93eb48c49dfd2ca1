package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// A reservation keeps nodes for the first group of the queue that needs more
// than one device and waits: all its tasks when it is a gang, all groups of its
// job when they start together, else its next task. Without it, jobs that need
// less would take each device that comes free. There is one in a region.
//
// Its nodes are those that can hold the group soonest, going by the run-time
// limits of what runs there. Of them, others take only what does not delay it:
// jobs of higher priority; jobs that end, by their limit, before the shadow, the
// instant at which the group can start at the latest; and what leaves room for
// the group beside it. Where some lease without a limit is in the way the shadow
// is not known, and no limit is short enough.
type reservation struct {
	group  ref           // 0: none; the first of those that start together
	shadow gpuai.Instant // MaxInstant: not known
	wanted bool          // a group may be there that needs one
}

// Bounds of what a reservation looks at.
const (
	reserveScan     = 65_536 // nodes, suitable or not
	reserveNodesMin = 256    // suitable ones, for a small group
	reserveNodesMax = 8_192  // for any
	reserveTries    = 4      // groups for which there may be no such nodes; and of each tenant, such that no node can ever hold
	reserveTenants  = 16     // tenants that may have so many of those
	reserveGiven    = 4_096  // leases on the nodes for groups that start together
)

// needsReservation reports whether what waits in a bucket could be kept from
// starting for ever by jobs that need less.
func (m *Machine) needsReservation(r *bucketRec) bool {
	n := m.needOf(r)
	return r.isBig(&n)
}

// isBig is needsReservation of a bucket whose least need is n. What grows has
// started.
func (r *bucketRec) isBig(n *scheduler.Need) bool {
	return !r.grows && (r.gang > 0 || n.Size > 2)
}

// wantReservation notes that a bucket was tried and waits.
func (m *Machine) wantReservation(bucket uint32) {
	r, v := m.buckets.Get(bucket), m.meta.Get().reserve
	if m.Level() < LevelPlacement || v.wanted || v.group != 0 && r.priority <= m.priorityOf(v.group.slot()) {
		return
	}
	if m.needsReservation(r) && m.everHolds(r.first.slot()) {
		m.meta.Mut().reserve.wanted = true
	}
}

// priorityOf is the priority of a group's job without what aging adds: who may
// pass the reservation must not change by time alone.
func (m *Machine) priorityOf(group uint32) gpuai.Priority {
	return m.jobs.Get(m.groups.Get(group).job.slot()).priority
}

// unreserve gives the reserved nodes free again.
func (m *Machine) unreserve() {
	m.meta.Mut().reserve = reservation{wanted: true}
	for n, ok := m.reserved.Next(0); ok; n, ok = m.reserved.Next(n + 1) {
		m.reserved.Clear(n)
		m.nodes.Mut(n).reserved = 0
		m.setOpen(n)
		m.now.work -= workLook
	}
}

// reservedFor reports whether the reservation is for a group.
func (m *Machine) reservedFor(group ref) bool {
	return group != 0 && m.meta.Get().reserve.group == group
}

// opens reports whether a node takes leases of any group.
func (m *Machine) opens(node uint32) bool {
	n := m.nodes.Get(node)
	return n.open() && n.reserved == 0
}

// reserve makes the reservation that is wanted, if any group needs one.
func (m *Machine) reserve() {
	if !m.meta.Get().reserve.wanted {
		return
	}
	m.meta.Mut().reserve.wanted = false
	var after *candidate
	var hopeless hopelessGroups
	for tries := 0; tries < reserveTries && hopeless.tenants < reserveTenants; {
		best, ok := m.firstBig(after, &hopeless)
		switch {
		case !ok:
			return
		case m.kept(best.group):
		case !m.everHolds(best.group):
			hopeless.add(m.turns.recs.Get(m.turns.leafs.Get(best.bucket).turn.slot()).tenant)
		case m.held(best.group) == 0 && m.reserveInstead(best.group):
			return
		default:
			tries++
		}
		after = &best
	}
}

// reserveInstead reserves nodes for a group, also those of a group of lower
// priority, which keeps them when there are none for the other.
func (m *Machine) reserveInstead(group uint32) bool {
	old := m.meta.Get().reserve.group
	if old == 0 {
		return m.reserveFor(group)
	}
	if m.priorityOf(group) <= m.priorityOf(old.slot()) {
		return false
	}
	return m.attempt(func() bool {
		m.unreserve()
		return m.reserveFor(group)
	})
}

// hopelessGroups counts groups that no node can ever hold by their tenants: one
// that waits for a thousand such must not keep others from a reservation.
type hopelessGroups struct {
	of      [reserveTenants]struct{ tenant, groups uint32 }
	tenants int
}

func (h *hopelessGroups) add(tenant uint32) {
	i := 0
	for ; i < h.tenants && h.of[i].tenant != tenant; i++ {
	}
	if i == h.tenants {
		h.of[i].tenant = tenant
		h.tenants++
	}
	h.of[i].groups++
}

// enough reports whether no more groups of a tenant are to be looked at.
func (h *hopelessGroups) enough(tenant uint32) bool {
	for _, x := range h.of[:h.tenants] {
		if x.tenant == tenant {
			return x.groups >= reserveTries
		}
	}
	return false
}

// everHolds reports whether the registered nodes, empty and healthy, could run a
// group that waits, and all that start together with it.
func (m *Machine) everHolds(group uint32) bool {
	g := m.groups.Get(group)
	m.now.work -= workLook
	switch {
	case g.together != 0:
		return m.togetherEver(g.job.slot())
	case !g.gang:
		return m.sched.CanEver(g.shape)
	}
	one := [1]scheduler.Members{{Shape: g.shape, Count: g.count, Min: g.least()}}
	return m.sched.EverHolds(g.same, one[:])
}

// firstBig returns the first bucket of the queue behind another that needs a
// reservation.
func (m *Machine) firstBig(after *candidate, hopeless *hopelessGroups) (best candidate, ok bool) {
	for t, some := m.turns.slots.Next(0); some; t, some = m.turns.slots.Next(t + 1) {
		if m.turns.recs.Get(t).buckets == 0 {
			continue // a restored machine does not know it
		}
		if m.now.work -= workLook; m.turns.recs.Get(t).bigs == 0 || hopeless.enough(m.turns.recs.Get(t).tenant) {
			continue
		}
		everything := scheduler.Everything
		for key := (queueKey{}); ; {
			b := m.turns.next(m.turns.recs.Get(t).root, key, &everything, &m.now.looks)
			if b == 0 {
				break
			}
			key = m.turns.leafs.Get(b.slot()).key
			c := m.candidate(b.slot(), m.buckets.Get(b.slot()).first.slot())
			if !m.turns.leafs.Get(b.slot()).big || after != nil && !after.before(&c) {
				continue
			}
			if !ok || c.before(&best) {
				best, ok = c, true
			}
			break
		}
	}
	m.now.work -= m.now.looks * workLook
	m.now.looks = 0
	return best, ok
}

// mayPass reports whether a group may take a place on a reserved node that is
// not reserved for it.
func (m *Machine) mayPass(group uint32, fit *scheduler.Fit) bool {
	v := m.meta.Get().reserve
	g := m.groups.Get(group)
	j := m.jobs.Get(g.job.slot())
	m.now.work -= workLook
	if j.priority > m.priorityOf(v.group.slot()) {
		return true
	}
	if v.shadow < gpuai.MaxInstant && j.runTime > 0 && m.now.time.Add(j.runTime) <= v.shadow {
		return true
	}
	return m.fitsBeside(g.shape, fit)
}

// fitsBeside reports whether a reserved node has room for what it is reserved
// for beside a task: at the shadow, or now when that is not known. It is false
// where that is tasks of several shapes.
func (m *Machine) fitsBeside(shape scheduler.ShapeID, fit *scheduler.Fit) bool {
	v := m.meta.Get().reserve
	if m.mixed(v.group.slot()) {
		return false
	}
	free := &m.free
	m.sched.FreeOf(fit.Node, free)
	cpu, memory, _ := m.sched.Demand(shape)
	free.Take(fit.Devices, fit.Share, cpu, memory)
	free.Lend(m.sched.Scratch(shape))
	n := m.nodes.Get(fit.Node)
	for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		x := m.leases.Get(l.slot())
		if v.shadow < gpuai.MaxInstant && m.endOf(x) <= v.shadow {
			m.freeUp(free, x)
		}
	}
	holder := m.groups.Get(v.group.slot())
	return m.sched.TasksIn(holder.shape, fit.Node, free) >= uint32(n.reserved)
}

// findReserved returns a place on the nodes that are reserved for a group: on
// none before the one of the last task of the group that is being placed.
func (m *Machine) findReserved(sh scheduler.ShapeID) (scheduler.Fit, bool) {
	for n, ok := m.reserved.Next(m.now.reserved); ok; n, ok = m.reserved.Next(n + 1) {
		m.now.work -= workLook
		if fit, fits := m.sched.FitsIn(sh, n); fits && m.nodes.Get(n).open() {
			m.now.reserved = n
			return fit, true
		}
	}
	m.now.reserved = MaxNodes
	return scheduler.Fit{}, false
}

// findPast returns a place on a reserved node for a task that does not delay the
// group that the node is reserved for. Gangs that start, and groups that start
// together, have none.
func (m *Machine) findPast(group uint32) (scheduler.Fit, bool) {
	g := m.groups.Get(group)
	if g.bucket == 0 || m.buckets.Get(g.bucket.slot()).gang > 0 {
		return scheduler.Fit{}, false
	}
	for n, ok := m.reserved.Next(0); ok; n, ok = m.reserved.Next(n + 1) {
		m.now.work -= workLook
		fit, fits := m.sched.FitsIn(g.shape, n)
		if fits && m.nodes.Get(n).open() && m.mayPass(group, &fit) {
			return fit, true
		}
	}
	return scheduler.Fit{}, false
}

// reservedRoom bounds how many tasks of a group the nodes reserved for it take.
func (m *Machine) reservedRoom(group uint32) (tasks uint32) {
	if !m.reservedFor(m.now.group) {
		return 0
	}
	g := m.groups.Get(group)
	for n, ok := m.reserved.Next(0); ok && tasks < g.count; n, ok = m.reserved.Next(n + 1) {
		m.now.work -= workLook
		if m.nodes.Get(n).open() {
			m.sched.FreeOf(n, &m.free)
			tasks += m.sched.TasksIn(g.shape, n, &m.free)
		}
	}
	return tasks
}

// mayServe reports whether a bucket's first group may have a place on a node
// that gained room.
func (m *Machine) mayServe(b *bucketRec, node uint32) bool {
	if m.nodes.Get(node).reserved == 0 {
		return m.wakes(b, node)
	}
	if m.reservedFor(b.first) {
		return m.anyOf(b, func(sh scheduler.ShapeID) bool {
			_, fits := m.sched.FitsIn(sh, node)
			return fits
		})
	}
	fit, fits := m.sched.FitsIn(b.shape, node)
	return fits && b.gang == 0 && m.mayPass(b.first.slot(), &fit)
}

// reasonReserved says what the reservation means for a group that waits.
func (m *Machine) reasonReserved(group uint32) (gpuai.Reason, bool) {
	v := m.meta.Get().reserve
	if v.group == 0 {
		return gpuai.Reason{}, false
	}
	nodes := uint32(0)
	for n, ok := m.reserved.Next(0); ok; n, ok = m.reserved.Next(n + 1) {
		nodes++
	}
	by := "as soon as what runs there has ended; some of it has no run-time limit"
	if v.shadow < gpuai.MaxInstant {
		by = fmt.Sprintf("in %s at the latest, by the run-time limits of what runs there", gpuai.Duration(max(v.shadow-m.Time(), 0)))
	}
	of := m.groups.Get(v.group.slot())
	if v.group == refTo(group) || of.together != 0 && of.job == m.groups.Get(group).job {
		in := ""
		if of.same != gpuai.TopologyNone {
			in = fmt.Sprintf(" of one %s", of.same)
		}
		return gpuai.Reason{Code: gpuai.QueueOrder, Nodes: nodes, Message: fmt.Sprintf("%d nodes%s are reserved for it: it starts %s", nodes, in, by)}, true
	}
	holder := m.jobs.Get(of.job.slot())
	name := "job " + holder.id.String()
	if !m.tells(holder.id) {
		name = anothers
	}
	return gpuai.Reason{
		Code: gpuai.QueueOrder, Nodes: nodes, Fix: "a run-time limit short enough to end before",
		Message: fmt.Sprintf("%d nodes are reserved for %s, which starts %s", nodes, name, by),
	}, true
}
