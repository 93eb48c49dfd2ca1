package watchdog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// A command beside a task is the watchdog's child, in the task's control groups
// from before its first instruction: the hunt that ends the task ends it. It has
// a connection of its own, over which its three files came, and is hung up on
// when that ends.

// An ExecSpec is a command to run beside a task: with its environment and Env,
// where it runs and within its limits.
type ExecSpec struct {
	Lease gpuai.Token `json:"lease"`
	Argv  []string    `json:"argv"`
	Env   []string    `json:"env,omitempty"`
	TTY   bool        `json:"tty,omitzero"` // its stdin is a terminal, to be its own
}

const (
	// hangupGrace is what a command has to end after SIGHUP.
	hangupGrace = 5 * time.Second
	// maxExecs bounds the commands beside all tasks.
	maxExecs = 64
)

// An execution is one command.
type execution struct {
	task   *task
	pid    int
	reaped chan struct{} // closed when it was waited for
	status syscall.WaitStatus
}

// A passConn gathers the files that come with what is read.
type passConn struct {
	*net.UnixConn
	files []*os.File
}

// execFiles are stdin, stdout and stderr.
const execFiles = 3

// Read implements io.Reader.
func (c *passConn) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(execFiles*4))
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return n, err
	}
	if oobn > 0 {
		c.keep(oob[:oobn])
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *passConn) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			c.files = append(c.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
}

func (c *passConn) closeFiles() {
	for _, f := range c.files {
		f.Close()
	}
	c.files = nil
}

// serveExec runs one command for a connection, until both have ended.
func (s *Server) serveExec(a *agentConn, r *request) {
	pass, ok := a.conn.(*passConn)
	if !ok || r.Exec == nil || len(pass.files) != execFiles {
		a.refuse(r, "a command needs a specification and three files")
		return
	}
	e, err := s.exec(r.Exec, pass.files)
	pass.closeFiles()
	if err != nil {
		a.refuse(r, err.Error())
		return
	}
	a.send(reply{ID: r.ID})
	go func() {
		<-e.reaped
		code, _ := outcome(e.status, ByKill, false)
		a.send(reply{ID: r.ID, Code: &code})
	}()
	for {
		var next request
		if readMessage(a.conn, &next) != nil {
			break
		}
		if n := int(next.Signal); next.Op == opSignal && n > 0 && n < len(signals) {
			s.signal(e, signals[n])
		}
	}
	s.signal(e, syscall.SIGHUP)
	late := time.NewTimer(hangupGrace)
	defer late.Stop()
	select {
	case <-e.reaped:
	case <-late.C:
		s.signal(e, syscall.SIGKILL)
	}
}

// refuse answers with an error, and waits until the other side has left.
func (a *agentConn) refuse(r *request, why string) {
	a.send(reply{ID: r.ID, Error: why})
	for {
		var next request
		if readMessage(a.conn, &next) != nil {
			return
		}
	}
}

// signal sends a signal to a command. What the OCI runtime runs gets it by the
// runtime; of a plain one it is for the process group.
func (s *Server) signal(e *execution, sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.execs[e.pid] != e {
		return // reaped: the number may be another's
	}
	pid := e.pid
	if e.task.spec.Box == nil {
		pid = -pid
	}
	_ = syscall.Kill(pid, sig) // gone already is as good
}

// exec starts a command and returns when its program runs.
func (s *Server) exec(spec *ExecSpec, files []*os.File) (*execution, error) {
	t := s.find(spec.Lease)
	if t == nil || len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return nil, errors.New("no task of that lease runs here, or there is no command")
	}
	gateRead, gate, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	defer gateRead.Close()
	status, statusWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer status.Close()
	defer statusWrite.Close()
	var fds []uintptr
	for _, f := range append(slices.Clone(files), gateRead, statusWrite) {
		fds = append(fds, f.Fd())
	}
	e := &execution{task: t, reaped: make(chan struct{})}
	if err := s.forkExec(e, fds); err != nil {
		return nil, fmt.Errorf("start a command: %w", err)
	}
	gateRead.Close()
	statusWrite.Close()
	if err := t.group.add(e.pid); err != nil {
		return nil, err // the gate closes without an order, which ends the shim
	}
	o := shimOrder{
		Argv: spec.Argv, Env: append(slices.Clone(t.spec.Env), spec.Env...), Cwd: t.spec.Cwd,
		NoFile: t.spec.NoFile, Parent: os.Getpid(), TTY: spec.TTY,
	}
	if t.spec.Box != nil {
		o.Beside = t.PID // nobody's else while the task is not reaped; then the command ends too
	}
	if !s.cgroups.limits("pids") {
		o.NProc = uint64(max(t.spec.PIDs, 0))
	}
	if err := json.NewEncoder(gate).Encode(o); err != nil {
		return nil, fmt.Errorf("start a command: %w", err)
	}
	gate.Close()
	why, err := io.ReadAll(status)
	if err == nil && len(why) > 0 {
		err = errors.New(string(why))
	}
	return e, err
}

// forkExec forks a command's shim as fork does a task's.
func (s *Server) forkExec(e *execution, files []uintptr) error {
	done := make(chan error, 1)
	s.forks <- func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch t := e.task; {
		case t.State != Running || t.hunted || Boottime() >= t.Deadline || t.spec.Incarnation != s.incarnation:
			done <- errors.New("its task does not run, or is to end")
			return
		case len(s.execs) >= maxExecs:
			done <- fmt.Errorf("%d commands run beside tasks of this node already", maxExecs)
			return
		}
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"gpuai-exec", shimArg}, &syscall.ProcAttr{
			Dir: "/", Env: []string{}, Files: files,
			Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		})
		if err == nil {
			e.pid = pid
			s.execs[pid] = e
		}
		done <- err
	}
	return <-done
}

// An Execution is a command that was started.
type Execution struct {
	conn *net.UnixConn
	done chan struct{}
	code int32
	err  error
}

// Exec has the watchdog of dir run a command with three files, and returns when
// its program runs. The files stay the caller's.
func Exec(dir string, spec *ExecSpec, files [execFiles]*os.File) (*Execution, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("reach the watchdog: %w", err)
	}
	defer d.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketIn(d), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("reach the watchdog: %w", err)
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	e := &Execution{conn: conn, done: make(chan struct{})}
	w := &passWriter{conn: conn, rights: unix.UnixRights(fds...)}
	var r reply
	err = conn.SetDeadline(time.Now().Add(callTimeout))
	if err == nil {
		err = writeMessage(w, request{ID: 1, Op: opExec, Exec: spec})
	}
	if err == nil {
		err = readMessage(conn, &r)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err == nil && r.Error != "" {
		err = &RefusedError{r.Error}
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go e.wait()
	return e, nil
}

// A passWriter sends files with what is written first.
type passWriter struct {
	conn   *net.UnixConn
	rights []byte
}

// Write implements io.Writer.
func (w *passWriter) Write(b []byte) (int, error) {
	n, _, err := w.conn.WriteMsgUnix(b, w.rights, nil)
	if w.rights = nil; err == nil && n < len(b) {
		var more int
		more, err = w.conn.Write(b[n:])
		n += more
	}
	return n, err
}

func (e *Execution) wait() {
	defer close(e.done)
	var r reply
	if e.err = readMessage(e.conn, &r); e.err == nil && r.Code == nil {
		e.err = errors.New("the watchdog does not say how the command ended")
	}
	if e.err == nil {
		e.code = *r.Code
	}
}

// Done is closed when the command has ended, or the watchdog.
func (e *Execution) Done() <-chan struct{} { return e.done }

// Code is the exit code once Done is closed, 128+n for signal n.
func (e *Execution) Code() (int32, error) {
	if e.err != nil {
		return 0, fmt.Errorf("%w: %w", ErrGone, e.err)
	}
	return e.code, nil
}

// Signal sends a signal to the command, if it still runs.
func (e *Execution) Signal(sig gpuai.Signal) error {
	if err := e.conn.SetWriteDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	return writeMessage(e.conn, request{Op: opSignal, Signal: sig})
}

// Close hangs up on the command, if it still runs.
func (e *Execution) Close() error { return e.conn.Close() }
