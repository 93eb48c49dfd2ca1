package raft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// TestCase6SlowDisks is the rest of case 6: slow writes of followers cost no
// leader, however long they take.
func TestCase6SlowDisks(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name    string
		slow    int // followers
		delay   time.Duration
		slowest time.Duration // a commit may take, by then
	}{
		{"200 ms on one follower", 1, 200 * time.Millisecond, 50 * time.Millisecond},
		{"200 ms on the majority", 2, 200 * time.Millisecond, 700 * time.Millisecond},
		{"longer than the lease on the majority", 2, 3 * time.Second, 10 * time.Second},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newVirtual(t, 3)
				disks := c.startFaulty()
				leader := c.leader()
				c.submit(leader)
				term := leader.raft.CurrentTerm()
				followers := c.followers(leader)
				for _, n := range followers[:k.slow] {
					disks[n.cfg.ID].set(k.delay, nil)
				}
				var worst time.Duration
				for range 20 {
					began := time.Now()
					c.submit(leader)
					worst = max(worst, time.Since(began))
				}
				pass(2 * k.delay)
				if worst > k.slowest {
					t.Errorf("a commit took %v", worst)
				}
				if now := leader.raft.CurrentTerm(); now != term || !leader.IsLeader() {
					t.Errorf("the leader of term %d was lost: it is term %d", term, now)
				}
				if got := counterValue(t, followers[0].metrics.gated); got == 0 && k.slow > 0 {
					t.Error("no heartbeat was answered beside a write")
				}
				for _, d := range disks {
					d.heal()
				}
			})
		})
	}
}

// TestCase6HungDiskAtTheStop has a server end that cannot write.
func TestCase6HungDiskAtTheStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 3)
		disks := c.startFaulty()
		leader := c.leader()
		c.submit(leader)
		for _, hung := range []*Node{c.followers(leader)[0], leader} {
			id := hung.cfg.ID
			disks[id].hang()
			go func() {
				_, cmd := job()
				_, _ = leader.Propose(context.Background(), cmd)
			}()
			until(t, "a write hangs", func() bool { return hung.log.writing.running() > c.tune.writeStall })
			began := time.Now()
			err := hung.Close()
			if d := time.Since(began); d > 20*time.Second || err == nil || !strings.Contains(err.Error(), "in time") {
				t.Errorf("server %s stopped after %v: %v", id, d, err)
			}
			disks[id].heal() // the process would have ended
			if err := hung.raft.Shutdown().Error(); err != nil {
				t.Error(err)
			}
			c.dirs[id].Close()
			delete(c.nodes, id)
		}
		c.kill(c.ids...)
	})
}

// TestCase8WriteFails is case 8: a write fails otherwise than for want of
// space. The server ends with the path; nothing is tried again.
func TestCase8WriteFails(t *testing.T) {
	t.Parallel()
	for _, leads := range []bool{true, false} {
		t.Run(map[bool]string{true: "leader", false: "follower"}[leads], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newVirtual(t, 3)
				disks := c.startFaulty()
				old := c.leader()
				_, acked := c.submit(old)
				bad := old
				if !leads {
					bad = c.followers(old)[0]
				}
				id := bad.cfg.ID
				disks[id].set(0, &store.WriteError{Path: bad.log.Path(), Cause: syscall.EIO})
				tries := disks[id].count()
				go func() {
					_, cmd := job()
					_, _ = old.Propose(context.Background(), cmd)
				}()
				until(t, "the server gives up", func() bool { return c.damaged()[id] != nil })
				if err := c.damaged()[id].Error(); !strings.Contains(err, bad.log.Path()) || !strings.Contains(err, "input/output error") {
					t.Errorf("it says %q", err)
				}
				if leads {
					c.leaderBut(bad)
				}
				pass(5 * time.Second) // nobody ends the process
				if got := disks[id].count() - tries; got != 1 {
					t.Errorf("the log was written %d times", got)
				}
				stopping := time.Now()
				if c.stop(id); time.Since(stopping) > drainTimeout+time.Second {
					t.Errorf("it needed %v to stop", time.Since(stopping))
				}
				if _, after := c.submitBut(bad); !c.has(c.leader(), after) || !c.has(c.leader(), acked) {
					t.Error("an acknowledged job is missing")
				}
			})
		})
	}
}

// TestCase12OfflineFollower is the first part of case 12: a follower is away
// for longer than the log is kept, under load.
func TestCase12OfflineFollower(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 3)
		c.tune.trailingLogs = 64
		c.start(c.ids...)
		leader, away := c.leader(), c.follower()
		c.submit(leader)
		s := submitUntilStopped(2, 10*time.Millisecond, func() []*Node { return []*Node{leader} })
		c.mem.isolate(c.addr[away.cfg.ID])
		for range 3 {
			at := s.count()
			until(t, "the log goes on", func() bool { return s.count() > at+100 })
			if err := leader.Snapshot(); err != nil {
				t.Fatal(err)
			}
		}
		c.mem.isolate()
		at := s.count()
		until(t, "it has caught up under load", func() bool {
			return s.count() > at+50 && away.AppliedIndex()+10 > leader.AppliedIndex()
		})
		acked, _ := s.finish()
		if got := counterValue(t, away.metrics.restores); got < 1 || got > 2 {
			t.Errorf("%v snapshots were restored", got)
		}
		last := acked[len(acked)-1]
		until(t, "it has the last job", func() bool { return c.has(away, last) })
		for _, id := range acked {
			if !c.has(away, id) {
				t.Fatalf("the acknowledged job %s is missing", id)
			}
		}
	})
}

// TestCase20SlowApply is case 20: the state machine of the leader does not
// return.
func TestCase20SlowApply(t *testing.T) {
	t.Parallel()
	for _, servers := range []int{3, 1} {
		t.Run(fmt.Sprintf("%d servers", servers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { slowApply(t, servers) })
		})
	}
}

func slowApply(t *testing.T, servers int) {
	c := newVirtual(t, servers)
	c.tune.queueCommands = 100
	stuck := make(map[gpuai.ServerID]chan chan struct{})
	c.tweak = func(cfg *Config) {
		ch := make(chan chan struct{}, 1)
		stuck[cfg.ID] = ch
		cfg.OnApply = func(*fsm.Output) {
			select {
			case release := <-ch:
				<-release
			default:
			}
		}
	}
	c.start(c.ids...)
	old := c.leader()
	_, acked := c.submit(old)
	release := make(chan struct{})
	stuck[old.cfg.ID] <- release
	began := time.Now()
	answers := make(chan error, 500)
	for range cap(answers) {
		go func() {
			_, cmd := job()
			_, err := old.Propose(context.Background(), cmd)
			answers <- err
		}()
	}
	refused := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, cmd := job()
		_, err := old.Propose(ctx, cmd)
		return code(err) == gpuai.NoLeader
	}
	until(t, "new commands are refused with 503", refused)
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("new commands were refused after %v", d)
	}
	if commands, _ := old.proposer.queued(); commands > c.tune.queueCommands {
		t.Errorf("%d commands are queued", commands)
	}
	if servers > 1 {
		c.leaderBut(old)
		if d := time.Since(began); d > 6*time.Second {
			t.Errorf("another server led after %v", d)
		}
		if _, id := c.submitBut(old); old.IsLeader() || !c.has(c.leaderBut(old), id) || !c.has(c.leaderBut(old), acked) {
			t.Error("the new leader does not serve")
		}
	}
	pass(10*time.Second - time.Since(began))
	close(release)
	known := map[gpuai.Code]bool{gpuai.OK: true, gpuai.NoLeader: true, gpuai.RateLimited: true, gpuai.OutcomeUnknown: true}
	for range cap(answers) {
		if err := <-answers; !known[code(err)] {
			t.Errorf("a command was answered with %v", err)
		}
	}
	until(t, "the server takes commands again, or follows", func() bool { return !refused() || servers > 1 })
	if got := counterValue(t, old.metrics.applyStalls); got != 1 {
		t.Errorf("%v stalls were counted", got)
	}
}

// TestWaitsAreBounded has nothing of the library answer.
func TestWaitsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 1)
		c.tune.snapshotTimeout, c.tune.applyTimeout = 2*time.Second, 3*time.Second
		block := make(chan struct{})
		stop := make(chan struct{}, 1)
		c.tweak = func(cfg *Config) {
			cfg.OnApply = func(*fsm.Output) {
				select {
				case <-stop:
					<-block
				default:
				}
			}
		}
		c.start("a")
		n := c.leader()
		c.submit(n)
		stop <- struct{}{}
		answer := make(chan error, 1)
		go func() {
			_, cmd := job()
			_, err := n.Propose(context.Background(), cmd)
			answer <- err
		}()
		until(t, "the machine is stuck", func() bool { return len(stop) == 0 })
		waits := map[string]func() error{
			"snapshot": n.Snapshot,
			"barrier":  func() error { _, err := n.Barrier(context.Background()); return err },
			"wait":     func() error { return n.await(t.Context(), n.raft.Barrier(0)) },
		}
		limited, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		waits["wait"] = func() error { return n.await(limited, n.raft.Barrier(0)) }
		for what, wait := range waits {
			began := time.Now()
			if err := wait(); err == nil || time.Since(began) > 5*time.Second {
				t.Errorf("%s ended after %v with %v", what, time.Since(began), err)
			}
		}
		if err := <-answer; code(err) != gpuai.OutcomeUnknown {
			t.Errorf("the command under way: %v", err)
		}
		close(block)
	})
}

// TestPreVoteIsOn: a wrapper around the transport's interface would turn it
// off without a word.
func TestPreVoteIsOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 1)
		n := c.leader()
		if _, ok := n.seenByLibrary(n.trans).(hraft.WithPreVote); !ok {
			t.Error("the transport that the library sees knows no pre-vote")
		}
		if n.cfg.library(n.tune, n.notify).PreVoteDisabled {
			t.Error("it is disabled")
		}
	})
}

// TestNotificationsAreDrained changes leaders while nobody receives the terms.
func TestNotificationsAreDrained(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		for range 3 * notifyBuffer {
			old := c.leader()
			if err := old.TransferLeadership(t.Context()); err != nil && code(err) == gpuai.Internal {
				t.Log(err) // not yet answered by the others, say
			}
			pass(100 * time.Millisecond)
		}
		for id, n := range c.nodes {
			if cap(n.notify) < notifyBuffer || len(n.notify) > 0 {
				t.Errorf("server %s has %d of %d notifications waiting", id, len(n.notify), cap(n.notify))
			}
		}
		if term := c.leader().raft.CurrentTerm(); term < 2*notifyBuffer {
			t.Errorf("only %d terms", term)
		}
	})
}

// TestTransferIsClaimed: one attempt a term and server may end without answer.
func TestTransferIsClaimed(t *testing.T) {
	t.Parallel()
	var tr transfers
	steps := []struct {
		term    uint64
		id      gpuai.ServerID
		want    bool
		release bool
	}{
		{2, "b", true, false}, {2, "b", false, false}, {2, "c", true, true}, {2, "c", true, false},
		{2, "c", false, false}, {3, "b", true, false}, {3, "c", true, false},
	}
	for i, s := range steps {
		if got := tr.claim(s.term, s.id); got != s.want {
			t.Errorf("step %d: %v", i, got)
		}
		if s.release {
			tr.release(s.term, s.id)
		}
	}
	for text, want := range map[string]bool{
		"failed to make TimeoutNow RPC to b: refused": true, "leadership transfer timeout": false,
		"cannot find peer": false,
	} {
		if got := leftNothing(errors.New(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestRestoreAlarm(t *testing.T) {
	t.Parallel()
	var r restoreRate
	at := time.Now()
	for i, k := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {time.Second, 2}, {time.Second, 3}, {time.Second, 4}, {57 * time.Second, 4}, {time.Hour, 1}} {
		at = at.Add(k.after)
		if got := r.add(at); got != k.want {
			t.Errorf("restore %d: %d in the window, want %d", i, got, k.want)
		}
	}
}

func TestStopwatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStopwatch()
		if s.running() != 0 {
			t.Error("it runs at first")
		}
		s.begin() // at the very moment of its making
		pass(time.Second)
		if d := s.running(); d < time.Second-time.Microsecond || d > time.Second {
			t.Errorf("%v is a second", d)
		}
		s.end()
		if s.running() != 0 {
			t.Error("it runs on")
		}
	})
}
