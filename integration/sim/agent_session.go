package main

import (
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
)

const (
	dialTimeout = 2 * sec
	backoffMin  = 50 * ms
	backoffHeld = 2 * sec
	backoffMax  = 10 * sec
)

// dialAfter opens a session with the next server after a while.
func (a *agent) dialAfter(d int64) {
	a.dialGen++
	gen := a.dialGen
	a.after(d, func() {
		if gen == a.dialGen && a.line == nil && a.halted == "" {
			a.dial()
		}
	})
}

func (a *agent) dial() {
	w := a.w
	s := w.servers[a.server%len(w.servers)]
	a.server++
	a.failures++
	h := w.hostPlace(a.h)
	if !s.up || !w.net.open(h, s.id) || !w.net.open(s.id, h) || s.stops > 0 {
		wait := dialTimeout
		if !s.up && w.net.open(h, s.id) && w.net.open(s.id, h) {
			wait = w.net.latency() // refused
		}
		a.dialAfter(wait + a.backoff())
		return
	}
	a.after(2*w.net.latency(), func() {
		if a.line == nil && a.halted == "" && s.up {
			a.greet(w.net.connect(a, s))
		} else if a.line == nil {
			a.dialAfter(a.backoff())
		}
	})
}

// backoff is the wait after so many attempts without a welcome.
func (a *agent) backoff() int64 {
	limit := backoffMax
	if a.core.Holding() {
		limit = backoffHeld
	}
	d := min(limit, backoffMin<<min(a.failures, 10))
	return d - a.w.rnd.Int64N(d/2+1)
}

// greet opens a session: the Hello's t_send is taken before it is sent.
func (a *agent) greet(c *conn) {
	a.lines++
	l := &line{id: a.lines, c: c}
	a.line = l
	c.closed = append(c.closed, a.wrap(func() { a.hungUp(l) }))
	h := a.hello()
	a.step(decide.HelloSent{Session: l.id, Sent: h.Sent})
	s := c.server
	c.up.send(func() { s.hello(c, h) })
	a.settle()
}

func (a *agent) hello() *gpuai.Hello {
	j := a.h.journal
	a.told, a.saidFull = a.offered(), a.h.full
	h := &gpuai.Hello{
		Node: gpuai.NodeSpec{
			ID: a.h.node, Address: "10.0.0.1", CPU: 64_000, Memory: 1 << 40,
			PortMin: 20_000, PortCount: 16, Devices: a.told, Simulated: true, Refuses: a.refusal(),
			Labels: map[string]string{gpuai.LabelScratch: hostScratch},
		},
		BootID: a.h.bootID(), Nonce: j.nonce, Replaces: j.identity.Incarnation,
		Epoch: j.identity.Epoch, RestoreID: j.identity.RestoreID, Sent: a.h.boottime(),
	}
	for _, t := range a.core.Running() {
		if r := j.records[t]; r != nil {
			h.Held = append(h.Held, gpuai.HeldLease{Lease: t, BootID: r.boot})
		}
	}
	return h
}

// send queues a frame on a session, if that still stands.
func (a *agent) send(session uint64, f gpuai.Frame) {
	if a.line == nil || a.line.id != session {
		return
	}
	c := a.line.c
	if f.Kind == gpuai.FrameBeat && !a.w.healed && a.w.chance(a.w.prof.stillOnBeat) {
		h := a.h
		a.w.after(ms/10, func() { a.w.standStill(h) })
	}
	c.up.send(func() {
		if se := c.server.sessions[a.h.node]; se != nil && se.c == c {
			se.received(f)
		}
	})
}

// receive takes a frame of a connection.
func (a *agent) receive(c *conn, f gpuai.Frame) {
	l := a.line
	if l == nil || l.c != c {
		return
	}
	a.weakenFrame(&f)
	switch f.Kind {
	case gpuai.FrameWelcome:
		a.failures = 0
		a.handle(decide.Welcomed{Session: l.id, Welcome: f.Welcome})
		a.tellDevices()
	case gpuai.FrameLeases:
		a.handle(decide.LeasesReceived{Session: l.id, Set: f.Leases})
		a.startAtOnce(f.Leases)
	case gpuai.FrameAck:
		a.handle(decide.AckReceived{Session: l.id, Ack: f.Ack})
	case gpuai.FrameReported:
		a.step(decide.ReportAnswered{Session: l.id, Reported: *f.Reported})
		if rec := a.h.journal.records[f.Reported.Lease]; rec != nil {
			rec.unsent = slices.DeleteFunc(rec.unsent, func(u gpuai.Report) bool { return u.Seq <= f.Reported.Seq })
		}
		a.settle()
	case gpuai.FrameRefused:
		a.refused(l, f.Refused)
	}
}

func (a *agent) refused(l *line, e *gpuai.SessionError) {
	if e.Code == gpuai.Conflict && e.Incarnation != 0 && a.takeOver {
		a.takeOver = false
		a.h.journal.identity.Incarnation = e.Incarnation
		a.step(decide.Disconnected{Session: l.id})
		a.hangUp(l.id, 0)
		a.settle()
		return
	}
	a.handle(decide.Refused{Session: l.id, Error: e})
}

// hangUp ends a session from our side and looks for another server.
func (a *agent) hangUp(session uint64, after int64) {
	l := a.line
	if l == nil || l.id != session {
		return
	}
	a.line = nil
	l.c.close()
	a.dialAfter(max(after, a.backoff()))
}

// hungUp notes that a session has ended.
func (a *agent) hungUp(l *line) {
	if a.line == l {
		a.line = nil
		a.dialAfter(a.backoff())
	}
	a.handle(decide.Disconnected{Session: l.id})
}

// hostScratch is what each host lends of scratch space, in bytes.
const hostScratch = "100"

// refusal is why a host takes no new task; nil when it does.
func (a *agent) refusal() *gpuai.Refusal {
	if !a.h.full {
		return nil
	}
	return &gpuai.Refusal{Code: gpuai.DiskFull, Detail: "its disk is full"}
}

// tellDevices tells the region of devices that changed since it was told.
func (a *agent) tellDevices() {
	now := a.offered()
	if a.line == nil || !a.core.Connected() || slices.Equal(a.told, now) && a.saidFull == a.h.full {
		return
	}
	a.told, a.saidFull = now, a.h.full
	a.send(a.line.id, gpuai.Frame{Kind: gpuai.FrameDevices, Devices: now, Refuses: a.refusal()})
}
