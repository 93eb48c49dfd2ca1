package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/store"
)

const (
	// maxPIDs and maxFiles bound a task that says nothing of them.
	maxPIDs  = 4096
	maxFiles = 65536
)

// A worker carries out what concerns one lease, in order, beside the loop: its
// orders wait for drivers, disks and the watchdog.
type worker struct {
	a      *Agent
	lease  gpuai.Lease
	assign gpuai.Assignment
	region gpuai.RegionID

	ctx    context.Context // of the start; an order to end cancels it
	cancel context.CancelFunc
	// deadline is the newest; ending says that the task is to end.
	deadline atomic.Int64
	ending   atomic.Bool
	started  atomic.Bool // the watchdog has it
	// unusable are devices that the start found to be so: set and read in order.
	unusable    []gpuai.DeviceID
	unusableWhy string
	pulling     pulling
	// mesh is where its gang's members on other nodes reach it; nil: they do not.
	mesh *gpuai.MeshPoint
	// spaces are the namespaces of a sandbox that is being started.
	spaces   []*os.File
	saver    atomic.Pointer[saver] // nil: its checkpoints are not stored
	saveTime gpuai.Duration        // see saver.until
	// ready is a task that waits for its gang. Only orders see it.
	ready *readyTask

	mu      sync.Mutex // guards below
	orders  []func()
	working bool
	notes   []string // for its user, see sayTask
}

func (a *Agent) newWorker(as gpuai.Assignment) *worker {
	w := &worker{a: a, assign: as, lease: as.Lease, region: a.region, saveTime: saveTimeMin}
	w.pulling.agreed = make(chan string, 1)
	if a.core != nil {
		w.saveTime = max(saveTimeMin, a.core.Policy().CheckpointMax)
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	a.workers[as.Lease.ID] = w
	a.setLive(as.Lease.ID, true)
	return w
}

// order queues f; it never blocks.
func (w *worker) order(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orders = append(w.orders, f)
	if !w.working {
		w.working = true
		go w.work()
	}
}

func (w *worker) work() {
	for {
		w.mu.Lock()
		if len(w.orders) == 0 {
			w.working = false
			w.mu.Unlock()
			return
		}
		f := w.orders[0]
		w.orders = w.orders[1:]
		w.mu.Unlock()
		f()
	}
}

func (w *worker) finish() { w.cancel() }

// tell has the loop take an event about this lease.
func (w *worker) tell(e decide.Event) { w.a.post(func() { w.a.step(e) }) }

// errProcess is why a node without the process runtime fails a task.
const errProcess = "this node does not run plain processes: its operator has not allowed the process runtime"

// start reserves, prepares and starts the task.
func (w *worker) start(act decide.Start) {
	no := decide.TaskNotStarted{Lease: w.lease.ID, State: gpuai.ReportFailed}
	defer func() {
		if w.ready == nil {
			w.closeSpaces()
		}
	}()
	prepare := w.prepare
	if w.assign.Task.Runtime == gpuai.RuntimeOCI {
		prepare = w.prepareBox
	}
	spec, err := prepare(act, &no)
	if w.ending.Load() {
		no.State, no.End, err = gpuai.ReportStopped, gpuai.EndOther, errors.New(errNotStarted)
	}
	if err != nil {
		no.Reason = w.who() + ": " + err.Error()
		w.note(no.Reason)
		w.setIdle(no)
		return
	}
	if act.Hold || w.mesh != nil {
		w.ready = &readyTask{spec, act.KillBudget}
		w.tell(decide.TaskPrepared{Lease: w.lease.ID, Mesh: w.mesh})
		return
	}
	w.run(&readyTask{spec, act.KillBudget})
}

// A readyTask has all that it needs to be started.
type readyTask struct {
	spec       *watchdog.Spec
	killBudget gpuai.Duration
}

// goOn starts the task that waited for its gang. One that is to end meanwhile is
// left to that order.
func (w *worker) goOn() {
	if r := w.ready; r != nil && !w.ending.Load() {
		defer w.closeSpaces()
		w.ready = nil
		w.run(r)
	}
}

// giveUp tells of a task that waited for its gang and is to end.
func (w *worker) giveUp() {
	if w.ready != nil {
		defer w.closeSpaces()
		w.ready = nil
		w.setIdle(decide.TaskNotStarted{Lease: w.lease.ID, State: gpuai.ReportStopped, Reason: errNotStarted})
	}
}

const errNotStarted = "stopped before it was started"

// setIdle tells that nothing runs.
func (w *worker) setIdle(no decide.TaskNotStarted) {
	w.forgetSecrets()
	w.a.setLive(w.lease.ID, false)
	w.tell(no)
}

// run has the watchdog start the task.
func (w *worker) run(r *readyTask) {
	no := decide.TaskNotStarted{Lease: w.lease.ID}
	spec := r.spec
	spec.Deadline = w.deadline.Load()
	task, err := w.launch(spec)
	if err != nil {
		no.State, no.Code, no.End, no.Reason = gpuai.ReportFailed, 127, gpuai.EndSandbox, err.Error()
		if w.assign.Task.Runtime != gpuai.RuntimeOCI {
			no.End = gpuai.EndOther
		}
		var refused *watchdog.RefusedError
		if !errors.As(err, &refused) {
			// Whether it was started is not known: make sure that it is not.
			no.State, no.Code = gpuai.ReportLost, 0
			w.sweep(watchdog.Task{Lease: w.lease.ID}, r.killBudget)
		} else if watchdog.Boottime() >= spec.Deadline {
			no.State, no.Code = gpuai.ReportFenced, 0
		}
		w.setIdle(no)
		return
	}
	w.started.Store(true)
	w.a.post(func() { w.a.started(task) })
	w.push()
}

func (w *worker) launch(spec *watchdog.Spec) (watchdog.Task, error) {
	wd := w.a.watchdog()
	if wd == nil {
		return watchdog.Task{}, watchdog.ErrGone
	}
	return wd.Start(spec)
}

// prepare makes the task's directory and reserves its devices.
func (w *worker) prepare(act decide.Start, no *decide.TaskNotStarted) (*watchdog.Spec, error) {
	task := &w.assign.Task
	switch {
	case task.Runtime != gpuai.RuntimeProcess && task.Runtime != "":
		return nil, fmt.Errorf("this node has no runtime %q", task.Runtime)
	case !w.a.cfg.AllowProcess:
		return nil, errors.New(errProcess)
	}
	dir := w.a.taskDir(w.lease.ID)
	work := filepath.Join(dir, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		no.State = gpuai.ReportLost
		return nil, fmt.Errorf("make the task's directory: %w", err)
	}
	w.a.uploads.expect(w.lease.TaskRef, w.lease.ID)
	saved, err := w.checkpoints(no)
	if err != nil {
		return nil, err
	}
	given, err := w.secrets(no)
	if err != nil {
		return nil, err
	}
	no.State = gpuai.ReportFailed
	grant, err := reserve(w.ctx, w.a.devices.drivers, &w.lease)
	if err != nil {
		no.State, no.End = gpuai.ReportGPUError, gpuai.EndDevice
		return nil, err
	}
	env := taskEnv(&w.assign, hostEnv(), taskPlace{w.region, work, grant.Env, w.a.cfg.Address, w.a.cfg.Interface})
	saved.env(env, filepath.Join(dir, checkpointDir), filepath.Join(dir, resumeDir))
	w.startSaver(saved.saver)
	sayWhere(env, given, filepath.Join(dir, secretsDir))
	argv, err := w.command(dir, env)
	if err != nil {
		no.State = gpuai.ReportLost
		return nil, err
	}
	argv, many, err := launched(&w.assign, argv, env)
	if err != nil {
		return nil, err
	}
	secretEnv(env, given) // argv is for all to see
	if err := writeSecrets(filepath.Join(dir, secretsDir), given); err != nil {
		no.State = gpuai.ReportLost
		return nil, err
	}
	if many {
		argv = append([]string{w.a.cfg.Watchdog}, argv...)
	}
	spec := &watchdog.Spec{
		Lease: w.lease.ID, Incarnation: w.lease.Incarnation, KillBudget: int64(act.KillBudget) * 1e6,
		Argv: argv, Env: envList(env), Cwd: work, LogDir: dir, LogBytes: w.a.cfg.LogBytes,
		CPU: w.lease.CPU, Memory: w.lease.Memory, PIDs: maxPIDs, NoFile: maxFiles,
	}
	if task.Cwd != "" {
		spec.Cwd = task.Cwd
	}
	return spec, nil
}

// command is the task's program and arguments.
func (w *worker) command(dir string, env map[string]string) ([]string, error) {
	task := &w.assign.Task
	if task.Script != "" {
		path := filepath.Join(dir, "script")
		if err := os.WriteFile(path, []byte(task.Script), 0o600); err != nil {
			return nil, fmt.Errorf("write the task's script: %w", err)
		}
		return append([]string{"/bin/sh", path}, expandAll(task.Args, env)...), nil
	}
	return torch(task, append(expandAll(task.Command, env), expandAll(task.Args, env)...)), nil
}

// extend tells the watchdog of a later deadline.
func (w *worker) extend() { w.order(w.push) }

// push gives the watchdog the newest deadline. It refuses when the task is
// over; when it cannot be reached, it fences.
func (w *worker) push() {
	if wd := w.a.watchdog(); wd != nil && w.started.Load() {
		_ = wd.Extend(w.lease.ID, w.deadline.Load())
	}
}

// stop ends the task with grace. One that was not started has been told of.
func (w *worker) stop(act decide.Stop) {
	if !w.started.Load() {
		w.giveUp()
		return
	}
	w.saveBy(max(act.Grace, act.Save.Grace))
	if wd := w.a.watchdog(); wd != nil {
		_ = wd.Stop(w.lease.ID, act.Grace, act.Save) // refused: it has ended, and news comes
	}
}

// kill ends the task at once: through the watchdog, or beside it if that does
// not answer.
func (w *worker) kill(act decide.Kill) {
	if !w.started.Load() {
		w.giveUp()
		return
	}
	w.saveNoMore()
	wd := w.a.watchdog()
	if wd == nil || wd.Kill(w.lease.ID, act.Budget) != nil {
		w.a.log.Error("the watchdog does not answer, killing without it", "lease", w.lease.ID)
		w.sweep(w.task(), act.Budget)
	}
}

// task is what is known of the lease's process; the loop's record may be read
// only there.
func (w *worker) task() watchdog.Task {
	ch := make(chan watchdog.Task, 1)
	w.a.post(func() {
		t := watchdog.Task{Lease: w.lease.ID}
		if r := w.a.records[w.lease.ID]; r != nil {
			t = recordedTask(r)
		}
		ch <- t
	})
	select {
	case t := <-ch:
		return t
	case <-w.a.ended:
		return watchdog.Task{Lease: w.lease.ID}
	}
}

func recordedTask(r *store.JournalLease) watchdog.Task {
	return watchdog.Task{Lease: r.Assignment.Lease.ID, PID: int(r.PID), PIDStart: r.PIDStart, Cgroup: r.Cgroup}
}

func (w *worker) sweep(t watchdog.Task, budget gpuai.Duration) bool {
	return watchdog.Sweep(w.a.cfg.DataDir, w.a.path(tasksDir), t, max(budget, gpuai.Second))
}

// lost makes sure that a task the watchdog does not know is gone, and tells.
func (w *worker) lost(t watchdog.Task, budget gpuai.Duration, reason string) {
	if !w.sweep(t, budget) {
		w.tell(decide.TaskUnkillable{Lease: w.lease.ID, Reason: reason + ", and what is left of it cannot be killed"})
		for !w.sweep(t, budget) {
			if w.a.over() {
				return
			}
		}
	}
	w.a.setLive(w.lease.ID, false)
	w.tell(decide.TaskEnded{Lease: w.lease.ID, By: decide.ByLoss, Reason: reason})
}

// release gives the devices back, once the task's last checkpoint is published
// or its time is over: the region must not end the lease before.
func (w *worker) release() {
	w.forgetSecrets()
	if !w.finishSaver() {
		return
	}
	w.a.uploads.add(w.lease.ID) // nothing writes there any more
	left := releaseAll(context.Background(), w.a.devices.drivers, &w.lease)
	if len(w.unusable) > 0 {
		left = append(left, dirt{devices: w.unusable, why: w.unusableWhy})
	}
	var unclean []gpuai.DeviceID
	why := ""
	for _, d := range left {
		unclean, why = append(unclean, d.devices...), "devices are out of use: "+d.why
	}
	unclean = slices.Compact(slices.Sorted(slices.Values(unclean)))
	w.closeBox()
	w.a.post(func() {
		w.soil(left)
		w.a.cleaned(&w.lease, unclean)
		w.a.step(decide.Released{Lease: w.lease.ID, Unclean: unclean, Reason: why})
	})
}

// over reports whether the loop has ended.
func (a *Agent) over() bool {
	select {
	case <-a.ended:
		return true
	default:
		return false
	}
}
