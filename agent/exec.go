package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/creack/pty"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// A command beside a task is the watchdog's; its input and output are the
// agent's, which carries them to and from a server on a connection of their own.
// Each side reads only what the other has taken: what waits is bounded by the
// pipes and the messages under way.

const (
	// execDial bounds the connection to the server.
	execDial = 5 * time.Second
	// execBox bounds the waits for a task that is being started, and for its sandbox.
	execBox = 5 * time.Second
	// execLinger is how long the rest of a command's output is waited for, when it
	// has ended and what it left behind keeps its output open.
	execLinger = 500 * time.Millisecond
	// execQueue is how many messages of input may wait for the command.
	execQueue = 16
)

// An ExecDialer opens the connections of commands. A Dialer that is none has
// the node run no commands.
type ExecDialer interface {
	DialExec(ctx context.Context, addr string, r *gpuai.ExecRequest) (ExecConn, error)
}

// An ExecConn carries a command's input and output, see gpuai.ExecProtocol.
// Recv is called by one goroutine, the others by any.
type ExecConn interface {
	Recv(ctx context.Context) (control *gpuai.ExecControl, s gpuai.ExecStream, data []byte, err error)
	Send(ctx context.Context, s gpuai.ExecStream, data []byte) error
	Control(ctx context.Context, c *gpuai.ExecControl) error
	Close() error
}

// offerExec labels the node as one that runs commands, if it does.
func (a *Agent) offerExec() {
	if _, ok := a.dialer.(ExecDialer); !ok || a.cfg.DenyExec {
		return
	}
	labels := map[string]string{gpuai.LabelExec: gpuai.LabelYes}
	maps.Copy(labels, a.cfg.Labels)
	a.cfg.Labels = labels
}

// serveExec runs a command, beside the loop, which calls it.
func (a *Agent) serveExec(server string, r *gpuai.ExecRequest) {
	w := a.workers[r.Lease]
	go func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if err := a.runExec(ctx, w, server, r); err != nil {
			a.log.Info("a command beside a task was cut short", "lease", r.Lease, "error", err)
		}
	}()
}

// runExec runs a command and tells the server how it ended.
func (a *Agent) runExec(ctx context.Context, w *worker, server string, r *gpuai.ExecRequest) error {
	d, ok := a.dialer.(ExecDialer)
	if !ok {
		return errors.New("there is no way to reach the server")
	}
	dial, stop := context.WithTimeout(ctx, execDial)
	conn, err := d.DialExec(dial, server, r)
	stop()
	if err != nil {
		return fmt.Errorf("reach the server: %w", err)
	}
	defer conn.Close()
	exit := gpuai.ExecExit{}
	if exit.Code, err = a.execute(ctx, w, conn, r); err != nil {
		exit.Error = err.Error()
	}
	return conn.Control(ctx, &gpuai.ExecControl{Exit: &exit})
}

// execute runs a command to its end.
func (a *Agent) execute(ctx context.Context, w *worker, conn ExecConn, r *gpuai.ExecRequest) (int32, error) {
	switch why := r.Start.Validate(); {
	case a.cfg.DenyExec:
		return 0, errors.New("this node's operator has denied exec")
	case why != "":
		return 0, errors.New(why)
	case w == nil || !w.starts(ctx):
		return 0, errors.New("the task does not run on this node now")
	}
	spec, err := w.execSpec(ctx, &r.Start)
	if err != nil {
		return 0, err
	}
	f, err := openExecFiles(&r.Start)
	if err != nil {
		return 0, fmt.Errorf("make the command's files: %w", err)
	}
	defer f.close()
	e, err := watchdog.Exec(a.cfg.DataDir, spec, f.child)
	f.closeChild()
	if err != nil {
		return 0, err
	}
	defer e.Close()
	a.log.Info("a command runs beside a task", "audit", "exec", "lease", r.Lease, "job", w.assign.JobName, "program", r.Start.Command[0])
	return f.carry(ctx, conn, e)
}

// starts waits, for a moment, until a task that has its lease was started.
func (w *worker) starts(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, execBox)
	defer cancel()
	for !w.started.Load() {
		if w.ending.Load() || !pause(ctx, logPoll) {
			return false
		}
	}
	return true
}

// execSpec is the command as the watchdog runs it: by the OCI runtime, for a
// task in a sandbox.
func (w *worker) execSpec(ctx context.Context, s *gpuai.ExecStart) (*watchdog.ExecSpec, error) {
	spec := &watchdog.ExecSpec{Lease: w.lease.ID, Argv: s.Command, TTY: s.TTY}
	var env []string
	if s.TTY && s.Term != "" {
		env = []string{"TERM=" + s.Term}
	}
	if w.assign.Task.Runtime != gpuai.RuntimeOCI {
		spec.Env = env
		return spec, nil
	}
	if w.a.boxes == nil {
		return nil, errors.New("this node has no OCI runtime any more")
	}
	// The task counts as started when its runtime is, which makes the sandbox then.
	ctx, cancel := context.WithTimeout(ctx, execBox)
	defer cancel()
	id := w.lease.ID.String()
	for !w.a.boxes.runtime.Running(ctx, w.boxState(), id) {
		if !pause(ctx, logPoll) {
			return nil, errors.New("the task's sandbox does not run")
		}
	}
	var err error
	spec.Argv, err = w.a.boxes.runtime.ExecArgv(w.boxState(), id, w.besideSecrets(s.Command), env, s.TTY)
	return spec, err
}

// execFiles are the ends of a command's input and output: pipes, or a terminal.
type execFiles struct {
	child  [3]*os.File
	in     *os.File
	out    []*os.File // stdout, and stderr unless it is a terminal
	tty    bool
	ending atomic.Bool // the command has ended
}

func openExecFiles(s *gpuai.ExecStart) (*execFiles, error) {
	f := &execFiles{tty: s.TTY}
	if s.TTY {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, err
		}
		f.in, f.out, f.child = master, []*os.File{master}, [3]*os.File{slave, slave, slave}
		f.resize(s.Size)
		return f, nil
	}
	for i := range f.child {
		r, w, err := os.Pipe()
		if err != nil {
			f.close()
			return nil, err
		}
		if i == 0 {
			f.child[i], f.in = r, w
			continue
		}
		f.child[i], f.out = w, append(f.out, r)
	}
	return f, nil
}

func (f *execFiles) resize(s gpuai.ExecSize) {
	if f.tty && s.Rows > 0 && s.Cols > 0 {
		_ = pty.Setsize(f.in, &pty.Winsize{Rows: s.Rows, Cols: s.Cols}) // it keeps the one it has
	}
}

func (f *execFiles) closeChild() {
	for _, c := range f.child {
		if c != nil {
			c.Close() // a terminal's three are one: closing it again does nothing
		}
	}
}

func (f *execFiles) close() {
	f.closeChild()
	if f.in != nil {
		f.in.Close()
	}
	for _, o := range f.out {
		o.Close()
	}
}

// carry carries input and output until the command has ended, or the other side
// is gone, which hangs up on the command.
func (f *execFiles) carry(ctx context.Context, conn ExecConn, e *watchdog.Execution) (int32, error) {
	gone := make(chan error, 1)
	input := make(chan []byte, execQueue)
	// These two end with ctx, which the caller ends once the exit was sent: a
	// receive that is cancelled takes the connection down.
	go func() { gone <- f.receive(ctx, conn, e, input) }()
	go f.write(ctx, input)
	var outputs sync.WaitGroup
	for i, o := range f.out {
		outputs.Go(func() { f.read(ctx, conn, gpuai.ExecStream(i+1), o) })
	}
	select {
	case <-e.Done():
	case err := <-gone:
		return 0, fmt.Errorf("the client is gone: %w", err)
	}
	f.ending.Store(true)
	for _, o := range f.out {
		_ = o.SetReadDeadline(time.Now().Add(execLinger)) // a terminal ends with its command
	}
	outputs.Wait()
	return e.Code()
}

// receive takes what comes from the client, until that is gone.
func (f *execFiles) receive(ctx context.Context, conn ExecConn, e *watchdog.Execution, input chan<- []byte) error {
	for open := true; ; {
		control, stream, data, err := conn.Recv(ctx)
		switch {
		case err != nil:
			return err
		case control != nil && control.Resize != nil:
			f.resize(*control.Resize)
		case control != nil && control.Signal > 0:
			_ = e.Signal(control.Signal) // it has ended
		case control != nil || stream != gpuai.ExecStdin || !open:
		case len(data) == 0:
			open = false
			close(input)
		default:
			select {
			case input <- data:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// write gives the command its input.
func (f *execFiles) write(ctx context.Context, input <-chan []byte) {
	taken := true
	for {
		select {
		case data, more := <-input:
			if !more {
				if !f.tty {
					f.in.Close()
				}
				return
			}
			if taken {
				_, err := f.in.Write(data)
				taken = err == nil // else it reads no more, and the rest is nobody's
			}
		case <-ctx.Done():
			return
		}
	}
}

// read carries one output until its end.
func (f *execFiles) read(ctx context.Context, conn ExecConn, s gpuai.ExecStream, from *os.File) {
	buf := make([]byte, gpuai.MaxExecData)
	for {
		ending := f.ending.Load()
		if ending {
			_ = from.SetReadDeadline(time.Now().Add(execLinger)) // anew: sending may have taken its time
		}
		n, err := from.Read(buf)
		if n > 0 && conn.Send(ctx, s, buf[:n]) != nil {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !ending {
			continue
		}
		if err != nil { // EOF, or of a terminal whose command is gone EIO
			return
		}
	}
}
