package watchdog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// ProcsArg makes the watchdog's binary start the program behind it once for each
// local rank: the launcher "env". It stands before an encoded Procs, and behind
// InitArg in a box. The first process that fails ends the others, and its code
// is the task's.
const ProcsArg = "--procs"

// Procs says what the processes of a task are told each.
type Procs struct {
	// Vars are the variables that differ, by name: the values by local rank.
	// Their lengths are the number of processes.
	Vars map[string][]string `json:"vars"`
	// Grace is between SIGTERM and SIGKILL when one has failed.
	Grace gpuai.Duration `json:"grace_ms"`
}

// Args returns the arguments that have the watchdog's binary start argv.
func (p *Procs) Args(argv []string) ([]string, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("tell the launcher of its processes: %w", err)
	}
	return append([]string{ProcsArg, string(b)}, argv...), nil
}

// maxLine is where a longer line of output is broken, so that each part has its
// mark.
const maxLine = 64 << 10

// drain is how long the output of what the processes left behind is waited for.
const drain = time.Second

// A crew are the processes of a task.
type crew struct {
	Procs
	mu      sync.Mutex // guards below
	pids    []int      // by local rank; 0 once it was reaped
	code    int        // of the first that failed
	stopped bool       // told to end: what follows is no failure of its own

	writing [2]sync.Mutex // to stdout and stderr
	copies  sync.WaitGroup
}

// runProcs runs an order's processes, args[0], of the program behind it, and
// returns the task's exit code.
func runProcs(args []string) int {
	c := &crew{}
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "gpuai: there is no program to run")
		return exitNotFound
	}
	if err := json.Unmarshal([]byte(args[0]), &c.Procs); err != nil {
		fmt.Fprintln(os.Stderr, "gpuai: the order to the launcher is malformed:", err)
		return exitNotRunnable
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded...)
	for rank := range c.size() {
		if code := c.start(rank, args[1:]); code != 0 {
			c.signal(syscall.SIGKILL)
			return code
		}
	}
	go func() {
		for s := range signals {
			if s, ok := s.(syscall.Signal); ok {
				c.signal(s)
			}
		}
	}()
	c.reap()
	c.drain()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code
}

func (c *crew) size() int {
	for _, v := range c.Vars {
		return len(v)
	}
	return 1
}

// start starts the process of a rank; it returns 0, or the code to end with.
func (c *crew) start(rank int, argv []string) int {
	env := map[string]string{}
	for k, v := range c.Vars {
		env[k] = v[min(rank, len(v)-1)]
	}
	own := make([]string, len(argv))
	for i, a := range argv {
		own[i] = expandOwn(a, env)
	}
	all := os.Environ()
	for _, k := range slices.Sorted(maps.Keys(env)) {
		all = append(all, k+"="+env[k]) // the last of a name counts, and there is one: the agent leaves these out
	}
	path, err := lookPath(own[0], all)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpuai:", err)
		return exitNotFound
	}
	out, err := c.outputs(rank)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpuai: start a process:", err)
		return exitNotRunnable
	}
	pid, err := syscall.ForkExec(path, own, &syscall.ProcAttr{
		Env: all, Files: []uintptr{0, out[0].Fd(), out[1].Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	for _, f := range out {
		f.Close()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "gpuai: run %s: %v\n", path, err)
		if errors.Is(err, syscall.ENOENT) {
			return exitNotFound
		}
		return exitNotRunnable
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pids = append(c.pids, pid)
	return 0
}

// ownVariable is a variable in an argument, which only this process can know.
var ownVariable = regexp.MustCompile(`\$(\{[A-Za-z_][A-Za-z_0-9]*\}|[A-Za-z_][A-Za-z_0-9]*)`)

// expandOwn replaces a process's own variables in an argument. The agent has
// replaced the task's.
func expandOwn(arg string, env map[string]string) string {
	return ownVariable.ReplaceAllStringFunc(arg, func(s string) string {
		name := s[1:]
		if name[0] == '{' {
			name = name[1 : len(name)-1]
		}
		if v, ok := env[name]; ok {
			return v
		}
		return s
	})
}

// outputs returns pipes whose lines are copied to stdout and stderr, each marked
// with the local rank.
func (c *crew) outputs(rank int) (out [2]*os.File, err error) {
	for i, to := range []*os.File{os.Stdout, os.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return out, err
		}
		out[i] = w
		c.copies.Go(func() {
			defer r.Close()
			c.copyLines(r, to, &c.writing[i], "["+strconv.Itoa(rank)+"] ")
		})
	}
	return out, nil
}

func (c *crew) copyLines(from, to *os.File, mu *sync.Mutex, mark string) {
	r := bufio.NewReaderSize(from, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			out := append([]byte(mark), line...)
			if line[len(line)-1] != '\n' {
				out = append(out, '\n')
			}
			mu.Lock()
			_, _ = to.Write(out) // whoever reads has gone, and ends us
			mu.Unlock()
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// signal hands a signal to every process.
func (c *crew) signal(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = c.stopped || s == syscall.SIGTERM
	for _, pid := range c.pids {
		if pid == 0 {
			continue
		}
		if s == syscall.SIGKILL {
			pid = -pid
		}
		forward(pid, s)
	}
}

// reap waits until every process has ended, and ends the others when one fails.
func (c *crew) reap() {
	for left := c.size(); left > 0; {
		var info unix.Siginfo
		// Not reaped yet: its number is its own until ended has it.
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return
		case c.ended():
			left--
		}
	}
}

// ended reaps a process that has ended, and reports whether it is of the crew.
func (c *crew) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	rank := slices.Index(c.pids, pid)
	if err != nil || pid <= 0 || rank < 0 {
		return false
	}
	c.pids[rank] = 0
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if code == 0 || c.code != 0 {
		return true
	}
	c.code = code
	if !c.stopped {
		fmt.Fprintf(os.Stderr, "gpuai: the process of local rank %d ended with exit code %d: ending the others\n", rank, code)
		go c.end()
	}
	return true
}

// end ends what is left when one has failed.
func (c *crew) end() {
	c.signal(syscall.SIGTERM)
	time.Sleep(time.Duration(c.Grace) * time.Millisecond)
	c.signal(syscall.SIGKILL)
}

// drain waits for the last lines. Who holds a pipe still is killed with the task.
func (c *crew) drain() {
	done := make(chan struct{})
	go func() { c.copies.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drain):
	}
}
