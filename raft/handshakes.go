package raft

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Bounds of the handshakes of others that are not finished. Nobody has said yet who
// they are.
const (
	maxHandshakes = 256 // of all sources that are not known
	maxOfSource   = 32  // of one that is not
	maxOfKnown    = 64  // of one that is; those are not counted among the first
	maxKnown      = 64  // sources that are remembered; a region has MaxMembers
)

// handshakes bounds the handshakes that others have begun. Room is made by closing
// the oldest, of the same source first, so that whoever only holds connections open
// shuts nobody out; servers come from sources that are known by earlier handshakes,
// theirs or this server's with them, and strangers take nothing of their room.
type handshakes struct {
	mu    sync.Mutex   // guards below
	open  []*handshake // the oldest first
	known []string     // the one that finished last is last
}

type handshake struct {
	conn   net.Conn
	source string
}

// sourceOf returns who is counted as one: an address, or the network of an IPv6
// address, which a host has to itself.
func sourceOf(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String()
	}
	ip := tcp.AddrPort().Addr().Unmap()
	if ip.Is6() {
		return netip.PrefixFrom(ip.WithZone(""), 64).Masked().String()
	}
	return ip.String()
}

// begin counts a connection that was accepted. It never refuses one.
func (h *handshakes) begin(c net.Conn) *handshake {
	one := &handshake{c, sourceOf(c.RemoteAddr())}
	h.mu.Lock()
	defer h.mu.Unlock()
	most, known := maxOfSource, h.knows(one.source)
	if known {
		most = maxOfKnown
	}
	switch {
	case h.count(func(o *handshake) bool { return o.source == one.source }) >= most:
		h.evict(func(o *handshake) bool { return o.source == one.source })
	case !known && h.count(h.strange) >= maxHandshakes:
		h.evict(h.strange)
	}
	h.open = append(h.open, one)
	return one
}

func (h *handshakes) strange(o *handshake) bool { return !h.knows(o.source) }

func (h *handshakes) knows(source string) bool {
	return slices.Contains(h.known, source)
}

func (h *handshakes) count(of func(*handshake) bool) (n int) {
	for _, o := range h.open {
		if of(o) {
			n++
		}
	}
	return n
}

// evict closes the oldest.
func (h *handshakes) evict(of func(*handshake) bool) {
	if i := slices.IndexFunc(h.open, of); i >= 0 {
		h.open[i].conn.Close()
		h.open = slices.Delete(h.open, i, i+1)
	}
}

// end uncounts a handshake; one that has come to its end makes its source known.
func (h *handshakes) end(one *handshake, done bool) {
	h.mu.Lock()
	h.open = slices.DeleteFunc(h.open, func(o *handshake) bool { return o == one })
	h.mu.Unlock()
	if done {
		h.met(one.conn.RemoteAddr())
	}
}

// met remembers where a server is.
func (h *handshakes) met(addr net.Addr) {
	source := sourceOf(addr)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = append(slices.DeleteFunc(h.known, func(k string) bool { return k == source }), source)
	if len(h.known) > maxKnown {
		h.known = slices.Delete(h.known, 0, 1)
	}
}
