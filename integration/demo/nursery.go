package main

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

// A nursery starts processes, and sees to it that none outlives the demo: this
// process is the subreaper of all that they fork, so whatever is left when it
// clears is a descendant of its own, found by parentage and not by name.
type nursery struct {
	logs string // directory of their output
	// died is called when a process ends that was not told to.
	died  func(error)
	jobs  chan func()   // run by the one thread that forks
	grace time.Duration // between asking and killing

	mu    sync.Mutex // guards below
	count map[string]int
}

// A process is a child of the demo.
type process struct {
	name string
	log  string // file of its output
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	told sync.Once
	end  chan struct{} // closed when it is told to end
}

func newNursery(logs string, died func(error)) (*nursery, error) {
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for logs: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become a subreaper: %w", err)
	}
	n := &nursery{logs: logs, died: died, jobs: make(chan func()), grace: 8 * time.Second, count: map[string]int{}}
	go func() {
		// Children die with the thread that forked them: it must not end.
		runtime.LockOSThread()
		for job := range n.jobs {
			job()
		}
	}()
	return n, nil
}

// start runs a program in a process group of its own, with its output in a log
// named for it.
func (n *nursery) start(name string, argv ...string) (*process, error) {
	n.mu.Lock()
	n.count[name]++
	file := filepath.Join(n.logs, fmt.Sprintf("%s.%d.log", name, n.count[name]))
	n.mu.Unlock()
	out, err := os.Create(file)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close()
	p := &process{name: name, log: file, done: make(chan struct{}), end: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
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
func (n *nursery) await(p *process) {
	_ = p.cmd.Wait() // its state says the same
	defer close(p.done)
	select {
	case <-p.end:
	default:
		n.died(fmt.Errorf("%s %w (%s); the end of its log: %s", p.name, errEnded, p.cmd.ProcessState, lastLine(p.log)))
	}
}

// errEnded is wrapped by what died is told.
var errEnded = errors.New("ended by itself")

// signal tells a process to end in one way or another.
func (p *process) signal(s os.Signal) error {
	p.told.Do(func() { close(p.end) })
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// clear ends all descendants: asked first, then killed. It returns an error
// when one could not be.
func (n *nursery) clear() error {
	const killed = 10 * time.Second
	began := time.Now()
	for sent := map[int]bool{}; time.Since(began) < n.grace; time.Sleep(20 * time.Millisecond) {
		left := descendants()
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
	for ; time.Since(began) < n.grace+killed; time.Sleep(20 * time.Millisecond) {
		left := descendants()
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return fmt.Errorf("processes %v of the demo are left and could not be killed", descendants())
}

// descendants lists the live processes below this one. Orphans of orphans are
// among them, since this is their subreaper.
func descendants() (out []int) {
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

// lastLine returns the last line of a log.
func lastLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// poll calls f until it is true, fails, or ctx ends.
func poll(ctx context.Context, what string, every time.Duration, f func() (bool, error)) error {
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
