package main

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// placeLimit bounds the wait for a load's last allocation.
const placeLimit = 10 * time.Minute

// submitters are the clients of a burst: each runs sbatch, one job after the
// other. More than these only wait for the machine's two processors.
const submitters = 8

func (o *options) slurm(ctx context.Context, nodes int, tune bool) (rows []row, err error) {
	s, err := startSlurm(ctx, nodes, tune)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	for _, l := range []struct {
		name string
		jobs int
		load func(ctx context.Context, jobs int) (starts map[int]time.Time, err error)
	}{
		{"lone", o.lone, s.lone},
		{"burst, a request a job", o.burst, s.burst},
		{"burst, one request", o.burst, s.array},
	} {
		progress("%s, %d nodes: %s", s.name, nodes, l.name)
		r, err := s.measure(ctx, l.jobs, l.load)
		if err != nil {
			return rows, err
		}
		r.Load = l.name
		rows = append(rows, r)
		if err := s.clear(ctx); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// measure runs a load and waits until the log says of all its jobs when they
// were given their nodes.
func (s *slurm) measure(ctx context.Context, jobs int, load func(context.Context, int) (map[int]time.Time, error)) (row, error) {
	before, err := s.cpu()
	if err != nil {
		return row{}, err
	}
	started, err := load(ctx, jobs)
	if err != nil {
		return row{}, err
	}
	var placed map[int][]time.Time
	err = until(ctx, placeLimit, "the last allocation, see "+s.log(), func() bool {
		b, rerr := os.ReadFile(s.log())
		placed = allocations(b)
		n := 0
		for id := range started {
			n += len(placed[id])
		}
		return rerr == nil && n >= jobs
	})
	after, cerr := s.cpu()
	if err = errors.Join(err, cerr); err != nil {
		return row{}, err
	}
	return summary(s, started, placed, after-before), nil
}

func summary(s *slurm, started map[int]time.Time, placed map[int][]time.Time, cpu time.Duration) row {
	var first, last time.Time
	var ms []float64
	for id, at := range started {
		if first.IsZero() || at.Before(first) {
			first = at
		}
		for _, p := range placed[id] {
			ms = append(ms, float64(p.Sub(at).Microseconds())/1000)
			if p.After(last) {
				last = p
			}
		}
	}
	slices.Sort(ms)
	n := float64(len(ms))
	return row{
		Scheduler: s.name, Nodes: s.nodes, Jobs: len(ms),
		P50: ms[len(ms)/2], P99: ms[min(len(ms)-1, len(ms)*99/100)],
		Rate: n / last.Sub(first).Seconds(), CPU: float64(cpu.Milliseconds()) / n,
	}
}

// lone submits jobs one after the other, each when the one before has its node.
func (s *slurm) lone(ctx context.Context, jobs int) (map[int]time.Time, error) {
	started := map[int]time.Time{}
	for range jobs {
		at := time.Now()
		id, err := s.submit(ctx, 0)
		if err != nil {
			return nil, err
		}
		started[id] = at
		err = until(ctx, time.Minute, "the allocation of a lone job", func() bool {
			b, err := os.ReadFile(s.log())
			return err == nil && len(allocations(b)[id]) > 0
		})
		if err != nil {
			return nil, err
		}
	}
	return started, nil
}

// burst submits jobs as fast as the submitters can.
func (s *slurm) burst(ctx context.Context, jobs int) (map[int]time.Time, error) {
	var (
		next    atomic.Int64
		mu      sync.Mutex
		started = map[int]time.Time{}
		failed  error
		wg      sync.WaitGroup
	)
	for range submitters {
		wg.Go(func() {
			for next.Add(1) <= int64(jobs) {
				at := time.Now()
				id, err := s.submit(ctx, 0)
				mu.Lock()
				started[id] = at
				failed = errors.Join(failed, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return started, failed
}

// array submits all jobs as one array.
func (s *slurm) array(ctx context.Context, jobs int) (map[int]time.Time, error) {
	at := time.Now()
	id, err := s.submit(ctx, jobs)
	return map[int]time.Time{id: at}, err
}

// clear ends all jobs and forgets the log.
func (s *slurm) clear(ctx context.Context) error {
	if err := s.command(ctx, "scancel", "-u", "root").Run(); err != nil {
		return err
	}
	return until(ctx, placeLimit, "the queue to be empty", func() bool {
		out, err := s.command(ctx, "squeue", "-h").Output()
		return err == nil && len(out) == 0
	})
}

// A line of the log that says that a job, or a task of an array, was given its
// nodes: by the main loop or by the backfill.
var allocated = regexp.MustCompile(`(?m)^\[([0-9T:.-]+)\] (?:sched: Allocate|sched/backfill: _start_job: Started) JobId=([0-9]+)(?:_[0-9]+)?(?:\([0-9]+\))? `)

// allocations returns by job when it, and each task of an array, was given its
// nodes.
func allocations(log []byte) map[int][]time.Time {
	out := map[int][]time.Time{}
	for _, m := range allocated.FindAllSubmatch(log, -1) {
		at, err := time.ParseInLocation("2006-01-02T15:04:05.000", string(m[1]), time.Local)
		id, nerr := strconv.Atoi(string(m[2]))
		if err == nil && nerr == nil {
			out[id] = append(out[id], at)
		}
	}
	return out
}
