package loadgen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
)

// Words of a worker on its pipe. All other lines are leases: the job's ID and
// CLOCK_MONOTONIC in nanoseconds.
const (
	wordReady = "ready"
	wordLost  = "lost "
)

// flushEvery bounds how long a line waits in a worker; leases are stamped
// before.
const flushEvery = 20 * time.Millisecond

// ServeFleet is what a worker process does: it runs a fleet until in ends, and
// writes the leases to out, a line each.
func ServeFleet(ctx context.Context, cfg FleetConfig, in io.Reader, out io.Writer) error {
	ctx, cancel := untilEOF(ctx, in)
	defer cancel()
	w := &lineWriter{w: bufio.NewWriterSize(out, 1<<16)}
	cfg.OnLease = w.lease
	f, err := StartFleet(ctx, cfg)
	if err != nil {
		return err
	}
	defer f.Stop()
	w.say(wordReady)
	t := time.NewTicker(flushEvery)
	defer t.Stop()
	lost := int64(0)
	for {
		select {
		case <-ctx.Done():
			f.Stop()
			return w.flush()
		case <-t.C:
		}
		if n := f.Lost(); n != lost {
			lost = n
			w.say(wordLost + strconv.FormatInt(n, 10))
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
}

// A lineWriter writes lines from many goroutines. After an error it writes
// nothing, and flush returns it.
type lineWriter struct {
	mu sync.Mutex // guards below
	w  *bufio.Writer
}

func (l *lineWriter) lease(job gpuai.JobID, at int64) {
	var buf [64]byte
	b := append(buf[:0], job.String()...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, at, 10)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.Write(append(b, '\n'))
}

func (l *lineWriter) say(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.WriteString(s + "\n")
	l.w.Flush()
}

func (l *lineWriter) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Flush()
}

// parseLease reads a line of lineWriter.lease.
func parseLease(line string) (gpuai.JobID, int64, error) {
	id, at, ok := strings.Cut(line, " ")
	job, err := gpuai.ParseJobID(id)
	if err != nil || !ok {
		return job, 0, fmt.Errorf("a worker wrote %q, which is no lease", line)
	}
	ns, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return job, 0, fmt.Errorf("a worker wrote %q, which is no lease", line)
	}
	return job, ns, nil
}

// AgentsConfig says how agents are spread over processes.
type AgentsConfig struct {
	FleetConfig
	// PerProcess is how many agents one process holds. That many or fewer
	// live in this one; more are spread over workers.
	PerProcess int
	// Worker makes the command of a worker, which must call ServeFleet for
	// the agents from … to-1, with its standard input and output.
	Worker func(from, to int) *exec.Cmd
}

// Agents are simulated agents in this process or in workers.
type Agents struct {
	fleet   *Fleet
	workers []*worker
}

// A worker is a child that runs a part of the agents.
type worker struct {
	*child
	onLease  func(gpuai.JobID, int64)
	lost     atomic.Int64
	mangled  error // a line that was no lease; of the follower
	from, to int
}

// StartAgents connects all agents and returns once they are registered. Stop
// ends them; so does the end of ctx, or of this process.
func StartAgents(ctx context.Context, cfg AgentsConfig) (*Agents, error) {
	if err := cfg.FleetConfig.Validate(); err != nil {
		return nil, err
	}
	if cfg.PerProcess < 1 {
		return nil, fmt.Errorf("a process holds at least 1 agent, not %d", cfg.PerProcess)
	}
	if cfg.To-cfg.From <= cfg.PerProcess {
		f, err := StartFleet(ctx, cfg.FleetConfig)
		return &Agents{fleet: f}, err
	}
	a := &Agents{}
	g, gctx := errgroup.WithContext(ctx)
	for from := cfg.From; from < cfg.To; from += cfg.PerProcess {
		w := &worker{onLease: cfg.OnLease, from: from, to: min(from+cfg.PerProcess, cfg.To)}
		var err error
		if w.child, err = startChild(cfg.Worker(w.from, w.to)); err != nil {
			err = errors.Join(err, a.Stop())
			return nil, errors.Join(err, g.Wait())
		}
		a.workers = append(a.workers, w)
		g.Go(func() error { return w.begin(gctx) })
	}
	if err := g.Wait(); err != nil {
		_ = a.Stop() // the first error is the one that says why
		return nil, err
	}
	return a, nil
}

// begin waits until a worker's agents are registered.
func (w *worker) begin(ctx context.Context) error {
	line, err := w.first(ctx)
	if err != nil {
		return w.wrap(err)
	}
	// Nodes of an earlier bench may still hold leases, which come with their welcome.
	for line != wordReady {
		if _, _, errLease := parseLease(line); errLease != nil {
			break
		}
		w.line(line)
		if line, err = w.first(ctx); err != nil {
			return w.wrap(err)
		}
	}
	go w.follow(w.line)
	if line != wordReady {
		return w.wrap(fmt.Errorf("it began with %q", line))
	}
	return nil
}

func (w *worker) wrap(err error) error {
	return fmt.Errorf("the worker of the agents %d to %d: %w", w.from, w.to-1, err)
}

func (w *worker) line(s string) {
	if n, ok := strings.CutPrefix(s, wordLost); ok {
		if lost, err := strconv.ParseInt(n, 10, 64); err == nil {
			w.lost.Store(lost)
		}
		return
	}
	job, at, err := parseLease(s)
	if err != nil {
		w.mangled = err
		return
	}
	w.onLease(job, at)
}

// Lost returns how many sessions broke. Their agents connect again.
func (a *Agents) Lost() int64 {
	if a.fleet != nil {
		return a.fleet.Lost()
	}
	n := int64(0)
	for _, w := range a.workers {
		n += w.lost.Load()
	}
	return n
}

// Stop ends all agents, and returns when they have ended. Its error says which
// workers did not see it through.
func (a *Agents) Stop() error {
	if a.fleet != nil {
		a.fleet.Stop()
		return nil
	}
	errs := make([]error, len(a.workers))
	var wg sync.WaitGroup
	for i, w := range a.workers {
		wg.Go(func() {
			if err := errors.Join(w.stop(), w.mangled); err != nil {
				errs[i] = w.wrap(err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
