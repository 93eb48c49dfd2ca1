package main

import "slices"

// network says who reaches whom. A link is one direction between two places;
// servers are places 0 … n-1, hosts follow.
type network struct {
	w     *world
	cuts  map[link]int // how many faults cut it
	conns []*conn      // open ones
}

type link struct{ from, to int }

func (w *world) hostPlace(h *host) int { return len(w.servers) + h.idx }

func (n *network) open(from, to int) bool { return n.cuts[link{from, to}] == 0 }

// cut cuts links for a while.
func (n *network) cut(links []link, d int64) {
	for _, l := range links {
		n.cuts[l]++
	}
	n.w.after(d, func() { n.mend(links) })
}

func (n *network) mend(links []link) {
	for _, l := range links {
		if n.cuts[l]--; n.cuts[l] <= 0 {
			delete(n.cuts, l)
		}
	}
	n.flush()
}

// heal mends everything.
func (n *network) heal() {
	clear(n.cuts)
	n.flush()
}

func (n *network) flush() {
	for _, c := range slices.Clone(n.conns) {
		c.up.flush()
		c.down.flush()
	}
}

// latency is that of one message.
func (n *network) latency() int64 {
	w := n.w
	if w.chance(w.prof.spike) && !w.healed {
		return w.between(10*ms, w.prof.spikeMax)
	}
	return w.between(ms/10, 2*ms)
}

// datagram carries f from one place to another, or loses it.
func (n *network) datagram(from, to int, f func()) {
	w := n.w
	if !n.open(from, to) || !w.healed && w.chance(w.prof.loss) {
		return
	}
	w.after(n.latency(), func() {
		if n.open(from, to) {
			f()
		}
	})
	if !w.healed && w.chance(w.prof.repeat) {
		w.after(n.latency()+w.about(200*ms), func() {
			if n.open(from, to) {
				f()
			}
		})
	}
}

// A conn is a connection between an agent and a server: frames arrive in
// order, each direction by itself; what is sent over a cut link waits. (Some
// profiles break that order: the protocol does not lean on it.)
type conn struct {
	w        *world
	up, down *lane
	open     bool
	server   *server
	agent    *agent
	closed   []func() // told once, when it is closed
}

// lane is one direction of a connection.
type lane struct {
	c        *conn
	from, to int
	recv     *proc
	next     int64 // no frame arrives before the one before it
	stalled  []func()
}

func (n *network) connect(a *agent, s *server) *conn {
	c := &conn{w: n.w, open: true, server: s, agent: a}
	h := n.w.hostPlace(a.h)
	c.up = &lane{c: c, from: h, to: s.id, recv: &s.proc}
	c.down = &lane{c: c, from: s.id, to: h, recv: &a.proc}
	n.conns = append(n.conns, c)
	return c
}

// send carries f, to be done by the receiving process.
func (l *lane) send(f func()) {
	w := l.c.w
	at := w.now + w.net.latency()
	if !w.healed && w.chance(w.prof.reorder) {
		at += w.about(500 * ms) // out of its turn
	} else {
		at = max(at, l.next)
		l.next = at
	}
	deliver := l.recv.wrap(f)
	w.at(at, func() { l.arrive(deliver) })
}

func (l *lane) arrive(deliver func()) {
	switch {
	case !l.c.open:
	case len(l.stalled) > 0 || !l.c.w.net.open(l.from, l.to):
		l.stalled = append(l.stalled, deliver)
	default:
		deliver()
	}
}

func (l *lane) flush() {
	if len(l.stalled) == 0 || !l.c.w.net.open(l.from, l.to) {
		return
	}
	stalled := l.stalled
	l.stalled = nil
	for _, f := range stalled {
		if l.c.open {
			f()
		}
	}
}

// close ends the connection for whoever has not closed it; the other end hears
// of it if it can be reached.
func (c *conn) close() {
	if !c.open {
		return
	}
	c.open = false
	c.w.net.conns = slices.DeleteFunc(c.w.net.conns, func(o *conn) bool { return o == c })
	for _, f := range c.closed {
		c.w.after(c.w.net.latency(), f)
	}
}

// ask has another server do something; done is called once, with nil when no
// answer came in time.
func (w *world) ask(from, to *server, timeout int64, do func(reply func(any)), done func(any)) {
	over := false
	end := func(v any) {
		if !over {
			over = true
			done(v)
		}
	}
	from.after(timeout, func() { end(nil) })
	refused := from.wrap(func() { end(nil) })
	if !to.up {
		w.net.datagram(from.id, to.id, func() { w.net.datagram(to.id, from.id, refused) })
		return
	}
	life, answered := to.life, from.life
	w.net.datagram(from.id, to.id, func() {
		to.run(life, func() {
			do(func(v any) {
				w.net.datagram(to.id, from.id, func() { from.run(answered, func() { end(v) }) })
			})
		})
	})
}
