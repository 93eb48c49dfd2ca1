package fsm

import (
	"cmp"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// An opening is when a node can take more tasks of a group.
type opening struct {
	at    gpuai.Instant
	wait  uint32 // for so many leases whose end is not known
	node  uint32
	tasks uint32
	shape scheduler.ShapeID
}

func (a *opening) compare(b *opening) int {
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.wait, b.wait), cmp.Compare(a.node, b.node))
}

// A plan says on which nodes the groups of m.members could start together, and
// when that is at the latest.
type plan struct {
	parts []opening // by node
	at    gpuai.Instant
	wait  uint32
	nodes int
}

// sooner orders plans: the earliest, then the one that waits for the fewest
// leases whose end is not known, then that of the fewest nodes.
func (a *plan) sooner(b *plan) bool {
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.wait, b.wait), cmp.Compare(a.nodes, b.nodes)) < 0
}

// reserveFor reserves the nodes that can hold a group, and all that start
// together with it, soonest. It reports whether there are any.
func (m *Machine) reserveFor(group uint32) bool {
	m.gather(group)
	var p plan
	if same := m.groups.Get(group).same; same == gpuai.TopologyNone {
		p = m.planIn(m.suitable(m.places(), m.suitableMost()))
	} else {
		p = m.planSame(same)
	}
	if p.nodes == 0 {
		return false
	}
	m.meta.Mut().reserve = reservation{group: refTo(group), shadow: p.at}
	for _, o := range p.parts {
		m.reserved.Set(o.node)
		m.nodes.Mut(o.node).reserved += uint16(o.tasks)
		m.sched.SetOpen(o.node, false)
	}
	if b := m.groups.Get(group).bucket; m.buckets.Get(b.slot()).starved {
		m.look(b.slot()) // it may take room here now: see displaceGroup
	}
	return true
}

// leastAll is how many tasks of m.members must start together.
func (m *Machine) leastAll() (n uint32) {
	for _, group := range m.members {
		n += m.groups.Get(group).least()
	}
	return n
}

// suitableMost is how many suitable nodes are looked at: fewer when each is for
// several groups.
func (m *Machine) suitableMost() int {
	most := max(reserveNodesMax/len(m.members), reserveNodesMin)
	return int(min(max(4*m.leastAll(), reserveNodesMin), uint32(most)))
}

// places returns the nodes of the region, up to reserveScan, beginning with
// another for each job.
func (m *Machine) places() []uint32 {
	nodes := m.nodes.Len()
	at, out := m.startOf(nodes), m.scan[:0]
	for range min(nodes, reserveScan) {
		out = append(out, at)
		if at++; at == nodes {
			at = 0
		}
	}
	m.scan = out
	return out
}

// startOf returns where the job of m.members begins to look at n of anything.
func (m *Machine) startOf(n uint32) uint32 {
	j := m.jobs.Get(m.groups.Get(m.members[0]).job.slot())
	return uint32(m.place(j) % uint64(max(n, 1)))
}

// suitable leaves, of nodes, those in place that could take a task of m.members,
// most of them. Those whose hours end may be closed when it can start.
func (m *Machine) suitable(nodes []uint32, most int) []uint32 {
	out := nodes[:0]
	for _, n := range nodes {
		if len(out) == most {
			break
		}
		if m.now.work -= workLook; m.nodes.Get(n).open() && m.nodes.Get(n).closes == 0 && m.firstHold(n) == 0 && m.admits(n) {
			out = append(out, n)
		}
	}
	return out
}

func (m *Machine) admits(node uint32) bool {
	for _, group := range m.members {
		if m.sched.Admits(m.groups.Get(group).shape, node) {
			return true
		}
	}
	return false
}

// planSame returns the soonest plan within one domain of a level. It looks at so
// many nodes as reserveFor does for a group that may be anywhere.
func (m *Machine) planSame(same gpuai.Topology) (best plan) {
	left := int(max(reserveNodesMax/uint32(len(m.members)), reserveNodesMin))
	consider := func(nodes []uint32) bool {
		nodes = m.suitable(nodes, min(left, m.suitableMost()))
		left -= len(nodes)
		if p := m.planIn(nodes); p.nodes > 0 && (best.nodes == 0 || p.sooner(&best)) {
			best = p
		}
		return left > 0
	}
	if same == gpuai.TopologyZone {
		m.eachZone(consider)
	} else {
		m.eachDomain(same, func(_ scheduler.Scope, nodes []uint32) bool { return consider(nodes) })
	}
	return best
}

// eachZone calls f with the nodes of one zone after the other, up to reserveScan
// of all, until it returns false. f may change the list.
func (m *Machine) eachZone(f func(nodes []uint32) bool) {
	all := m.places()
	m.now.work -= workLook * int64(len(all))
	for _, nodes := range m.sched.ByZone(all) {
		if !f(nodes) {
			return
		}
	}
}

// eachDomain calls f with the domains of a level that may have the devices for
// m.members, a node, an NVLink domain or a rack, until it returns false: up to
// reserveScan nodes, beginning with another domain for each job. f may change the
// list.
func (m *Machine) eachDomain(same gpuai.Topology, f func(sc scheduler.Scope, nodes []uint32) bool) {
	m.needs = m.needsOf(m.needs[:0])
	left := reserveScan
	domains := m.sched.NumDomains(same)
	for i, at := uint32(0), m.startOf(domains); i < domains && left > 0; i++ {
		m.now.work -= workLook
		if sc, ok := m.sched.DomainAt(same, at, m.needs); ok {
			m.scan = m.sched.NodesIn(sc, m.scan[:0])
			left -= len(m.scan)
			if !f(sc, m.scan) {
				return
			}
		}
		if at++; at == domains {
			at = 0
		}
	}
	nodes := m.nodes.Len()
	for i, at := uint32(0), m.startOf(nodes); i < nodes && left > 0; i++ {
		m.now.work -= workLook
		left--
		sc := m.sched.ScopeOf(same, at)
		if _, alone := sc.Node(); alone {
			if m.scan = append(m.scan[:0], at); !f(sc, m.scan) {
				return
			}
		}
		if at++; at == nodes {
			at = 0
		}
	}
}

// needsOf appends what m.members need to needs.
func (m *Machine) needsOf(needs []scheduler.Members) []scheduler.Members {
	for _, group := range m.members {
		g := m.groups.Get(group)
		needs = append(needs, scheduler.Members{Shape: g.shape, Count: g.count, Min: g.least()})
	}
	return needs
}

// planIn returns the plan for m.members on some nodes: for one group after the
// other, beside those before, the nodes that can take it soonest. One of no nodes
// when there is none.
func (m *Machine) planIn(nodes []uint32) (p plan) {
	most := m.displaceable(m.jobs.Get(m.groups.Get(m.members[0]).job.slot()).priority)
	for _, group := range m.members {
		g := m.groups.Get(group)
		want, have, n := g.least(), uint32(0), 0
		all := m.openings[:0]
		for _, node := range nodes {
			all = m.nodeOpenings(all, &opening{node: node, tasks: want, shape: g.shape}, p.on(node), most)
		}
		m.openings = all
		slices.SortFunc(all, func(a, b opening) int { return a.compare(&b) })
		for ; n < len(all) && have < want; n++ {
			have += all[n].tasks
		}
		if have < want {
			return plan{}
		}
		all[n-1].tasks -= have - want
		p.add(all[:n])
	}
	if len(m.members) > 1 && !m.packs(&p) {
		return plan{}
	}
	return p
}

// add adds the openings for one group more.
func (p *plan) add(parts []opening) {
	last := &parts[len(parts)-1]
	if last.at > p.at || last.at == p.at && last.wait > p.wait {
		p.at, p.wait = last.at, last.wait
	}
	p.parts = append(p.parts, parts...)
	slices.SortStableFunc(p.parts, func(a, b opening) int { return cmp.Compare(a.node, b.node) })
	p.nodes = 0
	for i := range p.parts {
		if i == 0 || p.parts[i].node != p.parts[i-1].node {
			p.nodes++
		}
	}
}

// on returns the parts of a node.
func (p *plan) on(node uint32) []opening {
	from, _ := slices.BinarySearchFunc(p.parts, node, func(o opening, n uint32) int { return cmp.Compare(o.node, n) })
	to := from
	for to < len(p.parts) && p.parts[to].node == node {
		to++
	}
	return p.parts[from:to]
}

// nodeOpenings appends when one node can take tasks beside others that are to go
// there, as its leases end, or make room that are of a priority up to most.
func (m *Machine) nodeOpenings(all []opening, of *opening, beside []opening, most gpuai.Priority) []opening {
	type end struct {
		at    gpuai.Instant
		lease uint32
	}
	var buf [16]end
	ends := buf[:0]
	for l := m.nodes.Get(of.node).first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		ends = append(ends, end{m.leavesBy(l.slot(), most), l.slot()})
	}
	slices.SortFunc(ends, func(a, b end) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(m.leases.Get(a.lease).token, m.leases.Get(b.lease).token))
	})
	free := &m.free
	m.sched.FreeOf(of.node, free)
	have, at, wait := uint32(0), m.now.time, uint32(0)
	for i := 0; ; i++ {
		if n := min(m.tasksBeside(of, free, beside), of.tasks); n > have {
			all = append(all, opening{at, wait, of.node, n - have, of.shape})
			have = n
		}
		if have == of.tasks || i == len(ends) {
			return all
		}
		l := m.leases.Get(ends[i].lease)
		m.freeUp(free, l)
		if at = max(ends[i].at, m.now.time); at == gpuai.MaxInstant {
			wait++
		}
	}
}

// tasksBeside returns how many tasks a node would take with so much free, beside
// others; none while those have no room.
func (m *Machine) tasksBeside(of *opening, free *scheduler.Free, beside []opening) uint32 {
	if len(beside) == 0 {
		return m.sched.TasksIn(of.shape, of.node, free)
	}
	left := *free
	for i := range beside {
		m.now.work -= workLook
		if !m.sched.TakeTasks(beside[i].shape, of.node, &left, beside[i].tasks) {
			return 0
		}
	}
	return m.sched.TasksIn(of.shape, of.node, &left)
}

// packs reports whether the groups of m.members find room on the nodes of a plan
// as startTogether looks for it, at the latest once nothing else runs there.
// Which tasks go where may not be what was planned.
func (m *Machine) packs(p *plan) (ok bool) {
	m.attempt(func() bool {
		given := 0
		for i := range p.parts {
			n := p.parts[i].node
			if i > 0 && p.parts[i-1].node == n {
				continue
			}
			for l := m.nodes.Get(n).first; l != 0; l = m.leases.Get(l.slot()).next {
				r := m.leases.Get(l.slot())
				m.giveRoom(r)
				m.now.work -= workEnd
				if given++; given > reserveGiven {
					return false
				}
			}
		}
		ok = m.fillPlan(p)
		return false
	})
	return ok
}

// fillPlan takes room for m.members on the nodes of a plan, each task on the
// first node that has some. The caller rolls back.
func (m *Machine) fillPlan(p *plan) bool {
	for _, group := range m.members {
		g := m.groups.Get(group)
		for i, left := 0, g.least(); left > 0; {
			m.now.work -= workPlace
			if fit, fits := m.sched.FitsIn(g.shape, p.parts[i].node); fits {
				m.sched.Take(fit, g.shape)
				left--
			} else if i++; i == len(p.parts) {
				return false
			}
		}
	}
	return true
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

// reservedScope returns the domain of a level that the reserved nodes are in.
func (m *Machine) reservedScope(same gpuai.Topology) scheduler.Scope {
	if n, ok := m.reserved.Next(0); ok {
		return m.sched.ScopeOf(same, n)
	}
	return scheduler.Scope{}
}

// mixed reports whether a group starts together with others of another shape.
func (m *Machine) mixed(group uint32) bool {
	g := m.groups.Get(group)
	if g.together == 0 {
		return false
	}
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		if m.groups.Get(x.slot()).shape != g.shape {
			return true
		}
	}
	return false
}

// anyOf reports whether f holds of the shape of a bucket's first group, or of any
// group that starts together with it.
func (m *Machine) anyOf(b *bucketRec, f func(scheduler.ShapeID) bool) bool {
	g := m.groups.Get(b.first.slot())
	if g.together == 0 {
		return f(b.shape)
	}
	for x := m.jobs.Get(g.job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		m.now.work -= workLook
		if f(m.groups.Get(x.slot()).shape) {
			return true
		}
	}
	return false
}

// checkReserved ends the reservation when a node of it, which is described anew or
// lost devices, could no longer hold its part: its group needs others.
func (m *Machine) checkReserved(node uint32) {
	n := m.nodes.Get(node)
	if n.reserved == 0 {
		return
	}
	holder := m.meta.Get().reserve.group.slot()
	g := m.groups.Get(holder)
	free := &m.free
	m.sched.FreeOf(node, free)
	for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		x := m.leases.Get(l.slot())
		m.freeUp(free, x)
	}
	moved := false
	for o, ok := m.reserved.Next(0); ok && g.same != gpuai.TopologyNone && !moved; o, ok = m.reserved.Next(o + 1) {
		m.now.work -= workLook
		moved = m.sched.ScopeOf(g.same, o) != m.sched.ScopeOf(g.same, node)
	}
	if moved || m.mixed(holder) || m.sched.TasksIn(g.shape, node, free) < uint32(n.reserved) {
		m.unreserve()
	}
}
