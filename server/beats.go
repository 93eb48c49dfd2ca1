package server

import (
	"context"
	"sync"
	"time"
)

const (
	// beatTimeout bounds one message of beats: an agent that has no ack by
	// then tries another server.
	beatTimeout = 2 * time.Second
	// beatAge is how long a beat is offered to new leaders. It stays good for
	// longer, since a renewal counts from when it was sent.
	beatAge = 3 * time.Second
	// maxBeats bounds one message, so that it stays within a peer request.
	maxBeats = 50_000
)

// A heldBeat is a beat of a session of this server.
type heldBeat struct {
	beat
	since time.Time
	// done is called once if the beat is confirmed, when this server has
	// applied the index that did it.
	done func(index uint64)
}

// collector folds the beats of this server's sessions into one message per
// window to the leader.
type collector struct {
	s    *Server
	kick chan struct{}

	mu      sync.Mutex // guards below
	pending []heldBeat
}

func newCollector(s *Server) *collector {
	return &collector{s: s, kick: make(chan struct{}, 1)}
}

// add takes a beat. It does not block.
func (c *collector) add(b heldBeat) {
	c.mu.Lock()
	c.pending = append(c.pending, b)
	c.mu.Unlock()
	nudge(c.kick)
}

// run sends until ctx ends: at once after a quiet window, else once a window.
func (c *collector) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.kick:
		case <-timer.C:
		}
		if wait := beatWindow - time.Since(last); wait > 0 {
			timer.Reset(wait)
			continue
		}
		if batch := c.take(); len(batch) > 0 {
			last = time.Now()
			wg.Go(func() { c.send(ctx, batch) })
		}
	}
}

// take removes what waits, maxBeats at most.
func (c *collector) take() []heldBeat {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.pending), maxBeats)
	batch := c.pending[:n:n]
	if c.pending = c.pending[n:]; len(c.pending) > 0 {
		nudge(c.kick)
	}
	return batch
}

// send has a batch confirmed. Beats that no leader took are offered again
// while they are young: confirming one twice does no harm.
func (c *collector) send(ctx context.Context, batch []heldBeat) {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	beats := make([]beat, len(batch))
	for i := range batch {
		beats[i] = batch[i].beat
	}
	got, err := c.confirm(ctx, beats)
	if err == nil && got.Index > 0 {
		err = c.s.node.WaitApplied(ctx, got.Index)
	}
	if err != nil {
		c.s.log.Debug("beats were not confirmed", "beats", len(batch), "error", err)
		c.again(batch)
		return
	}
	// The answer keeps the order of the question.
	for i := range batch {
		if len(got.Beats) > 0 && got.Beats[0] == batch[i].beat {
			got.Beats = got.Beats[1:]
			batch[i].done(got.Index)
		}
	}
}

// again puts the young beats of a batch back.
func (c *collector) again(batch []heldBeat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range batch {
		if time.Since(b.since) < beatAge {
			c.pending = append(c.pending, b)
		}
	}
	if len(c.pending) > 0 {
		nudge(c.kick)
	}
}

// confirm asks the leader, which may be this server.
func (c *collector) confirm(ctx context.Context, beats []beat) (confirmation, error) {
	if r := c.s.reign.Load(); r != nil {
		return r.confirm(ctx, beats)
	}
	body, err := c.s.askLeader(ctx, pathBeats, appendBeats(nil, beats))
	if err != nil {
		return confirmation{}, err
	}
	return readConfirmation(body)
}
