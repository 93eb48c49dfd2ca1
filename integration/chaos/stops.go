package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
)

// waiting is how many requests lie in the stopped leader's sockets when it goes
// on.
const waiting = 8

// longStop is how long the load goes on while the leader is stopped.
const longStop = 20 * time.Second

// playStops stops the leader for longer and longer, and lets it go on.
func playStops(s *scene) error {
	w := s.row("4", "SIGSTOP of the leader beyond the election timeout, then SIGCONT",
		"another server leads meanwhile; the old leader steps down, answers no linearizable read with an older state, so that the clients' history is linearizable, and what it acknowledges is in the log; no divergence")
	w.Recovered = "from SIGSTOP of the leader to the first lease of a job submitted after it"
	r, err := s.startRegion(3, nil)
	if err != nil {
		return err
	}
	if err := r.ledger.load("stops"); err != nil {
		return err
	}
	h, err := r.observe()
	if err != nil {
		return err
	}
	for i, d := range s.counts.stops {
		if err := r.stopLeader(w, i, d); err != nil {
			return fmt.Errorf("stopped for %s: %w", d, err)
		}
		if err := errors.Join(r.ledger.account(w), r.digests(w, 0)); err != nil {
			return err
		}
	}
	h.halt()
	h.judge(w)
	if err := r.ledger.settle(w); err != nil {
		return err
	}
	s.end(w)
	return nil
}

// stopLeader stops the leader for d, and judges what it answers when it goes on.
func (r *region) stopLeader(w *row, round int, d time.Duration) error {
	if err := r.ledger.await(20); err != nil {
		return err
	}
	old, term, err := r.leader()
	if err != nil {
		return err
	}
	if err := old.proc.Poke(syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { _ = old.proc.Poke(syscall.SIGCONT) }() // once more does no harm
	stopped := time.Now()
	w.Injected++
	took, err := r.ledger.firstPlacement(stopped, r.except(old))
	if err != nil {
		return err
	}
	w.recovered(took)
	r.say("leader %s stopped for %s: first new placement after %d ms", old.id, d, took.Milliseconds())
	if d > longStop { // a load for all that time would only fill the machine
		r.ledger.halt()
		r.pause(d - time.Since(stopped))
		if err := r.ledger.load(fmt.Sprintf("stops-%d", round)); err != nil {
			return err
		}
		if err := r.ledger.await(20); err != nil {
			return err
		}
	}
	r.pause(d - time.Since(stopped))
	// What the others have acknowledged meanwhile, the old leader must know or
	// refuse to tell.
	newest := r.ledger.entries()
	mark := newest[len(newest)-1]
	ask := r.askStopped(w, old, round, mark)
	if err := old.proc.Poke(syscall.SIGCONT); err != nil {
		return err
	}
	went := time.Now()
	ask()
	err = r.until(patience, "the old leader to step down", func(ctx context.Context) error {
		st, err := old.api.Raft(ctx)
		if err == nil && (st.Term <= term || st.State == "leader" && st.Term == term) {
			err = fmt.Errorf("it is %s in term %d", st.State, st.Term)
		}
		return err
	})
	w.note("after %s stopped, %s had stepped down %d ms after it went on", d, old.id, time.Since(went).Milliseconds())
	return err
}

// askStopped sends reads and submits to a server that is stopped; the returned
// function waits for the answers, once it goes on.
func (r *region) askStopped(w *row, m *member, round int, mark entry) (await func()) {
	ctx, cancel := context.WithTimeout(r, patience)
	var wg, sent sync.WaitGroup
	var answered, refused counter
	for i := range waiting {
		c, err := r.client(-1, patience, m.http)
		if err != nil {
			w.fail("%v", err)
			continue
		}
		sent.Add(1)
		wg.Go(func() {
			sent.Done()
			j, err := c.Job(ctx, mark.sub.Job.ID.String())
			var api *gpuai.Error
			switch {
			case err == nil && j.ID == mark.sub.Job.ID:
				answered.add()
			case errors.As(err, &api) && api.Code == gpuai.NotFound:
				w.lose(1, "stale read: %s did not know job %s, which was acknowledged at index %d before it was asked", m.id, mark.name, mark.sub.Index)
			default:
				refused.add()
			}
		})
		wg.Go(func() { _, _ = r.ledger.submit(ctx, c, fmt.Sprintf("late-%d-%d", round, i)) }) // the ledger judges it
	}
	sent.Wait()
	r.pause(50 * time.Millisecond) // for the requests to reach its sockets
	return func() {
		wg.Wait()
		cancel()
		w.note("of %d linearizable reads that waited at %s, %d were answered with the newest state, %d refused", waiting, m.id, answered.n, refused.n)
	}
}

// A counter counts from many goroutines.
type counter struct {
	mu sync.Mutex // guards below
	n  int
}

func (c *counter) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}
