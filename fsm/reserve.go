package fsm

import (
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// A reservation keeps nodes for the first group of the queue that needs more
// than one device and waits: all its tasks when it is a gang, else its next one.
// Without it, jobs that need less would take each device that comes free. There
// is one in a region.
//
// Its nodes are those that can hold the group soonest, going by the run-time
// limits of what runs there. Of them, others take only what does not delay it:
// jobs of higher priority; jobs that end, by their limit, before the shadow, the
// instant at which the group can start at the latest; and what leaves room for
// the group beside it. Where some lease without a limit is in the way the shadow
// is not known, and no limit is short enough.
type reservation struct {
	group  ref           // 0: none
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
)

// needsReservation reports whether what waits in a bucket could be kept from
// starting for ever by jobs that need less, and may be anywhere.
func (m *Machine) needsReservation(r *bucketRec) bool {
	n := m.needOf(r)
	return r.isBig(&n)
}

// isBig is needsReservation of a bucket whose least need is n. What must be in
// one domain or starts together with others has none: the nodes that would be
// kept for it are chosen one by one.
func (r *bucketRec) isBig(n *scheduler.Need) bool {
	anywhere := !r.grows && r.same == gpuai.TopologyNone && r.sig == 0
	return anywhere && (r.gang > 0 || n.Size > 2)
}

// wantReservation notes that a bucket was tried and waits.
func (m *Machine) wantReservation(bucket uint32) {
	r := m.buckets.Get(bucket)
	if m.Level() < LevelPlacement || !m.needsReservation(r) || !m.everHolds(r.first.slot()) {
		return
	}
	v := m.meta.Get().reserve
	switch {
	case v.group == 0 && !v.wanted:
		m.meta.Mut().reserve.wanted = true
	case v.group != 0 && !v.wanted && r.priority > m.priorityOf(v.group.slot()):
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
// group that waits.
func (m *Machine) everHolds(group uint32) bool {
	g := m.groups.Get(group)
	m.now.work -= workLook
	if !g.gang {
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

// An opening is when a node can take more tasks of a group.
type opening struct {
	at    gpuai.Instant
	wait  uint32 // for so many leases whose end is not known
	node  uint32
	tasks uint32
}

func (a *opening) before(b *opening) bool {
	switch {
	case a.at != b.at:
		return a.at < b.at
	case a.wait != b.wait:
		return a.wait < b.wait
	}
	return a.node < b.node
}

// reserveFor reserves the nodes that can hold a group soonest. It reports
// whether there are any.
func (m *Machine) reserveFor(group uint32) bool {
	g := m.groups.Get(group)
	tasks := uint32(1)
	if g.gang {
		tasks = g.least()
	}
	all := m.openings(g, tasks)
	slices.SortFunc(all, func(a, b opening) int {
		if a.before(&b) {
			return -1
		}
		return 1
	})
	have, n := uint32(0), 0
	for ; n < len(all) && have < tasks; n++ {
		have += all[n].tasks
	}
	if have < tasks {
		return false
	}
	all[n-1].tasks -= have - tasks
	m.meta.Mut().reserve = reservation{group: refTo(group), shadow: all[n-1].at}
	for _, o := range all[:n] {
		m.reserved.Set(o.node)
		m.nodes.Mut(o.node).reserved += uint16(o.tasks)
		m.sched.SetOpen(o.node, false)
	}
	return true
}

// openings returns when nodes can take tasks of a group. It looks at a bounded
// number of nodes, beginning with another for each job.
func (m *Machine) openings(g *groupRec, tasks uint32) []opening {
	nodes := m.nodes.Len()
	if nodes == 0 {
		return nil
	}
	var all []opening
	suitable := int(min(max(4*tasks, reserveNodesMin), reserveNodesMax))
	j := m.jobs.Get(g.job.slot())
	at, most := uint32(m.place(j)%uint64(nodes)), m.displaceable(j.priority)
	for n := uint32(0); n < min(nodes, reserveScan) && suitable > 0; n++ {
		m.now.work -= workLook
		if m.nodes.Get(at).open() && m.firstHold(at) == 0 && m.sched.Admits(g.shape, at) {
			all = m.nodeOpenings(all, &opening{node: at, tasks: tasks}, g.shape, most)
			suitable--
		}
		if at++; at == nodes {
			at = 0
		}
	}
	return all
}

// nodeOpenings appends when one node can take tasks, as its leases end, or make
// room that are of a priority up to most.
func (m *Machine) nodeOpenings(all []opening, of *opening, shape scheduler.ShapeID, most gpuai.Priority) []opening {
	node, tasks := of.node, of.tasks
	type end struct {
		at    gpuai.Instant
		lease uint32
	}
	var buf [16]end
	ends := buf[:0]
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		ends = append(ends, end{m.leavesBy(l.slot(), most), l.slot()})
	}
	slices.SortFunc(ends, func(a, b end) int {
		x, y := m.leases.Get(a.lease), m.leases.Get(b.lease)
		switch {
		case a.at != b.at && a.at < b.at, a.at == b.at && x.token < y.token:
			return -1
		default:
			return 1
		}
	})
	free := &m.free
	m.sched.FreeOf(node, free)
	have, at, wait := uint32(0), m.now.time, uint32(0)
	for i := 0; ; i++ {
		if n := min(m.sched.TasksIn(shape, node, free), tasks); n > have {
			all = append(all, opening{at, wait, node, n - have})
			have = n
		}
		if have == tasks || i == len(ends) {
			return all
		}
		l := m.leases.Get(ends[i].lease)
		free.Give(l.devices, l.share, int64(l.cpu), l.memory)
		if at = max(ends[i].at, m.now.time); at == gpuai.MaxInstant {
			wait++
		}
	}
}

// leavesBy returns when a lease ends at the latest: now when it is being revoked,
// when it is no longer safe if it is of a priority up to most and gives its room
// up, else by its limit.
func (m *Machine) leavesBy(lease uint32, most gpuai.Priority) gpuai.Instant {
	l := m.leases.Get(lease)
	if l.state == gpuai.LeaseRevoking {
		return m.now.time
	}
	j := m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot())
	if j.preemptible && j.priority <= most {
		return min(m.endOf(l), max(m.ripeAt(lease), m.now.time))
	}
	return m.endOf(l)
}

// endOf returns when a lease ends at the latest by its limit; MaxInstant when it
// has none.
func (m *Machine) endOf(l *leaseRec) gpuai.Instant {
	limit := m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot()).runTime
	if limit == 0 {
		return gpuai.MaxInstant
	}
	return max(l.started, l.granted).Add(limit)
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
// for beside a task: at the shadow, or now when that is not known.
func (m *Machine) fitsBeside(shape scheduler.ShapeID, fit *scheduler.Fit) bool {
	v := m.meta.Get().reserve
	free := &m.free
	m.sched.FreeOf(fit.Node, free)
	cpu, memory, _ := m.sched.Demand(shape)
	free.Take(fit.Devices, fit.Share, cpu, memory)
	n := m.nodes.Get(fit.Node)
	for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		x := m.leases.Get(l.slot())
		if v.shadow < gpuai.MaxInstant && m.endOf(x) <= v.shadow {
			free.Give(x.devices, x.share, int64(x.cpu), x.memory)
		}
	}
	holder := m.groups.Get(v.group.slot())
	return m.sched.TasksIn(holder.shape, fit.Node, free) >= uint32(n.reserved)
}

// findReserved returns a place on the nodes that are reserved for a group.
func (m *Machine) findReserved(sh scheduler.ShapeID) (scheduler.Fit, bool) {
	for n, ok := m.reserved.Next(0); ok; n, ok = m.reserved.Next(n + 1) {
		m.now.work -= workLook
		if fit, fits := m.sched.FitsIn(sh, n); fits && m.nodes.Get(n).open() {
			return fit, true
		}
	}
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
	if !m.reservedFor(refTo(group)) {
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
	fit, fits := m.sched.FitsIn(b.shape, node)
	if !fits || m.reservedFor(b.first) {
		return fits
	}
	return b.gang == 0 && m.mayPass(b.first.slot(), &fit)
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
	if v.group == refTo(group) {
		return gpuai.Reason{Code: gpuai.QueueOrder, Nodes: nodes, Message: fmt.Sprintf("%d nodes are reserved for it: it starts %s", nodes, by)}, true
	}
	holder := m.jobs.Get(m.groups.Get(v.group.slot()).job.slot())
	return gpuai.Reason{
		Code: gpuai.QueueOrder, Nodes: nodes, Fix: "a run-time limit short enough to end before",
		Message: fmt.Sprintf("%d nodes are reserved for job %s, which starts %s", nodes, holder.id, by),
	}, true
}
