package raft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func raise(t *testing.T, n *Node, level uint32) {
	t.Helper()
	a, err := n.Propose(context.Background(), (&fsm.SetFeatureLevel{Level: level}).Append(nil, fsm.Envelope{}))
	if err != nil || a.Result.Code != gpuai.OK {
		t.Fatalf("%+v, %v", a, err)
	}
}

// Case 17: a member that is older than its region's level stops before it
// applies, refuses to start again, and refuses a snapshot of that level.
func TestCase17MemberBelowTheLevel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 3)
		c.tune.trailingLogs = 1
		c.tweak = func(cfg *Config) {
			if cfg.ID == "c" {
				cfg.MaxFeatureLevel = 1
			}
		}
		c.start("a", "b", "c")
		if c.leader() == c.nodes["c"] {
			if err := c.nodes["c"].TransferLeadership(context.Background()); err != nil {
				t.Fatal(err)
			}
			until(t, "another one leads", func() bool { return c.leader() != c.nodes["c"] })
		}
		c.submit(c.leader())
		raise(t, c.leader(), 2)
		until(t, "the old member stops", func() bool { return c.damaged()["c"] != nil })
		if err := c.damaged()["c"]; !errors.Is(err, fsm.ErrLevel) {
			t.Errorf("it stopped with %v", err)
		}
		c.kill("c")
		// The log that it has holds the entry that it may not apply.
		c.mu.Lock()
		delete(c.damage, "c")
		c.mu.Unlock()
		c.start("c")
		until(t, "it stops again", func() bool { return c.damaged()["c"] != nil })
		c.kill("c")
		// Its state is of the new level once a newer version has run.
		c.tweak = nil
		c.start("c")
		c.submit(c.leader())
		until(t, "it catches up", func() bool { return c.nodes["c"].AppliedIndex() >= c.leader().AppliedIndex() })
		c.stop("c")
		c.tweak = func(cfg *Config) { cfg.MaxFeatureLevel = 1 }
		err := c.tryStart("c")
		if !errors.Is(err, fsm.ErrLevel) || !strings.Contains(err.Error(), "its state has feature level 2, this server goes to 1") {
			t.Errorf("a downgrade behind the raise: %v", err)
		}
		c.mu.Lock()
		delete(c.damage, "c")
		c.mu.Unlock()
		c.tweak = nil
		c.start("c")
	})
}

// A member below the level that a leader sends a snapshot of it stops, too.
func TestMemberBelowTheLevelOfASnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 3)
		c.tune.trailingLogs = 1
		c.tweak = func(cfg *Config) {
			if cfg.ID == "c" {
				cfg.MaxFeatureLevel = 1
			}
		}
		c.start("a", "b")
		raise(t, c.leader(), 2)
		for range 20 {
			c.submit(c.leader())
		}
		for _, n := range c.nodes {
			if err := n.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		c.start("c")
		until(t, "the old member stops", func() bool { return c.damaged()["c"] != nil })
		if err := c.damaged()["c"]; !errors.Is(err, fsm.ErrLevel) {
			t.Errorf("it stopped with %v", err)
		}
		c.kill("c")
	})
}

func TestMaxFeatureLevelIsChecked(t *testing.T) {
	c := newVirtual(t, 1)
	c.tweak = func(cfg *Config) { cfg.MaxFeatureLevel = fsm.MaxLevel + 1 }
	if err := c.tryStart("a"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("must be 1 to %d in this version", fsm.MaxLevel)) {
		t.Errorf("%v", err)
	}
}
