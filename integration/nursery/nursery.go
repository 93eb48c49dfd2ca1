// Package nursery starts the processes of the programs that show the real
// binaries at work, and sees to it that none of them outlives its program.
package nursery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Nursery starts processes, and sees to it that none outlives this one: it is
// the subreaper of all that they fork, so whatever is left when it clears is a
// descendant of its own, found by parentage and not by name. It is safe for
// concurrent use.
type Nursery struct {
	logs string // directory of their output
	// died is called when a process ends that was not told to.
	died func(error)
	jobs chan func() // run by the one thread that forks
	// Grace is the time between asking and killing in Clear; 8 s.
	Grace time.Duration

	mu    sync.Mutex // guards below
	count map[string]int
	deaf  bool
}

// A Process is a child.
type Process struct {
	Name string
	Log  string        // file of its output
	Done chan struct{} // closed when it has ended
	cmd  *exec.Cmd
	told sync.Once
	end  chan struct{} // closed when it may end
}

// New returns a nursery whose processes write into a directory of logs. died is
// called when a process ends that was not told to.
func New(logs string, died func(error)) (*Nursery, error) {
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for logs: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become a subreaper: %w", err)
	}
	n := &Nursery{logs: logs, died: died, jobs: make(chan func()), Grace: 8 * time.Second, count: map[string]int{}}
	go func() {
		// Children die with the thread that forked them: it must not end.
		runtime.LockOSThread()
		for job := range n.jobs {
			job()
		}
	}()
	return n, nil
}

// Start runs a program in a process group of its own, with its output in a log
// named for it. Variables of env come on top of this process's environment.
func (n *Nursery) Start(name string, env []string, argv ...string) (*Process, error) {
	n.mu.Lock()
	n.count[name]++
	file := filepath.Join(n.logs, fmt.Sprintf("%s.%d.log", name, n.count[name]))
	n.mu.Unlock()
	out, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	p := &Process{Name: name, Log: file, Done: make(chan struct{}), end: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	n.jobs <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go n.await(p)
	return p, nil
}

// await reaps a process, and tells of an end that nobody asked for.
func (n *Nursery) await(p *Process) {
	_ = p.cmd.Wait() // its state says the same
	defer close(p.Done)
	n.mu.Lock()
	deaf := n.deaf
	n.mu.Unlock()
	select {
	case <-p.end:
	default:
		if deaf {
			return
		}
		n.died(fmt.Errorf("%s %w (%s); the end of its log: %s", p.Name, ErrEnded, p.cmd.ProcessState, LastLine(p.Log)))
	}
}

// Deaf stops all calls of died: from now on any process may end.
func (n *Nursery) Deaf() { n.setDeaf(true) }

// Hear ends Deaf.
func (n *Nursery) Hear() { n.setDeaf(false) }

func (n *Nursery) setDeaf(deaf bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf = deaf
}

// ErrEnded is wrapped by what died is told.
var ErrEnded = errors.New("ended by itself")

// Signal tells a process to end in one way or another.
func (p *Process) Signal(s os.Signal) error {
	p.MayEnd()
	return p.Poke(s)
}

// MayEnd says that the process's end, from now on, is nothing to be told of.
func (p *Process) MayEnd() { p.told.Do(func() { close(p.end) }) }

// Poke sends a signal that is not to end the process, such as SIGSTOP.
func (p *Process) Poke(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// PID returns the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Alive reports whether the process has not ended.
func (p *Process) Alive() bool {
	select {
	case <-p.Done:
		return false
	default:
		return true
	}
}

// Kill kills the process with -9 and waits until it is gone.
func (p *Process) Kill() error {
	err := p.Signal(syscall.SIGKILL)
	if err == nil {
		<-p.Done
	}
	return err
}

// ExitCode returns the exit code of a process that has ended; -1 is a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Clear ends all descendants: asked first, then killed. It returns an error
// when one could not be.
func (n *Nursery) Clear() error {
	const killed = 10 * time.Second
	began := time.Now()
	for sent := map[int]bool{}; time.Since(began) < n.Grace; time.Sleep(20 * time.Millisecond) {
		left := Descendants()
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			if !sent[pid] {
				sent[pid] = true
				_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended
			}
		}
	}
	for ; time.Since(began) < n.Grace+killed; time.Sleep(20 * time.Millisecond) {
		left := Descendants()
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return fmt.Errorf("processes %v are left and could not be killed", Descendants())
}

// Descendants lists the live processes below this one. Orphans of orphans are
// among them, since this is their subreaper.
func Descendants() (out []int) {
	parents := map[int]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		pid, errPID := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		_, rest, _ := strings.Cut(string(b), ") ") // the name may have spaces
		field := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
		if errPID != nil || rest == "" || len(field) < 2 || field[0] == "Z" {
			continue
		}
		if ppid, err := strconv.Atoi(field[1]); err == nil {
			parents[pid] = ppid
		}
	}
	own := os.Getpid()
	for pid := range parents {
		for up := parents[pid]; up > 1; up = parents[up] {
			if up == own {
				out = append(out, pid)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

// LastLine returns the last line of a log.
func LastLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// Poll calls f until it is true, fails, or ctx ends.
func Poll(ctx context.Context, what string, every time.Duration, f func() (bool, error)) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		ok, err := f()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-t.C:
		}
	}
}
