package integration

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai/integration/nursery"
)

// patience bounds every wait for something that should come at once; the
// machine may be busy.
const patience = 20 * time.Second

// pollEvery is the time between two looks at a condition.
const pollEvery = 20 * time.Millisecond

// eventually polls until ok returns nil, and fails the test with what was
// awaited and the last error.
func eventually(t *testing.T, d time.Duration, what string, ok func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	var last error
	for {
		err := ok(ctx)
		if err == nil {
			return
		}
		if last == nil || ctx.Err() == nil {
			last = err // what went wrong says more than that the time is over
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("after %s: no %s: %v", d, what, last)
		}
	}
}

// A proc is a child process in a process group of its own.
type proc struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	out  bytes.Buffer // stdout, read after done
	err  *tail
	done chan struct{}
}

// start starts a program under test. What it leaves behind is killed with the
// test, and its log printed where the test failed.
func start(t *testing.T, name, bin string, args ...string) *proc {
	t.Helper()
	return startWith(t, name, bin, func(*exec.Cmd) {}, args...)
}

// startWith starts a program under test that set has given its input or environment.
func startWith(t *testing.T, name, bin string, set func(*exec.Cmd), args ...string) *proc {
	t.Helper()
	p := &proc{t: t, name: name, cmd: exec.Command(program(bin), args...), err: &tail{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = io.MultiWriter(&p.out, p.err), p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	set(p.cmd)
	p.cmd.WaitDelay = time.Second // a grandchild may hold the pipes
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code is in ProcessState
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the log of %s, process %d:\n%s", name, p.cmd.Process.Pid, p.err)
		}
	})
	return p
}

// signal sends a signal to the process, and to no other of its group.
func (p *proc) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("sending %s to %s: %v", s, p.name, err)
	}
}

// kill kills the process with -9 and waits until it is gone.
func (p *proc) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	<-p.done
}

// alive reports whether the process has not ended.
func (p *proc) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// exit waits for the process's own end and returns its exit code.
func (p *proc) exit(d time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(d):
		p.t.Fatalf("%s did not end within %s", p.name, d)
		return -1
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // guards below
	buf []byte
}

const tailBytes = 64 << 10

// Write implements io.Writer.
func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if len(l.buf) > 2*tailBytes {
		l.buf = append(l.buf[:0], l.buf[len(l.buf)-tailBytes:]...)
	}
	return len(p), nil
}

// String returns what is kept.
func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

// scratch returns a directory of the test's own. When the test ends, every
// process that was told of it is killed first: tasks and watchdogs outlive
// their agent by design.
func scratch(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := nursery.KillNaming(dir, patience); err != nil {
			t.Error(err)
		}
	})
	return dir
}
