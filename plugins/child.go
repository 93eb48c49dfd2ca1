package plugins

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
)

// A child is the process of a driver, run for go-plugin. It differs from
// go-plugin's own runner in that
//   - the kernel kills it when the agent dies (Pdeathsig), which needs the
//     thread that forked it to live as long as it does;
//   - it has a process group of its own, and all of it is killed;
//   - its death is seen when it dies, not when the last holder of its pipes does;
//   - its working directory is the socket directory, which it names ".": a long
//     path does not exceed the 107 bytes of a socket's name;
//   - of its standard output only the first line reaches go-plugin.
type child struct {
	path  string // of the binary
	cmd   *exec.Cmd
	mark  string // runDir.marker
	lines *lines
	dir   *os.File // the socket directory

	handshakeIn  *io.PipeReader
	handshakeOut *io.PipeWriter
	gone         chan struct{} // closed when the process is gone

	mu    sync.Mutex // guards below
	pid   int        // 0 before it runs and once it is gone
	id    string     // the pid, kept
	first string     // first line of standard output
	asked bool       // we killed it or asked it to end
	state string     // how it ended, once gone is closed
}

var _ runner.Runner = (*child)(nil)

// passedEnv is all that a driver inherits: the agent's environment may hold its
// credentials.
var passedEnv = [...]string{
	"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
}

func newChild(path string, d *runDir, out *lines) *child {
	c := &child{path: path, mark: d.marker, lines: out, gone: make(chan struct{})}
	c.handshakeIn, c.handshakeOut = io.Pipe()
	return c
}

// prepare takes go-plugin's part: the environment and the socket directory.
func (c *child) prepare(env []string, socketDir string) error {
	dir, err := os.Open(socketDir)
	if err != nil {
		return fmt.Errorf("opening the socket directory: %w", err)
	}
	c.cmd, c.dir = exec.Command(c.path), dir
	for _, name := range passedEnv {
		if v, ok := os.LookupEnv(name); ok {
			c.cmd.Env = append(c.cmd.Env, name+"="+v)
		}
	}
	c.cmd.Env = append(append(c.cmd.Env, env...), c.mark, "PLUGIN_UNIX_SOCKET_DIR=.")
	c.cmd.Dir = socketDir
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return nil
}

// Start starts the process and returns once it runs, or cannot.
func (c *child) Start(context.Context) error {
	outR, outW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return errors.Join(fmt.Errorf("making a pipe: %w", err), outR.Close(), outW.Close())
	}
	c.cmd.Stdout, c.cmd.Stderr = outW, errW
	started := make(chan error, 1)
	go c.live(started, outR, errR)
	err = <-started
	return errors.Join(err, outW.Close(), errW.Close())
}

// live is the life of the process. The goroutine keeps its thread for all of
// it: Pdeathsig is sent when the thread that forked the process ends.
func (c *child) live(started chan<- error, stdout, stderr *os.File) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer stdout.Close()
	defer stderr.Close()
	if err := c.cmd.Start(); err != nil {
		c.handshakeOut.Close()
		close(c.gone)
		started <- err
		return
	}
	c.setPID(c.cmd.Process.Pid)
	var readers sync.WaitGroup
	readers.Go(func() { c.readHandshake(stdout) })
	readers.Go(func() { c.lines.copy(stderr, "stderr") })
	started <- nil
	state := c.wait()
	deadline := time.Now().Add(drainTime)
	stdout.SetReadDeadline(deadline)
	stderr.SetReadDeadline(deadline)
	readers.Wait()
	c.mu.Lock()
	c.state = state
	c.mu.Unlock()
	close(c.gone)
}

// wait waits for the process and kills what it leaves behind. Until its group is
// dead the process stays a zombie, so that its pid is nobody else's.
func (c *child) wait() string {
	pid := c.cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	unix.Kill(-pid, unix.SIGKILL)
	c.setPID(0)
	c.cmd.Wait() // its error is in ProcessState
	if err := killMarked(c.mark); err != nil {
		c.lines.log.Error("driver left processes behind", "err", err)
	}
	return c.cmd.ProcessState.String()
}

func (c *child) setPID(pid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid = pid; pid != 0 {
		c.id = strconv.Itoa(pid)
	}
}

// readHandshake gives the first line to go-plugin and logs the rest.
func (c *child) readHandshake(stdout io.Reader) {
	b := bufio.NewReaderSize(stdout, maxHandshake)
	line, _ := b.ReadSlice('\n') // too long or without an end: garbage all the same
	c.mu.Lock()
	c.first = string(line)
	c.mu.Unlock()
	c.handshakeOut.Write(line)
	c.handshakeOut.Close()
	c.lines.copy(b, "stdout")
}

// Wait blocks until the process is gone.
func (c *child) Wait(context.Context) error {
	<-c.gone
	return nil
}

// Kill kills the process and its group. Never by an orderly call first: a
// process that is stopped answers none.
func (c *child) Kill(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
	if c.pid == 0 {
		return nil
	}
	if err := unix.Kill(-c.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing the driver: %w", err)
	}
	return nil
}

// expectEnd notes that the end which follows is ours.
func (c *child) expectEnd() {
	c.mu.Lock()
	c.asked = true
	c.mu.Unlock()
}

// end tells how the process ended; died is false while it runs or when it was
// we who ended it. go-plugin kills what has failed already, so that a kill which
// was asked for is not by itself the cause.
func (c *child) end() (state string, died bool) {
	select {
	case <-c.gone:
	default:
		return "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return c.state, !c.asked || !ok || status.Signal() != syscall.SIGKILL
}

func (c *child) firstLine() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.TrimRight(c.first, "\r\n")
}

// Stdout gives go-plugin the first line only.
func (c *child) Stdout() io.ReadCloser { return c.handshakeIn }

// Stderr gives go-plugin nothing: the lines are ours to log.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name returns the binary's path, ID the process's.
func (c *child) Name() string { return c.path }

// ID returns the pid, "" before Start. It stays when the process is gone:
// go-plugin cleans nothing up for a process without one.
func (c *child) ID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

// close removes the socket directory and gives up the handle on it, through
// which go-plugin connects. The process is gone, go-plugin is done with it.
func (c *child) close() {
	if c.dir != nil {
		os.RemoveAll(c.dir.Name())
		c.dir.Close()
	}
}

// Diagnose adds nothing: explain does better.
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost finds the socket, which the driver names relative to its own
// directory, through our handle on that directory.
func (c *child) PluginToHost(network, addr string) (string, string, error) {
	if network != "unix" || filepath.Base(addr) != filepath.Clean(addr) {
		return "", "", fmt.Errorf("%w: it listens at %s %s and not in its socket directory", ErrGarbage, network, clip(addr))
	}
	return network, fmt.Sprintf("/proc/self/fd/%d/%s", c.dir.Fd(), filepath.Base(addr)), nil
}

// HostToPlugin is for go-plugin's broker, which the contract does not use.
func (c *child) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}
