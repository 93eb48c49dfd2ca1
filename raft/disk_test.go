package raft

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// rooms is how much is free on each member's disk of 10 GiB; its low mark is
// 1 GiB, its hard one 256 MiB.
type rooms struct {
	mu   sync.Mutex // guards below
	free map[string]uint64
}

const (
	ample = 8 << 30
	low   = 500 << 20
	hard  = 10 << 20
)

func (r *rooms) read(path string) (free, total uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, ok := r.free[path]; ok {
		return f, 10 << 30, nil
	}
	return ample, 10 << 30, nil
}

func (r *rooms) set(free uint64, nodes ...*Node) {
	r.mu.Lock()
	for _, n := range nodes {
		r.free[n.cfg.Dir.Path()] = free
	}
	r.mu.Unlock()
	pass(2500 * time.Millisecond) // each has looked, answered a heartbeat, and looked again
}

func startRooms(t *testing.T) (*cluster, *rooms, map[gpuai.ServerID]*diskFault) {
	r := &rooms{free: make(map[string]uint64)}
	c := newVirtual(t, 3)
	c.tweak = func(cfg *Config) { cfg.DiskFree = r.read }
	return c, r, c.startFaulty()
}

// TestCase7DiskFillsUp is case 7: who has room goes on, nobody loses anything,
// and all resumes by itself.
func TestCase7DiskFillsUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, r, _ := startRooms(t)
		old := c.leader()
		_, acked := c.submit(old)
		if err := old.AdmitClient(); err != nil {
			t.Fatalf("with room everywhere: %v", err)
		}

		// The leader's: leadership goes to one with room, and stays there.
		r.set(low, old)
		err := old.AdmitClient()
		if code(err) != gpuai.DiskLow || !strings.Contains(err.Error(), old.cfg.Dir.Path()) || !strings.Contains(err.Error(), "524288000 bytes") {
			t.Errorf("clients are told %v", err)
		}
		next := c.leaderBut(old)
		if err := next.AdmitClient(); err != nil {
			t.Errorf("with room on two of three disks: %v", err)
		}
		c.submit(next)
		if got := counterValue(t, old.metrics.handOvers); got != 1 {
			t.Errorf("leadership was handed over %v times", got)
		}
		pass(15 * time.Second)
		if !next.IsLeader() {
			t.Error("leadership did not stay where there is room")
		}
		if err := next.transferTo(t.Context(), next.voterOf(t, old)); err == nil || !strings.Contains(err.Error(), "takes no leadership over") {
			t.Errorf("a hand-over to a full disk: %v", err)
		}

		// A follower's and the leader's own: no majority has room.
		third := c.followers(next)[0]
		if third == old {
			third = c.followers(next)[1]
		}
		r.set(low, third)
		err = next.AdmitClient()
		if code(err) != gpuai.DiskLow || !strings.Contains(err.Error(), "no majority has room") ||
			!strings.Contains(err.Error(), string(old.cfg.ID)) || !strings.Contains(err.Error(), string(third.cfg.ID)) {
			t.Errorf("without a majority with room: %v", err)
		}
		r.set(low, next)
		if err := next.AdmitClient(); code(err) != gpuai.DiskLow {
			t.Errorf("with no room: %v", err)
		}
		pass(15 * time.Second)
		if !next.IsLeader() {
			t.Error("the leader stepped down though nobody has room")
		}
		ownCommandsGoOn(t, next)

		// Beyond the hard mark nothing is proposed.
		r.set(hard, next)
		_, perr := next.Propose(t.Context(), (&fsm.Tick{}).Append(nil, fsm.Envelope{}))
		_, berr := next.Barrier(t.Context())
		if code(perr) != gpuai.DiskLow || code(berr) != gpuai.DiskLow {
			t.Errorf("below the hard mark: %v; %v", perr, berr)
		}

		r.set(ample, old, next, third)
		if err := next.AdmitClient(); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if _, id := c.submitBut(nil); !c.has(c.leader(), id) || !c.has(c.leader(), acked) {
			t.Error("an acknowledged job is missing")
		}
	})
}

// ownCommandsGoOn proposes what the region itself does.
func ownCommandsGoOn(t *testing.T, n *Node) {
	t.Helper()
	if a, err := n.Propose(t.Context(), (&fsm.Tick{}).Append(nil, fsm.Envelope{})); err != nil || a.Result.Code != gpuai.OK {
		t.Errorf("a Tick: %+v, %v", a.Result, err)
	}
	if _, err := n.Barrier(t.Context()); err != nil {
		t.Errorf("a read: %v", err)
	}
}

// TestCase7FullDisk has writes fail for want of space: a full disk is a slow
// one. The leader with it is replaced; once it has room it follows.
func TestCase7FullDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _, disks := startRooms(t)
		old := c.leader()
		_, acked := c.submit(old)
		fill := func(n *Node) { disks[n.cfg.ID].set(0, noSpace(n)) }
		fill(old)
		answer := make(chan error, 1)
		go func() {
			_, cmd := job()
			_, err := old.Propose(context.Background(), cmd)
			answer <- err
		}()
		began := time.Now()
		next := c.leaderBut(old)
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("the leader with a full disk was replaced after %v", d)
		}
		_, second := c.submitBut(old)
		if why, since := old.Stalled(); !strings.Contains(why, "server "+string(old.cfg.ID)+"'s log has been waiting for its disk") || since < time.Second {
			t.Errorf("the server with a full disk says %q, for %v", why, since)
		}
		if why, _ := next.Stalled(); why != "" {
			t.Errorf("a server with room says %q", why)
		}

		// A second full disk: nothing is acknowledged until there is room.
		fill(c.leaderBut(old))
		full := next
		lost, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, cmd := job()
		if _, err := full.Propose(lost, cmd); err == nil {
			t.Error("a job was acknowledged by one disk of three")
		}
		cancel()
		pass(15 * time.Second)
		for _, d := range disks {
			d.heal()
		}
		if k := code(<-answer); k != gpuai.OutcomeUnknown && k != gpuai.NoLeader {
			t.Errorf("the command that found the disk full: %v", k)
		}
		_, third := c.submitBut(nil)
		for _, id := range []gpuai.JobID{acked, second, third} {
			until(t, "the old leader has all jobs", func() bool { return c.has(old, id) })
		}
		if why, _ := old.Stalled(); why != "" {
			t.Errorf("with room again it says %q", why)
		}
		if len(c.damaged()) > 0 {
			t.Errorf("a server gave up: %v", c.damaged())
		}
		if got := counterValue(t, old.metrics.fullWrites); got < 1 {
			t.Error("the waiting write was not counted")
		}
	})
}

func noSpace(n *Node) error {
	return &store.WriteError{Path: n.log.Path(), Cause: syscall.ENOSPC, Full: true}
}

// TestCase7FullAtAnElection: hraft panics when it cannot store its term.
func TestCase7FullAtAnElection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _, disks := startRooms(t)
		old := c.leader()
		_, acked := c.submit(old)
		for _, n := range c.nodes {
			disks[n.cfg.ID].set(0, noSpace(n))
		}
		c.kill(old.cfg.ID) // the others have to vote, and cannot
		pass(30 * time.Second)
		for id, n := range c.nodes {
			if n.IsLeader() {
				t.Errorf("server %s leads without a vote on any disk", id)
			}
			disks[id].heal()
		}
		if _, id := c.submitBut(nil); !c.has(c.leader(), id) || !c.has(c.leader(), acked) {
			t.Error("an acknowledged job is missing")
		}
	})
}

func TestDiskLevels(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	d := &disk{id: "a", path: "/data"}
	for i, k := range []struct {
		free uint64
		want diskLevel
	}{
		{2000 * mib, diskAmple}, {1024 * mib, diskAmple}, {1023 * mib, diskLow}, {1100 * mib, diskLow}, {1152 * mib, diskAmple},
		{255 * mib, diskHard}, {280 * mib, diskHard}, {288 * mib, diskLow}, {0, diskHard}, {5000 * mib, diskAmple},
	} {
		if _, got := d.set(k.free, 100<<30); got != k.want || d.level() != got {
			t.Errorf("step %d: %d MiB are level %d, want %d", i, k.free/mib, got, k.want)
		}
	}
	small := &disk{}
	small.set(64*mib, 64*mib)
	if l, h := small.low.Load(), small.hard.Load(); l != 64*mib/10 || h != l/4 {
		t.Errorf("the marks of a small disk: %d, %d", l, h)
	}
	given := newDisk(&Config{Dir: new(store.Dir), DiskLow: 7, DiskHard: 3})
	given.set(5, 1<<30)
	if given.level() != diskLow || given.low.Load() != 7 || given.hard.Load() != 3 {
		t.Error("the marks that were given are not kept")
	}
}

// TestUnreadableDisk goes on without knowing.
func TestUnreadableDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newVirtual(t, 1)
		c.tweak = func(cfg *Config) {
			cfg.DiskFree = func(string) (free, total uint64, err error) { return 0, 0, errors.New("no such thing") }
		}
		c.start("a")
		pass(3 * time.Second)
		n := c.leader()
		if err := n.AdmitClient(); err != nil {
			t.Error(err)
		}
		c.submit(n)
	})
}
