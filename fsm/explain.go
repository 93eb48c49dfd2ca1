package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// explainTasks is how many tasks an explanation lists.
const explainTasks = 100

// Explain says why a job's tasks wait, or where they run. It looks at every
// node: call it on a fork.
func (m *Machine) Explain(id gpuai.JobID) (gpuai.Explanation, bool) {
	slot, ok := m.jobSlot(id)
	if !ok {
		return gpuai.Explanation{}, false
	}
	j := m.job(slot, true)
	x := gpuai.Explanation{
		Job: id, Name: j.Name, Status: j.Status, Index: m.Index(),
		Tasks: m.Tasks(id, 0, explainTasks),
	}
	if j.Counts.Pending > 0 && !j.Status.Final() {
		x.PendingFor = gpuai.Duration(m.Time() - j.SubmittedAt)
	}
	m.openReserved(slot, true)
	for g := m.jobs.Get(slot).group; g != 0; g = m.groups.Get(g.slot()).next {
		m.explainGroup(&x, g.slot(), &j)
	}
	m.openReserved(slot, false)
	return x, true
}

// openReserved has the scheduler judge nodes that are reserved for a job as open,
// or as closed again.
func (m *Machine) openReserved(job uint32, open bool) {
	v := m.meta.Get().reserve
	if v.group == 0 || m.groups.Get(v.group.slot()).job != refTo(job) {
		return
	}
	for n, ok := m.reserved.Next(0); ok; n, ok = m.reserved.Next(n + 1) {
		m.sched.SetOpen(n, open)
	}
	m.sp.Commit()
}

// explainGroup adds what there is to say of one group that waits.
func (m *Machine) explainGroup(x *gpuai.Explanation, group uint32, j *gpuai.Job) {
	g := m.groups.Get(group)
	if r, ok := m.barrierReason(group); ok {
		x.Reasons = append(x.Reasons, r)
	}
	if g.ended || g.pending() == 0 || m.jobs.Get(g.job.slot()).stopping {
		return
	}
	m.sched.Bar(nil, m.endsBy(group))
	m.explainRoom(x, group, j)
	m.sched.Unbar()
}

// explainRoom is explainGroup of one whose tasks wait, on nodes whose hours are long
// enough for it.
func (m *Machine) explainRoom(x *gpuai.Explanation, group uint32, j *gpuai.Job) {
	g := m.groups.Get(group)
	why := m.sched.Explain(g.shape)
	why.Pending = g.pending()
	if j.Spec != nil && int(g.idx) < len(j.Spec.Groups) {
		why.Group = j.Spec.Groups[g.idx].Name
	}
	x.Groups = append(x.Groups, why)
	if g.bucket != 0 {
		jobs, gpus, length := m.ahead(group)
		if x.Position == 0 || jobs+1 < x.Position {
			x.Position, x.AheadJobs, x.AheadGPUs = jobs+1, jobs, gpus
		}
		x.QueueLen = length
	}
	x.Reasons = append(x.Reasons, m.reasonsOf(group, &why)...)
	x.Helps = append(x.Helps, helpsOf(&why)...)
}

// reasonsOf sums up why a group waits, the weightiest first.
func (m *Machine) reasonsOf(group uint32, why *gpuai.GroupWhy) []gpuai.Reason {
	g := m.groups.Get(group)
	var out []gpuai.Reason
	if q := m.QuietUntil(); q > 0 {
		out = append(out, gpuai.Reason{Code: gpuai.Quiet, Message: fmt.Sprintf(
			"the region was restored from a backup and grants nothing for another %s: until then tasks from before it may run", gpuai.Duration(q-m.Time()))})
	}
	if held := m.reasonsHeld(g.job.slot()); len(held) > 0 {
		return append(out, held...)
	}
	if r, ok := m.reasonQuota(group); ok {
		out = append(out, r)
		if m.curbedBy(group)&curbParked != 0 { // nobody has looked for room
			return out
		}
	}
	if r, ok := m.reasonReserved(group); ok {
		out = append(out, r)
	}
	out = append(out, m.roomReasons(group)...)
	if r, ok := m.reasonOfEnds(group); ok {
		out = append(out, r)
	}
	switch {
	case g.ready() == 0 && g.gang && g.broken != gpuai.CauseNone:
		out = append(out, gpuai.Reason{Code: gpuai.GangIncomplete, Message: "the gang lost a member and is being stopped, to be placed again as one"})
	case g.together == togetherOther:
		out = append(out, gpuai.Reason{Code: gpuai.GangIncomplete, Message: "all groups of the job start together: see the first"})
	case g.ready() == 0 && g.n[gpuai.TaskSucceeded] > 0:
		return out // of an elastic gang that is about to end, and did without them
	case g.ready() == 0:
		out = append(out, gpuai.Reason{Code: gpuai.BackOff, Message: fmt.Sprintf("%d tasks wait for the end of their back-off", g.pending())})
	case why.Nodes == 0:
		out = append(out, gpuai.Reason{Code: gpuai.NoNodes, Message: "no node is registered", Fix: "start an agent"})
	case g.together != 0 && m.togetherFits(group):
		out = append(out, gpuai.Reason{Code: gpuai.GangIncomplete, Message: "all groups of the job must start together, and not all have room beside each other now"})
	case why.Feasible > 0 && g.gang && g.live() > 0:
		out = append(out, gpuai.Reason{
			Code: gpuai.QueueOrder, Nodes: why.Feasible,
			Message: fmt.Sprintf("the gang runs with %d of %d tasks and grows when there is room where it may be", g.live(), g.count),
		})
	case why.Feasible > 0 && g.gang && m.withoutPort(g, &out):
	case why.Feasible > 0 && g.gang && g.same != gpuai.TopologyNone && m.sched.CapacityNow(g.shape, g.least()) >= g.least():
		out = append(out, m.topologyReason(g, why))
	case why.Feasible > 0 && g.gang:
		out = append(out, gpuai.Reason{
			Code: gpuai.GangIncomplete, Nodes: why.Feasible, GPUs: why.FreeGPUs,
			Message: fmt.Sprintf("%d of %d tasks must start together; %d nodes would take some of them now", g.least(), g.count, why.Feasible),
		})
	case why.Feasible > 0:
		out = append(out, gpuai.Reason{Code: gpuai.QueueOrder, Nodes: why.Feasible, Message: "there is room; the queue has not come to it yet"})
	}
	refused := uint32(0)
	if why.Nodes > 0 {
		out, refused = m.reasonsRefused(out)
	}
	for i := range why.Rules {
		r := &why.Rules[i]
		switch {
		case r.Code == gpuai.OutsideSchedule:
			out = append(out, m.reasonHours(group, r))
			continue
		case r.Name == scheduler.RuleState && r.Nodes <= refused: // that is said already
			continue
		}
		out = append(out, gpuai.Reason{Code: r.Code, Nodes: r.Nodes, GPUs: why.FreeGPUs, Message: ruleMessage(r, why)})
	}
	return out
}

// roomReasons says for how many tasks of a group room is being made, and whom
// those that had to go made room for.
func (m *Machine) roomReasons(group uint32) (out []gpuai.Reason) {
	if n := m.held(group); n > 0 {
		out = append(out, gpuai.Reason{Code: gpuai.QueueOrder, Message: fmt.Sprintf(
			"room is being made for %d of its tasks: they start when those have left that must go for them, or sooner where other room comes free", n)})
	}
	by, n := gpuai.JobID{}, 0
	for t := m.groups.Get(group).first; t != 0; t = m.tasks.Get(t.slot()).next {
		x := m.tasks.Get(t.slot())
		if x.status != gpuai.TaskPending || x.lease == 0 {
			continue
		}
		if l := m.leases.Get(x.lease.slot()); !l.by.IsZero() {
			by = l.by
			n++
		}
	}
	if n > 0 {
		name := "job " + by.String()
		if !m.tells(by) {
			name = anothers
		}
		out = append(out, gpuai.Reason{Code: gpuai.Preempted, Message: fmt.Sprintf(
			"%d of its tasks made room for jobs of higher priority, the last one for %s, and wait to be placed again", n, name)})
	}
	return out
}

// topologyReason says which domain comes closest to holding a gang.
func (m *Machine) topologyReason(g *groupRec, why *gpuai.GroupWhy) gpuai.Reason {
	best := m.sched.ClosestTo(g.same, g.shape, g.least())
	level, name := "node", gpuai.NodeID(best.Name)
	if name == "" {
		name = m.nodeName(best.Node)
	} else {
		level = map[gpuai.Topology]string{gpuai.TopologyNVLink: "NVLink domain", gpuai.TopologyRack: "rack", gpuai.TopologyZone: "zone"}[g.same]
	}
	where := fmt.Sprintf("%s %s", level, name)
	if g.same != gpuai.TopologyZone {
		where += " of zone " + best.Zone
	}
	return gpuai.Reason{
		Code: gpuai.TopologyUnsatisfied, Nodes: why.Feasible, GPUs: why.FreeGPUs,
		Message: fmt.Sprintf("%d tasks must start in the same %s; of %d the closest, %s, has room for %d", g.least(), g.same, best.Domains, where, best.Room),
		Fix:     "ask for placement: {near: " + g.same.String() + "} when it is a wish",
	}
}

// togetherFits reports whether each group of a job that starts together could
// start by itself now.
func (m *Machine) togetherFits(group uint32) bool {
	for x := m.jobs.Get(m.groups.Get(group).job.slot()).group; x != 0; x = m.groups.Get(x.slot()).next {
		if g := m.groups.Get(x.slot()); m.sched.CapacityNow(g.shape, g.least()) < g.least() {
			return false
		}
	}
	return true
}

// mayStartApart reports whether there is room for the gangs of a bucket, but
// perhaps not in one domain.
func (m *Machine) mayStartApart(b *bucketRec) bool {
	least := m.groups.Get(b.first.slot()).least()
	room := m.sched.CapacityNow(b.shape, least)
	for n, ok := m.reserved.Next(0); ok && room < least && m.reservedFor(b.first); n, ok = m.reserved.Next(n + 1) {
		var free scheduler.Free
		m.sched.FreeOf(n, &free)
		room += m.sched.TasksIn(b.shape, n, &free)
	}
	return room >= least
}

func ruleMessage(r *gpuai.Rule, why *gpuai.GroupWhy) string {
	s := fmt.Sprintf("%d of %d nodes fail %s, %d of them nothing else", r.Nodes, why.Nodes, r.Name, r.Alone)
	if r.Code == gpuai.Fragmented {
		s += fmt.Sprintf(": %d free GPUs, largest block on a node is %d", why.FreeGPUs, why.LargestOn)
	}
	return s
}

// helpsOf names what would let the group start: rules that alone hold nodes
// back.
func helpsOf(why *gpuai.GroupWhy) []gpuai.Helpful {
	var out []gpuai.Helpful
	for i := range why.Rules {
		if r := &why.Rules[i]; r.Alone > 0 {
			out = append(out, gpuai.Helpful{
				Change: "without the rule " + r.Name,
				Effect: fmt.Sprintf("%d more nodes would take a task now", r.Alone),
			})
		}
	}
	return out
}

// whyBucket names the one reason why the first group of a bucket waits, cheaply.
func (m *Machine) whyBucket(b *bucketRec) gpuai.ReasonCode {
	switch {
	case m.QuietUntil() > 0:
		return gpuai.Quiet
	case m.nodes.Len() == 0:
		return gpuai.NoNodes
	case b.parked() && b.curb&curbBudget != 0:
		return gpuai.BudgetExhausted
	case b.parked():
		return gpuai.QuotaExhausted
	case b.unseen:
		return gpuai.QueueOrder
	case b.same != gpuai.TopologyNone && m.mayStartApart(b):
		return gpuai.TopologyUnsatisfied
	case b.gang > 0 && m.sched.MayStart(b.shape):
		return gpuai.GangIncomplete
	case !m.sched.CanEver(b.shape):
		return gpuai.NoSuchDevice
	default:
		return gpuai.InsufficientGPUs
	}
}

// ExplainSpec says why a job that was refused as unschedulable can never fit.
// It looks at every node: call it on a fork, whose shapes it may add to.
func (m *Machine) ExplainSpec(spec *gpuai.JobSpec) []gpuai.Reason {
	var v wire.JobView
	if wire.ReadJobView(wire.AppendJobSpec(nil, spec), &v) != nil {
		return nil
	}
	var out []gpuai.Reason
	for i := range v.Groups[:v.NumGroups] {
		g := &v.Groups[i]
		shape, res := m.shapeOf(g)
		if res.Code != gpuai.OK || m.canEver(shape, g, &v) {
			continue
		}
		why := m.sched.Explain(shape)
		for k := range why.Rules {
			r := &why.Rules[k]
			if code := everReason(r.Code); code != gpuai.ReasonNone {
				out = append(out, gpuai.Reason{Code: code, Nodes: r.Nodes, Message: ruleMessage(r, &why)})
			}
		}
		if len(out) == 0 {
			out = append(out, gpuai.Reason{Code: gpuai.NoSuchDevice, Nodes: why.Nodes, Message: "all registered nodes together are too small for group " + string(g.Name)})
		}
	}
	m.sp.Commit()
	return out
}

// everReason maps a rule's reason to one that can hold for ever.
func everReason(c gpuai.ReasonCode) gpuai.ReasonCode {
	switch c {
	case gpuai.ConstraintFiltered, gpuai.NoSuchDevice:
		return gpuai.NoSuchDevice
	case gpuai.InsufficientCPU, gpuai.InsufficientMemory:
		return gpuai.NoSuchDevice
	default:
		return gpuai.ReasonNone
	}
}
