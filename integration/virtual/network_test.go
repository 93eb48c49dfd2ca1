package virtual

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	window  = 256 << 10 // bytes under way on one connection, each way
	backlog = 128       // connections that wait to be accepted
)

// network connects hosts in memory. Connections have a delay; links between
// hosts can be cut one way, hosts can be frozen and can die.
type network struct {
	mu        sync.Mutex // guards below and everything of conns
	changed   *sync.Cond // links, hosts or listeners
	rng       *rand.Rand
	delay     time.Duration // at most, one way
	listeners map[string]*listener
	cut       map[link]bool
	frozen    map[string]bool
	conns     map[*conn]struct{}
}

// link is a direction between two hosts.
type link struct{ from, to string }

// host is one life of a host: after die it reaches nobody.
type host struct {
	net  *network
	name string
	dead bool
}

func newNetwork(seed uint64, delay time.Duration) *network {
	n := &network{
		rng: rand.New(rand.NewPCG(seed, 77)), delay: delay,
		listeners: make(map[string]*listener), cut: make(map[link]bool),
		frozen: make(map[string]bool), conns: make(map[*conn]struct{}),
	}
	n.changed = sync.NewCond(&n.mu)
	return n
}

func (n *network) host(name string) *host { return &host{net: n, name: name} }

// apply changes links or hosts, and wakes whoever waits for one.
func (n *network) apply(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	n.changed.Broadcast()
	for c := range n.conns {
		c.cond.Broadcast()
	}
}

// partition allows only traffic within the groups; a host in several connects
// them. Hosts in none, such as clients, reach everybody.
func (n *network) partition(groups ...[]string) {
	together := make(map[link]bool)
	var all []string
	for _, g := range groups {
		all = append(all, g...)
		for _, a := range g {
			for _, b := range g {
				together[link{a, b}] = true
			}
		}
	}
	n.apply(func() {
		clear(n.cut)
		for _, a := range all {
			for _, b := range all {
				if a != b && !together[link{a, b}] {
					n.cut[link{a, b}] = true
				}
			}
		}
	})
}

// oneWay cuts links in one direction, in place of all other cuts.
func (n *network) oneWay(links ...link) {
	n.apply(func() {
		clear(n.cut)
		for _, l := range links {
			n.cut[l] = true
		}
	})
}

func (n *network) heal() { n.partition() }

// freeze keeps everything to and from a host back until it is thawed.
func (n *network) freeze(name string, frozen bool) {
	n.apply(func() { n.frozen[name] = frozen })
}

// sever ends every connection and listener.
func (n *network) sever() {
	n.apply(func() {
		for c := range n.conns {
			c.die()
		}
		for _, l := range n.listeners {
			l.close()
		}
	})
}

// reset breaks each connection with a chance of one in so many.
func (n *network) reset(oneIn int) {
	n.apply(func() {
		for c := range n.conns {
			if n.rng.IntN(oneIn) == 0 {
				c.die()
			}
		}
	})
}

// slow sets the longest delay, one way, of what is sent from now on.
func (n *network) slow(delay time.Duration) { n.apply(func() { n.delay = delay }) }

// die ends a host's connections and listeners as the end of its process would.
func (h *host) die() {
	h.net.apply(func() {
		h.dead = true
		for c := range h.net.conns {
			if c.host == h {
				c.die()
			}
		}
		for _, l := range h.net.listeners {
			if l.host == h {
				l.close()
			}
		}
	})
}

// open reports whether bytes get from one host to another.
func (n *network) open(from, to string) bool {
	return !n.cut[link{from, to}] && !n.frozen[from] && !n.frozen[to]
}

func (n *network) randomDelay() time.Duration {
	return n.delay/8 + time.Duration(n.rng.Int64N(int64(n.delay)*7/8))
}

// addr is an address in the network: a host's name and a port.
type addr string

// Network implements net.Addr.
func (addr) Network() string { return "virtual" }

// String implements net.Addr.
func (a addr) String() string { return string(a) }

type listener struct {
	host  *host
	addr  string
	queue chan net.Conn
	done  chan struct{}
	shut  bool // guarded by the network
}

func (h *host) listen(port string) net.Listener {
	l := &listener{host: h, addr: h.name + ":" + port, queue: make(chan net.Conn, backlog), done: make(chan struct{})}
	h.net.apply(func() { h.net.listeners[l.addr] = l })
	return l
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.addr) }

// Close implements net.Listener.
func (l *listener) Close() error {
	l.host.net.apply(l.close)
	return nil
}

func (l *listener) close() {
	if !l.shut {
		l.shut = true
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				c.(*conn).die()
				continue
			default:
			}
			return
		}
	}
}

// dial connects to an address. Over a cut it hangs until ctx ends.
func (h *host) dial(ctx context.Context, to string) (net.Conn, error) {
	c, err := h.connect(ctx, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "virtual", Addr: addr(to), Err: err}
	}
	return c, nil
}

func (h *host) connect(ctx context.Context, to string) (net.Conn, error) {
	n := h.net
	name, _, err := net.SplitHostPort(to)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { n.apply(func() {}) })()
	n.mu.Lock()
	trip := 2 * n.randomDelay()
	n.mu.Unlock()
	select {
	case <-time.After(trip):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for ctx.Err() == nil && !h.dead && (n.cut[link{h.name, name}] || n.cut[link{name, h.name}]) {
		n.changed.Wait()
	}
	l := n.listeners[to]
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case h.dead:
		return nil, syscall.ENETUNREACH
	case l == nil || l.shut:
		return nil, syscall.ECONNREFUSED
	}
	a, b := n.pair(h, l)
	select {
	case l.queue <- b: // a frozen host's kernel takes it
		return a, nil
	default:
		a.die()
		b.die()
		return nil, syscall.ECONNREFUSED
	}
}

// conn is one end of a connection; in is what it reads.
type conn struct {
	net       *network
	host      *host
	peer      *conn
	local     addr
	cond      *sync.Cond
	in        []chunk
	size      int       // bytes of in
	last      time.Time // when the newest of in arrives
	closed    bool
	deadlines [2]time.Time // of reads, of writes
}

// chunk is bytes under way. One without bytes is the end.
type chunk struct {
	at time.Time
	b  []byte
}

var _ net.Conn = (*conn)(nil)

func (n *network) pair(h *host, l *listener) (a, b *conn) {
	a = &conn{net: n, host: h, local: addr(h.name + ":0"), cond: sync.NewCond(&n.mu)}
	b = &conn{net: n, host: l.host, local: addr(l.addr), cond: sync.NewCond(&n.mu), peer: a}
	a.peer = b
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	return a, b
}

// arrived reports whether something can be read now.
func (c *conn) arrived() bool {
	return len(c.in) > 0 && !time.Now().Before(c.in[0].at) && c.net.open(c.peer.host.name, c.host.name)
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.overdue(0):
			return 0, os.ErrDeadlineExceeded
		case !c.arrived():
			c.cond.Wait()
			continue
		}
		first := &c.in[0]
		if len(first.b) == 0 {
			return 0, io.EOF
		}
		n := copy(p, first.b)
		if first.b = first.b[n:]; len(first.b) == 0 {
			c.in = c.in[1:]
		}
		c.size -= n
		c.peer.cond.Broadcast()
		return n, nil
	}
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.peer.closed && c.net.open(c.host.name, c.peer.host.name):
			return 0, syscall.EPIPE
		case c.overdue(1):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case c.peer.size > 0 && c.peer.size+len(p) > window:
			c.cond.Wait()
			continue
		}
		c.peer.size += len(p)
		c.send(append([]byte(nil), p...))
		return len(p), nil
	}
}

// send puts bytes, or the end, on their way: in order.
func (c *conn) send(b []byte) {
	d := c.net.randomDelay()
	at := time.Now().Add(d)
	if at.Before(c.peer.last) {
		at = c.peer.last
	}
	c.peer.last = at
	c.peer.in = append(c.peer.in, chunk{at, b})
	c.wake(c.peer, at)
}

// wake lets a conn look again at a time.
func (c *conn) wake(who *conn, at time.Time) {
	time.AfterFunc(time.Until(at), func() {
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		who.cond.Broadcast()
	})
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.die()
	return nil
}

func (c *conn) die() {
	if c.closed {
		return
	}
	c.closed = true
	if !c.peer.closed {
		c.send(nil)
	}
	delete(c.net.conns, c)
	c.cond.Broadcast()
	c.peer.cond.Broadcast()
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.peer.local }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return errors.Join(c.limit(0, t), c.limit(1, t)) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.limit(0, t) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.limit(1, t) }

func (c *conn) limit(which int, t time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.deadlines[which] = t
	if !t.IsZero() {
		c.wake(c, t)
	}
	c.cond.Broadcast()
	return nil
}

func (c *conn) overdue(which int) bool {
	d := c.deadlines[which]
	return !d.IsZero() && !time.Now().Before(d)
}
