package server

import (
	"context"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/server/liveness"
)

const (
	// beatWindow is how often beats are folded and confirmed at most.
	beatWindow = 250 * time.Millisecond
	// dutyRetry is the wait after a duty's proposal that failed.
	dutyRetry = 100 * time.Millisecond
	// checkpointEvery and checkpointEntries: a checkpoint is due when either
	// has passed and something was applied.
	checkpointEvery   = 10 * time.Second
	checkpointEntries = 1_024
)

// A reign is what this server does while it leads one term. It begins when the
// term's own barrier has been applied, ends with the term's context, and takes
// its soft state with it.
type reign struct {
	s       *Server
	term    raft.Term
	tracker *liveness.Tracker

	ended   chan struct{} // closed with the reign
	kick    chan struct{} // beats wait
	applied chan struct{} // an entry was applied
	retired chan struct{} // jobs were retired: the store may be swept

	publishes chan publish // of checkpoints: earlier attempts may be swept

	mu         sync.Mutex // guards below
	waiting    []*beatBatch
	registered []gpuai.NodeID
}

// beatBatch is one message of beats that waits for its window.
type beatBatch struct {
	done  chan struct{}
	index uint64
	err   error
}

// followTerms runs a reign for each term that this server leads.
func (s *Server) followTerms(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case term, ok := <-s.node.Leadership():
			if !ok {
				return
			}
			s.rule(ctx, term)
		}
	}
}

// rule runs one reign to its end.
func (s *Server) rule(ctx context.Context, term raft.Term) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(term.Ctx, cancel)()
	r := &reign{
		s: s, term: term, tracker: liveness.New(term.Number, s.now()),
		ended: make(chan struct{}), kick: make(chan struct{}, 1), applied: make(chan struct{}, 1),
		retired: make(chan struct{}, 1), publishes: make(chan publish, maxPublishes),
	}
	defer close(r.ended)
	s.reign.Store(r)
	defer s.reign.Store(nil)
	var wg sync.WaitGroup
	wg.Go(func() { r.windows(ctx) })
	wg.Go(func() { r.ticks(ctx) })
	wg.Go(func() { r.checkpoints(ctx) })
	wg.Go(func() { r.levels(ctx) })
	wg.Go(func() { r.retirements(ctx) })
	wg.Go(func() { r.sweeps(ctx) })
	wg.Go(func() { r.sweepAttempts(ctx) })
	wg.Go(func() { r.reseals(ctx) })
	wg.Wait()
}

var errNotLeading = &gpuai.Error{
	Code: gpuai.NoLeader, Detail: "this server does not lead; retry", RetryAfter: 250 * gpuai.Millisecond,
}

// observe is called for each applied entry. It does not block.
func (r *reign) observe(out *fsm.Output) {
	for i := range out.Events {
		if e := &out.Events[i]; e.Kind == gpuai.NodeRegistered {
			r.mu.Lock()
			r.registered = append(r.registered, e.Node)
			r.mu.Unlock()
		}
	}
	r.published(out)
	nudge(r.applied)
}

// nudge wakes whoever waits on c, or will.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// confirm touches the nodes of some beats and returns, behind the next
// window's entry, its index and the beats that counted.
func (r *reign) confirm(ctx context.Context, beats []beat) (confirmation, error) {
	var c confirmation
	refs := make([]fsm.NodeRef, 0, min(len(beats), liveness.MaxRows))
	now := r.s.now()
	for from := 0; from < len(beats); from += liveness.MaxRows {
		part := beats[from:min(from+liveness.MaxRows, len(beats))]
		refs = refs[:0]
		for i := range part {
			refs = append(refs, part[i].NodeRef)
		}
		var counted []bool
		r.s.node.View(func(m *fsm.Machine) { counted = r.tracker.Beats(m, now, refs) })
		for i, ok := range counted {
			if ok {
				c.Beats = append(c.Beats, part[i])
			}
		}
	}
	if len(c.Beats) == 0 {
		return c, nil
	}
	// Only now may the batch join a window: its touches are done.
	b := &beatBatch{done: make(chan struct{})}
	r.mu.Lock()
	r.waiting = append(r.waiting, b)
	r.mu.Unlock()
	nudge(r.kick)
	select {
	case <-b.done:
		c.Index = b.index
		return c, b.err
	case <-r.ended:
		return c, errNotLeading
	case <-ctx.Done():
		return c, ctx.Err()
	}
}

// windows runs a window when beats wait and the one before is a window's
// length ago, and at least every window's length.
func (r *reign) windows(ctx context.Context) {
	every := time.NewTicker(beatWindow)
	defer every.Stop()
	var confirmed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		case <-r.kick:
			if time.Since(confirmed) < beatWindow {
				continue // the ticker comes in time
			}
		}
		if r.window(ctx) {
			confirmed = time.Now()
		}
	}
}

// window decides who is silent and proposes it, with one entry that confirms
// the beats that came since the window before. Windows follow each other: what
// one proposes is queued before the next one looks. It reports whether there
// were beats.
func (r *reign) window(ctx context.Context) bool {
	r.mu.Lock()
	batch, registered := r.waiting, r.registered
	r.waiting, r.registered = nil, nil
	r.mu.Unlock()
	d := r.decide(registered)
	r.s.metrics.breaker(&d)
	if d.Tripped {
		r.s.log.Error("so many nodes fell silent at once that this region's servers suspect themselves: leases expire slowly until most nodes beat again; check the network between servers and nodes",
			"due", d.Held, "term", d.Term)
	}
	cmds := d.Commands(len(batch) > 0)
	if len(cmds) == 0 {
		return false
	}
	applied, err := r.s.node.ProposeAll(ctx, cmds)
	var index uint64
	if err == nil {
		last := applied[len(applied)-1]
		if index = last.Index; last.Result.Code != gpuai.OK {
			err = errNotLeading
		}
	}
	for _, b := range batch {
		b.index, b.err = index, err
		close(b.done)
	}
	for i := range d.Expire {
		r.s.log.Warn("a node is silent: its leases expire", "node", d.Expire[i].Node,
			"incarnation", d.Expire[i].Incarnation, "silent_for", d.Expire[i].SilentFor, "error", err)
	}
	return len(batch) > 0
}

// decide scans the nodes, a bounded number at each hold of the machine's lock.
func (r *reign) decide(registered []gpuai.NodeID) liveness.Decision {
	var p gpuai.Policy
	for more := true; more; {
		now := r.s.now()
		n := min(len(registered), liveness.MaxRows)
		r.s.node.View(func(m *fsm.Machine) {
			p = m.Policy()
			if n > 0 {
				r.tracker.Observe(m, now, registered[:n])
			}
			more = r.tracker.Scan(m, &p, now)
		})
		registered = registered[n:]
		more = more || len(registered) > 0
	}
	return r.tracker.Decide(&p, r.s.now())
}

// ticks proposes a Tick whenever the machine's next deadline has come.
func (r *reign) ticks(ctx context.Context) {
	tick := (&fsm.Tick{}).Append(nil, fsm.Envelope{})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		var next gpuai.Instant
		r.s.node.View(func(m *fsm.Machine) { next = m.NextDeadline() })
		wait := time.Duration(min(next-r.s.node.RegionTime(), 1_000)) * time.Millisecond
		if wait <= 0 {
			if _, err := r.s.node.Propose(ctx, tick); err == nil {
				continue
			}
			wait = dutyRetry
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-r.applied:
		case <-ctx.Done():
		}
	}
}

// checkpoints lets the replicas compare digests.
func (r *reign) checkpoints(ctx context.Context) {
	poll := time.NewTicker(beatWindow)
	defer poll.Stop()
	last, at := r.s.node.AppliedIndex(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
		now := r.s.node.AppliedIndex()
		if now < last+checkpointEntries && (now <= last || time.Since(at) < checkpointEvery) {
			continue
		}
		var c fsm.Checkpoint
		r.s.node.View(func(m *fsm.Machine) { c.Index, c.Digest = m.Index(), m.Digest() })
		a, err := r.s.node.Propose(ctx, c.Append(nil, fsm.Envelope{}))
		if err != nil {
			continue // the next poll tries again, with a newer index
		}
		last, at = a.Index, time.Now()
	}
}
