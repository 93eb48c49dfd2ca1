package watchdog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
)

// ErrGone is returned when the watchdog went away or does not answer.
var ErrGone = errors.New("the watchdog is gone")

// A RefusedError is the watchdog's reason for not doing what was asked.
type RefusedError struct{ Why string }

// Error returns the reason.
func (e *RefusedError) Error() string { return "watchdog: " + e.Why }

// callTimeout bounds every call. A start includes the task's exec.
const callTimeout = 5 * time.Second

// A Client is an agent's connection to the watchdog of its data directory. The
// newest client is the agent; an older one is cut. Safe for concurrent use.
type Client struct {
	conn net.Conn
	news chan Task
	done chan struct{}

	mu      sync.Mutex // guards below, and writing
	next    uint64
	waiting map[uint64]chan reply
}

// Dial connects to the watchdog of dir.
func Dial(dir string) (*Client, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("reach the watchdog: %w", err)
	}
	defer d.Close()
	conn, err := net.Dial("unix", socketIn(d))
	if err != nil {
		return nil, fmt.Errorf("reach the watchdog: %w", err)
	}
	c := &Client{conn: conn, news: make(chan Task, 1024), done: make(chan struct{}), waiting: map[uint64]chan reply{}}
	go c.read()
	return c, nil
}

// Launch starts a watchdog for dir from the binary at path, detached: it does
// not end with this process. It returns when the watchdog answers.
func Launch(ctx context.Context, path, dir string) (*Client, error) {
	out, err := os.OpenFile(filepath.Join(dir, "watchdog.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(path, "--dir", dir)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the watchdog %s: %w; give the path of gpuai-watchdog", path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if c, err := Dial(dir); err == nil {
			return c, nil
		}
		again := time.NewTimer(5 * time.Millisecond)
		select {
		case err := <-ended:
			return nil, fmt.Errorf("the watchdog %s ended at once (%v); its reason is in %s", path, err, out.Name())
		case <-ctx.Done():
			return nil, fmt.Errorf("start the watchdog %s: %w", path, ctx.Err())
		case <-again.C:
		}
	}
}

func (c *Client) read() {
	defer close(c.done)
	defer c.conn.Close()
	for {
		var r reply
		if readMessage(c.conn, &r) != nil {
			return
		}
		if r.ID == 0 {
			for _, t := range r.Tasks {
				c.news <- t // the agent reads all the time
			}
			continue
		}
		c.mu.Lock()
		ch := c.waiting[r.ID]
		delete(c.waiting, r.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

// News tells of tasks that ended or could not be killed. It must be read.
func (c *Client) News() <-chan Task { return c.news }

// Done is closed when the watchdog went away.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection. Tasks go on to their deadlines.
func (c *Client) Close() error { return c.conn.Close() }

// Hello makes this client the agent, tells the incarnation that starts must
// have (0: as it was), and returns every task the watchdog has. notes says
// which limits it cannot set.
func (c *Client) Hello(inc gpuai.Incarnation) (tasks []Task, notes string, err error) {
	r, err := c.call(request{Op: opHello, Incarnation: inc})
	return r.Tasks, r.Notes, err
}

// Start starts a task and returns when its program runs. It is idempotent on
// the lease.
func (c *Client) Start(s *Spec) (Task, error) {
	r, err := c.call(request{Op: opStart, Spec: s})
	if err == nil && len(r.Tasks) != 1 {
		err = errors.New("the watchdog's answer names no task")
	}
	if err != nil {
		return Task{}, err
	}
	return r.Tasks[0], nil
}

// Extend moves a task's deadline to at; an earlier time changes nothing. A
// task that is over is refused.
func (c *Client) Extend(t gpuai.Token, at int64) error {
	_, err := c.call(request{Op: opDeadline, Lease: t, At: at})
	return err
}

// Stop sends SIGTERM, and SIGKILL after grace. News tells of the end. With a
// signal in save it sends that first, to the task's first process only, and goes
// on after save's grace. Asked again it does not begin anew, and without save it
// cuts the saving short.
func (c *Client) Stop(t gpuai.Token, grace gpuai.Duration, save gpuai.Checkpoint) error {
	_, err := c.call(request{Op: opStop, Lease: t, Span: int64(grace) * 1e6, Signal: save.Signal, Save: int64(save.Grace) * 1e6})
	return err
}

// Kill kills all of a task. News tells of the end, or after budget that it
// cannot be killed. An unknown task is as good as killed.
func (c *Client) Kill(t gpuai.Token, budget gpuai.Duration) error {
	_, err := c.call(request{Op: opKill, Lease: t, Span: int64(budget) * 1e6})
	return err
}

// Acknowledge lets the watchdog forget an exited task.
func (c *Client) Acknowledge(t gpuai.Token) error {
	_, err := c.call(request{Op: opAck, Lease: t})
	return err
}

// List returns every task that the watchdog has.
func (c *Client) List() ([]Task, error) {
	r, err := c.call(request{Op: opList})
	return r.Tasks, err
}

// Quit ends the watchdog; it refuses while a task runs.
func (c *Client) Quit() error {
	_, err := c.call(request{Op: opQuit})
	return err
}

// End kills what a lease runs, and waits until the watchdog has gone: false when it
// has not within a time.
func (c *Client) End(lease gpuai.Token, within time.Duration) bool {
	_ = c.Kill(lease, 5*gpuai.Second) // it has ended, as a rule
	_ = c.Acknowledge(lease)          // else the watchdog keeps the exit code until it is told to quit
	give := time.NewTimer(within)
	defer give.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		_ = c.Quit() // refuses while the task is there
		select {
		case <-c.Done():
			return true
		case <-c.News():
		case <-again.C:
		case <-give.C:
			return false
		}
	}
}

func (c *Client) call(r request) (reply, error) {
	ch := make(chan reply, 1)
	c.mu.Lock()
	c.next++
	r.ID = c.next
	c.waiting[r.ID] = ch
	err := c.conn.SetWriteDeadline(time.Now().Add(callTimeout))
	if err == nil {
		err = writeMessage(c.conn, r)
	}
	c.mu.Unlock()
	if err != nil {
		return reply{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	late := time.NewTimer(callTimeout)
	defer late.Stop()
	select {
	case a := <-ch:
		if a.Error != "" {
			return a, &RefusedError{a.Error}
		}
		return a, nil
	case <-c.done:
		return reply{}, ErrGone
	case <-late.C:
		return reply{}, fmt.Errorf("%w: no answer in %v", ErrGone, callTimeout)
	}
}
