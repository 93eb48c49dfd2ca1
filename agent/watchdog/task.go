package watchdog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
)

// A task is one task in the watchdog. Its server's mu guards it.
type task struct {
	Task
	spec    *Spec
	group   group
	timer   *timer
	logs    sync.WaitGroup
	started chan struct{} // closed when its start is decided
	failed  string        // why it did not start
	reaped  chan struct{} // closed when its first process was waited for
	status  syscall.WaitStatus
	hunted  bool          // a hunt is on
	saving  chan struct{} // closed to end the time it has to save its work; nil when it has none
	budget  int64         // of the hunt, ns
}

// start starts s.Lease's task; a second call for the same lease waits for the
// first and answers alike.
func (s *Server) start(spec *Spec) (Task, error) {
	s.mu.Lock()
	if t := s.tasks[spec.Lease]; t != nil {
		s.mu.Unlock()
		<-t.started
		return s.view(t)
	}
	t, err := s.admit(spec)
	s.mu.Unlock()
	if err != nil {
		return Task{}, err
	}
	go s.watch(t)
	if err := s.launch(t); err != nil {
		s.mu.Lock()
		t.failed = err.Error()
		s.mu.Unlock()
		s.abandon(t)
	} else {
		s.mu.Lock()
		if t.State == Starting {
			t.State = Running
		}
		s.mu.Unlock()
	}
	close(t.started)
	return s.view(t)
}

func (s *Server) view(t *task) (Task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.failed != "" {
		return Task{}, errors.New(t.failed)
	}
	return t.Task, nil
}

// admit checks a start and arms its timer. mu is held.
func (s *Server) admit(spec *Spec) (*task, error) {
	switch {
	case spec.Lease == 0 || len(spec.Argv) == 0 || spec.Argv[0] == "":
		return nil, errors.New("a task needs a lease and a program")
	case spec.Incarnation != s.incarnation:
		return nil, fmt.Errorf("the lease is of incarnation %s and this host's node has %s", spec.Incarnation, s.incarnation)
	case spec.Deadline <= Boottime():
		return nil, errors.New("the lease's deadline has passed")
	}
	tm, err := newTimer()
	if err != nil {
		return nil, err
	}
	if err := tm.set(spec.Deadline); err != nil {
		tm.close()
		return nil, err
	}
	t := &task{
		Task:   Task{Lease: spec.Lease, Incarnation: spec.Incarnation, Deadline: spec.Deadline},
		spec:   spec,
		timer:  tm,
		budget: spec.KillBudget,
		reaped: make(chan struct{}), started: make(chan struct{}),
	}
	s.tasks[spec.Lease] = t
	return t, nil
}

// watch fences t when its timer fires.
func (s *Server) watch(t *task) {
	for t.timer.wait() {
		s.mu.Lock()
		due := Boottime() >= t.Deadline
		s.mu.Unlock()
		if due {
			s.end(t, ByDeadline, t.spec.KillBudget)
		}
	}
}

// launch forks the shim, limits it and lets it become the task.
func (s *Server) launch(t *task) error {
	var err error
	if t.group, err = s.cgroups.create(t.spec); err != nil {
		return err
	}
	s.mu.Lock()
	t.Cgroup = t.group.main()
	s.mu.Unlock()
	p, err := openPipes(t)
	if err != nil {
		return err
	}
	defer p.close()
	if err := s.fork(t, p); err != nil {
		return fmt.Errorf("start a task: %w", err)
	}
	p.closeChild()
	if err := t.group.add(t.PID); err != nil {
		return err
	}
	if err := s.release(t, p.gate); err != nil {
		return err
	}
	why, err := io.ReadAll(p.status)
	if err != nil {
		return fmt.Errorf("start a task: %w", err)
	}
	if len(why) > 0 {
		return errors.New(string(why))
	}
	return nil
}

// release opens the gate, unless the task is to end already.
func (s *Server) release(t *task, gate *os.File) error {
	o := shimOrder{Argv: t.spec.Argv, Env: t.spec.Env, Cwd: t.spec.Cwd, NoFile: t.spec.NoFile, Parent: os.Getpid(), Box: t.spec.Box}
	if !s.cgroups.limits("pids") {
		o.NProc = uint64(max(t.spec.PIDs, 0))
	}
	order, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("start a task: %w", err)
	}
	s.mu.Lock()
	late := t.hunted || Boottime() >= t.Deadline || t.spec.Incarnation != s.incarnation
	s.mu.Unlock()
	if late {
		return errors.New("the task was to end before it had started")
	}
	if _, err := gate.Write(order); err != nil {
		return fmt.Errorf("start a task: %w", err)
	}
	return gate.Close()
}

// fork forks the shim on the thread that lives as long as the watchdog, so
// that Pdeathsig means the watchdog's death. mu is held over the fork: nobody
// sees the process before the task has its PID.
func (s *Server) fork(t *task, p *pipes) error {
	done := make(chan error, 1)
	s.forks <- func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.hunted || Boottime() >= t.Deadline || t.spec.Incarnation != s.incarnation {
			done <- errors.New("its deadline has passed, or it was stopped")
			return
		}
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"gpuai-task", shimArg}, &syscall.ProcAttr{
			Dir: "/", Env: []string{}, Files: p.child,
			Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		})
		if err == nil {
			t.PID = pid
			proc, _ := readProcess(pid)
			t.PIDStart = proc.start
			s.byPID[pid] = t
		}
		done <- err
	}
	return <-done
}

// abandon clears away a task that did not start.
func (s *Server) abandon(t *task) {
	s.mu.Lock()
	forked := t.PID != 0
	s.mu.Unlock()
	if forked {
		s.end(t, ByKill, t.spec.KillBudget)
		return // the hunt forgets it
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.timer.close()
	t.group.remove()
	delete(s.tasks, t.Lease)
}

// pipes are the files of a start.
type pipes struct {
	child        []uintptr // the shim's, by number
	ours, theirs []*os.File
	gate, status *os.File
}

// openPipes makes the task's output files and the pipes to the shim.
func openPipes(t *task) (p *pipes, err error) {
	p = &pipes{}
	defer func() {
		if err != nil {
			p.closeChild()
			p.close()
		}
	}()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return p, err
	}
	p.theirs = append(p.theirs, null)
	for _, stream := range []string{"stdout", "stderr"} {
		if err := p.openLog(t, stream); err != nil {
			return p, err
		}
	}
	gateRead, gate, err := os.Pipe()
	if err != nil {
		return p, err
	}
	p.theirs, p.ours, p.gate = append(p.theirs, gateRead), append(p.ours, gate), gate
	status, statusWrite, err := os.Pipe()
	if err != nil {
		return p, err
	}
	p.theirs, p.ours, p.status = append(p.theirs, statusWrite), append(p.ours, status), status
	for _, f := range p.theirs {
		p.child = append(p.child, f.Fd())
	}
	return p, nil
}

// openLog gives the task a pipe for a stream and copies it to its log.
func (p *pipes) openLog(t *task, stream string) error {
	w, err := newLogWriter(t.spec.LogDir, stream, t.spec.LogBytes)
	if err != nil {
		return err
	}
	r, child, err := os.Pipe()
	if err != nil {
		w.close()
		return fmt.Errorf("start a task: %w", err)
	}
	p.theirs = append(p.theirs, child)
	t.logs.Go(func() {
		defer w.close()
		defer r.Close()
		_, _ = io.Copy(w, r) // ends when every holder of the pipe is gone
	})
	return nil
}

func (p *pipes) closeChild() {
	for _, f := range p.theirs {
		f.Close()
	}
	p.theirs = nil
}

// close closes what is left; a gate closed without an order ends the shim.
func (p *pipes) close() {
	for _, f := range p.ours {
		f.Close()
	}
	p.closeChild()
}

// signals are those that a task may be told by to save its work.
var signals = [gpuai.NumSignals]syscall.Signal{
	gpuai.SIGUSR1: syscall.SIGUSR1, gpuai.SIGUSR2: syscall.SIGUSR2, gpuai.SIGHUP: syscall.SIGHUP,
	gpuai.SIGINT: syscall.SIGINT, gpuai.SIGTERM: syscall.SIGTERM,
}

// saving begins the time that t has to save its work: over is closed to end it.
// It is nil when t has none, or not any more; done says that an earlier order
// sees to its stop.
func (s *Server) saving(t *task, r *request) (over chan struct{}, done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := r.Signal > gpuai.SignalNone && int(r.Signal) < len(signals) && r.Save > 0
	if t.saving != nil && !asked {
		close(t.saving) // the earlier order goes on at once
		t.saving = nil
		return nil, true
	}
	if t.saving != nil {
		return nil, true
	}
	if !asked || t.By != ByItself || t.PID == 0 || t.State == Exited || t.hunted {
		return nil, false
	}
	t.saving, t.By = make(chan struct{}), ByStop
	_ = syscall.Kill(t.PID, signals[r.Signal]) // gone already is as good
	return t.saving, false
}

// save gives t the time to save its work. It reports false when t is over, or an
// earlier order sees to its stop.
func (s *Server) save(t *task, r *request) bool {
	over, done := s.saving(t, r)
	if done || over == nil {
		return !done
	}
	left := time.NewTimer(time.Duration(r.Save))
	defer left.Stop()
	select {
	case <-left.C:
		s.mu.Lock()
		t.saving = nil
		s.mu.Unlock()
	case <-over:
	case <-t.reaped:
		return false
	}
	return true
}

// stop sends SIGTERM to t's process group, and kills what is left after grace.
// Before that t may have time to save its work.
func (s *Server) stop(t *task, r request) {
	if !s.save(t, &r) {
		return
	}
	s.mu.Lock()
	if t.State == Exited || t.hunted {
		s.mu.Unlock()
		return
	}
	t.By = max(t.By, ByStop)
	if t.PID != 0 {
		_ = syscall.Kill(-t.PID, syscall.SIGTERM) // gone already is as good
	}
	s.mu.Unlock()
	left := time.NewTimer(time.Duration(r.Span))
	defer left.Stop()
	select {
	case <-left.C:
		s.end(t, ByStop, t.spec.KillBudget)
	case <-t.reaped:
	}
}

// find returns a lease's task.
func (s *Server) find(t gpuai.Token) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[t]
}
