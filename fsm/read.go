package fsm

import (
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// MaxScan is how many rows a read looks at, at most.
const MaxScan = 1_000

// Job returns a kept job.
func (m *Machine) Job(id gpuai.JobID, withSpec bool) (gpuai.Job, bool) {
	slot, ok := m.jobSlot(id)
	if !ok {
		return gpuai.Job{}, false
	}
	return m.job(slot, withSpec), true
}

// HasJob reports whether a job is kept.
func (m *Machine) HasJob(id gpuai.JobID) bool {
	_, ok := m.jobSlot(id)
	return ok
}

// FindJob returns the job that ref names: by its ID, by the beginning of one
// among the newest MaxScan jobs, or by its name, of which the newest counts.
// The error is a *gpuai.Error: NotFound, or Conflict for an ambiguous beginning.
func (m *Machine) FindJob(ref string) (gpuai.JobID, error) {
	if id, err := gpuai.ParseJobID(ref); err == nil {
		if _, ok := m.jobSlot(id); ok {
			return id, nil
		}
	}
	if id, ok := m.jobByNameOf(ref); ok {
		return id, nil
	}
	prefix := strings.ToUpper(ref)
	var found gpuai.JobID
	n := 0
	for j := m.meta.Get().newest; j != 0 && n < MaxScan && len(prefix) >= 4; n++ {
		r := m.jobs.Get(j.slot())
		if strings.HasPrefix(r.id.String(), prefix) {
			if !found.IsZero() {
				return gpuai.JobID{}, gpuai.NewError(gpuai.Conflict, "several jobs begin with "+prefix+": give more of the ID")
			}
			found = r.id
		}
		j = r.older
	}
	if found.IsZero() {
		return found, gpuai.NewError(gpuai.NotFound, "no job is called, or begins with, "+ref)
	}
	return found, nil
}

// jobByNameOf returns the newest job of a name.
func (m *Machine) jobByNameOf(name string) (gpuai.JobID, bool) {
	h := mem.HashBytes(3, []byte(name))
	slot, ok := m.jobByName.Find(h, func(s uint32) bool { return m.jobs.Get(s).nameHash == h })
	if !ok {
		return gpuai.JobID{}, false
	}
	var v wire.JobView
	for at := refTo(slot); at != 0; at = m.jobs.Get(at.slot()).sameOlder {
		r := m.jobs.Get(at.slot())
		if wire.ReadJobView(m.blobs.Append(nil, uint32(r.spec)), &v) == nil && string(v.Name) == name {
			return r.id, true
		}
	}
	return gpuai.JobID{}, false
}

// A JobCursor is a place in the list of jobs. The zero cursor is its newest
// end, and as a next place its oldest. It names no job, which may be another
// tenant's, and which jobs it leads to does not depend on the one that was there.
type JobCursor struct {
	Slot uint32 // of the last job looked at: where to begin looking
	// Seq is the place in the order of submits behind which the list goes on, also
	// when the job has been retired meanwhile.
	Seq uint64
}

// behind returns the newest job from which on those behind a place are found.
func (m *Machine) behind(after JobCursor) ref {
	if after.Seq > 0 && after.Slot < m.jobs.Len() {
		if r := m.jobs.Get(after.Slot); r.seq >= after.Seq { // else there is another, or none
			return r.older
		}
	}
	return m.meta.Get().newest
}

// Jobs returns jobs without their specs, the newest first: those behind the
// given place. It looks at MaxScan jobs at most.
func (m *Machine) Jobs(after JobCursor, limit int, status *gpuai.JobStatus) (page []gpuai.Job, last JobCursor) {
	at := m.behind(after)
	scanned := 0
	for last = after; at != 0; {
		r := m.jobs.Get(at.slot())
		if r.seq < after.Seq || after.Seq == 0 {
			if len(page) == limit {
				return page, last
			}
			if status == nil || r.status == *status {
				page = append(page, m.job(at.slot(), false))
			}
			last.Seq = r.seq
		}
		last.Slot, at = at.slot(), r.older
		if scanned++; scanned == MaxScan && at != 0 {
			return page, last
		}
	}
	return page, JobCursor{}
}

// Tasks returns tasks of a job, by group and index, from the from-th on.
func (m *Machine) Tasks(id gpuai.JobID, from uint32, limit int) []gpuai.Task {
	slot, ok := m.jobSlot(id)
	if !ok {
		return nil
	}
	var out []gpuai.Task
	skip := from
	for g := m.jobs.Get(slot).group; g != 0 && len(out) < limit; g = m.groups.Get(g.slot()).next {
		r := m.groups.Get(g.slot())
		if skip >= r.count {
			skip -= r.count
			continue
		}
		out = m.tasksOf(out, g.slot(), skip, limit)
		skip = 0
	}
	return out
}

// tasksOf appends tasks of a group; those without a record never had a lease.
func (m *Machine) tasksOf(out []gpuai.Task, group, from uint32, limit int) []gpuai.Task {
	g := m.groups.Get(group)
	t := g.first
	for i := uint32(0); i < from && t != 0; i++ {
		t = m.tasks.Get(t.slot()).next
	}
	for ; t != 0 && len(out) < limit; t = m.tasks.Get(t.slot()).next {
		out = append(out, m.task(t.slot()))
	}
	j := m.jobs.Get(g.job.slot())
	fresh := gpuai.TaskPending
	if j.stopping || g.ended {
		fresh = gpuai.TaskStopped
	}
	for i := max(g.made, from); i < g.count && len(out) < limit; i++ {
		out = append(out, gpuai.Task{
			TaskRef: gpuai.TaskRef{Job: j.id, Group: uint16(g.idx), Task: i}, Status: fresh,
		})
	}
	return out
}

// Lease returns a kept lease.
func (m *Machine) Lease(t gpuai.Token) (gpuai.Lease, bool) {
	slot, ok := m.leaseSlot(t)
	if !ok {
		return gpuai.Lease{}, false
	}
	return m.lease(slot), true
}

// LeasesOfJob returns the latest lease of each of a job's tasks, by group and
// task, those behind the given one.
func (m *Machine) LeasesOfJob(id gpuai.JobID, after gpuai.Token, limit int) []gpuai.Lease {
	slot, ok := m.jobSlot(id)
	if !ok {
		return nil
	}
	var out []gpuai.Lease
	skipping := after != 0
	if s, ok := m.leaseSlot(after); skipping && (!ok || m.groups.Get(m.tasks.Get(m.leases.Get(s).task.slot()).group.slot()).job != refTo(slot)) {
		skipping = false // gone meanwhile: from the start
	}
	for g := m.jobs.Get(slot).group; g != 0; g = m.groups.Get(g.slot()).next {
		for t := m.groups.Get(g.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
			l := m.tasks.Get(t.slot()).lease
			if l == 0 {
				continue
			}
			if skipping {
				skipping = m.leases.Get(l.slot()).token != after
				continue
			}
			if len(out) == limit {
				return out
			}
			out = append(out, m.lease(l.slot()))
		}
	}
	return out
}

// LeasesOfNode returns live leases of a node, the newest first.
func (m *Machine) LeasesOfNode(n gpuai.NodeID, limit int) []gpuai.Lease {
	slot, ok := m.nodeSlot(n)
	if !ok {
		return nil
	}
	var out []gpuai.Lease
	for l := m.nodes.Get(slot).first; l != 0 && len(out) < limit; l = m.leases.Get(l.slot()).next {
		out = append(out, m.lease(l.slot()))
	}
	return out
}

// Leases returns kept leases in the order of their slots, from the from-th slot
// on: at most limit, of at most MaxScan slots. next is where to go on; 0 at the
// end.
func (m *Machine) Leases(from uint32, limit int, liveOnly bool) (page []gpuai.Lease, next uint32) {
	for n := 0; n < MaxScan && len(page) < limit; n++ {
		slot, ok := m.leaseSlots.Next(from)
		if !ok {
			return page, 0
		}
		if !liveOnly || m.leases.Get(slot).live() {
			page = append(page, m.lease(slot))
		}
		from = slot + 1
	}
	return page, from
}

// Assignments returns the live leases of a node's current incarnation, with
// all that its agent needs to run them.
func (m *Machine) Assignments(n gpuai.NodeID) []gpuai.Assignment {
	slot, ok := m.nodeSlot(n)
	if !ok {
		return nil
	}
	var out []gpuai.Assignment
	r := m.nodes.Get(slot)
	for l := r.first; l != 0; l = m.leases.Get(l.slot()).next {
		if m.leases.Get(l.slot()).incarnation == r.incarnation {
			out = append(out, m.assignment(l.slot()))
		}
	}
	return out
}

// Assignment returns a live lease with all that its agent needs to run it.
func (m *Machine) Assignment(t gpuai.Token) (gpuai.Assignment, bool) {
	slot, ok := m.leaseSlot(t)
	if !ok || !m.leases.Get(slot).live() {
		return gpuai.Assignment{}, false
	}
	return m.assignment(slot), true
}

func (m *Machine) assignment(slot uint32) gpuai.Assignment {
	l := m.leases.Get(slot)
	t := m.tasks.Get(l.task.slot())
	g := m.groups.Get(t.group.slot())
	job := g.job.slot()
	a := gpuai.Assignment{Lease: m.lease(slot), Attempt: uint32(t.used), Array: m.jobs.Get(job).array, Image: m.imageOf(g)}
	var v wire.JobView
	if wire.ReadJobView(m.blobs.Append(nil, uint32(m.jobs.Get(job).spec)), &v) == nil && g.idx < v.NumGroups {
		a.JobName, a.GroupName, a.Network = string(v.Name), string(v.Groups[g.idx].Name), v.Groups[g.idx].Network
		if spec, err := v.Groups[g.idx].ReadTask(); err == nil {
			a.Task = spec
		}
		a.Scratch, a.Shm = v.Groups[g.idx].Scratch, v.Groups[g.idx].Shm
	}
	a.Resume = m.checkpointsOf(nil, l.task.slot())
	if g.gang && len(a.Resume) == 0 {
		a.Resume = m.checkpointsOf(nil, g.first.slot())
	}
	if g.gang && !g.elastic() {
		a.ResumeSeq = m.commonSeq(g, a.Resume)
	}
	a.Hold = g.held && !g.gang
	if g.gang {
		a.Attempt, a.Gang = uint32(g.used), m.gangInfo(t.group.slot(), t.idx, l.node)
	}
	return a
}

// gangInfo tells a member on a node of the others.
func (m *Machine) gangInfo(group, rank, home uint32) *gpuai.GangInfo {
	g := m.groups.Get(group)
	info := &gpuai.GangInfo{Rank: rank, Size: g.count, Min: g.least(), Max: g.count}
	info.Hold = g.held
	if g.elastic() {
		info.Size = g.live()
	}
	last, addr := ^uint32(0), ""
	var ranks []uint32
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		l := m.tasks.Get(t.slot()).lease
		if l == 0 {
			continue
		}
		x := m.leases.Get(l.slot())
		if g.elastic() && !x.live() {
			continue // it went, the others go on
		}
		if x.node != last {
			info.Spread = info.Spread || x.node != home
			last, addr = x.node, m.nodeBody(x.node).spec.Address
		}
		info.NodeIPs = append(info.NodeIPs, addr)
		ranks = append(ranks, m.tasks.Get(t.slot()).idx)
		if !g.held && x.node != home {
			info.Peers = m.appendPeer(info.Peers, x, m.tasks.Get(t.slot()).idx)
		}
		if t == g.first {
			info.MasterAddr, info.MasterPort, info.Lead = addr, x.port, x.token
		}
	}
	if n := len(ranks); n > 0 && ranks[n-1] != uint32(n-1) {
		info.Ranks = ranks
	}
	return info
}

// AppendTokens appends the live leases of a node's current incarnation.
func (m *Machine) AppendTokens(dst []gpuai.Token, n gpuai.NodeID) []gpuai.Token {
	slot, ok := m.nodeSlot(n)
	if !ok {
		return dst
	}
	r := m.nodes.Get(slot)
	for l := r.first; l != 0; l = m.leases.Get(l.slot()).next {
		if x := m.leases.Get(l.slot()); x.incarnation == r.incarnation {
			dst = append(dst, x.token)
		}
	}
	return dst
}

// AppendHeld appends those of a node's tokens that are prepared and wait for
// their gang.
func (m *Machine) AppendHeld(dst, of []gpuai.Token) []gpuai.Token {
	for _, t := range of {
		slot, ok := m.leaseSlot(t)
		if !ok {
			continue
		}
		l := m.leases.Get(slot)
		if l.prepared && l.state == gpuai.LeaseGranted && m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).held {
			dst = append(dst, t)
		}
	}
	return dst
}

// Node returns a registered node.
func (m *Machine) Node(n gpuai.NodeID) (gpuai.Node, bool) {
	slot, ok := m.nodeSlot(n)
	if !ok {
		return gpuai.Node{}, false
	}
	return m.node(slot), true
}

// Nodes returns nodes in the order of their registration, those after the given
// one; from the first when it is "".
func (m *Machine) Nodes(after gpuai.NodeID, limit int) []gpuai.Node {
	from := uint32(0)
	if slot, ok := m.nodeSlot(after); ok {
		from = slot + 1
	}
	var out []gpuai.Node
	for s := from; s < m.nodes.Len() && len(out) < min(limit, MaxScan); s++ {
		out = append(out, m.node(s))
	}
	return out
}

// NodeLive returns a node's incarnation and state.
func (m *Machine) NodeLive(n gpuai.NodeID) (inc gpuai.Incarnation, state gpuai.NodeState, ok bool) {
	slot, ok := m.nodeSlot(n)
	if !ok {
		return 0, 0, false
	}
	r := m.nodes.Get(slot)
	return r.incarnation, r.state, true
}

// LeaseTTLs returns the smallest TTL + grace of the live leases that an
// incarnation of a node holds, and how many there are.
func (m *Machine) LeaseTTLs(n gpuai.NodeID, inc gpuai.Incarnation) (minEnd gpuai.Duration, live int) {
	slot, ok := m.nodeSlot(n)
	if !ok {
		return 0, 0
	}
	for l := m.nodes.Get(slot).first; l != 0; l = m.leases.Get(l.slot()).next {
		x := m.leases.Get(l.slot())
		if x.incarnation != inc {
			continue
		}
		if end := gpuai.Duration(x.ttl) + gpuai.Duration(x.grace); live == 0 || end < minEnd {
			minEnd = end
		}
		live++
	}
	return minEnd, live
}

// EachNode calls f for each node from a slot on, at most MaxScan, until f says
// false. It returns the slot to go on from; 0 at the end. live counts the
// leases of every incarnation.
func (m *Machine) EachNode(from uint32, f func(slot uint32, id gpuai.NodeID, inc gpuai.Incarnation, state gpuai.NodeState, live uint32) bool) uint32 {
	for s := from; s < m.nodes.Len(); s++ {
		r := m.nodes.Get(s)
		if s-from == MaxScan || !f(s, m.nodeName(s), r.incarnation, r.state, r.live) {
			return s
		}
	}
	return 0
}

// SupersededLeases calls f for each (incarnation, smallest TTL + grace) of a
// node's live leases that belong to another incarnation than its current one.
func (m *Machine) SupersededLeases(n gpuai.NodeID, f func(inc gpuai.Incarnation, minEnd gpuai.Duration)) {
	slot, ok := m.nodeSlot(n)
	if !ok {
		return
	}
	r := m.nodes.Get(slot)
	for l := r.first; l != 0; l = m.leases.Get(l.slot()).next {
		if x := m.leases.Get(l.slot()); x.incarnation != r.incarnation {
			f(x.incarnation, gpuai.Duration(x.ttl)+gpuai.Duration(x.grace))
		}
	}
}

// Counts returns the machine's totals. It costs no scan over nodes or jobs but
// one over the nodes' states.
func (m *Machine) Counts() Counts {
	meta := m.meta.Get()
	c := Counts{
		Jobs: m.jobSlots.Len(), JobsPending: meta.jobStates[gpuai.JobPending],
		JobsRunning: meta.jobStates[gpuai.JobRunning], TasksPending: meta.pending,
		Leases: meta.liveLeases, Revoking: meta.revoking, GPUMilliUsed: meta.milliUsed,
		Results: m.resultSlots.Len(),
	}
	for s := range m.nodes.Len() {
		r := m.nodes.Get(s)
		c.Nodes[r.state]++
		c.GPUs += uint32(r.devices)
		if r.drained {
			c.Drained++
		}
	}
	c.QueueGPUs, c.OldestWait = m.queueTotals()
	return c
}
