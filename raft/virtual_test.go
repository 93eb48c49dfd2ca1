package raft

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gpuai/gpuai"
)

// network connects members in memory, so that a cluster runs in virtual time
// and can be cut anywhere.
type network struct {
	mu        sync.Mutex // guards below
	listeners map[string]*memListener
	cut       map[[2]string]bool // from, to
	open      []*memConn
}

type memListener struct {
	name  string
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *memListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memListener) Addr() net.Addr { return memAddr(l.name) }

type memAddr string

func (a memAddr) Network() string { return "memory" }
func (a memAddr) String() string  { return string(a) }

// memConn is one end of a pipe; severed when its direction is cut.
type memConn struct {
	net.Conn
	from, to string
}

func newNetwork() *network {
	return &network{listeners: make(map[string]*memListener), cut: make(map[[2]string]bool)}
}

func (n *network) listen(name string) net.Listener {
	l := &memListener{name: name, conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	n.listeners[name] = l
	n.mu.Unlock()
	return l
}

func (n *network) dial(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		n.mu.Lock()
		l, cut := n.listeners[to], n.cut[[2]string{from, to}]
		n.mu.Unlock()
		if l == nil || cut {
			return nil, errors.New("no route to " + to)
		}
		a, b := net.Pipe()
		select {
		case l.conns <- b:
		case <-l.done:
			return nil, errors.New("connection refused by " + to)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		n.mu.Lock()
		n.open = append(n.open, &memConn{a, from, to})
		n.mu.Unlock()
		return a, nil
	}
}

// isolate cuts name off from all others, or heals all.
func (n *network) isolate(names ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	for _, name := range names {
		for other := range n.listeners {
			n.cut[[2]string{name, other}] = true
			n.cut[[2]string{other, name}] = true
		}
	}
	kept := n.open[:0]
	for _, c := range n.open {
		if n.cut[[2]string{c.from, c.to}] {
			c.Close()
		} else {
			kept = append(kept, c)
		}
	}
	n.open = kept
}

func TestVirtualPartitionedLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		old := c.leader()
		c.submit(old)
		c.mem.isolate(c.addr[old.cfg.ID])
		cut := time.Now()
		until(t, "the old leader steps down", func() bool { return !old.IsLeader() })
		if d := time.Since(cut); d > time.Second {
			t.Errorf("it led for %v without a majority", d)
		}
		until(t, "the others have a leader", func() bool {
			for _, n := range c.nodes {
				if n != old && n.IsLeader() {
					return true
				}
			}
			return false
		})
		if d := time.Since(cut); d > 3*time.Second {
			t.Errorf("the others had no leader for %v", d)
		}
		if _, err := old.Barrier(t.Context()); code(err) != gpuai.NoLeader {
			t.Errorf("a read on the old leader: %v", err)
		}
		var acked []gpuai.JobID
		for range 10 {
			_, id := c.submit(c.leader())
			acked = append(acked, id)
		}
		time.Sleep(time.Minute) // virtual: pre-vote keeps the lonely one's term down
		term := c.leader().Status().Term
		c.mem.isolate()
		until(t, "the old leader catches up", func() bool { return c.has(old, acked[9]) })
		if now := c.leader().Status().Term; now != term {
			t.Errorf("the healed server disturbed term %d: it is %d now", term, now)
		}
		c.converged()
	})
}

// TestVirtualRandomCuts isolates random members again and again, under load,
// and loses nothing that was acknowledged.
func TestVirtualRandomCuts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := startVirtual(t, 3)
		var all []*Node
		for _, n := range c.nodes {
			all = append(all, n)
		}
		s := submitUntilStopped(3, 20*time.Millisecond, func() []*Node { return all })
		for range 25 {
			if rng.IntN(3) == 0 {
				c.mem.isolate()
			} else {
				c.mem.isolate(c.addr[c.ids[rng.IntN(3)]])
			}
			time.Sleep(time.Duration(100+rng.IntN(1500)) * time.Millisecond) // virtual
		}
		c.mem.isolate()
		at := s.count()
		until(t, "the healed cluster takes jobs", func() bool { return s.count() > at+10 })
		acked, codes := s.finish()
		t.Logf("%d acknowledged, codes %s", len(acked), codes)
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

func TestVirtualRegionTimeFollowsTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startVirtual(t, 3)
		c.submit(c.leader())
		began := c.leader().RegionTime()
		time.Sleep(time.Minute) // virtual
		c.submit(c.leader())
		if d := c.leader().RegionTime() - began; d < 60_000 || d > 61_000 {
			t.Errorf("a minute is %d ms", d)
		}
		c.converged()
		was := c.follower().RegionTime()
		c.kill(c.leader().cfg.ID)
		if d := c.leader().RegionTime() - was; d < 0 || d > 5_000 {
			t.Errorf("region time went on by %d ms over an election", d)
		}
		c.kill(c.ids...)
	})
}
