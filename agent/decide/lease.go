package decide

import (
	"slices"

	"github.com/gpuai/gpuai"
)

// Phase is how far a lease has come.
type Phase uint8

// The phases, in order. A lease holds its devices from Starting to Releasing.
const (
	// Waiting for its first deadline; nothing was done for it yet.
	Waiting Phase = iota
	Starting
	// Prepared: ready to start, and waiting for its gang.
	Prepared
	Running
	// Stopping: told to end, within its grace.
	Stopping
	// Fencing: being killed.
	Fencing
	// Unkillable: reported so; it may still be running.
	Unkillable
	// Releasing: the task is gone, the drivers clean up.
	Releasing
	// Reported: its end is reported and not answered yet.
	Reported
)

var phaseNames = [...]string{"waiting", "starting", "prepared", "running", "stopping", "fencing", "unkillable", "releasing", "reported"}

// String returns the phase's name.
func (p Phase) String() string { return phaseNames[p] }

type lease struct {
	a        gpuai.Assignment
	phase    Phase
	deadline int64 // the fence; 0: none yet
	end      gpuai.Report
	cause    gpuai.ReportState // what a kill of ours counts as
	why      string
	saving   bool // it was given time to save its work
	final    bool // unkillable was reported: no report follows the release
	seq      uint32
	unsent   []gpuai.Report
	sentAt   int64
	told     uint64 // the index of the set that a.Gang is of
	doubts   int    // acks that do not name it among those that wait, while it does
}

// holds reports whether the lease's task may be running with our consent.
func (l *lease) holds() bool {
	return l.phase >= Starting && l.phase <= Stopping
}

// fenceDue kills every task whose fence has come.
func (c *Core) fenceDue(now int64) {
	for _, t := range c.tokens() {
		if l := c.leases[t]; l.holds() && l.deadline > 0 && now >= l.deadline {
			c.kill(l, gpuai.ReportFenced, "no renewal counted in time")
		}
	}
}

// kill fences a held task.
func (c *Core) kill(l *lease, as gpuai.ReportState, why string) {
	l.phase, l.cause, l.why = Fencing, as, why
	c.do(Kill{Lease: l.a.Lease.ID, Budget: c.policy.KillBudget, Why: why})
}

func (c *Core) stop(l *lease) {
	l.phase, l.saving = Stopping, false
	c.do(Stop{Lease: l.a.Lease.ID, Grace: l.a.Task.StopGrace})
}

// revoke stops a task whose lease the region takes back. Of those that savesFor
// names it has time to save its work first, if it asks for some.
func (c *Core) revoke(l *lease) {
	c.stop(l)
	save := l.a.Task.Checkpoint
	save.Grace = min(save.Grace, c.policy.CheckpointMax)
	if !savesFor(l.a.Lease.Cause) || save.Grace <= 0 || save.Signal == gpuai.SignalNone {
		return
	}
	l.saving = true
	c.acts[len(c.acts)-1] = Stop{Lease: l.a.Lease.ID, Grace: l.a.Task.StopGrace, Save: save}
}

// savesFor reports whether a task is worth its grace that goes for a reason: it
// runs on elsewhere, or its last checkpoint is what its run time was for.
func savesFor(c gpuai.LeaseCause) bool {
	return c == gpuai.CausePreempted || c == gpuai.CauseDrained || c == gpuai.CauseRunTime
}

// stopAll ends every task in an orderly way and takes no new ones.
func (c *Core) stopAll(reason string) {
	c.draining = reason
	for _, t := range c.tokens() {
		l := c.leases[t]
		switch l.phase {
		case Waiting:
			delete(c.leases, t)
		case Starting, Prepared, Running:
			c.stop(l)
		case Stopping:
			if l.saving {
				c.stop(l)
			}
		}
	}
}

// fenceAll kills every task, as an agent does that is superseded.
func (c *Core) fenceAll(why string) {
	for _, t := range c.tokens() {
		l := c.leases[t]
		if l.phase == Waiting {
			delete(c.leases, t)
		} else if l.holds() {
			c.kill(l, gpuai.ReportFenced, why)
		}
	}
}

// tryStart starts a waiting lease if it can be given a deadline (the
// first-deadline rule): from t_send of the newest acked beat if that ack is
// older than the lease, or names it. Else it waits for the first ack that does.
func (c *Core) tryStart(now int64, l *lease) {
	t := l.a.Lease.ID
	if l.phase != Waiting || c.halted || !c.welcomed || !c.ack.valid {
		return
	}
	if c.grantedBy(t, c.ack.index) && !c.ack.names[t] {
		return
	}
	deadline := c.ack.sent + nanos(c.policy.FenceAfter(l.a.Lease.TTL))
	if deadline <= now {
		return // too old to start with; the next ack will do
	}
	if !c.room(l) {
		return // what is released next tries again
	}
	if c.draining != "" {
		c.finish(now, l, gpuai.Report{State: gpuai.ReportLost, Reason: c.draining})
		return
	}
	l.phase, l.deadline = Starting, deadline
	c.do(Start{Assignment: l.a, Deadline: deadline, KillBudget: c.policy.KillBudget, Hold: l.held()})
}

// room reports whether l's devices are free of our other leases. The region may
// have ended one of those, by its silence, before its task is gone from here:
// then the next waits until it is released. It does not wait for a task that
// cannot be killed: the driver's refusal tells the region that.
func (c *Core) room(l *lease) bool {
	for _, d := range l.a.Lease.Devices {
		used := share(&l.a.Lease)
		for _, o := range c.leases {
			if (o.holds() || o.phase == Fencing || o.phase == Releasing) && slices.Contains(o.a.Lease.Devices, d) {
				used += share(&o.a.Lease)
			}
		}
		if used > gpuai.WholeDevice {
			return false
		}
	}
	return true
}

// share is what a lease takes of each of its devices.
func share(l *gpuai.Lease) gpuai.Milli {
	if l.Share == 0 {
		return gpuai.WholeDevice
	}
	return l.Share
}

// held reports whether l's task waits for its gang, or the groups it starts with.
func (l *lease) held() bool { return l.a.Held() }

// prepared notes that l's task is ready, and starts it unless it must wait. Where it is
// reached the region is told first.
func (c *Core) prepared(now int64, l *lease, at *gpuai.MeshPoint) {
	l.phase = Prepared
	if l.held() || at != nil {
		c.report(now, l, gpuai.Report{State: gpuai.ReportPrepared, Mesh: at})
	}
	if !l.held() {
		c.meet(l)
		c.launch(l)
	}
}

// meet tells a member of a gang where those on other nodes are, where it has some.
func (c *Core) meet(l *lease) {
	if g := l.a.Gang; g != nil && len(g.Peers) > 0 {
		c.do(Meet{Lease: l.a.Lease.ID, Index: l.told, Peers: g.Peers})
	}
}

// launch starts a task that is ready.
func (c *Core) launch(l *lease) {
	l.phase = Starting
	c.do(Launch{Lease: l.a.Lease.ID})
}

// startWaiting starts what waited for devices.
func (c *Core) startWaiting(now int64) {
	for _, t := range c.tokens() {
		if l := c.leases[t]; l.phase == Waiting {
			c.tryStart(now, l)
		}
	}
}

// renew counts the newest ack, which names l, for its fence.
func (c *Core) renew(l *lease) {
	deadline := c.ack.sent + nanos(c.policy.FenceAfter(l.a.Lease.TTL))
	if deadline > l.deadline {
		l.deadline = deadline
		c.do(Extend{Lease: l.a.Lease.ID, Deadline: deadline})
	}
}

// grantedBy reports whether t was granted at or below an index of our epoch.
func (c *Core) grantedBy(t gpuai.Token, index uint64) bool {
	return t.Epoch() < c.id.Epoch || t.Epoch() == c.id.Epoch && t.Index() <= index
}

func (c *Core) taskEvent(now int64, e Event) {
	switch e := e.(type) {
	case TaskPrepared:
		if l := c.leases[e.Lease]; l != nil && l.phase == Starting {
			c.prepared(now, l, e.Mesh)
		}
	case TaskStarted:
		if l := c.leases[e.Lease]; l != nil && l.phase < Unkillable && l.phase != Waiting {
			if l.phase == Starting {
				l.phase = Running
			}
			c.report(now, l, gpuai.Report{State: gpuai.ReportRunning})
		}
	case ImageResolved:
		if l := c.leases[e.Lease]; l != nil && l.phase == Starting {
			c.report(now, l, gpuai.Report{State: gpuai.ReportResolved, Image: e.Digest})
		}
	case TaskNotStarted:
		if l := c.leases[e.Lease]; l != nil && (l.holds() || l.phase == Fencing) {
			c.ended(l, gpuai.Report{State: notStarted(l, e.State), ExitCode: e.Code, EndCode: e.End, Reason: e.Reason})
		}
	case TaskEnded:
		if l := c.leases[e.Lease]; l != nil && (l.holds() || l.phase == Fencing || l.phase == Unkillable) {
			c.ended(l, ending(l, e))
		}
	case TaskUnkillable:
		if l := c.leases[e.Lease]; l != nil && (l.holds() || l.phase == Fencing) {
			l.phase, l.final = Unkillable, true
			c.report(now, l, gpuai.Report{State: gpuai.ReportUnkillable, Reason: e.Reason, Unclean: l.a.Lease.Devices})
		}
	case Released:
		if l := c.leases[e.Lease]; l != nil && l.phase == Releasing {
			c.released(now, l, e)
			c.startWaiting(now)
		}
	case DeviceFailed:
		if l := c.leases[e.Lease]; l != nil && l.holds() {
			c.kill(l, gpuai.ReportGPUError, e.Reason)
		}
	case NetworkFailed:
		if l := c.leases[e.Lease]; l != nil && l.holds() {
			c.kill(l, gpuai.ReportLost, e.Reason)
		}
	case DiskOverrun:
		if l := c.leases[e.Lease]; l != nil && l.holds() {
			c.kill(l, gpuai.ReportFailed, e.Reason)
		}
	}
}

// notStarted is what to report of a start that came to nothing.
func notStarted(l *lease, s gpuai.ReportState) gpuai.ReportState {
	switch l.phase {
	case Stopping:
		return gpuai.ReportStopped
	case Fencing:
		return l.cause
	default:
		return s
	}
}

// ending is what to report of a task that ended.
func ending(l *lease, e TaskEnded) gpuai.Report {
	r := gpuai.Report{ExitCode: e.Code, EndCode: e.End, Reason: e.Reason}
	switch {
	case e.By == ByLoss:
		r.State = gpuai.ReportLost
	case e.By == ByDeadline:
		r.State, r.EndCode = gpuai.ReportFenced, gpuai.EndDeadline
	case e.By == ByStop:
		r.State = gpuai.ReportStopped
	case e.By == ByKill:
		if r.State = l.cause; r.State == gpuai.ReportGPUError {
			r.EndCode = gpuai.EndDevice
		}
		if r.State == 0 { // a kill of the life before this one
			r.State = gpuai.ReportFenced
		}
		if r.Reason == "" {
			r.Reason = l.why
		}
	case e.Code == 0:
		r.State = gpuai.ReportDone
	default:
		r.State = gpuai.ReportFailed
	}
	return r
}

// ended has a gone task's devices released; the report waits for that.
func (c *Core) ended(l *lease, r gpuai.Report) {
	l.phase, l.end = Releasing, r
	c.do(Release{Lease: l.a.Lease.ID})
}

func (c *Core) released(now int64, l *lease, e Released) {
	if l.final {
		l.phase = Reported
		c.forgetAnswered(l)
		return
	}
	r := l.end
	r.Unclean = e.Unclean
	if e.Reason != "" && r.Reason == "" {
		r.Reason = e.Reason
	}
	c.finish(now, l, r)
}
