package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/gpuai/gpuai/integration/nursery"
)

// A starter starts processes that die with this one.
type starter struct {
	dir  string // of their logs
	jobs chan func()

	mu  sync.Mutex // guards below
	all []*process
}

// A process is a child.
type process struct {
	cmd  *exec.Cmd
	log  string
	once sync.Once
	done chan struct{} // closed when it has ended
}

func newStarter(dir string) *starter {
	s := &starter{dir: dir, jobs: make(chan func())}
	go func() {
		// Children die with the thread that forked them: it must not end.
		runtime.LockOSThread()
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

// start starts a process whose standard error goes to a log. Somebody must
// call wait.
func (s *starter) start(name string, cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, log: filepath.Join(s.dir, name+".log"), done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stderr = f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	s.jobs <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, p)
	return p, nil
}

// stop kills what runs: nothing of it is needed any more.
func (s *starter) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.all {
		p.kill()
	}
	close(s.jobs)
}

// wait reaps the process, once.
func (p *process) wait() {
	p.once.Do(func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.done)
	})
	<-p.done
}

// kill kills the process with -9 and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// tail returns the end of the log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2_000):])
}

// ticks is the unit of /proc/PID/stat.
const ticks = 100

// cpu returns the CPU seconds that a process has used.
func (p *process) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if err != nil || len(f) < 13 {
		return 0 // it is gone
	}
	user, _ := strconv.ParseFloat(string(f[11]), 64)
	system, _ := strconv.ParseFloat(string(f[12]), 64)
	return (user + system) / ticks
}

// rss returns a process's resident bytes.
func (p *process) rss() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	f := bytes.Fields(b)
	if err != nil || len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(f[1]), 10, 64)
	return pages * int64(os.Getpagesize())
}

// poll is nursery.Poll at this program's pace.
func poll(ctx context.Context, what string, f func() (bool, error)) error {
	return nursery.Poll(ctx, what, 50*time.Millisecond, f)
}

// pause waits for a while, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
