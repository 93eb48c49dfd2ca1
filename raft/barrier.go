package raft

import (
	"context"
	"sync"
	"time"
)

// readWindow is how often barriers for reads begin at most: all reads that
// arrive before one begins share it.
const readWindow = 5 * time.Millisecond

// barrierGate coalesces linearizable reads. One barrier runs at a time; who
// arrives while it runs waits for the next, since it may have missed them.
type barrierGate struct {
	mu      sync.Mutex // guards below
	next    *barrierRound
	running bool
	began   time.Time // the last round
}

// barrierRound is one barrier and all who wait for it.
type barrierRound struct {
	done  chan struct{}
	index uint64
	err   error
}

// Barrier returns when every command that was acknowledged before the call,
// by any leader, is applied here; index is the applied index then. Only the
// leader can tell: elsewhere the error is NoLeader.
func (n *Node) Barrier(ctx context.Context) (index uint64, err error) {
	if !n.IsLeader() {
		return 0, n.notLeading()
	}
	if err := n.admitAny(); err != nil {
		return 0, err
	}
	b := &n.barriers
	b.mu.Lock()
	if b.next == nil {
		b.next = &barrierRound{done: make(chan struct{})}
	}
	round := b.next
	if !b.running {
		b.running = true
		n.wg.Go(n.runBarriers)
	}
	b.mu.Unlock()
	select {
	case <-round.done:
		return round.index, round.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// runBarriers serves rounds until nobody waits.
func (n *Node) runBarriers() {
	b := &n.barriers
	for {
		b.mu.Lock()
		wait := readWindow - time.Since(b.began)
		b.mu.Unlock()
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-n.closing:
			}
		}
		b.mu.Lock()
		round := b.next
		b.next, b.began = nil, time.Now()
		b.mu.Unlock()
		n.metrics.barriers.Inc()
		if err := n.barrier(context.Background()); err != nil {
			round.err = noLeader("this server could not confirm that it leads (" + err.Error() + "); retry")
		}
		round.index = n.AppliedIndex()
		close(round.done)
		b.mu.Lock()
		if b.next == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
	}
}

// barrier waits for a barrier entry of hraft to pass the machine, bounded by
// our own timeout: hraft's bounds the enqueueing only.
func (n *Node) barrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.tune.applyTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.raft.Barrier(n.tune.enqueueTimeout).Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.closing:
		return context.Canceled
	}
}
