package main

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/frames"
)

const (
	helloTimeout  = 10 * sec
	maxDirty      = 4_096
	maxAcks       = 16
	carryRetryMin = 50 * ms
	carryRetryMax = sec
)

// A session is the server's end of an agent's connection: the model of
// server/session.go, with the real Teller.
type session struct {
	s          *server
	c          *conn
	ref        fsm.NodeRef
	registered uint64
	teller     *frames.Teller
	greeted    bool
	seq        uint64

	full    bool
	dirty   []gpuai.Token
	acks    []frames.AckDue
	answers []gpuai.Reported
	waking  bool
	over    bool

	jobs     []agentCommand
	carrying bool
	retry    int64
	told     []gpuai.Device
	refuses  *gpuai.Refusal
	doubt    bool
}

// agentCommand is a command on an agent's behalf.
type agentCommand struct {
	cmd    []byte
	report *gpuai.Reported
}

// hello registers the node and has its hello confirmed as a beat, then begins a
// session.
func (s *server) hello(c *conn, h *gpuai.Hello) {
	switch e, r := s.m.Epoch(), s.m.RestoreID(); {
	case !s.ready:
		s.refuse(c, gpuai.SessionError{Code: gpuai.NoLeader, Detail: "not ready", RetryAfter: 250})
		return
	case h.Epoch > e || h.Epoch == e && h.RestoreID != "" && h.RestoreID != r:
		s.refuse(c, gpuai.SessionError{Code: gpuai.PreconditionFailed, Detail: "another history"})
		return
	}
	var se *session
	over := false
	s.after(helloTimeout, func() {
		if se == nil && !over {
			over = true
			s.refuse(c, gpuai.SessionError{Code: gpuai.NoLeader, Detail: "too slow", RetryAfter: 250})
		}
	})
	spec := h.Node
	spec.Devices, spec.Refuses = frames.Tellable(s.m.Level(), spec.Devices, spec.Refuses)
	reg := fsm.RegisterNode{Spec: spec, BootID: h.BootID, Nonce: h.Nonce, Replaces: h.Replaces, Held: h.Held}
	s.propose([][]byte{reg.Append(nil, fsm.Envelope{})}, func(out []applied, code gpuai.Code) {
		if over {
			return
		}
		res := out[0].res
		if code != gpuai.OK || out[0].index == 0 || res.Code != gpuai.OK {
			over = true
			e := gpuai.SessionError{Code: gpuai.NoLeader, Detail: "register", RetryAfter: 250}
			if code == gpuai.OK && out[0].index != 0 {
				e = gpuai.SessionError{Code: res.Code, Detail: res.Detail, Incarnation: res.Incarnation}
			}
			s.refuse(c, e)
			return
		}
		ref := fsm.NodeRef{Node: h.Node.ID, Incarnation: res.Incarnation}
		s.collector.add(heldBeat{beat: beat{NodeRef: ref}, since: s.w.now, done: func(uint64) {
			if !over && c.open {
				over = true
				se = s.begin(c, h, ref, out[0].index)
			}
		}})
	})
}

// begin makes a session its node's only one here.
func (s *server) begin(c *conn, h *gpuai.Hello, ref fsm.NodeRef, index uint64) *session {
	se := &session{s: s, c: c, ref: ref, registered: index, full: true, retry: carryRetryMin, told: h.Node.Devices, refuses: h.Node.Refuses, doubt: true}
	se.teller = frames.New(ref, h.Held)
	se.acks = []frames.AckDue{{Sent: h.Sent}}
	if old := s.sessions[ref.Node]; old != nil {
		old.replaced(ref.Incarnation)
	}
	s.sessions[ref.Node] = se
	c.closed = append(c.closed, s.wrap(func() { se.end() }))
	se.wake()
	se.carryOn()
	return se
}

func (s *server) refuse(c *conn, e gpuai.SessionError) {
	s.w.tracef("server %d refuses %s: %s %s", s.id, c.agent.h.name, e.Code, e.Detail)
	c.down.send(func() { c.agent.receive(c, gpuai.Frame{Kind: gpuai.FrameRefused, Refused: &e}) })
	s.w.after(sec, c.close)
}

// end takes the session away.
func (se *session) end() {
	if se.over {
		return
	}
	se.over = true
	if se.s.sessions[se.ref.Node] == se {
		delete(se.s.sessions, se.ref.Node)
	}
	se.c.close()
}

// replaced ends the session because the node registered again; only another
// life is told so.
func (se *session) replaced(by gpuai.Incarnation) {
	if se.over {
		return
	}
	if by != se.ref.Incarnation {
		e := gpuai.SessionError{Code: gpuai.Conflict, Incarnation: by, Detail: "a newer agent holds this node's identity"}
		c := se.c
		c.down.send(func() { c.agent.receive(c, gpuai.Frame{Kind: gpuai.FrameRefused, Refused: &e}) })
		se.over = true
		delete(se.s.sessions, se.ref.Node)
		se.s.w.after(sec, c.close)
		return
	}
	se.end()
}

// offer takes an event of the node.
func (se *session) offer(e *gpuai.Event) {
	switch e.Kind {
	case gpuai.LeaseGrantedEvent, gpuai.LeaseReady, gpuai.LeasePeers, gpuai.LeaseRevokingEvent, gpuai.LeaseEndedEvent, gpuai.LeaseAdopted:
		if !se.s.w.healed && se.s.w.chance(se.s.w.prof.missEvent) {
			return // the hub has cut a slow reader
		}
		if se.dirty = append(se.dirty, e.Lease); len(se.dirty) > maxDirty {
			se.full, se.dirty = true, nil
		}
		se.wake()
	case gpuai.NodeRegistered:
		if e.Index > se.registered {
			se.replaced(e.Incarnation)
			return
		}
		se.carryOn()
	case gpuai.NodeChanged:
		se.doubt = true
		se.carryOn()
	}
}

// wake has the sender look at what is due.
func (se *session) wake() {
	if se.waking || se.over {
		return
	}
	se.waking = true
	se.s.after(se.s.w.between(0, ms), func() {
		se.waking = false
		se.send()
	})
}

// send builds and sends frames, all of one index.
func (se *session) send() {
	if se.over {
		return
	}
	d := frames.Due{Full: se.full, Dirty: se.dirty, Acks: se.acks}
	answers := se.answers
	se.full, se.dirty, se.acks, se.answers = false, nil, nil, nil
	var v frames.View
	if !se.teller.Look(se.s.m, &d, &v) {
		se.end()
		return
	}
	if v.Incarnation != se.ref.Incarnation {
		se.replaced(v.Incarnation)
		return
	}
	var out []gpuai.Frame
	if !se.greeted {
		se.greeted = true
		out = append(out, se.teller.Greet(&d, &v, gpuai.Welcome{Region: "sim"}))
	}
	out = se.teller.Append(out, &d, &v)
	for i := range answers {
		out = append(out, gpuai.Frame{Kind: gpuai.FrameReported, Reported: &answers[i]})
	}
	c, w := se.c, se.s.w
	for _, f := range out {
		if f.Kind == gpuai.FrameLeases && !w.healed && w.chance(w.prof.loseSet) {
			continue
		}
		c.down.send(func() { c.agent.receive(c, f) })
	}
}

// received takes a frame of the agent.
func (se *session) received(f gpuai.Frame) {
	if se.over {
		return
	}
	switch f.Kind {
	case gpuai.FrameBeat:
		if f.Beat.Seq <= se.seq {
			return
		}
		se.seq = f.Beat.Seq
		b := *f.Beat
		se.s.collector.add(heldBeat{
			beat: beat{se.ref, b.Seq}, since: se.s.w.now,
			done: func(uint64) { se.ack(b) },
		})
	case gpuai.FrameReport:
		r := *f.Report
		if se.s.m.Level() < fsm.LevelPlacement {
			r.EndCode = gpuai.EndOther // as the server does
		}
		c := fsm.ReportLease{Node: se.ref.Node, Report: r}
		se.carry(agentCommand{c.Append(nil, fsm.Envelope{}), &gpuai.Reported{Lease: r.Lease, Seq: r.Seq}})
	case gpuai.FrameDevices:
		se.told, se.refuses = f.Devices, f.Refuses
		se.carry(se.deviceUpdate())
	}
}

func (se *session) deviceUpdate() agentCommand {
	devices, refuses := frames.Tellable(se.s.m.Level(), se.told, se.refuses)
	c := fsm.UpdateDevices{Node: se.ref.Node, Incarnation: se.ref.Incarnation, Devices: devices, Refuses: refuses}
	return agentCommand{c.Append(nil, fsm.Envelope{}), nil}
}

// correct tells of the devices again where the region holds others.
func (se *session) correct() {
	if m := se.s.m; se.doubt && m.Index() >= se.registered {
		se.doubt = false
		n, ok := m.Node(se.ref.Node)
		told, refuses := frames.Tellable(m.Level(), se.told, se.refuses)
		if ok && n.Incarnation == se.ref.Incarnation && !(frames.HoldsDevices(n.Devices, told) && frames.HoldsRefusal(n.Refuses, refuses)) {
			se.jobs = append(se.jobs, se.deviceUpdate())
		}
	}
}

func (se *session) ack(b gpuai.Beat) {
	if len(se.acks) == maxAcks {
		se.acks = se.acks[1:]
	}
	se.acks = append(se.acks, frames.AckDue{Seq: b.Seq, Sent: b.Sent})
	se.wake()
}

// carry brings the agent's commands to the leader, in order, and those that
// were not judged again.
func (se *session) carry(c agentCommand) {
	se.jobs = append(se.jobs, c)
	se.carryOn()
}

func (se *session) carryOn() {
	if se.carrying || se.over {
		return
	}
	if len(se.jobs) == 0 {
		se.correct()
	}
	if len(se.jobs) == 0 {
		return
	}
	se.carrying = true
	batch := se.jobs
	se.jobs = nil
	cmds := make([][]byte, len(batch))
	for i := range batch {
		cmds[i] = batch[i].cmd
	}
	se.s.propose(cmds, func(out []applied, _ gpuai.Code) {
		var left []agentCommand
		for i, c := range batch {
			if out[i].index == 0 {
				left = append(left, c)
			} else if c.report != nil {
				r := *c.report
				r.Code = out[i].res.Code
				se.answers = append(se.answers, r)
			}
		}
		se.wake()
		wait := int64(0)
		if len(left) > 0 {
			wait, se.retry = se.retry, min(2*se.retry, carryRetryMax)
		} else {
			se.retry = carryRetryMin
		}
		se.jobs = append(left, se.jobs...)
		se.s.after(wait, func() {
			se.carrying = false
			se.carryOn()
		})
	})
}
