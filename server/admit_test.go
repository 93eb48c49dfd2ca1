package server

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// TestCase26AgentsWaitForALeader: after a failover all agents come before there
// is a leader. They are held, not refused, and all go on when the server is
// ready; none is held for longer than a while.
func TestCase26AgentsWaitForALeader(t *testing.T) {
	t.Parallel()
	rd := &readiness{}
	rd.set(false, "no leader is known")
	const agents = 1_000
	var wg sync.WaitGroup
	let := make(chan bool, agents)
	for range agents {
		wg.Go(func() {
			ready, _ := rd.await(t.Context(), patience)
			let <- ready
		})
	}
	eventually(t, "agent that waits", func() bool {
		rd.mu.Lock()
		defer rd.mu.Unlock()
		return rd.turned != nil
	})
	rd.set(false, "it is about to lead") // no reason to go on
	select {
	case <-let:
		t.Error("an agent was let in, or sent away, before there was a leader")
	default:
	}
	rd.set(true, "")
	wg.Wait()
	for range agents {
		if !<-let {
			t.Fatal("an agent was not let in when the server was ready")
		}
	}
	rd.set(false, "its leader was last heard 4s ago")
	if ready, why := rd.await(t.Context(), time.Millisecond); ready || why == "" {
		t.Errorf("after a while it says %v, %q", ready, why)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if ready, _ := rd.await(ended, patience); ready {
		t.Error("an agent that is gone was let in")
	}
	rd.stop()
	if ready, why := rd.await(t.Context(), patience); ready || why != "it is stopping" {
		t.Errorf("a server that stops says %v, %q", ready, why)
	}
}

// TestRefusalsAreSpread: those that are sent away do not come back together.
func TestRefusalsAreSpread(t *testing.T) {
	seen := make(map[gpuai.Duration]bool)
	for range 200 {
		r := refuse(gpuai.NoLeader, "x")
		if r.RetryAfter < 250 || r.RetryAfter > 1_250 {
			t.Fatalf("come back after %s", r.RetryAfter)
		}
		seen[r.RetryAfter] = true
	}
	if len(seen) < 50 {
		t.Errorf("200 refusals have %d times", len(seen))
	}
}
