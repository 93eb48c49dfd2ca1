package loadgen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"
)

// killAfter is how long a child has to end once its input has ended.
const killAfter = 10 * time.Second

// A child is a process that was told to end when its standard input does. Its
// standard output is lines for the one that started it.
type child struct {
	cmd      *exec.Cmd
	in       io.Closer
	lines    *bufio.Scanner
	stopping atomic.Bool
	done     chan struct{} // closed when its output has ended and it is gone
	err      error         // why it ended; set before done is closed
}

// startChild starts a process in a group of its own: a terminal's SIGINT is for
// the command that measures, which still needs its children then.
func startChild(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	return &child{cmd: cmd, in: in, lines: bufio.NewScanner(out), done: make(chan struct{})}, nil
}

// first waits for the first line. When ctx ends it ends the process.
func (c *child) first(ctx context.Context) (string, error) {
	forget := context.AfterFunc(ctx, func() {
		c.in.Close()
		time.AfterFunc(killAfter, func() { c.cmd.Process.Kill() })
	})
	defer forget()
	if c.lines.Scan() {
		return c.lines.Text(), nil
	}
	c.finish()
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case c.err != nil:
		return "", c.err
	}
	return "", errors.New("it ended without a word")
}

// follow calls f for every further line until the process ends.
func (c *child) follow(f func(string)) {
	for c.lines.Scan() {
		f(c.lines.Text())
	}
	c.finish()
}

// finish reaps the process. Its output has been read to the end, or is not read
// any more.
func (c *child) finish() {
	defer close(c.done)
	if err := c.lines.Err(); err != nil {
		c.cmd.Process.Kill()
		c.err = fmt.Errorf("reading what it says: %w", err)
	}
	if err := c.cmd.Wait(); err != nil && c.err == nil {
		c.err = err
	}
	if c.err == nil && !c.stopping.Load() {
		c.err = errors.New("it ended by itself")
	}
}

// stop ends the process, which somebody follows, and returns why it failed.
func (c *child) stop() error {
	c.stopping.Store(true)
	c.in.Close()
	select {
	case <-c.done:
	case <-time.After(killAfter):
		c.cmd.Process.Kill()
		<-c.done
	}
	return c.err
}

// untilEOF returns a context that ends when r does: when the process that holds
// the other end of the pipe closes it, or is no more.
func untilEOF(ctx context.Context, r io.Reader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		// An error is an end as well.
		_, _ = io.Copy(io.Discard, r)
	}()
	return ctx, cancel
}
