package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gpuai/gpuai/integration/nursery"
)

const (
	// patience bounds every wait for something that should come at once; the
	// machine may be busy.
	patience = 30 * time.Second
	// glance is the time between two looks at a condition.
	glance = 20 * time.Millisecond
)

// A scenario is one region, or several in a row, with the faults that it is
// put through.
type scenario struct {
	name  string
	cases []string // of the project's list of faults, as its rows have them
	what  string
	// patient says that it mostly waits, and may run beside others.
	patient bool
	limit   func(profile) time.Duration
	play    func(*scene) error
}

// A scene is a scenario as it is played.
type scene struct {
	context.Context
	run     *run
	counts  profile
	name    string
	dir     string
	rng     *rand.Rand
	nursery *nursery.Nursery

	mu     sync.Mutex // guards below
	rows   []*row
	leave  []func() error // undone at the end, last first
	opened map[*row]time.Time
}

// errEnd is the cause of the end of a scene's context when all is well.
var errEnd = errors.New("the scene is over")

// play plays a scenario and returns its rows. Whatever the end, nothing of it
// is left behind.
func (r *run) play(ctx context.Context, sc *scenario) []*row {
	limit := sc.limit(r.profile)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not done within %s", limit))
	defer cancel()
	ctx, over := context.WithCancelCause(ctx)
	defer over(errEnd)
	s := &scene{
		Context: ctx, run: r, counts: r.profile, name: sc.name, dir: filepath.Join(r.dir, sc.name),
		rng: rand.New(rand.NewPCG(r.seed, hash(sc.name))), opened: map[*row]time.Time{},
	}
	err := os.MkdirAll(s.dir, 0o755)
	if err == nil {
		s.nursery, err = nursery.New(filepath.Join(s.dir, "logs"), func(err error) { s.failOpen(err) })
	}
	if err == nil {
		err = sc.play(s)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	if err != nil {
		s.failOpen(err)
	}
	over(errEnd)
	if err := s.undo(); err != nil {
		s.failOpen(fmt.Errorf("cleaning up: %w", err))
	}
	for _, w := range s.rows {
		s.close(w)
	}
	return s.rows
}

// row opens a row of the report.
func (s *scene) row(number, fault, expected string) *row {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &row{Case: number, Scenario: s.name, Fault: fault, Expected: expected}
	s.rows = append(s.rows, w)
	s.opened[w] = time.Now()
	return w
}

// end closes a row: all its expectations were looked at.
func (s *scene) end(w *row) {
	w.end()
	s.close(w)
}

func (s *scene) close(w *row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, open := s.opened[w]; open {
		w.Seconds = time.Since(at).Seconds()
		delete(s.opened, w)
	}
}

// skip closes a row that this machine cannot play.
func (s *scene) skip(w *row, why error) {
	s.say("%s is skipped: %v", w.Fault, why)
	w.skip(why)
	s.close(w)
}

// failOpen fails every row that is open; the last one where none is.
func (s *scene) failOpen(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run.say(s.name, "FAILED: %v", err)
	for w := range s.opened {
		w.fail("%v", err)
	}
	if len(s.rows) == 0 {
		s.rows = append(s.rows, &row{Scenario: s.name, Fault: "the start of the scene", Expected: "it starts"})
	}
	if len(s.opened) == 0 {
		s.rows[len(s.rows)-1].fail("%v", err)
	}
}

// say prints a line of progress.
func (s *scene) say(format string, args ...any) { s.run.say(s.name, format, args...) }

// cleanup has f called at the end of the scene, before those that were named
// earlier.
func (s *scene) cleanup(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave = append(s.leave, f)
}

// undo runs what cleanup was told, after the scene's processes are dead.
func (s *scene) undo() error {
	errs := []error{s.killAll()}
	for i := len(s.leave) - 1; i >= 0; i-- {
		errs = append(errs, s.leave[i]())
	}
	return errors.Join(errs...)
}

// killAll kills whatever runs for the scene: servers, agents, their watchdogs,
// drivers and tasks.
func (s *scene) killAll() error {
	if s.nursery != nil {
		s.nursery.Deaf()
	}
	return nursery.KillNaming(s.dir, patience)
}

// errHopeless, wrapped, ends until at once.
var errHopeless = errors.New("there is nothing to wait for")

// until polls until ok returns nil, or says what did not come, and why.
func (s *scene) until(d time.Duration, what string, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(s, d)
	defer cancel()
	poll := time.NewTicker(glance)
	defer poll.Stop()
	var last error
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		if errors.Is(err, errHopeless) {
			return fmt.Errorf("waited for %s: %w", what, err)
		}
		if last == nil || ctx.Err() == nil {
			last = err // what went wrong says more than that the time is over
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %w", d, what, last)
		}
	}
}

// pause waits, or until the scene ends.
func (s *scene) pause(d time.Duration) {
	select {
	case <-s.Done():
	case <-time.After(d):
	}
}

// hash is FNV-1a: it makes of one seed another one for each scene.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
