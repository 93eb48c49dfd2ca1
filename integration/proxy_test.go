package integration

import (
	"io"
	"net"
	"sync"
	"testing"
)

// A cable passes TCP connections on to one server until it is cut. Then
// nothing comes through and nobody is told: as after a pulled plug, not after
// a closed connection. What was on its way arrives when the cable is mended.
type cable struct {
	addr   string // to connect to
	target string
	l      net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex // guards below
	whole *sync.Cond
	cut   bool
	ended bool
	conns map[net.Conn]bool
}

// newCable lays a cable to a server's address.
func newCable(t *testing.T, target string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{addr: l.Addr().String(), target: target, l: l, conns: make(map[net.Conn]bool)}
	c.whole = sync.NewCond(&c.mu)
	c.wg.Go(c.accept)
	t.Cleanup(c.end)
	return c
}

func (c *cable) accept() {
	for {
		near, err := c.l.Accept()
		if err != nil {
			return
		}
		c.wg.Go(func() { c.join(near) })
	}
}

// join copies between a connection and the server until one of them ends.
func (c *cable) join(near net.Conn) {
	defer near.Close()
	if !c.hold(near) || !c.passes() {
		return
	}
	defer c.release(near)
	far, err := net.Dial("tcp", c.target)
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

func (c *cable) copy(to io.Writer, from io.Reader) {
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
func (c *cable) passes() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.cut && !c.ended {
		c.whole.Wait()
	}
	return !c.ended
}

// hold lets end close a connection.
func (c *cable) hold(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.conns[conn] = true
	}
	return !c.ended
}

func (c *cable) release(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// set cuts the cable or mends it.
func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	c.whole.Broadcast()
}

func (c *cable) end() {
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
