package raft

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// diverge changes one record of one replica: its policy, by an entry that no
// other replica has.
func diverge(t testing.TB, n *Node) {
	t.Helper()
	r := n.replica
	r.feeding.Lock()
	defer r.feeding.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.m.Policy()
	p.FlapLimit++
	cmd := (&fsm.SetPolicy{Policy: p}).Append(nil, fsm.Envelope{})
	var out fsm.Output
	h := fsm.Header{Time: r.m.Time(), Term: r.m.Term()}
	if err := r.m.Apply(r.m.Index()+1, r.m.Term(), fsm.AppendEntry(nil, h, cmd), &out); err != nil || out.Results[0].Code != gpuai.OK {
		t.Fatalf("diverge: %+v, %v", out.Results, err)
	}
}

// checkpoint has the replicas compare the leader's digest with theirs.
func (c *cluster) checkpoint() Applied {
	c.t.Helper()
	l := c.leader()
	var cp fsm.Checkpoint
	l.View(func(m *fsm.Machine) { cp.Index, cp.Digest = m.Index(), m.Digest() })
	a, err := l.Propose(context.Background(), cp.Append(nil, fsm.Envelope{}))
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

// stateOf returns a member's state as it would send it.
func stateOf(t testing.TB, n *Node) *bytes.Buffer {
	t.Helper()
	m, release := n.Fork()
	defer release()
	var b bytes.Buffer
	if err := m.WriteSnapshot(&b); err != nil {
		t.Fatal(err)
	}
	return &b
}

func anyState(uint64, fsm.Digest) error { return nil }

// TestCase19QuarantineAndRebuild flips a record of one replica, finds it at the
// next checkpoint, and rebuilds the replica in place, over a crash in between.
func TestCase19QuarantineAndRebuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 3)
		found := make(map[gpuai.ServerID]uint64)
		c.tweak = func(cfg *Config) {
			apply := cfg.OnApply
			cfg.OnApply = func(out *fsm.Output) {
				if apply(out); out.Diverged {
					c.mu.Lock()
					found[cfg.ID] = out.DivergedAt
					c.mu.Unlock()
				}
			}
		}
		c.start(c.ids...)
		leader := c.leader()
		bad := c.follower()
		id := bad.cfg.ID
		c.submit(leader)
		diverge(t, bad)
		c.submit(leader)
		c.submit(leader)
		if err := bad.Snapshot(); err != nil {
			t.Fatalf("a snapshot of the wrong state: %v", err)
		}
		at := c.checkpoint()
		if err := bad.WaitApplied(t.Context(), at.Index); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		if len(found) != 1 || found[id] == 0 {
			t.Errorf("found were %v, diverged is %s", found, id)
		}
		c.mu.Unlock()

		if err := bad.Quarantine("it differs"); err != nil {
			t.Fatal(err)
		}
		applied := bad.AppliedIndex()
		for range 20 {
			c.submit(c.leader())
		}
		if err := bad.Snapshot(); err == nil || !strings.Contains(err.Error(), errQuarantined.Error()) {
			t.Errorf("a snapshot in quarantine: %v", err)
		}
		c.kill(id) // its newest snapshot is of the wrong state
		c.start(id)
		bad = c.nodes[id]
		if !bad.Quarantined() || bad.AppliedIndex() > applied {
			t.Errorf("after a crash it is quarantined: %v, and has applied %d, before %d", bad.Quarantined(), bad.AppliedIndex(), applied)
		}
		c.rebuild(bad)
		c.kill(id)
		c.start(id)
		if bad = c.nodes[id]; bad.Quarantined() {
			t.Error("it is quarantined for ever")
		}
		c.converged()
	})
}

// rebuild gives a quarantined member the leader's state, after what is refused.
func (c *cluster) rebuild(bad *Node) {
	t := c.t
	t.Helper()
	last, _ := c.submit(c.leader())
	state := stateOf(t, c.leader())
	c.submit(c.leader()) // behind the state: replayed from its own log
	errNo := errors.New("no majority vouches for it")
	err := bad.Rebuild(t.Context(), bytes.NewReader(state.Bytes()), func(uint64, fsm.Digest) error { return errNo })
	if !errors.Is(err, errNo) || !bad.Quarantined() {
		t.Errorf("a state that nobody vouches for: %v", err)
	}
	if err := bad.Rebuild(t.Context(), bytes.NewReader(state.Bytes()[:state.Len()/2]), anyState); err == nil || !bad.Quarantined() {
		t.Errorf("half a state: %v", err)
	}
	if err := bad.Rebuild(t.Context(), state, anyState); err != nil || bad.Quarantined() {
		t.Fatalf("rebuild: %v, quarantined %v", err, bad.Quarantined())
	}
	if err := bad.WaitApplied(t.Context(), last.Index); err != nil {
		t.Fatal(err)
	}
	c.converged()
	if err := bad.Renew(); err != nil {
		t.Fatal(err)
	}
}

// TestCase19QuarantinedServerDoesNotLead gives leadership to one, and quarantines
// one that has it.
func TestCase19QuarantinedServerDoesNotLead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		leader, bad := c.leader(), c.follower()
		if err := bad.Quarantine("test"); err != nil {
			t.Fatal(err)
		}
		to := hraft.Server{ID: hraft.ServerID(bad.cfg.ID), Address: hraft.ServerAddress(bad.cfg.ID)}
		if err := leader.transferTo(t.Context(), to); err == nil || !strings.Contains(err.Error(), "takes no leadership over") {
			t.Errorf("it takes leadership over: %v", err)
		}
		if _, err := bad.Propose(t.Context(), nil); code(err) != gpuai.NoLeader {
			t.Errorf("it takes commands: %v", err)
		}
		third := without(c.ids, leader.cfg.ID, bad.cfg.ID)[0]
		if err := leader.Quarantine("test"); err != nil {
			t.Fatal(err)
		}
		if leader.IsLeader() {
			t.Error("a quarantined leader goes on")
		}
		until(t, "the third one leads", func() bool { return c.nodes[third].IsLeader() })
		state := stateOf(t, c.nodes[third])
		// It dies: the two may elect one of them, and that takes no command.
		c.kill(third)
		time.Sleep(time.Minute) // virtual
		if leader.IsLeader() || bad.IsLeader() {
			t.Error("a quarantined server leads")
		}
		for _, n := range []*Node{leader, bad} {
			if err := n.Rebuild(t.Context(), bytes.NewReader(state.Bytes()), anyState); err != nil {
				t.Fatal(err)
			}
		}
		c.start(third)
		c.converged()
	})
}

// TestLogsAreCompared finds an entry that differs though index and term do not.
func TestLogsAreCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		for range 10 {
			c.submit(c.leader())
		}
		c.converged()
		a, b := c.leader(), c.follower()
		first, last, err := a.LogBounds()
		if err != nil || first != 1 {
			t.Fatalf("%d … %d, %v", first, last, err)
		}
		last = b.AppliedIndex()
		one, err := a.HashLog(first, last)
		if err != nil {
			t.Fatal(err)
		}
		if two, err := b.HashLog(first, last); err != nil || one != two {
			t.Errorf("equal logs have hashes %x and %x, %v", one, two, err)
		}
		if _, err := a.HashLog(last, last+10); err == nil {
			t.Error("entries that are not there have a hash")
		}
		if _, err := a.HashLog(1, MaxHashed+1); err == nil {
			t.Error("too many entries have a hash")
		}
		var e hraft.Log
		if err := b.log.GetLog(last, &e); err != nil {
			t.Fatal(err)
		}
		e.Data = append([]byte(nil), e.Data...)
		e.Data[len(e.Data)-1] ^= 1
		if err := b.log.StoreLog(&e); err != nil {
			t.Fatal(err)
		}
		if two, err := b.HashLog(first, last); err != nil || one == two {
			t.Errorf("unequal logs have one hash, %v", err)
		}
		c.kill(c.ids...)
	})
}
