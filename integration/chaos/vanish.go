package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/loadgen"
)

const (
	// fleetSize nodes, of which vanished are gone at once: 30 %, and more than
	// the 50 by which the breaker opens.
	fleetSize, vanished = 200, 60
	// breakerWindow is the policy's, shorter than by default: so long expiry
	// pauses when the breaker opens.
	breakerWindow = 10 * gpuai.Second
	// expiries is how many leases are seen to expire behind the breaker.
	expiries = 5
)

// playVanish takes 30 % of the nodes away at once.
func playVanish(s *scene) error {
	w := s.row("27", "30 % of 200 nodes vanish at once, each with a lease",
		"the breaker opens: expiry pauses, then goes on at one lease a second; leases of other nodes stay; the nodes come back and nothing more expires")
	r, err := s.newRegion(3, nil)
	if err != nil {
		return err
	}
	if err := r.startAll(); err != nil {
		return err
	}
	err = r.setPolicy(func(p *gpuai.Policy) {
		p.TTLBatch, p.TTLInference, p.Grace, p.BeatEvery, p.BreakerWindow = testTTL, testTTL, testGrace, testBeatEvery, breakerWindow
	})
	if err != nil {
		return err
	}
	stay, err := r.fleetOf(0, fleetSize-vanished)
	if err != nil {
		return err
	}
	defer stay.Stop()
	gone, err := r.fleetOf(fleetSize-vanished, fleetSize)
	if err != nil {
		return err
	}
	defer gone.Stop()
	if err := r.leaseEach(w); err != nil {
		return err
	}
	from, err := r.api.Queue(r)
	if err != nil {
		return err
	}
	at := time.Now()
	gone.Stop()
	w.Injected++
	s.say("%d of %d nodes are gone", vanished, fleetSize)
	if err := r.slowExpiry(w, from.Index, at); err != nil {
		return err
	}
	back, err := r.fleetOf(fleetSize-vanished, fleetSize)
	if err != nil {
		return err
	}
	defer back.Stop()
	if err := r.allBack(w); err != nil {
		return err
	}
	if err := r.digests(w, 0); err != nil {
		return err
	}
	s.end(w)
	return nil
}

func (r *region) fleetOf(from, to int) (*loadgen.Fleet, error) {
	return loadgen.StartFleet(r, loadgen.FleetConfig{Addrs: r.urls(), Access: r.operator(), From: from, To: to, GPUs: 1})
}

// leaseEach gives each node one lease, of its only device.
func (r *region) leaseEach(w *row) error {
	spec := smallJob("each")
	spec.Array = gpuai.Array{Size: fleetSize}
	spec.Groups[0].Resources.GPU = gpuai.GPURequest{Count: 1}
	sub, err := r.api.Submit(r, client.SubmitRequest{Spec: spec})
	if err != nil {
		return err
	}
	w.Acknowledged, w.Leases = 1, len(sub.Leases)
	if len(sub.Leases) != fleetSize {
		return fmt.Errorf("%d leases were granted on %d nodes", len(sub.Leases), fleetSize)
	}
	return nil
}

// slowExpiry watches the first leases expire.
func (r *region) slowExpiry(w *row, from uint64, at time.Time) error {
	const nominal = time.Duration(testTTL+testGrace) * time.Millisecond
	ctx, cancel := context.WithTimeout(r, nominal+time.Duration(breakerWindow)*time.Millisecond+expiries*time.Second+patience)
	defer cancel()
	var when []time.Duration
	err := r.api.Events(ctx, client.EventQuery{From: from}, func(events []gpuai.Event, _ uint64) error {
		for _, e := range events {
			if e.Kind == gpuai.LeaseEndedEvent {
				when = append(when, time.Since(at))
			}
			if e.Kind == gpuai.LeaseEndedEvent && !isGone(e.Node) {
				w.fail("lease %s of node %s ended, cause %s, and the node was there", e.Lease, e.Node, e.Cause)
			}
		}
		if len(when) >= expiries {
			cancel()
		}
		return nil
	})
	if len(when) < expiries {
		return fmt.Errorf("%d leases expired in all, and %d were to: %w", len(when), expiries, err)
	}
	first, last := when[0], when[len(when)-1]
	w.note("the first lease expired %.1f s after the nodes were gone, %.1f s beyond TTL + grace; %d expired in the %.1f s after it", first.Seconds(), (first - nominal).Seconds(), len(when)-1, (last - first).Seconds())
	if first < nominal {
		w.fail("the first lease expired %s after the nodes were gone, before TTL + grace", first)
	}
	if most := 2 + 2*int((last-first)/time.Second); len(when) > most {
		w.fail("%d leases expired within %s: a stampede, of one a second", len(when), last-first)
	}
	return nil
}

func isGone(id gpuai.NodeID) bool {
	var n int
	_, err := fmt.Sscanf(string(id), "bench-%d", &n)
	return err == nil && n >= fleetSize-vanished
}

// allBack waits until all nodes are ready, and counts what is still leased.
func (r *region) allBack(w *row) error {
	live := func(ctx context.Context) (n int, err error) {
		ls, _, err := r.api.Leases(ctx, client.LeaseQuery{Page: client.Page{Limit: 1_000}, Live: true})
		return len(ls), err
	}
	before, err := live(r)
	if err != nil {
		return err
	}
	err = r.until(patience, "all nodes to be ready", func(ctx context.Context) error {
		nodes, _, err := r.api.Nodes(ctx, client.Page{Limit: 1_000})
		ready := 0
		for i := range nodes {
			if nodes[i].State == gpuai.NodeReady {
				ready++
			}
		}
		if err == nil && ready != fleetSize {
			err = fmt.Errorf("%d of %d are", ready, fleetSize)
		}
		return err
	})
	if err != nil {
		return err
	}
	after, err := live(r)
	w.note("%d leases were live when the nodes came back, %d once all were ready", before, after)
	return err
}
