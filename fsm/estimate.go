package fsm

import "github.com/gpuai/gpuai"

// Bounds of an estimate.
const (
	estimateSteps = 1_000  // entries
	estimateScan  = 10_000 // leases looked at for ones that have not started
)

// An estimator runs a machine forward.
type estimator struct {
	m     *Machine
	out   Output
	now   gpuai.Instant
	start gpuai.Instant
	next  [][]byte // reports that follow from the last entry
	id    gpuai.JobID
	est   gpuai.StartEstimate
}

// EstimateStart says when a job's tasks would start if no job came, no node
// changed, and each task ran to its job's run-time limit: it runs the machine
// forward through Apply, estimateSteps entries at most. Tasks without a limit
// run for ever. It spends m: call it on a fork.
func (m *Machine) EstimateStart(id gpuai.JobID) gpuai.StartEstimate {
	e := estimator{m: m, now: m.Time(), start: m.Time(), id: id}
	slot, ok := m.jobSlot(id)
	if !ok || m.jobs.Get(slot).status.Final() || m.taskCounts(slot).Pending == 0 {
		e.est.Why = "none of its tasks waits"
		return e.est
	}
	e.begin()
	for range estimateSteps {
		cmds, why := e.step(slot)
		if why != "" {
			e.est.Why = why
			return e.est
		}
		if m.Apply(m.Index()+1, m.Term(), AppendEntry(nil, m.asBefore(e.now), cmds...), &e.out) != nil {
			e.est.Why = "the machine could not be run forward"
			return e.est
		}
		e.follow()
		if m.taskCounts(slot).Pending == 0 && e.est.Known {
			e.est.AllIn = gpuai.Duration(m.Time() - e.start)
			return e.est
		}
	}
	if !e.est.Known {
		e.est.Why = "it starts later than the estimate looks ahead"
	}
	return e.est
}

// begin takes leases whose tasks have not started to do so now, and those being
// revoked to end.
func (e *estimator) begin() {
	m := e.m
	for at, n := uint32(0), 0; n < estimateScan; n++ {
		slot, ok := m.leaseSlots.Next(at)
		if !ok {
			return
		}
		e.expect(slot)
		at = slot + 1
	}
}

// expect notes the report that will be next of a lease whose end is not known.
func (e *estimator) expect(slot uint32) {
	switch l := e.m.leases.Get(slot); l.state {
	case gpuai.LeaseGranted:
		g := e.m.groups.Get(e.m.tasks.Get(l.task.slot()).group.slot())
		if e.m.jobs.Get(g.job.slot()).runTime > 0 || g.held { // of the others nothing follows
			e.next = append(e.next, e.m.endReport(slot, gpuai.ReportRunning))
		}
	case gpuai.LeaseRevoking:
		e.next = append(e.next, e.m.endReport(slot, gpuai.ReportStopped))
	}
}

// step returns the commands of the next entry and moves the time to it; why
// says that there is none.
func (e *estimator) step(job uint32) (cmds [][]byte, why string) {
	tick := [][]byte{(&Tick{}).Append(nil, Envelope{})}
	if len(e.next) > 0 {
		n := min(len(e.next), MaxCommands)
		cmds, e.next = e.next[:n], e.next[n:]
		return cmds, ""
	}
	if e.m.backlog() {
		e.now = max(e.now, e.m.QuietUntil())
		return tick, ""
	}
	t, ok := e.m.timers.next()
	switch {
	case !ok && e.est.Known:
		return nil, "the others of its tasks wait for tasks without a run-time limit"
	case !ok:
		return nil, "it waits for tasks without a run-time limit"
	case t.kind == timerJob && t.slot == job && !e.est.Known:
		return nil, "its own limit queue_time ends it first"
	case t.kind != timerLease:
		e.now = max(e.now, t.at)
		return tick, ""
	}
	e.now = max(e.now, t.at)
	for len(cmds) < MaxCommands { // all that reach their limit then have ended just before
		end, ok := e.m.timers.next()
		if !ok || end.kind != timerLease || end.at > e.now {
			break
		}
		e.m.timers.clear(e.m.timers.place(end.kind, end.slot))
		cmds = append(cmds, e.m.endReport(end.slot, gpuai.ReportDone))
	}
	return cmds, ""
}

// follow notes what an entry granted and revoked.
func (e *estimator) follow() {
	var ended *gpuai.Event
	for i := range e.out.Events {
		ev := &e.out.Events[i]
		switch ev.Kind {
		case gpuai.LeaseEndedEvent:
			ended = ev
		case gpuai.LeaseRevokingEvent:
			if slot, ok := e.m.leaseSlot(ev.Lease); ok {
				e.expect(slot)
			}
		case gpuai.LeaseGrantedEvent:
			if slot, ok := e.m.leaseSlot(ev.Lease); ok {
				e.expect(slot)
			}
			if ev.Job == e.id && !e.est.Known {
				e.known(ended)
			}
		}
	}
}

// known notes the start of the first task, behind the end of another.
func (e *estimator) known(ended *gpuai.Event) {
	e.est.Known, e.est.In = true, gpuai.Duration(e.m.Time()-e.start)
	if ended == nil {
		return
	}
	e.est.Behind = &gpuai.TaskRef{Job: ended.Job, Group: ended.Group, Task: ended.Task}
	if !e.m.tells(ended.Job) {
		e.est.Behind, e.est.Name = &gpuai.TaskRef{}, anothers
		return
	}
	if j, ok := e.m.Job(ended.Job, false); ok {
		e.est.Name = j.Name
	}
}
