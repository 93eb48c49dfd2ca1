package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/store"
)

const (
	// maxBatch is how many posted functions are run before what they decided
	// is carried out: one journal write serves them all.
	maxBatch = 256
	// maxNap bounds the loop's sleep, since its timers do not count suspended
	// time. The watchdog's do.
	maxNap = time.Second
	// stopBound is how long a planned end waits for its tasks beyond the
	// longest grace that it grants them.
	stopBound, stopGrace = 10 * time.Second, 20 * time.Second
	// reportBound is how long it waits for the answers to its last reports.
	reportBound = time.Second
)

// loop owns the agent's state until ctx ends or the core says halt.
func (a *Agent) loop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	a.refresh()
	for {
		select {
		case f := <-a.inbox:
			f()
			a.batch()
		case <-timer.C:
		case <-ctx.Done():
			return a.wind()
		}
		a.step(decide.Tick{})
		a.carryOut()
		if a.halt != nil && a.core.Idle() {
			return a.halt
		}
		timer.Reset(min(maxNap, max(0, time.Duration(a.core.NextWake()-a.cfg.Clock.Boottime()))))
	}
}

// batch runs what else is waiting.
func (a *Agent) batch() {
	for range maxBatch {
		select {
		case f := <-a.inbox:
			f()
		default:
			return
		}
	}
}

// step has the core take an event; what it decides waits for carryOut.
func (a *Agent) step(e decide.Event) {
	a.acts = append(a.acts, a.core.Step(a.cfg.Clock.Boottime(), e)...)
}

// wind ends a run: tasks stay, or are stopped and reported while a session
// stands.
func (a *Agent) wind() error {
	if !a.cfg.StopTasks {
		return a.halt
	}
	a.step(decide.StopAll{Reason: "the agent is ending"})
	a.carryOut()
	until := time.NewTimer(stopBound + stopGrace)
	defer until.Stop()
	for !a.core.Idle() {
		select {
		case f := <-a.inbox:
			f()
			a.step(decide.Tick{})
			a.carryOut()
		case <-until.C:
			return errors.Join(a.halt, errors.New("tasks are left that did not end in time; the watchdog ends them at their deadlines"))
		}
	}
	return a.lastReports()
}

// lastReports waits a moment for the region to hear of the tasks' ends.
func (a *Agent) lastReports() error {
	until := time.NewTimer(reportBound)
	defer until.Stop()
	for a.core.Holding() && a.core.Connected() {
		select {
		case f := <-a.inbox:
			f()
			a.carryOut()
		case <-until.C:
			return a.halt
		}
	}
	return a.halt
}

// carryOut does what was decided. Ending tasks comes first and waits for
// nothing; then what must last is written; then the rest, in order.
func (a *Agent) carryOut() {
	for len(a.acts) > 0 || len(a.dirty) > 0 {
		acts := a.acts
		a.acts = nil
		starting := map[gpuai.Token]bool{}
		rest := acts[:0:0]
		for _, act := range acts {
			if s, ok := act.(decide.Start); ok {
				starting[s.Assignment.Lease.ID] = true
			}
			if t := endingOf(act); t != 0 && !starting[t] {
				a.do(act)
			} else {
				rest = append(rest, act)
			}
		}
		failed := a.record(rest)
		for _, act := range rest {
			if s, ok := act.(decide.Start); ok && failed != nil {
				a.step(decide.TaskNotStarted{Lease: s.Assignment.Lease.ID, State: gpuai.ReportLost, Reason: a.drained})
				continue
			}
			a.do(act)
		}
	}
	a.counts.see(a.core)
}

// endingOf returns the lease whose task an action ends or extends, or 0.
func endingOf(act decide.Action) gpuai.Token {
	switch act := act.(type) {
	case decide.Kill:
		return act.Lease
	case decide.Stop:
		return act.Lease
	case decide.Extend:
		return act.Lease
	}
	return 0
}

// record journals what acts and changed records say, in one write.
func (a *Agent) record(acts []decide.Action) error {
	var c store.JournalChange
	for _, act := range acts {
		switch act := act.(type) {
		case decide.Remember:
			a.remember(act.Identity)
			c.Identity = &a.identity
		case decide.Start:
			t := act.Assignment.Lease.ID
			a.records[t] = &store.JournalLease{Assignment: act.Assignment, State: store.JournalStarting, BootID: a.boot}
			a.dirty[t] = true
		case decide.SendReport:
			if act.First {
				a.recordReport(act.Report)
			}
		case decide.Forget:
			if a.records[act.Lease] != nil {
				delete(a.records, act.Lease)
				c.Delete = append(c.Delete, act.Lease)
			}
			delete(a.dirty, act.Lease)
		}
	}
	for t := range a.dirty {
		if r := a.records[t]; r != nil {
			c.Put = append(c.Put, *r)
		}
	}
	clear(a.dirty)
	if c.Empty() || a.drained != "" && c.Identity == nil && len(c.Put) == 0 {
		return nil
	}
	err := a.journal.Commit(c)
	if err != nil {
		a.drain(err)
	}
	return err
}

// remember takes over what the region says of this agent.
func (a *Agent) remember(id decide.Identity) {
	a.identity.Incarnation, a.identity.BootID = id.Incarnation, a.boot
	a.identity.Epoch, a.identity.RestoreID = id.Epoch, id.RestoreID
	a.takeOver = false
	if wd := a.watchdog(); wd != nil {
		if _, _, err := wd.Hello(id.Incarnation); err != nil {
			a.log.Error("the watchdog does not take the new incarnation", "error", err)
		}
	}
}

func (a *Agent) recordReport(r gpuai.Report) {
	rec := a.records[r.Lease]
	if rec == nil {
		return // refused before anything was done: repeated from memory only
	}
	rec.Seq = r.Seq
	rec.Unsent = append(rec.Unsent, r)
	switch r.State {
	case gpuai.ReportRunning, gpuai.ReportResolved, gpuai.ReportPrepared:
	case gpuai.ReportUnkillable:
		rec.State = store.JournalUnkillable
		a.taint(r.Unclean, unkillable(r.Lease))
	default:
		rec.State = store.JournalEnded
		a.taint(r.Unclean, r.Reason)
	}
	a.dirty[r.Lease] = true
}

// taint takes devices out of use until they are seen clean. What was not clean
// at a release outranks a task that could not be killed: the end of the task
// says nothing of it.
func (a *Agent) taint(ids []gpuai.DeviceID, why string) {
	if len(ids) == 0 {
		return
	}
	for _, id := range ids {
		if old, tainted := a.devices.unclean[id]; !tainted || strings.HasPrefix(old, unkillablePrefix) {
			a.devices.unclean[id] = why
		}
	}
	a.saveTaints()
}

const unkillablePrefix = "a task on it could not be killed, lease "

// unkillable is why the devices of a task are unclean that outlived its kill.
func unkillable(t gpuai.Token) string { return unkillablePrefix + t.String() }

// cleaned takes the devices back into use of a task that could not be killed,
// is gone now, and whose devices its driver has released clean.
func (a *Agent) cleaned(l *gpuai.Lease, unclean []gpuai.DeviceID) {
	why, n := unkillable(l.ID), len(a.devices.unclean)
	for _, d := range l.Devices {
		if a.devices.unclean[d] == why && !slices.Contains(unclean, d) {
			delete(a.devices.unclean, d)
		}
	}
	if len(a.devices.unclean) < n {
		a.saveTaints()
	}
}

// saveTaints journals which devices are unclean, and offers the rest.
func (a *Agent) saveTaints() {
	a.identity.Unclean = a.devices.unclean
	if err := a.journal.Commit(store.JournalChange{Identity: &a.identity}); err != nil {
		a.drain(err)
	}
	a.refresh()
}

// drain stops taking leases, since nothing can be remembered any more. Tasks
// go on to their leases' ends.
func (a *Agent) drain(err error) {
	if a.drained != "" {
		return
	}
	a.drained = "the node cannot take leases, as its journal cannot be written"
	var no syscall.Errno
	if errors.As(err, &no) { // and not the path: a tenant may read it
		a.drained += " (" + no.Error() + ")"
		a.drainedFull = no == syscall.ENOSPC || no == syscall.EDQUOT
	}
	a.drained += ": its operator has to make room or replace the disk, and to restart the agent"
	a.log.Error("draining: the agent's journal cannot be written; make room or replace the disk, then restart the agent", "error", err)
	a.step(decide.Drain{Reason: a.drained})
	a.refresh()
}

// do carries out one action.
func (a *Agent) do(act decide.Action) {
	switch act := act.(type) {
	case decide.Start:
		w := a.newWorker(act.Assignment)
		w.deadline.Store(act.Deadline)
		w.order(func() { w.start(act) })
	case decide.Launch:
		if w := a.workers[act.Lease]; w != nil {
			w.order(w.goOn)
		}
	case decide.Meet:
		if w := a.workers[act.Lease]; w != nil {
			w.order(func() { w.meet(act) })
		}
	case decide.Extend:
		if w := a.workers[act.Lease]; w != nil {
			w.deadline.Store(act.Deadline)
			w.extend()
		}
	case decide.UseImage:
		if w := a.workers[act.Lease]; w != nil {
			w.agree(act.Digest)
		}
	case decide.Stop:
		a.end(act.Lease, func(w *worker) { w.stop(act) })
	case decide.Kill:
		a.log.Warn("ending a task at once", "lease", act.Lease, "why", act.Why)
		a.counts.kills.Inc()
		a.end(act.Lease, func(w *worker) { w.kill(act) })
	case decide.Release:
		if w := a.workers[act.Lease]; w != nil {
			w.order(w.release)
		} else { // nothing was done for it
			a.step(decide.Released{Lease: act.Lease})
		}
	case decide.SendBeat:
		a.send(act.Session, gpuai.Frame{Kind: gpuai.FrameBeat, Beat: &act.Beat})
	case decide.SendReport:
		a.sendReport(act)
	case decide.Forget:
		a.forget(act.Lease)
	case decide.Reconnect:
		a.log.Info("leaving the session", "why", act.Why)
		a.hangUp(act.Session, time.Duration(act.After)*time.Millisecond)
	case decide.Alarm:
		a.log.Error(act.Text)
	case decide.Halt:
		a.log.Error("halting: " + act.Err)
		a.halt = errors.New(act.Err)
		a.hangUp(a.lines, 0)
	}
}

// end gives a task's worker an order to end it, and cuts short its start.
func (a *Agent) end(t gpuai.Token, f func(*worker)) {
	if w := a.workers[t]; w != nil {
		w.ending.Store(true)
		w.cancel()
		w.order(func() { f(w) })
	}
}

func (a *Agent) sendReport(act decide.SendReport) {
	r := act.Report
	if act.First && r.State.Ends() {
		if r.State == gpuai.ReportFenced {
			a.counts.fences.Inc()
		}
		a.log.Info("task ended", "lease", r.Lease, "state", r.State, "exit_code", r.ExitCode, "reason", r.Reason)
		if r.State != gpuai.ReportUnkillable {
			a.acknowledge(r.Lease)
		}
	}
	if a.line != nil {
		a.send(a.line.id, gpuai.Frame{Kind: gpuai.FrameReport, Report: &r})
	}
}

// acknowledge lets the watchdog forget a task whose end is journaled.
func (a *Agent) acknowledge(t gpuai.Token) {
	if w := a.workers[t]; w != nil {
		w.order(func() {
			if wd := a.watchdog(); wd != nil {
				_ = wd.Acknowledge(t) // it forgets by itself, later
			}
		})
	}
}

func (a *Agent) forget(t gpuai.Token) {
	a.acknowledge(t)
	if w := a.workers[t]; w != nil {
		w.finish()
		delete(a.workers, t)
	}
	a.setLive(t, false)
	a.collect()
}

// answered keeps a record's unanswered reports as the core does.
func (a *Agent) answered(r gpuai.Reported) {
	rec := a.records[r.Lease]
	if rec == nil {
		return
	}
	n := len(rec.Unsent)
	rec.Unsent = slices.DeleteFunc(rec.Unsent, func(u gpuai.Report) bool { return u.Seq <= r.Seq })
	if len(rec.Unsent) != n {
		a.dirty[r.Lease] = true
	}
}

// refresh looks at the devices anew, tells the region of changes and the core
// of devices that failed under a task.
func (a *Agent) refresh() {
	n := len(a.devices.unclean)
	a.devices.offered = a.devices.list(a.drained)
	for _, d := range a.devices.drivers {
		snap := d.Inventory()
		a.counts.devices.noteErrors(&snap)
	}
	if len(a.devices.unclean) < n {
		a.saveTaints()
		return
	}
	a.tellDevices()
	for t, rec := range a.records {
		if why := failedUnder(a.devices.drivers, &rec.Assignment.Lease); why != "" {
			a.step(decide.DeviceFailed{Lease: t, Reason: why})
		}
	}
}

func (a *Agent) watchDriver(ctx context.Context, d driver) {
	for {
		select {
		case <-d.Changed():
			if why := d.Inventory().Err; why != "" {
				a.log.Warn("driver", "name", d.name, "error", why)
			}
			a.post(a.refresh)
		case <-ctx.Done():
			return
		}
	}
}
