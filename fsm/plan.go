package fsm

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/gpuai/gpuai"
)

// Bounds of a plan.
const (
	// planRounds is how many times what was revoked is taken to have ended.
	planRounds = 16
	// planEntries bounds the entries that work off a backlog.
	planEntries = 256
	// planBackOff is the longest back-off of a lost task that a plan waits for.
	planBackOff = 10 * gpuai.Second
)

// A planner applies the commands of a plan to a machine and notes what follows.
type planner struct {
	m       *Machine
	h       Header
	out     Output
	mine    map[gpuai.JobID]int // place among the submits
	at      map[gpuai.TaskRef]int
	changed []planned
	revoked []gpuai.Event // not yet taken to have ended
	plan    gpuai.Plan
	count   *capacityCount
}

// planned is what has become of one task of another job.
type planned struct {
	ref      gpuai.TaskRef
	task     ref // record; stays while the plan lasts, since nothing retires
	from, to gpuai.NodeID
	cause    gpuai.LeaseCause
	lost     bool
}

// Plan applies what r supposes through Apply, one command an entry, and says
// what follows. It changes m: call it on a fork. ids are free job IDs, one for
// each submit; h is the header of the entries.
//
// The error is a *gpuai.Error with pointers into r, or Apply's. A submit that is
// refused is no error: its PlannedJob says so.
func (m *Machine) Plan(r *gpuai.PlanRequest, ids []gpuai.JobID, h Header) (gpuai.Plan, error) {
	p := planner{m: m, h: h, mine: map[gpuai.JobID]int{}, at: map[gpuai.TaskRef]int{}}
	p.count = m.countCapacity()
	p.plan = gpuai.Plan{
		Index: m.Index(), Jobs: []gpuai.PlannedJob{}, Changes: []gpuai.PlanChange{}, Before: p.count.Capacity,
	}
	if wrong := m.unknownNodes(r); len(wrong) > 0 {
		return p.plan, &gpuai.Error{Code: gpuai.NotFound, Detail: "the plan names nodes that are not registered", Fields: wrong, Index: m.Index()}
	}
	for _, step := range []func(*gpuai.PlanRequest) error{p.supposeTerms, p.supposeNodes, p.loseNodes, func(r *gpuai.PlanRequest) error { return p.submit(r, ids) }} {
		if err := step(r); err != nil {
			return p.plan, err
		}
	}
	for i := range p.plan.Jobs {
		p.plan.Jobs[i].Now = p.leasedOf(&p.plan.Jobs[i])
	}
	if err := p.settle(); err != nil {
		return p.plan, err
	}
	p.plan.After = p.count.again(m)
	p.conclude()
	return p.plan, nil
}

// unknownNodes says which names of a request are of no node.
func (m *Machine) unknownNodes(r *gpuai.PlanRequest) (wrong []gpuai.FieldError) {
	check := func(at string, i int, id gpuai.NodeID, tail string) {
		if _, ok := m.nodeSlot(id); !ok && len(wrong) < 100 {
			wrong = append(wrong, gpuai.FieldError{Pointer: at + strconv.Itoa(i) + tail, Detail: "no node is called " + strconv.Quote(string(id))})
		}
	}
	for i := range r.NodePrices {
		check("/node_prices/", i, r.NodePrices[i].Node, "/node")
	}
	for i := range r.NodeAsks {
		check("/node_asks/", i, r.NodeAsks[i].Node, "/node")
	}
	for i := range r.Schedules {
		check("/node_schedules/", i, r.Schedules[i].Node, "/node")
	}
	for i := range r.Add {
		check("/add/", i, r.Add[i].Like, "/like")
	}
	for i, id := range r.Undrain {
		check("/undrain/", i, id, "")
	}
	for i, id := range r.Drain {
		check("/drain/", i, id, "")
	}
	for i, id := range r.Lose {
		check("/lose/", i, id, "")
	}
	return wrong
}

// apply applies commands as one entry, and works off the backlog.
func (p *planner) apply(cmds ...[]byte) error {
	p.h.Term = p.m.Term()
	for range planEntries {
		if err := p.m.Apply(p.m.Index()+1, p.h.Term, AppendEntry(nil, p.h, cmds...), &p.out); err != nil {
			return err
		}
		for i := range p.out.Events {
			p.count.touch(p.m, p.out.Events[i].Node)
			p.note(&p.out.Events[i])
		}
		if !p.m.backlog() || p.m.QuietUntil() > 0 {
			return nil
		}
		cmds = [][]byte{(&Tick{}).Append(nil, Envelope{})}
	}
	p.plan.Unfinished = true
	return nil
}

// must applies one command that has to succeed; pointer is where it comes from.
func (p *planner) must(c Command, pointer string) error {
	if err := p.apply(c.Append(nil, Envelope{})); err != nil {
		return err
	}
	if res := &p.out.Results[0]; res.Code != gpuai.OK {
		return &gpuai.Error{Code: res.Code, Detail: res.Detail, Index: p.plan.Index, Fields: []gpuai.FieldError{{Pointer: pointer, Detail: res.Detail}}}
	}
	return nil
}

// supposeNodes sets the policy, and adds and undrains nodes.
func (p *planner) supposeNodes(r *gpuai.PlanRequest) error {
	if r.Policy != nil {
		if err := p.must(&SetPolicy{*r.Policy}, "/policy"); err != nil {
			return err
		}
	}
	for i := range r.Add {
		slot, _ := p.m.nodeSlot(r.Add[i].Like)
		body := p.m.nodeBody(slot)
		for n := range r.Add[i].Count {
			body.spec.ID = p.m.freeName(i, n)
			if err := p.must(&RegisterNode{Spec: body.spec, BootID: "plan", Nonce: "plan"}, "/add/"+strconv.Itoa(i)); err != nil {
				return err
			}
		}
	}
	for i, id := range r.Undrain {
		if err := p.must(&SetNodeEligibility{Node: id}, "/undrain/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return nil
}

// freeName returns a name that no node has.
func (m *Machine) freeName(kind int, n uint32) gpuai.NodeID {
	name := "plan-" + strconv.Itoa(kind) + "-" + strconv.FormatUint(uint64(n), 10)
	for {
		if _, taken := m.nodeSlot(gpuai.NodeID(name)); !taken {
			return gpuai.NodeID(name)
		}
		name += "x"
	}
}

func (p *planner) submit(r *gpuai.PlanRequest, ids []gpuai.JobID) error {
	for i := range r.Submit {
		spec := &r.Submit[i]
		p.mine[ids[i]] = i
		cmd := (&SubmitJob{ID: ids[i], Spec: spec}).Append(nil, Envelope{Tenant: spec.Tenant})
		if err := p.apply(cmd); err != nil {
			return err
		}
		res := p.out.Results[0]
		j := gpuai.PlannedJob{Code: res.Code, Detail: res.Detail, Leases: []gpuai.Lease{}}
		j.Job = gpuai.Job{ID: ids[i], Name: spec.Name, Tenant: spec.Tenant, Region: p.m.opts.Region, Type: spec.Type, Class: spec.Class, Priority: spec.Priority}
		if res.Code == gpuai.Unschedulable {
			j.Reasons = p.m.ExplainSpec(spec)
		}
		p.plan.Jobs = append(p.plan.Jobs, j)
	}
	return nil
}

// loseNodes drains nodes, and has others fall silent.
func (p *planner) loseNodes(r *gpuai.PlanRequest) error {
	for i, id := range r.Drain {
		if err := p.must(&SetNodeEligibility{Node: id, Drained: true}, "/drain/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	var suspect ConfirmBeats
	for _, id := range r.Lose {
		slot, _ := p.m.nodeSlot(id)
		suspect.Suspect = append(suspect.Suspect, NodeRef{id, p.m.nodes.Get(slot).incarnation})
	}
	if len(suspect.Suspect) == 0 {
		return nil
	}
	suspect.Term = p.m.Term()
	if err := p.must(&suspect, "/lose"); err != nil { // all first: what one loses must not go to another
		return err
	}
	for i, id := range r.Lose {
		lives := []gpuai.Incarnation{suspect.Suspect[i].Incarnation}
		p.m.SupersededLeases(id, func(inc gpuai.Incarnation, _ gpuai.Duration) { lives = append(lives, inc) })
		for _, inc := range lives {
			c := &ExpireLeases{Node: id, Incarnation: inc, SilentFor: 1<<62 - 1, Term: p.m.Term()}
			if err := p.must(c, "/lose/"+strconv.Itoa(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// note takes an event into the changes.
func (p *planner) note(e *gpuai.Event) {
	switch e.Kind {
	case gpuai.LeaseRevokingEvent:
		p.revoked = append(p.revoked, *e)
	case gpuai.LeaseEndedEvent, gpuai.LeaseGrantedEvent:
	default:
		return
	}
	ref := gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}
	if _, own := p.mine[e.Job]; own {
		return
	}
	i, ok := p.at[ref]
	if !ok {
		i = len(p.changed)
		p.at[ref] = i
		p.changed = append(p.changed, planned{ref: ref, task: p.m.taskOf(e)})
	}
	c := &p.changed[i]
	switch {
	case e.Kind == gpuai.LeaseGrantedEvent:
		c.to = e.Node
	case c.to != "": // it was only just placed: what counts is where it was before
		c.to = ""
	case !c.lost:
		c.lost, c.from, c.cause = true, e.Node, e.Cause
	}
}

// settle takes what was revoked to have ended, round by round, and lets the
// back-offs of lost tasks pass.
func (p *planner) settle() error {
	for range planRounds {
		if len(p.revoked) == 0 && !p.waitForRetries() {
			return nil
		}
		ending := p.revoked
		p.revoked = nil
		var cmds [][]byte
		for i := range ending {
			if slot, ok := p.m.leaseSlot(ending[i].Lease); ok && p.m.leases.Get(slot).state == gpuai.LeaseRevoking {
				cmds = append(cmds, p.m.endReport(slot, gpuai.ReportStopped))
			}
			if len(cmds) == MaxCommands || i+1 == len(ending) {
				if err := p.apply(cmds...); err != nil {
					return err
				}
				cmds = nil
			}
		}
		if len(ending) == 0 {
			if err := p.apply((&Tick{}).Append(nil, Envelope{})); err != nil {
				return err
			}
		}
	}
	p.plan.Unfinished = p.plan.Unfinished || len(p.revoked) > 0
	return nil
}

// endReport returns the report by which a live lease ends.
func (m *Machine) endReport(slot uint32, s gpuai.ReportState) []byte {
	l := m.leases.Get(slot)
	rep := gpuai.Report{Lease: l.token, Seq: l.seq + 1, Incarnation: l.incarnation, State: s}
	return (&ReportLease{Node: m.nodeName(l.node), Report: rep}).Append(nil, Envelope{})
}

// waitForRetries moves the plan's time to the end of the earliest short back-off
// of a task that lost its place; false when there is none.
func (p *planner) waitForRetries() bool {
	next := gpuai.MaxInstant
	for i := range p.changed {
		if c := &p.changed[i]; c.lost && c.to == "" {
			if at := p.m.retryAt(c.task); at > 0 {
				next = min(next, at)
			}
		}
	}
	now := p.m.Time()
	if next > now.Add(planBackOff) {
		return false
	}
	p.h.Time = max(now, next)
	return true
}

// retryAt returns when the back-off of a task, or of its gang, ends; 0 when it
// is in none.
func (m *Machine) retryAt(task ref) gpuai.Instant {
	if task == 0 {
		return 0
	}
	t := m.tasks.Get(task.slot())
	if g := m.groups.Get(t.group.slot()); g.gang {
		return g.retryAt
	}
	return t.retryAt
}

// taskOf returns the record of the task that an event of the newest entry tells
// of.
func (m *Machine) taskOf(e *gpuai.Event) ref {
	if slot, ok := m.leaseSlot(e.Lease); ok {
		return m.leases.Get(slot).task
	}
	job, ok := m.jobSlot(e.Job) // the task has got another lease since
	if !ok {
		return 0
	}
	for g := m.jobs.Get(job).group; g != 0; g = m.groups.Get(g.slot()).next {
		if uint16(m.groups.Get(g.slot()).idx) != e.Group {
			continue
		}
		for t := m.groups.Get(g.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
			if m.tasks.Get(t.slot()).idx == e.Task {
				return t
			}
		}
	}
	return 0
}

// leasedOf returns how many tasks of a planned job have a lease.
func (p *planner) leasedOf(j *gpuai.PlannedJob) uint32 {
	if slot, ok := p.m.jobSlot(j.Job.ID); ok {
		return p.m.jobs.Get(slot).live
	}
	return 0
}

// conclude reads the outcome.
func (p *planner) conclude() {
	for i := range p.plan.Jobs {
		j := &p.plan.Jobs[i]
		job, ok := p.m.Job(j.Job.ID, false)
		if !ok {
			continue
		}
		j.Job = job
		j.Later = p.leasedOf(j) - min(j.Now, p.leasedOf(j))
		if slot, ok := p.m.jobSlot(job.ID); ok {
			j.Cost = p.m.cost(slot)
		}
		j.Leases = append(j.Leases, p.m.LeasesOfJob(job.ID, 0, gpuai.MaxSubmitLeases)...)
		if job.Counts.Pending > 0 {
			x, _ := p.m.Explain(job.ID)
			j.Reasons, j.QueuePosition = x.Reasons, x.Position
			est := p.m.Fork().EstimateStart(job.ID)
			j.Estimate = &est
		}
	}
	slices.SortFunc(p.changed, func(a, b planned) int {
		return cmp.Or(a.ref.Job.Compare(b.ref.Job), cmp.Compare(a.ref.Group, b.ref.Group), cmp.Compare(a.ref.Task, b.ref.Task))
	})
	var last gpuai.JobID
	for i := range p.changed {
		if c := &p.changed[i]; c.lost || c.to != "" {
			if c.ref.Job != last {
				p.plan.Blast.Jobs, last = p.plan.Blast.Jobs+1, c.ref.Job
			}
			p.concludeTask(c)
		}
	}
}

// concludeTask counts one change, and lists it while there is room.
func (p *planner) concludeTask(c *planned) {
	x := gpuai.PlanChange{TaskRef: c.ref, From: c.from, To: c.to, Cause: c.cause}
	if job, ok := p.m.Job(c.ref.Job, false); ok {
		x.Name = job.Name
	}
	status := gpuai.TaskPending
	if c.task != 0 {
		t := p.m.tasks.Get(c.task.slot())
		status = t.status
		x.GPUs = p.m.groups.Get(t.group.slot()).gpus
	}
	b := &p.plan.Blast
	switch {
	case !c.lost:
		x.Change = gpuai.PlanStarts
		b.Starts++
	case c.to != "":
		x.Change = gpuai.PlanMoves
		b.Moves++
	case status >= gpuai.TaskSucceeded:
		x.Change = gpuai.PlanEnds
		b.Ends++
	default:
		x.Change = gpuai.PlanWaits
		b.Waits++
	}
	if c.lost {
		b.GPUs += x.GPUs
		at := slices.IndexFunc(b.Revoked, func(r gpuai.PlanCause) bool { return r.Cause == c.cause })
		if at < 0 {
			at = len(b.Revoked)
			b.Revoked = append(b.Revoked, gpuai.PlanCause{Cause: c.cause})
		}
		b.Revoked[at].Tasks++
	}
	if len(p.plan.Changes) < gpuai.MaxPlanChanges {
		p.plan.Changes = append(p.plan.Changes, x)
	}
}
