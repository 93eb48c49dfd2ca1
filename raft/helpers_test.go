package raft

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// cluster is members over real TCP and real bolt files in one process.
type cluster struct {
	t     testing.TB
	ids   []gpuai.ServerID
	path  map[gpuai.ServerID]string
	addr  map[gpuai.ServerID]string
	mem   *network // nil: TCP on loopback
	tune  tuning
	tweak func(*Config)

	nodes map[gpuai.ServerID]*Node
	dirs  map[gpuai.ServerID]*store.Dir

	mu       sync.Mutex // guards below
	damage   map[gpuai.ServerID]error
	restores map[gpuai.ServerID]int
	outputs  map[gpuai.ServerID][]uint64 // indexes that OnApply saw since the start
}

func newCluster(t testing.TB, servers int) *cluster {
	c := &cluster{
		t:        t,
		path:     make(map[gpuai.ServerID]string),
		addr:     make(map[gpuai.ServerID]string),
		tune:     defaultTuning(1),
		nodes:    make(map[gpuai.ServerID]*Node),
		dirs:     make(map[gpuai.ServerID]*store.Dir),
		damage:   make(map[gpuai.ServerID]error),
		restores: make(map[gpuai.ServerID]int),
		outputs:  make(map[gpuai.ServerID][]uint64),
	}
	base := t.TempDir()
	for i := range servers {
		id := gpuai.ServerID(string(rune('a' + i)))
		c.ids = append(c.ids, id)
		c.path[id] = filepath.Join(base, string(id))
		ln := listen(t, "127.0.0.1:0")
		c.addr[id] = ln.Addr().String()
		ln.Close()
	}
	t.Cleanup(c.close)
	return c
}

// newVirtual is newCluster in memory, for a test within a synctest bubble:
// elections and timeouts take no time.
func newVirtual(t testing.TB, servers int) *cluster {
	c := newCluster(t, servers)
	c.mem = newNetwork()
	for _, id := range c.ids {
		c.addr[id] = string(id) + ":7"
	}
	return c
}

func startVirtual(t testing.TB, servers int) *cluster {
	c := newVirtual(t, servers)
	c.start(c.ids...)
	return c
}

// startCluster starts all of a new cluster.
func startCluster(t testing.TB, servers int) *cluster {
	c := newCluster(t, servers)
	c.start(c.ids...)
	return c
}

func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// testLogger is silent unless GPUAI_TEST_LOG is set.
func testLogger(id gpuai.ServerID) *slog.Logger {
	if os.Getenv("GPUAI_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("server", id)
}

func (c *cluster) config(id gpuai.ServerID) Config {
	cfg := Config{
		ID: id, Region: "local", Bootstrap: true, Logger: testLogger(id),
		OnDamage:  func(err error) { c.mu.Lock(); c.damage[id] = err; c.mu.Unlock() },
		OnRestore: func() { c.mu.Lock(); c.restores[id]++; c.mu.Unlock() },
		OnApply: func(out *fsm.Output) {
			c.mu.Lock()
			c.outputs[id] = append(c.outputs[id], out.Index)
			c.mu.Unlock()
		},
	}
	for _, p := range c.ids {
		cfg.Peers = append(cfg.Peers, Peer{ID: p, Addr: c.addr[p]})
	}
	if c.mem != nil {
		cfg.Listener, cfg.Dial = c.mem.listen(c.addr[id]), c.mem.dial(c.addr[id])
	}
	if c.tweak != nil {
		c.tweak(&cfg)
	}
	return cfg
}

func (c *cluster) start(ids ...gpuai.ServerID) {
	c.t.Helper()
	for _, id := range ids {
		if err := c.tryStart(id); err != nil {
			c.t.Fatalf("start %s: %v", id, err)
		}
	}
}

func (c *cluster) tryStart(id gpuai.ServerID) error {
	dir, err := store.OpenDir(c.path[id])
	if err != nil {
		return err
	}
	cfg := c.config(id)
	cfg.Dir = dir
	if cfg.Listener == nil {
		cfg.Listener = listen(c.t, c.addr[id])
	}
	c.mu.Lock()
	c.outputs[id] = nil
	c.mu.Unlock()
	n, err := open(cfg, c.tune)
	if err != nil {
		dir.Close()
		return err
	}
	c.nodes[id], c.dirs[id] = n, dir
	return nil
}

// kill stops members without a hand-over.
func (c *cluster) kill(ids ...gpuai.ServerID) { c.end((*Node).halt, ids...) }

// stop stops members as planned.
func (c *cluster) stop(ids ...gpuai.ServerID) { c.end((*Node).Close, ids...) }

func (c *cluster) end(how func(*Node) error, ids ...gpuai.ServerID) {
	c.t.Helper()
	for _, id := range ids {
		if n := c.nodes[id]; n != nil {
			if err := how(n); err != nil {
				c.t.Errorf("stop %s: %v", id, err)
			}
			c.dirs[id].Close()
			delete(c.nodes, id)
		}
	}
}

// close stops all, after comparing the machines: every test ends with it.
func (c *cluster) close() {
	if !c.t.Failed() && len(c.nodes) > 1 && len(c.damaged()) == 0 && 2*len(c.nodes) > len(c.ids) {
		c.converged()
	}
	c.kill(c.ids...)
}

func (c *cluster) damaged() map[gpuai.ServerID]error {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[gpuai.ServerID]error, len(c.damage))
	for id, err := range c.damage {
		out[id] = err
	}
	return out
}

// until polls f.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline, tick := time.After(20*time.Second), time.NewTicker(2*time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// leader waits for the one that takes commands.
func (c *cluster) leader() *Node {
	c.t.Helper()
	var leader *Node
	until(c.t, "there is a leader", func() bool {
		for _, n := range c.nodes {
			if n.IsLeader() {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func (c *cluster) follower() *Node {
	c.t.Helper()
	leader := c.leader()
	for _, n := range c.nodes {
		if n != leader {
			return n
		}
	}
	c.t.Fatal("there is no follower")
	return nil
}

// converged waits until all running members have applied the same, and
// compares their digests.
func (c *cluster) converged() {
	c.t.Helper()
	at, _ := c.submitBut(nil)
	for id, n := range c.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if err := n.WaitApplied(ctx, at.Index); err != nil {
			c.t.Errorf("server %s does not catch up: %v", id, err)
		}
		cancel()
	}
	digests := make(map[fsm.Digest][]gpuai.ServerID)
	for id, n := range c.nodes {
		n.View(func(m *fsm.Machine) { digests[m.Digest()] = append(digests[m.Digest()], id) })
	}
	if len(digests) != 1 {
		c.t.Errorf("the digests differ: %v", digests)
	}
}

// job returns a new job's ID and its submit.
func job() (gpuai.JobID, []byte) {
	var id gpuai.JobID
	rand.Read(id[:])
	spec := &gpuai.JobSpec{
		Name: "test",
		Groups: []gpuai.Group{{
			Name: "main", Count: 1,
			Resources: gpuai.Resources{CPU: 1000, Memory: 1 << 30},
			Task:      gpuai.TaskSpec{Command: []string{"true"}},
		}},
	}
	spec.Defaults()
	cmd := &fsm.SubmitJob{ID: id, Spec: spec, HoldAnyway: true}
	return id, cmd.Append(nil, fsm.Envelope{Tenant: gpuai.DefaultTenant, Actor: "test"})
}

// submit proposes one job, which must succeed.
func (c *cluster) submit(n *Node) (Applied, gpuai.JobID) {
	c.t.Helper()
	id, cmd := job()
	a, err := n.Propose(context.Background(), cmd)
	if err != nil || a.Result.Code != gpuai.OK || a.Index == 0 {
		c.t.Fatalf("submit: %+v, %v", a, err)
	}
	return a, id
}

func (c *cluster) has(n *Node, id gpuai.JobID) bool {
	var ok bool
	n.View(func(m *fsm.Machine) { _, ok = m.Job(id, false) })
	return ok
}

// code returns err's code, OK for nil and Internal for one without.
func code(err error) gpuai.Code {
	var e *gpuai.Error
	switch {
	case err == nil:
		return gpuai.OK
	case errors.As(err, &e):
		return e.Code
	default:
		return gpuai.Internal
	}
}

// submitter submits jobs one after another to whoever leads, from several
// goroutines, and remembers which were acknowledged.
type submitter struct {
	stop  chan struct{}
	pause time.Duration // between rounds over the members
	wg    sync.WaitGroup

	mu    sync.Mutex // guards below
	acked []gpuai.JobID
	codes map[gpuai.Code]int
}

// submitUntilStopped starts workers. nodes gives the members to try.
func submitUntilStopped(workers int, pause time.Duration, nodes func() []*Node) *submitter {
	s := &submitter{stop: make(chan struct{}), pause: pause, codes: make(map[gpuai.Code]int)}
	for range workers {
		s.wg.Go(func() { s.run(nodes) })
	}
	return s
}

func (s *submitter) run(nodes func() []*Node) {
	for {
		for _, n := range nodes() {
			select {
			case <-s.stop:
				return
			default:
			}
			if !n.IsLeader() {
				continue
			}
			id, cmd := job()
			a, err := n.Propose(context.Background(), cmd)
			s.mu.Lock()
			s.codes[code(err)]++
			if err == nil && a.Result.Code == gpuai.OK {
				s.acked = append(s.acked, id)
			}
			s.mu.Unlock()
		}
		<-time.After(s.pause)
	}
}

func (s *submitter) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acked)
}

func (s *submitter) finish() ([]gpuai.JobID, string) {
	close(s.stop)
	s.wg.Wait()
	return s.acked, fmt.Sprint(s.codes)
}
