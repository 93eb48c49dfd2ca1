package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/store"
)

// adopt brings the journal, the watchdog's tasks and the drivers' reservations
// together after a restart, and makes the core.
func (a *Agent) adopt(ctx context.Context) error {
	tasks, err := a.attach(ctx)
	if err != nil {
		return err
	}
	var held []decide.Held
	var later []func() // when the core is there
	var change store.JournalChange
	for t, rec := range a.records {
		seen, task := find(tasks, t)
		switch decide.Judge(decide.Sight{Recorded: a.recordedAs(rec), Seen: seen}) {
		case decide.MoveAdopt:
			a.log.Info("task goes on", "lease", t, "pid", task.PID)
			held = append(held, heldOf(rec, task))
			w := a.revive(rec, task.Deadline)
			w.started.Store(true)
			if task.State == watchdog.Unkillable {
				later = append(later, func() { a.news(task) })
			}
		case decide.MoveCollect:
			held = append(held, heldOf(rec, task))
			a.revive(rec, 0).started.Store(true)
			later = append(later, func() { a.news(task) })
		case decide.MoveSweep:
			held = append(held, heldOf(rec, task))
			w := a.revive(rec, 0)
			later = append(later, func() { a.orphan(w, rec) })
		case decide.MoveForget:
			change.Delete = append(change.Delete, t)
			delete(a.records, t)
		default: // its end is recorded, or its record is of another boot
			if rec.State != store.JournalEnded || len(rec.Unsent) == 0 { // nobody asks
				change.Delete = append(change.Delete, t)
				delete(a.records, t)
				continue
			}
			held = append(held, heldOf(rec, task))
			a.revive(rec, 0)
		}
	}
	for _, task := range tasks {
		later = append(later, func() { a.killUnknown(task) })
	}
	if err := a.journal.Commit(change); err != nil {
		return err
	}
	a.core = decide.New(decide.Config{
		Identity: decide.Identity{Incarnation: a.identity.Incarnation, Epoch: a.identity.Epoch, RestoreID: a.identity.RestoreID},
		Held:     held, Policy: gpuai.DefaultPolicy(), Seed: uint64(a.cfg.Clock.Boottime()),
	})
	for _, f := range later {
		f()
	}
	a.discardUnknown()
	a.uploads.recover(func(t gpuai.Token) bool { return a.records[t] != nil && a.records[t].State != store.JournalEnded })
	return a.recoverDrivers(ctx)
}

// discardUnknown removes what tasks left that no life of the agent released: of a
// host that went down, and of records that are forgotten. Their output stays.
func (a *Agent) discardUnknown() {
	dir, err := os.Open(a.path(tasksDir))
	if err != nil {
		a.log.Warn("old tasks' checkpoint directories stay", "error", err)
		return
	}
	defer dir.Close()
	err = eachName(a.life, dir, func(name string) {
		var t gpuai.Token
		if t.UnmarshalText([]byte(name)) == nil && (a.records[t] == nil || a.records[t].State == store.JournalEnded) {
			a.discard(t)
		}
	})
	if err != nil {
		a.log.Warn("old tasks' checkpoint directories stay", "error", err)
	}
}

// attachTries bounds how often a watchdog is looked for: the one that is found
// may be on its way out, with the lock and the socket still its own.
const attachTries = 5

// attach reaches the watchdog of the data directory, or starts one.
func (a *Agent) attach(ctx context.Context) (tasks []watchdog.Task, err error) {
	for try := range attachTries {
		if try > 0 && !pause(ctx, 100*time.Millisecond) {
			break
		}
		tasks, err = a.tryAttach(ctx)
		var refused *watchdog.RefusedError
		if err == nil || errors.As(err, &refused) || errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return tasks, err
}

func (a *Agent) tryAttach(ctx context.Context) ([]watchdog.Task, error) {
	wd, err := watchdog.Dial(a.cfg.DataDir)
	if err != nil {
		if wd, err = watchdog.Launch(ctx, a.cfg.Watchdog, a.cfg.DataDir); err != nil {
			return nil, err
		}
	}
	tasks, notes, err := wd.Hello(a.identity.Incarnation)
	if err != nil {
		_ = wd.Close() // it may be closed already
		return nil, err
	}
	if notes != "" {
		a.log.Warn(notes)
	}
	a.mu.Lock()
	a.wd = wd
	a.mu.Unlock()
	return tasks, nil
}

func find(tasks []watchdog.Task, t gpuai.Token) (decide.Seen, watchdog.Task) {
	i := slices.IndexFunc(tasks, func(k watchdog.Task) bool { return k.Lease == t })
	switch {
	case i < 0:
		return decide.SeenNot, watchdog.Task{}
	case tasks[i].State == watchdog.Exited:
		return decide.SeenExited, tasks[i]
	default:
		return decide.SeenRunning, tasks[i]
	}
}

func (a *Agent) recordedAs(r *store.JournalLease) decide.Recorded {
	switch {
	case r.State == store.JournalEnded:
		return decide.RecordedEnded
	case r.BootID != a.boot:
		return decide.RecordedOtherBoot
	default:
		return decide.RecordedRunning
	}
}

func heldOf(r *store.JournalLease, task watchdog.Task) decide.Held {
	return decide.Held{
		Assignment: r.Assignment, Running: task.PID != 0 && task.State != watchdog.Exited, Deadline: task.Deadline,
		Seq: r.Seq, Unsent: slices.Clone(r.Unsent), Unkillable: r.State == store.JournalUnkillable,
	}
}

// revive makes the worker of a lease from the journal.
func (a *Agent) revive(r *store.JournalLease, deadline int64) *worker {
	w := a.newWorker(r.Assignment)
	w.deadline.Store(deadline)
	if r.State == store.JournalEnded {
		a.setLive(r.Assignment.Lease.ID, false)
	} else {
		w.reviveSaver()
	}
	return w
}

// orphan settles a lease whose task the watchdog does not have.
func (a *Agent) orphan(w *worker, r *store.JournalLease) {
	task := recordedTask(r)
	budget := a.core.Policy().KillBudget
	w.order(func() {
		w.lost(task, budget, "the task was not there any more after the agent's restart")
	})
}

// killUnknown ends a task of no lease that the journal knows.
func (a *Agent) killUnknown(task watchdog.Task) {
	rec := a.records[task.Lease]
	if rec != nil && rec.State != store.JournalEnded {
		return
	}
	wd := a.watchdog()
	if task.State == watchdog.Exited {
		_ = wd.Acknowledge(task.Lease)
		return
	}
	a.log.Warn("killing a task of no known lease", "lease", task.Lease, "pid", task.PID)
	if err := wd.Kill(task.Lease, a.core.Policy().KillBudget); err != nil {
		a.log.Error("the task goes on to its deadline", "error", err)
	}
}

// recoverDrivers has the drivers release what no lease holds any more.
func (a *Agent) recoverDrivers(ctx context.Context) error {
	var ids []string
	for t := range a.records {
		ids = append(ids, t.String())
	}
	slices.Sort(ids)
	for _, d := range a.devices.drivers {
		_, orphaned, err := d.Recover(ctx, ids)
		if err != nil {
			return err
		}
		for _, id := range orphaned {
			if clean, detail, err := d.Release(ctx, id, true); err != nil || !clean {
				a.log.Warn("devices of an old lease are not clean", "lease", id, "detail", detail, "error", err)
				a.orphans(d, detail)
			}
		}
	}
	return nil
}

// started notes a task's process.
func (a *Agent) started(task watchdog.Task) {
	if r := a.records[task.Lease]; r != nil && r.State == store.JournalStarting {
		r.State, r.Cgroup, r.PID, r.PIDStart = store.JournalRunning, task.Cgroup, int32(task.PID), task.PIDStart
		a.dirty[task.Lease] = true
		a.log.Info("task started", "lease", task.Lease, "job", r.Assignment.JobName, "pid", task.PID)
	}
	a.step(decide.TaskStarted{Lease: task.Lease})
}

// news takes what the watchdog says of a task.
func (a *Agent) news(task watchdog.Task) {
	w := a.workers[task.Lease]
	if w == nil {
		if task.State == watchdog.Exited {
			_ = a.watchdog().Acknowledge(task.Lease)
		}
		return
	}
	if !w.started.Load() {
		// A short task ends before its start was told of: that goes first.
		w.order(func() { a.post(func() { a.settle(task) }) })
		return
	}
	a.settle(task)
}

func (a *Agent) settle(task watchdog.Task) {
	switch task.State {
	case watchdog.Exited:
		end := gpuai.EndOther
		if w := a.workers[task.Lease]; w != nil {
			end = w.explain(&task)
			if task.By == watchdog.ByKill || task.By == watchdog.ByDeadline {
				w.saveNoMore() // it had its time, or has no lease any more
			}
		}
		a.setLive(task.Lease, false)
		a.step(decide.TaskEnded{Lease: task.Lease, By: endedBy(task.By), Code: task.Code, End: end, Reason: task.Reason})
	case watchdog.Unkillable:
		a.step(decide.TaskUnkillable{Lease: task.Lease, Reason: task.Reason})
	}
}

func endedBy(b watchdog.By) decide.EndedBy {
	switch b {
	case watchdog.ByStop:
		return decide.ByStop
	case watchdog.ByKill:
		return decide.ByKill
	case watchdog.ByDeadline:
		return decide.ByDeadline
	default:
		return decide.ByItself
	}
}

// guardWatchdog passes on the watchdog's news, and replaces one that is gone.
func (a *Agent) guardWatchdog(ctx context.Context) {
	for wd := a.watchdog(); ; {
		select {
		case t := <-wd.News():
			a.post(func() { a.news(t) })
		case <-wd.Done():
			a.log.Error("the watchdog is gone, starting another")
			if wd = a.replaceWatchdog(ctx); wd == nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// replaceWatchdog attaches to a watchdog again and settles the tasks that went
// with the old one. It returns nil when ctx has ended.
func (a *Agent) replaceWatchdog(ctx context.Context) *watchdog.Client {
	for {
		done := make(chan struct{})
		var err error
		a.post(func() {
			defer close(done)
			start, cancel := context.WithTimeout(ctx, startTimeout)
			defer cancel()
			var tasks []watchdog.Task
			if tasks, err = a.attach(start); err == nil {
				a.reattached(tasks)
			}
		})
		select {
		case <-done:
		case <-ctx.Done():
			return nil
		}
		if err == nil {
			return a.watchdog()
		}
		a.log.Error("no watchdog: tasks are not started", "error", err)
		if !pause(ctx, time.Second) {
			return nil
		}
	}
}

func (a *Agent) reattached(tasks []watchdog.Task) {
	for t, w := range a.workers {
		rec := a.records[t]
		if rec == nil || rec.State == store.JournalEnded {
			continue
		}
		seen, task := find(tasks, t)
		switch {
		case seen == decide.SeenNot && (rec.State == store.JournalRunning || rec.State == store.JournalUnkillable):
			known, budget := recordedTask(rec), a.core.Policy().KillBudget
			w.order(func() { w.lost(known, budget, "the watchdog died, and the task with it") })
		case seen != decide.SeenNot && task.State != watchdog.Running:
			a.news(task)
		}
	}
}
