package raft

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

func TestThreeServersCommit(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	leader := c.leader()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				id, cmd := job()
				a, err := leader.Propose(t.Context(), cmd)
				if err != nil || a.Result.Code != gpuai.OK || !c.has(leader, id) {
					t.Errorf("submit: %+v, %v", a, err)
				}
			}
		})
	}
	wg.Wait()
	c.converged()
	for _, id := range c.ids {
		c.mu.Lock()
		if !slices.IsSorted(c.outputs[id]) || len(c.outputs[id]) == 0 {
			t.Errorf("server %s saw outputs out of order: %v", id, c.outputs[id])
		}
		c.mu.Unlock()
	}
}

func TestProposeAllKeepsOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 1)
		leader := c.leader()
		var cmds [][]byte
		var ids []gpuai.JobID
		for range 3500 {
			id, cmd := job()
			ids, cmds = append(ids, id), append(cmds, cmd)
		}
		out, err := leader.ProposeAll(t.Context(), cmds)
		if err != nil || len(out) != len(cmds) {
			t.Fatalf("%d outcomes, %v", len(out), err)
		}
		for i, a := range out {
			if a.Index == 0 || a.Result.Code != gpuai.OK || a.Result.Job != ids[i] {
				t.Fatalf("outcome %d is %+v, want job %s", i, a, ids[i])
			}
			if i > 0 && a.Index < out[i-1].Index {
				t.Fatalf("outcome %d has index %d after %d", i, a.Index, out[i-1].Index)
			}
		}
		if out[3499].Index-out[0].Index < 3 {
			t.Error("3,500 commands went into fewer than four entries")
		}
		if out, err := leader.ProposeAll(t.Context(), nil); out != nil || err != nil {
			t.Errorf("no commands gave %v, %v", out, err)
		}
	})
}

// TestKilledLeaderLosesNothing is case 1 of the reliability document in one
// process.
func TestKilledLeaderLosesNothing(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	first := c.leader()
	all := make([]*Node, 0, 3)
	for _, n := range c.nodes {
		all = append(all, n)
	}
	s := submitUntilStopped(8, time.Millisecond, func() []*Node { return all })
	until(t, "some jobs are in", func() bool { return s.count() > 200 })
	before := first.RegionTime()
	c.kill(first.cfg.ID)
	killed := time.Now()
	second := c.leader()
	failover := time.Since(killed)
	at := s.count()
	until(t, "the new leader takes jobs", func() bool { return s.count() > at+200 })
	acked, codes := s.finish()
	t.Logf("%d acknowledged, codes %s, a new leader after %v", len(acked), codes, failover)
	if second.RegionTime() < before-gpuai.Instant(gpuai.Second) {
		t.Errorf("region time went back from %d to %d", before, second.RegionTime())
	}
	c.start(first.cfg.ID) // from its disk
	c.converged()
	for _, n := range c.nodes {
		for _, id := range acked {
			if !c.has(n, id) {
				t.Fatalf("server %s lost the acknowledged job %s", n.cfg.ID, id)
			}
		}
	}
}

func TestAllKilledAndRestarted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		var acked []gpuai.JobID
		for round := range 3 {
			leader := c.leader()
			for range 50 {
				_, id := c.submit(leader)
				acked = append(acked, id)
			}
			if round == 1 {
				if err := leader.Snapshot(); err != nil {
					t.Error(err)
				}
			}
			c.kill(c.ids...)
			c.start(c.ids...)
		}
		c.converged()
		for _, n := range c.nodes {
			for _, id := range acked {
				if !c.has(n, id) {
					t.Fatalf("server %s lost the acknowledged job %s", n.cfg.ID, id)
				}
			}
		}
	})
}

func TestLaggingFollowerGetsASnapshot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.tune.trailingLogs = 16
	c.start(c.ids...)
	c.submit(c.leader())
	lagging := c.follower().cfg.ID
	c.kill(lagging)
	leader := c.leader()
	for range 100 {
		c.submit(leader)
	}
	if err := leader.Snapshot(); err != nil {
		t.Fatal(err)
	}
	status := leader.Status()
	if status.SnapshotAt == 0 || status.FirstIndex < 10 {
		t.Fatalf("no log was let go of: %+v", status)
	}
	c.start(lagging)
	c.converged()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.restores[lagging]; n < 1 || n > 2 {
		t.Errorf("server %s restored %d snapshots", lagging, n)
	}
}

func TestSnapshotByCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 1)
		c.tune.snapshotCheck, c.tune.snapshotCommands = 5*time.Millisecond, 50
		c.start("a")
		n := c.leader()
		if _, err := n.OpenSnapshot(); err != ErrNoSnapshot {
			t.Errorf("before the first: %v", err)
		}
		for range 60 {
			c.submit(n)
		}
		until(t, "a snapshot is made", func() bool { return n.Status().SnapshotAt > 0 })
		r, err := n.OpenSnapshot()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		m, err := fsm.Restore(r, fsm.Options{Region: "local"})
		if err != nil || m.Index() < 50 {
			t.Fatalf("the snapshot ends at %d, %v", m.Index(), err)
		}
		if got := n.replica.commands.Load(); got >= 50 {
			t.Errorf("%d commands count for the next one", got)
		}
		id, _ := c.dirs["a"].Identity()
		if id.Applied < 50 || id.AppliedTerm == 0 {
			t.Errorf("the identity says %+v", id)
		}
		c.kill("a")
		c.start("a")
		c.submit(c.leader())
	})
}

func TestPlannedStopHandsOver(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	first := c.leader()
	c.submit(first)
	began := time.Now()
	c.stop(first.cfg.ID)
	c.submit(c.leader())
	// A hand-over skips the election timeout; the bound is generous for a busy machine.
	if d := time.Since(began); d > transferTimeout {
		t.Errorf("the hand-over took %v", d)
	}
	c.start(first.cfg.ID)
}

func TestTransferLeadership(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	first := c.leader()
	if err := c.follower().TransferLeadership(t.Context()); code(err) != gpuai.NoLeader {
		t.Errorf("a follower transferred: %v", err)
	}
	if err := first.TransferLeadership(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "another leads", func() bool { return c.leader() != first })
	c.submit(c.leader())
}

func TestLeadershipDeliversEachTerm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		leader := c.leader()
		term := <-leader.Leadership()
		if term.Number == 0 || term.Number != leader.Status().Term || term.Ctx.Err() != nil {
			t.Fatalf("got %+v", term)
		}
		a, _ := c.submit(leader)
		if a.Index <= term.Index {
			t.Errorf("entry %d is not after the term's index %d", a.Index, term.Index)
		}
		var followers []gpuai.ServerID
		for id, n := range c.nodes {
			if n != leader {
				followers = append(followers, id)
			}
		}
		c.kill(followers...)
		select {
		case <-term.Ctx.Done():
		case <-time.After(20 * time.Second):
			t.Fatal("the term goes on without a majority")
		}
		until(t, "it stops taking commands", func() bool { return !leader.IsLeader() })
		_, cmd := job()
		if _, err := leader.Propose(t.Context(), cmd); code(err) != gpuai.NoLeader {
			t.Errorf("propose: %v", err)
		}
		if _, err := leader.Barrier(t.Context()); code(err) != gpuai.NoLeader {
			t.Errorf("barrier: %v", err)
		}
		c.start(followers...)
		next := c.leader()
		second := <-next.Leadership()
		if second.Number <= term.Number {
			t.Errorf("term %d follows %d", second.Number, term.Number)
		}
		c.kill(next.cfg.ID)
		if second.Ctx.Err() == nil {
			t.Error("a term outlives its server")
		}
		if _, ok := <-next.Leadership(); ok {
			t.Error("the channel stays open")
		}
		c.start(next.cfg.ID)
	})
}

func TestBarrier(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	leader, follower := c.leader(), c.follower()
	until(t, "the follower has heard of its leader", func() bool { _, ok := follower.Leader(); return ok })
	if _, err := follower.Barrier(t.Context()); code(err) != gpuai.NoLeader || !strings.Contains(err.Error(), "ask server "+string(leader.cfg.ID)) {
		t.Errorf("on a follower: %v", err)
	}
	for range 20 {
		a, id := c.submit(leader)
		at, err := leader.Barrier(t.Context())
		if err != nil || at < a.Index || !c.has(leader, id) {
			t.Fatalf("barrier at %d after %d, %v", at, a.Index, err)
		}
	}
	began, rounds := time.Now(), counterValue(t, leader.metrics.barriers)
	var wg sync.WaitGroup
	const readers, reads = 50, 20
	for range readers {
		wg.Go(func() {
			for range reads {
				if _, err := leader.Barrier(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	made := counterValue(t, leader.metrics.barriers) - rounds
	if limit := float64(time.Since(began)/readWindow) + 2; made > limit || made >= readers*reads/4 {
		t.Errorf("%v barriers for %d reads in %v", made, readers*reads, time.Since(began))
	}
}

func TestWaitApplied(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		leader, follower := c.leader(), c.follower()
		for range 20 {
			a, id := c.submit(leader)
			if err := follower.WaitApplied(t.Context(), a.Index); err != nil || !c.has(follower, id) {
				t.Fatalf("the follower does not have entry %d, %v", a.Index, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- follower.WaitApplied(ctx, 1<<40) }()
		until(t, "it waits", func() bool {
			follower.replica.waitMu.Lock()
			defer follower.replica.waitMu.Unlock()
			return len(follower.replica.waiters) == 1
		})
		cancel()
		if err := <-ended; err == nil {
			t.Error("an index of the future was applied")
		}
		if len(follower.replica.waiters) != 0 {
			t.Error("a waiter is left behind")
		}
	})
}

func TestForkIsIndependentAndBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 1)
		n := c.leader()
		c.submit(n)
		m, release := n.Fork()
		_, release2 := n.Fork()
		at := m.Index()
		c.submit(n)
		if m.Index() != at || n.AppliedIndex() <= at {
			t.Errorf("the fork is at %d, the machine at %d", m.Index(), n.AppliedIndex())
		}
		third := make(chan func())
		go func() { _, r := n.Fork(); third <- r }()
		release()
		release() // twice gives one back
		(<-third)()
		release2()
		if len(n.forks) != 0 {
			t.Errorf("%d forks are alive", len(n.forks))
		}
	})
}

func TestStatus(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	leader := c.leader()
	a, _ := c.submit(leader)
	s := leader.Status()
	if s.State != "leader" || s.Leader != s.Server || s.Term == 0 || s.AppliedIndex < a.Index || s.CommitIndex < a.Index ||
		s.LastIndex < a.Index || s.FirstIndex != 1 || len(s.Members) != 3 || len(s.Cluster) != 32 || s.Region != "local" {
		t.Errorf("leader: %+v", s)
	}
	f := c.follower()
	until(t, "the follower knows", func() bool { return f.AppliedIndex() >= a.Index })
	s2 := f.Status()
	if s2.State != "follower" || s2.Leader != s.Server || s2.Cluster != s.Cluster || s2.LastContact > 5000 {
		t.Errorf("follower: %+v", s2)
	}
	for _, m := range s2.Members {
		if !m.Voter || m.Address != c.addr[m.Server] || m.Leader != (m.Server == s.Server) {
			t.Errorf("member %+v", m)
		}
	}
	if id, ok := f.Leader(); id != s.Server || !ok || f.IsLeader() {
		t.Errorf("the follower says %s, %v", id, ok)
	}
}

func TestSecondServerOnOneDirectory(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	if _, err := store.OpenDir(c.path["a"]); err == nil || !strings.Contains(err.Error(), "is already in use by process") {
		t.Errorf("got %v", err)
	}
}

func TestAddressesMayChange(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	c.submit(c.leader())
	c.kill(c.ids...)
	for _, id := range c.ids {
		ln := listen(t, "127.0.0.1:0")
		c.addr[id] = ln.Addr().String()
		ln.Close()
	}
	c.start(c.ids...)
	c.converged()
}

// TestOtherClustersDirectory starts one server on the directory that a server
// of the same name has in another cluster, of as many servers and of one: that
// one leads without the others.
func TestOtherClustersDirectory(t *testing.T) {
	t.Parallel()
	for _, servers := range []int{3, 1} {
		t.Run(fmt.Sprintf("of %d servers", servers), func(t *testing.T) { otherClustersDirectory(t, servers) })
	}
}

func otherClustersDirectory(t *testing.T, servers int) {
	t.Parallel()
	ours, theirs := startCluster(t, 3), startCluster(t, servers)
	ours.submit(ours.leader())
	theirs.submit(theirs.leader())
	ours.kill("a")
	theirs.kill(theirs.ids...)
	ours.path["a"] = theirs.path["a"]
	ours.start("a")
	until(t, "the stranger is stopped", func() bool { return ours.damaged()["a"] != nil })
	err := ours.damaged()["a"].Error()
	if !strings.Contains(err, "belongs to cluster") || !strings.Contains(err, "rejoin --wipe") || !strings.Contains(err, "servers b, c") {
		t.Errorf("got %q", err)
	}
	delete(ours.damage, "a")
	ours.kill("a")
	ours.submit(ours.leader())
	if d := ours.damaged(); len(d) != 0 {
		t.Errorf("others stopped too: %v", d)
	}
}

func TestDirectoryOfAnotherServerOrRegion(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"server", func(c *Config) { c.ID = "b"; c.Peers = []Peer{{"b", "127.0.0.1:1"}} }, "belongs to server a and not to b"},
		{"region", func(c *Config) { c.Region = "eu" }, "belongs to region local and not to eu"},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startVirtual(t, 1)
				c.submit(c.leader())
				c.kill("a")
				c.tweak = k.change
				if err := c.tryStart("a"); err == nil || !strings.Contains(err.Error(), k.want) {
					t.Errorf("got %v, want %q in it", err, k.want)
				}
			})
		})
	}
}

// TestLostLogIsRefused is case 9 of the reliability document.
func TestLostLogIsRefused(t *testing.T) {
	t.Parallel()
	older := func(t *testing.T, c *cluster) {
		b, err := os.ReadFile(filepath.Join(c.path["a"], "raft.db"))
		if err != nil {
			t.Fatal(err)
		}
		c.start("a")
		for range 20 {
			c.submit(c.leader())
		}
		c.kill("a")
		if err := os.WriteFile(filepath.Join(c.path["a"], "raft.db"), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cases := map[string]func(t *testing.T, c *cluster){
		"empty":   func(t *testing.T, c *cluster) { os.Truncate(filepath.Join(c.path["a"], "raft.db"), 0) },
		"missing": func(t *testing.T, c *cluster) { os.Remove(filepath.Join(c.path["a"], "raft.db")) },
		"older":   older,
	}
	for name, lose := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := startVirtual(t, 1)
				c.submit(c.leader())
				c.kill("a")
				lose(t, c)
				err := c.tryStart("a")
				if err == nil || !strings.Contains(err.Error(), "this server's log is behind its recorded identity") ||
					!strings.Contains(err.Error(), "gpuai server rejoin --wipe") {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

// TestDamagedEntry is case 10 of the reliability document.
func TestDamagedEntry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 1)
		leader := c.leader()
		var index uint64
		var id gpuai.JobID
		for i := range 40 {
			a, j := c.submit(leader)
			if i == 20 {
				index, id = a.Index, j
			}
		}
		c.kill("a")
		path := filepath.Join(c.path["a"], "raft.db")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Index(string(b), string(id[:]))
		if at < 0 {
			t.Fatal("the entry is not in the file")
		}
		for ; at >= 0 && at < len(b); at = indexFrom(b, id[:], at+16) { // older pages may hold it too
			b[at+5] ^= 1
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		err = c.tryStart("a")
		if want := fmt.Sprintf("log entry %d fails its checksum", index); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	})
}

func indexFrom(b, sub []byte, from int) int {
	if i := strings.Index(string(b[min(from, len(b)):]), string(sub)); i >= 0 {
		return from + i
	}
	return -1
}

// TestUnknownCommandStops is case 17 of the reliability document.
func TestUnknownCommandStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		leader := c.leader()
		a, _ := c.submit(leader)
		_, cmd := job()
		cmd[4] = 0xee // the type, behind the length
		if _, err := leader.Propose(t.Context(), cmd); code(err) != gpuai.OutcomeUnknown {
			t.Errorf("propose: %v", err)
		}
		until(t, "all stop", func() bool { return len(c.damaged()) == 3 })
		for id, err := range c.damaged() {
			if !strings.Contains(err.Error(), "upgrade this server") {
				t.Errorf("server %s: %v", id, err)
			}
			if c.nodes[id].AppliedIndex() != a.Index {
				t.Errorf("server %s applied %d, want %d", id, c.nodes[id].AppliedIndex(), a.Index)
			}
			if err := c.nodes[id].Snapshot(); err == nil {
				t.Errorf("server %s made a snapshot behind a command that it does not know", id)
			}
		}
		c.kill(c.ids...)
	})
}
