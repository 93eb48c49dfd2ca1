// Package cable lays cables between programs on one host, that can be cut.
package cable

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// A Cable passes TCP connections on to one server until it is cut. Then
// nothing comes through and nobody is told: as after a pulled plug, not after
// a closed connection. What was on its way arrives when the cable is mended.
type Cable struct {
	Addr string // to connect to

	dial func() (net.Conn, error)
	l    net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex // guards below
	whole *sync.Cond
	cut   bool
	ended bool
	conns map[net.Conn]bool
}

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
	c := &Cable{Addr: l.Addr().String(), dial: dial, l: l, conns: make(map[net.Conn]bool)}
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
	var both sync.WaitGroup
	for _, way := range [...][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			c.copy(way[1], way[0])
			near.Close()
			far.Close()
		})
	}
	both.Wait()
}

func (c *Cable) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !c.passes() {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
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

// Close ends the cable with all connections.
func (c *Cable) Close() {
	c.mu.Lock()
	c.ended = true
	c.whole.Broadcast()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.l.Close()
	c.wg.Wait()
}
