package main

import (
	"context"
	"slices"
	"sync"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
)

// A watcher follows the region's events, across the death of the server that
// it was following at.
type watcher struct {
	mu     sync.Mutex // guards below
	leases map[gpuai.Token]*lease
	last   [2]uint64 // index and ordinal of the newest event
}

// A lease is what the events told of one, with when they came here, by
// CLOCK_BOOTTIME in nanoseconds; 0 = not yet.
type lease struct {
	token                   gpuai.Token
	task                    taskKey
	node                    gpuai.NodeID
	granted, started, ended int64
	cause                   gpuai.LeaseCause
}

// A taskKey names a task as its beats do.
type taskKey struct {
	job  string
	task uint32
}

func newWatcher() *watcher { return &watcher{leases: map[gpuai.Token]*lease{}} }

// follow takes in the events after an index until ctx ends.
func (w *watcher) follow(ctx context.Context, c *client.Client, from uint64) error {
	return c.Events(ctx, client.EventQuery{From: from}, func(events []gpuai.Event, _ uint64) error {
		now := beat.Boottime()
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := range events {
			w.take(&events[i], now)
		}
		return nil
	})
}

// take notes one event; what was seen already is dropped.
func (w *watcher) take(e *gpuai.Event, now int64) {
	at := [2]uint64{e.Index, uint64(e.Ordinal) + 1}
	if slices.Compare(at[:], w.last[:]) <= 0 {
		return
	}
	w.last = at
	l := w.leases[e.Lease]
	switch {
	case e.Kind == gpuai.LeaseGrantedEvent:
		w.leases[e.Lease] = &lease{token: e.Lease, task: taskKey{e.Job.String(), e.Task}, node: e.Node, granted: now}
	case l == nil:
	case e.Kind == gpuai.LeaseStarted:
		l.started = now
	case e.Kind == gpuai.LeaseEndedEvent:
		l.ended, l.cause = now, e.Cause
	}
}

// all returns copies of the leases that f accepts, by token.
func (w *watcher) all(f func(*lease) bool) (out []lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.leases {
		if f(l) {
			out = append(out, *l)
		}
	}
	slices.SortFunc(out, func(a, b lease) int {
		if a.token < b.token {
			return -1
		}
		return 1
	})
	return out
}

// live returns the leases that have started and not ended of a job; "" is any.
func (w *watcher) live(job string) []lease {
	return w.all(func(l *lease) bool {
		return l.started != 0 && l.ended == 0 && (job == "" || l.task.job == job)
	})
}
