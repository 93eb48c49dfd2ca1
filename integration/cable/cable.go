// Package cable lays cables between programs on one host, that can be cut.
package cable

import (
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A Cable passes TCP connections on to one server until it is cut. Then
// nothing comes through and nobody is told: as after a pulled plug, not after
// a closed connection. What was on its way arrives when the cable is mended.
type Cable struct {
	Addr string // to connect to

	dial func() (net.Conn, error)
	l    net.Listener
	wg   sync.WaitGroup
	done chan struct{} // closed by Close

	mu    sync.Mutex // guards below
	whole *sync.Cond
	cut   bool
	ended bool
	lag   Lag
	conns map[net.Conn]bool
}

// A Lag says how late the packets of a connection come. It is called once for each
// connection, with the address of the end that connects; what it returns is called
// for each piece that was just read, in being the way to the server, and says for how
// long that piece is held. The pieces of one way keep their order, as TCP's do; those of
// several connections overtake each other. It must be safe for concurrent use.
type Lag func(from net.Addr) (hold func(in bool) time.Duration)

// inFlight is how many pieces are on their way in one direction of a connection.
const inFlight = 256

// To lays a cable to a server's TCP address.
func To(target string) (*Cable, error) {
	return New(func() (net.Conn, error) { return net.Dial("tcp", target) })
}

// New lays a cable whose far end is what dial connects to.
func New(dial func() (net.Conn, error)) (*Cable, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("lay a cable: %w", err)
	}
	c := &Cable{Addr: l.Addr().String(), dial: dial, l: l, done: make(chan struct{}), conns: make(map[net.Conn]bool)}
	c.whole = sync.NewCond(&c.mu)
	c.wg.Go(c.accept)
	return c, nil
}

func (c *Cable) accept() {
	for {
		near, err := c.l.Accept()
		if err != nil {
			return
		}
		c.wg.Go(func() { c.join(near) })
	}
}

// join copies between a connection and the server until one of them ends.
func (c *Cable) join(near net.Conn) {
	defer near.Close()
	if !c.hold(near) || !c.passes() {
		return
	}
	defer c.release(near)
	far, err := c.dial()
	if err != nil {
		return
	}
	defer far.Close()
	if !c.hold(far) {
		return
	}
	defer c.release(far)
	hold := c.holder(near.RemoteAddr())
	end := func() {
		near.Close()
		far.Close()
	}
	var both sync.WaitGroup
	for _, way := range [...]struct {
		to, from net.Conn
		in       bool
	}{{far, near, true}, {near, far, false}} {
		both.Go(func() {
			c.copy(way.to, way.from, func() time.Duration { return hold(way.in) }, end)
			end()
		})
	}
	both.Wait()
}

// holder returns what says how late a connection's pieces are.
func (c *Cable) holder(from net.Addr) func(in bool) time.Duration {
	c.mu.Lock()
	lag := c.lag
	c.mu.Unlock()
	if lag == nil {
		return func(bool) time.Duration { return 0 }
	}
	return lag(from)
}

// A piece is on its way until it is due.
type piece struct {
	data []byte
	due  time.Time
}

// copy passes on what it reads, each piece when it is due, to the end of either side.
// fail ends the connection.
func (c *Cable) copy(to io.Writer, from io.Reader, hold func() time.Duration, fail func()) {
	way := make(chan piece, inFlight)
	var writer sync.WaitGroup
	writer.Go(func() {
		for p := range way {
			if !c.wait(p.due) || !c.passes() {
				fail()
				continue // until the reader has seen it
			}
			if _, err := to.Write(p.data); err != nil {
				fail()
			}
		}
	})
	for buf := make([]byte, 16<<10); ; {
		n, err := from.Read(buf)
		if n > 0 {
			way <- piece{append([]byte(nil), buf[:n]...), time.Now().Add(hold())}
		}
		if err != nil {
			break
		}
	}
	close(way)
	writer.Wait()
	c.wait(time.Now().Add(hold())) // the end is a packet too
}

// wait waits until a piece is due, and reports whether the cable is still there.
func (c *Cable) wait(due time.Time) bool {
	d := time.Until(due)
	if d <= 0 {
		return true
	}
	late := time.NewTimer(d)
	defer late.Stop()
	select {
	case <-late.C:
		return true
	case <-c.done:
		return false
	}
}

// passes waits while the cable is cut, and reports whether it is still there.
func (c *Cable) passes() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.cut && !c.ended {
		c.whole.Wait()
	}
	return !c.ended
}

// hold lets end close a connection.
func (c *Cable) hold(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.conns[conn] = true
	}
	return !c.ended
}

func (c *Cable) release(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// Set cuts the cable or mends it.
func (c *Cable) Set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	c.whole.Broadcast()
}

// SetLag has the packets of connections that begin from now on come late; nil ends
// that for those that begin later.
func (c *Cable) SetLag(lag Lag) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lag = lag
}

// Close ends the cable with all connections.
func (c *Cable) Close() {
	c.mu.Lock()
	if !c.ended {
		c.ended = true
		close(c.done)
	}
	c.whole.Broadcast()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.l.Close()
	c.wg.Wait()
}
