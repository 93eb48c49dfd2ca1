package raft

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/identity"
)

// A connection between servers begins with a handshake, after which the bytes
// belong to Raft or to HTTP:
//
//	dialler:  kind(1) version(1) length(2) cluster \0 from \0 to
//	acceptor: status(1) length(2) cluster \0 reason
//
// It keeps servers of different clusters, and servers at each other's
// addresses, apart; it also tells a new member its cluster's ID. It proves
// nothing: in a region with authentication TLS is below it, both sides show
// certificates of servers, and names must be theirs.
const (
	kindRaft = 1
	kindPeer = 2
	kindJoin = 3 // HTTP from who is no member yet, or at an address that nobody vouches for

	helloVersion = 1
	helloLimit   = 1024 // bytes behind the fixed part
	helloTimeout = 5 * time.Second

	statusOK      = 0
	statusRefused = 1
	statusRemoved = 2 // refused: the dialler was removed from the cluster
)

// hello is what a dialler says.
type hello struct {
	kind     byte
	cluster  gpuai.ClusterID // "" while it has none
	from, to gpuai.ServerID
}

// gatekeeper judges handshakes. Both methods are called concurrently.
type gatekeeper interface {
	// admit judges a dialler; its cluster is what the answer names, with the
	// status of a refusal.
	admit(h hello) (cluster gpuai.ClusterID, status byte, err error)
	// greet is called with the answer to a handshake h of ours.
	greet(h hello, cluster gpuai.ClusterID, status byte, reason string) error
}

// mux shares one listener between the kinds, and closes every connection made
// through it when it is closed.
type mux struct {
	ln    net.Listener
	gate  gatekeeper
	tls   *identity.Source       // nil: plaintext
	conns map[byte]chan net.Conn // by kind, accepted
	begun handshakes             // of others
	done  chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex // guards below
	open   map[*trackedConn]struct{}
	closed bool
}

func newMux(ln net.Listener, gate gatekeeper, tls *identity.Source) *mux {
	m := &mux{
		ln:    ln,
		gate:  gate,
		tls:   tls,
		conns: map[byte]chan net.Conn{kindRaft: make(chan net.Conn), kindPeer: make(chan net.Conn)},
		done:  make(chan struct{}),
		open:  make(map[*trackedConn]struct{}),
	}
	m.conns[kindJoin] = m.conns[kindPeer]
	m.wg.Go(m.accept)
	return m
}

// accept takes connections until close.
func (m *mux) accept() {
	for {
		c, err := m.ln.Accept()
		if err != nil {
			select {
			case <-m.done:
				return
			case <-time.After(10 * time.Millisecond): // descriptors may have run out for a while
				continue
			}
		}
		one := m.begun.begin(c)
		m.wg.Go(func() { m.welcome(one) })
	}
}

// welcome does the acceptor's half and hands the connection over.
func (m *mux) welcome(one *handshake) {
	raw := one.conn
	if m.tls != nil {
		raw = m.tls.Server(raw, identity.Want{Kind: gpuai.IdentityServer})
	}
	c, err := m.track(raw)
	if err != nil {
		m.begun.end(one, false)
		return
	}
	kind, err := m.answer(c)
	m.begun.end(one, err == nil)
	if err != nil {
		c.Close()
		return
	}
	select {
	case m.conns[kind] <- c:
	case <-m.done:
		c.Close()
	}
}

func (m *mux) answer(c *trackedConn) (kind byte, err error) {
	if err := c.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return 0, err
	}
	h, err := readHello(c)
	if err != nil {
		return 0, err
	}
	cluster, status, refusal := m.gate.admit(h)
	if err := checkFrom(c.Conn, h.from); err != nil {
		cluster, status, refusal = "", statusRefused, err
	}
	reason := ""
	if refusal != nil {
		reason = refusal.Error()
	}
	if _, err := c.Write(frame([]byte{status}, string(cluster), reason)); err != nil {
		return 0, err
	}
	return h.kind, errors.Join(refusal, c.SetDeadline(time.Time{}))
}

// dial connects to addr and does the dialler's half. An empty h.to accepts
// whoever answers.
func (m *mux) dial(ctx context.Context, dial func(context.Context, string) (net.Conn, error), addr string, h hello) (net.Conn, error) {
	who := "a server"
	if h.to != "" {
		who = "server " + string(h.to)
	}
	raw, err := dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s at %s: %w", who, addr, err)
	}
	if m.tls != nil {
		raw = m.tls.Client(raw, identity.Want{Kind: gpuai.IdentityServer, Name: string(h.to)})
	}
	c, err := m.track(raw)
	if err != nil {
		return nil, err
	}
	if err := m.introduce(ctx, c, h); err != nil {
		c.Close()
		return nil, fmt.Errorf("connect to %s at %s: %w", who, addr, err)
	}
	m.begun.met(c.RemoteAddr())
	return c, nil
}

func (m *mux) introduce(ctx context.Context, c net.Conn, h hello) error {
	deadline := time.Now().Add(helloTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := c.Write(frame([]byte{h.kind, helloVersion}, string(h.cluster), string(h.from), string(h.to))); err != nil {
		return err
	}
	status := make([]byte, 1)
	if _, err := io.ReadFull(c, status); err != nil {
		return fmt.Errorf("it closed the connection; is it a Raft port of gpuai? (%w)", err)
	}
	parts, err := readParts(c, 2)
	if err != nil {
		return err
	}
	if err := m.gate.greet(h, gpuai.ClusterID(parts[0]), status[0], parts[1]); err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}

// checkFrom refuses a name that is not that of the certificate. Without TLS
// nothing is known.
func checkFrom(c net.Conn, from gpuai.ServerID) error {
	t, ok := c.(*tls.Conn)
	if !ok {
		return nil
	}
	if kind, id, ok := identity.PeerOf(t.ConnectionState()); !ok || kind != gpuai.IdentityServer.String() || id != string(from) {
		return fmt.Errorf("it says that it is server %s, and its certificate is that of %s/%s", from, kind, id)
	}
	return nil
}

func readHello(r io.Reader) (hello, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return hello{}, err
	}
	if head[0] < kindRaft || head[0] > kindJoin || head[1] != helloVersion {
		return hello{}, fmt.Errorf("a connection of kind %d, version %d", head[0], head[1])
	}
	parts, err := readParts(r, 3)
	if err != nil {
		return hello{}, err
	}
	return hello{
		kind:    head[0],
		cluster: gpuai.ClusterID(parts[0]),
		from:    gpuai.ServerID(parts[1]),
		to:      gpuai.ServerID(parts[2]),
	}, nil
}

// frame appends a length and the parts, divided by zero bytes.
func frame(head []byte, parts ...string) []byte {
	body := strings.Join(parts, "\x00")
	body = body[:min(len(body), helloLimit)]
	return append(binary.BigEndian.AppendUint16(head, uint16(len(body))), body...)
}

func readParts(r io.Reader, n int) ([]string, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint16(size[:])
	if length > helloLimit {
		return nil, fmt.Errorf("a handshake of %d bytes", length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	parts := strings.SplitN(string(body), "\x00", n)
	if len(parts) != n {
		return nil, errors.New("a handshake without all its parts")
	}
	return parts, nil
}

// trackedConn is a connection that its mux closes.
type trackedConn struct {
	net.Conn
	m *mux
}

// Close closes the connection.
func (c *trackedConn) Close() error {
	c.m.mu.Lock()
	delete(c.m.open, c)
	c.m.mu.Unlock()
	return c.Conn.Close()
}

// track takes raw over; it is closed when m is closed already.
func (m *mux) track(raw net.Conn) (*trackedConn, error) {
	c := &trackedConn{Conn: raw, m: m}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		raw.Close()
		return nil, net.ErrClosed
	}
	m.open[c] = struct{}{}
	return c, nil
}

// close closes the listener and every connection, and waits for the
// handshakes to end.
func (m *mux) close() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.closed = true
	close(m.done)
	var open []*trackedConn
	for c := range m.open {
		open = append(open, c)
	}
	m.mu.Unlock()
	m.ln.Close()
	for _, c := range open {
		c.Close()
	}
	m.wg.Wait()
}

// muxListener is one kind's side of the mux. Closing it stops its Accept, and
// leaves the port to the mux.
type muxListener struct {
	m    *mux
	kind byte
	addr net.Addr
	once sync.Once
	done chan struct{}
}

func (m *mux) listener(kind byte) *muxListener {
	return &muxListener{m: m, kind: kind, addr: m.ln.Addr(), done: make(chan struct{})}
}

// Accept returns the next connection of its kind.
func (l *muxListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.m.conns[l.kind]:
		return c, nil
	case <-l.done:
	case <-l.m.done:
	}
	return nil, net.ErrClosed
}

// Close ends Accept.
func (l *muxListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr returns the port's address.
func (l *muxListener) Addr() net.Addr { return l.addr }
