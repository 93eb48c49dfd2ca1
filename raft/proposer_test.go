package raft

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func TestProposeLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 1)
		c.tune.queueCommands, c.tune.queueBytes = 100, 10_000
		c.start("a")
		n := c.leader()
		_, cmd := job()
		cases := []struct {
			name string
			cmds [][]byte
			want gpuai.Code
		}{
			{"fits", slices.Repeat([][]byte{(&fsm.Tick{}).Append(nil, fsm.Envelope{})}, 100), gpuai.OK},
			{"too many", slices.Repeat([][]byte{cmd}, 101), gpuai.RateLimited},
			{"too many bytes", [][]byte{make([]byte, 10_001)}, gpuai.RateLimited},
			{"too large", [][]byte{make([]byte, fsm.MaxCommandBytes+1)}, gpuai.TooLarge},
			{"malformed", [][]byte{cmd, []byte("nonsense")}, gpuai.Internal},
			{"empty command", [][]byte{{}}, gpuai.Internal},
		}
		for _, k := range cases {
			out, err := n.ProposeAll(t.Context(), k.cmds)
			if code(err) != k.want {
				t.Errorf("%s: %v, want %v", k.name, err, k.want)
			}
			for _, a := range out {
				if (a.Index != 0) != (k.want == gpuai.OK) {
					t.Errorf("%s: an outcome %+v", k.name, a)
				}
			}
		}
		if commands, bytes := n.proposer.queued(); commands != 0 || bytes != 0 {
			t.Errorf("%d commands and %d bytes still count as queued", commands, bytes)
		}
		if got := counterValue(t, n.metrics.refused); got != 102 {
			t.Errorf("%v commands count as refused", got)
		}
		c.submit(n) // nothing of it did harm
	})
}

// TestLargeCommandsAreSplit proposes commands of which no two fit an
// entry.
func TestLargeCommandsAreSplit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 1)
		n := c.leader()
		spec := &gpuai.JobSpec{Name: "large", Groups: []gpuai.Group{{
			Name: "main", Count: 1, Resources: gpuai.Resources{CPU: 1000, Memory: 1 << 30},
			Task: gpuai.TaskSpec{Command: []string{"true", string(make([]byte, 100<<10))}},
		}}}
		spec.Defaults()
		var cmds [][]byte
		for i := range 6 {
			cmd := &fsm.SubmitJob{ID: gpuai.JobID{byte(i), 1}, Spec: spec}
			cmds = append(cmds, cmd.Append(nil, fsm.Envelope{Tenant: gpuai.DefaultTenant}))
		}
		out, err := n.ProposeAll(t.Context(), cmds)
		if err != nil {
			t.Fatal(err)
		}
		entries := make(map[uint64]int)
		for _, a := range out {
			entries[a.Index]++
		}
		if len(entries) != 3 {
			t.Errorf("6 commands of 100 KiB went into %d entries: %v", len(entries), entries)
		}
	})
}

// withoutMajority proposes on a leader whose followers have just died, from
// many goroutines, and returns each job's error.
func withoutMajority(t *testing.T, c *cluster, ctx context.Context) map[gpuai.JobID]error {
	t.Helper()
	leader := c.leader()
	c.submit(leader)
	for _, id := range c.ids {
		if id != leader.cfg.ID {
			c.kill(id)
		}
	}
	var mu sync.Mutex
	out := make(map[gpuai.JobID]error)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			id, cmd := job()
			_, err := leader.Propose(ctx, cmd)
			mu.Lock()
			out[id] = err
			mu.Unlock()
		})
	}
	wg.Wait()
	return out
}

// TestLostLeadershipSaysWhatItKnows checks that NoLeader is only ever said of
// a command that is surely not applied.
func TestLostLeadershipSaysWhatItKnows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		answers := withoutMajority(t, c, t.Context())
		c.kill(c.ids...)
		c.start(c.ids...)
		c.converged()
		n, codes := c.leader(), make(map[gpuai.Code]int)
		for id, err := range answers {
			codes[code(err)]++
			switch {
			case code(err) == gpuai.NoLeader && c.has(n, id):
				t.Errorf("job %s was said not to be applied, and is", id)
			case code(err) != gpuai.NoLeader && code(err) != gpuai.OutcomeUnknown:
				t.Errorf("job %s: %v", id, err)
			}
		}
		if codes[gpuai.OutcomeUnknown] == 0 {
			t.Errorf("nothing was under way: %v", codes)
		}
	})
}

func TestEndedRequestIsOutcomeUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		for id, err := range withoutMajority(t, c, ctx) {
			if k := code(err); k != gpuai.OutcomeUnknown && k != gpuai.NoLeader {
				t.Errorf("job %s: %v", id, err)
			}
		}
	})
}

// TestOverdueEntriesAreAnswered has hraft's future answer long after ours.
func TestOverdueEntriesAreAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 3)
		c.tune.applyTimeout = 100 * time.Millisecond
		// The leader must outlive the test's silence: it is the timeout that counts.
		c.tweak = func(cfg *Config) { cfg.Multiplier = 4 }
		c.start(c.ids...)
		leader := c.leader()
		began := time.Now()
		answers := withoutMajority(t, c, t.Context())
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("the answers took %v", d)
		}
		for id, err := range answers {
			if k := code(err); k != gpuai.OutcomeUnknown && k != gpuai.RateLimited {
				t.Errorf("job %s: %v", id, err)
			}
		}
		if !leader.IsLeader() {
			t.Fatal("the leader stepped down before the entries could come through")
		}
		for _, id := range c.ids {
			if c.nodes[id] == nil {
				c.start(id)
			}
		}
		until(t, "the entries come through", func() bool { return len(leader.proposer.slots) == 0 })
		for id, err := range answers {
			if code(err) == gpuai.RateLimited && c.has(leader, id) {
				t.Errorf("job %s was said not to be applied, and is", id)
			}
		}
	})
}

func TestProposeWithoutALeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		leader, follower := c.leader(), c.follower()
		_, cmd := job()
		_, err := follower.Propose(t.Context(), cmd)
		if code(err) != gpuai.NoLeader || err.Error() != "no_leader: server "+string(follower.cfg.ID)+" does not lead; ask server "+string(leader.cfg.ID) {
			t.Errorf("got %v", err)
		}
		c.kill(leader.cfg.ID)
		if _, err := leader.Propose(t.Context(), cmd); code(err) != gpuai.NoLeader {
			t.Errorf("a closed node: %v", err)
		}
		c.start(leader.cfg.ID)
	})
}

// TestHand hands results to single and many commands alike.
func TestHand(t *testing.T) {
	t.Parallel()
	out := &fsm.Output{Index: 9, Events: make([]gpuai.Event, 4)}
	for i := range uint32(3) {
		out.Results = append(out.Results, fsm.Result{Tasks: i, EventsFrom: i, EventsTo: i + i%2})
	}
	c := &call{out: make([]Applied, 5)}
	hand(span{c, 2, 5}, out, 0)
	for i, a := range c.out {
		known := i >= 2
		if (a.Index == 9) != known || known && (a.Result.Tasks != uint32(i-2) || len(a.Events) != (i-2)%2) {
			t.Errorf("outcome %d is %+v", i, a)
		}
	}
	if e := c.out[3].Events; cap(e) != 1 {
		t.Errorf("a waiter can reach its neighbour's events: %d", cap(e))
	}
}
