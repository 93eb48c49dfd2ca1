package raft

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
)

// diskFault is what a member's disk does at a write of the log: nothing out
// of the ordinary at first.
type diskFault struct {
	mu    sync.Mutex // guards below
	hung  chan struct{}
	delay time.Duration
	err   error // instead of the write
	tries int   // writes asked for
}

// do is tuning.fault.
func (f *diskFault) do(write func() error) error {
	f.mu.Lock()
	hung, delay, err := f.hung, f.delay, f.err
	f.tries++
	f.mu.Unlock()
	if hung != nil {
		<-hung
	}
	if delay > 0 {
		<-time.After(delay)
	}
	if err != nil {
		return err
	}
	return write()
}

func (f *diskFault) hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hung = make(chan struct{})
}

// heal ends whatever is wrong.
func (f *diskFault) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hung != nil {
		close(f.hung)
	}
	f.hung, f.delay, f.err = nil, 0, nil
}

func (f *diskFault) set(delay time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay, f.err = delay, err
}

func (f *diskFault) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tries
}

// startFaulty starts all members, each with a disk that can fail.
func (c *cluster) startFaulty() map[gpuai.ServerID]*diskFault {
	c.t.Helper()
	disks := make(map[gpuai.ServerID]*diskFault)
	for _, id := range c.ids {
		disks[id] = new(diskFault)
		c.tune.fault = disks[id].do
		c.start(id)
	}
	return disks
}

// holdLog holds up whoever logs a message, once, when it is armed: the library
// logs in its main goroutine.
type holdLog struct {
	message string
	mu      sync.Mutex // guards below
	armed   bool
	held    chan struct{} // closed when somebody is held
	release chan struct{}
}

func newHoldLog(message string) *holdLog {
	return &holdLog{message: message, held: make(chan struct{}), release: make(chan struct{})}
}

func (h *holdLog) arm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.armed = true
}

func (h *holdLog) Enabled(context.Context, slog.Level) bool { return true }
func (h *holdLog) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *holdLog) WithGroup(string) slog.Handler            { return h }

// Handle implements slog.Handler.
func (h *holdLog) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	hold := h.armed && r.Message == h.message
	h.armed = h.armed && !hold
	h.mu.Unlock()
	if hold {
		close(h.held)
		<-h.release
	}
	return nil
}

// leaderBut waits for one of the others to take commands.
func (c *cluster) leaderBut(old *Node) *Node {
	c.t.Helper()
	var leader *Node
	until(c.t, "the others have a leader", func() bool {
		for _, n := range c.nodes {
			if n != old && n.IsLeader() {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// followers returns all members but the leader, in the order of their IDs.
func (c *cluster) followers(leader *Node) []*Node {
	var out []*Node
	for _, id := range c.ids {
		if n := c.nodes[id]; n != nil && n != leader {
			out = append(out, n)
		}
	}
	return out
}

// submitBut has a job acknowledged by one of the others than old, nil for any,
// which may still be electing.
func (c *cluster) submitBut(old *Node) (at Applied, id gpuai.JobID) {
	c.t.Helper()
	until(c.t, "a job is taken", func() bool {
		var cmd []byte
		var err error
		id, cmd = job()
		at, err = c.leaderBut(old).Propose(context.Background(), cmd)
		return err == nil && at.Result.Code == gpuai.OK
	})
	return at, id
}

// pass lets virtual time go by: only for bubbles of synctest.
func pass(d time.Duration) { <-time.After(d) }

// voterOf returns a member as n's configuration has it.
func (n *Node) voterOf(t *testing.T, of *Node) hraft.Server {
	t.Helper()
	for _, s := range n.voters() {
		if gpuai.ServerID(s.ID) == of.cfg.ID {
			return s
		}
	}
	t.Fatalf("server %s is no voter", of.cfg.ID)
	return hraft.Server{}
}
