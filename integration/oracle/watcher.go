package oracle

import (
	"context"
	"slices"
	"sync"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
)

// A Watcher follows the region's events, across the death of the server that
// it was following at.
type Watcher struct {
	mu sync.Mutex // guards below, until Follow has returned
	// Leases are all that were granted. While Follow runs, see All.
	Leases map[gpuai.Token]*Lease
	last   [2]uint64 // index and ordinal of the newest event
}

// A Lease is what the events told of one, with when they came here, by
// CLOCK_BOOTTIME in nanoseconds; 0 = not yet.
type Lease struct {
	Token                   gpuai.Token
	Task                    TaskKey
	Node                    gpuai.NodeID
	Granted, Started, Ended int64
	Cause                   gpuai.LeaseCause
}

// A TaskKey names a task as its beats do.
type TaskKey struct {
	Job  string
	Task uint32
}

// NewWatcher returns a watcher that has seen nothing.
func NewWatcher() *Watcher { return &Watcher{Leases: map[gpuai.Token]*Lease{}} }

// Follow takes in the events after an index until ctx ends.
func (w *Watcher) Follow(ctx context.Context, c *client.Client, from uint64) error {
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
func (w *Watcher) take(e *gpuai.Event, now int64) {
	at := [2]uint64{e.Index, uint64(e.Ordinal) + 1}
	if slices.Compare(at[:], w.last[:]) <= 0 {
		return
	}
	w.last = at
	l := w.Leases[e.Lease]
	switch {
	case e.Kind == gpuai.LeaseGrantedEvent:
		w.Leases[e.Lease] = &Lease{Token: e.Lease, Task: TaskKey{e.Job.String(), e.Task}, Node: e.Node, Granted: now}
	case l == nil:
	case e.Kind == gpuai.LeaseStarted:
		l.Started = now
	case e.Kind == gpuai.LeaseEndedEvent:
		l.Ended, l.Cause = now, e.Cause
	}
}

// All returns copies of the leases that f accepts, by token.
func (w *Watcher) All(f func(*Lease) bool) (out []Lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.Leases {
		if f(l) {
			out = append(out, *l)
		}
	}
	slices.SortFunc(out, func(a, b Lease) int {
		if a.Token < b.Token {
			return -1
		}
		return 1
	})
	return out
}

// Live returns the leases that have started and not ended of a job; "" is any.
func (w *Watcher) Live(job string) []Lease {
	return w.All(func(l *Lease) bool {
		return l.Started != 0 && l.Ended == 0 && (job == "" || l.Task.Job == job)
	})
}
