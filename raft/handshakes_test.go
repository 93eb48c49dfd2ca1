package raft

import (
	"errors"
	"net"
	"testing"
	"time"
)

// A silent connection from an address of the test's.
type silent struct {
	net.Conn
	from   net.Addr
	closed bool
}

func (c *silent) RemoteAddr() net.Addr { return c.from }
func (c *silent) Close() error         { c.closed = true; return nil }

func from(ip string) *silent { return &silent{from: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}} }

// Connections that never say a word cost each other their room, and a server none.
func TestHandshakesOfStrangersLeaveRoom(t *testing.T) {
	var h handshakes
	h.met(&net.TCPAddr{IP: net.ParseIP("10.0.0.2")})
	server := from("10.0.0.2")
	h.begin(server)
	honest := from("192.0.2.1")
	one := h.begin(honest)
	var flood []*silent
	for range 4 * maxHandshakes {
		c := from("198.51.100.7")
		flood = append(flood, c)
		h.begin(c)
	}
	if n := len(h.open); n != maxOfSource+2 || server.closed || honest.closed || !flood[0].closed || flood[len(flood)-1].closed {
		t.Errorf("one source holds %d open; a server's is closed: %v, another's: %v", n, server.closed, honest.closed)
	}
	h.end(one, true) // from now on it is known
	again := from("192.0.2.1")
	h.begin(again)
	for i := range 4 * maxHandshakes {
		h.begin(&silent{from: &net.TCPAddr{IP: net.IP{203, 0, byte(i >> 8), byte(i)}}})
	}
	if n := len(h.open); n != maxHandshakes+2 || server.closed || again.closed {
		t.Errorf("many sources hold %d open; the servers' are closed: %v, %v", n, server.closed, again.closed)
	}
	if a, b := sourceOf(from("2001:db8::1").from), sourceOf(from("2001:db8::ffff:1").from); a != b {
		t.Errorf("hosts of one IPv6 network count apart: %s, %s", a, b)
	}
	for i := range 2 * maxKnown {
		h.met(&net.TCPAddr{IP: net.IP{10, 1, 0, byte(i)}})
	}
	if len(h.known) != maxKnown {
		t.Errorf("%d sources are remembered", len(h.known))
	}
}

// Servers reach each other beside more silent connections than are let to wait,
// even from the address of a server.
func TestSilentConnectionsDoNotShutServersOut(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3)
	c.converged()
	var idle []net.Conn
	for range maxHandshakes + maxOfKnown {
		conn, err := net.Dial("tcp", c.addr["a"])
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
		defer conn.Close()
	}
	for range 20 {
		conn, err := c.nodes["b"].DialPeer(t.Context(), "a")
		if err != nil {
			t.Fatalf("beside %d silent connections: %v", len(idle), err)
		}
		conn.Close()
	}
	idle[0].SetReadDeadline(time.Now().Add(helloTimeout))
	if _, err := idle[0].Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("the oldest silent connection: %v", err)
	}
	c.submit(c.leader())
}
