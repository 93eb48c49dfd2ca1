package main

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/liveness"
)

const (
	beatWindow        = 250 * ms
	dutyRetry         = 100 * ms
	checkpointEvery   = 10 * sec
	checkpointEntries = 1_024
)

// A reign is what a server does while it leads one term, in the order of
// server/reign.go: beats are touched and then join a window's batch; a window
// takes its batch, scans, and proposes expiries and the confirming entry in one
// call; windows follow each other.
type reign struct {
	s       *server
	term    uint64
	tracker *liveness.Tracker
	over    bool

	waiting    []*beatBatch
	registered []gpuai.NodeID
	inWindow   bool
	confirmed  int64
	ticking    bool
	tickGen    int
	checkedAt  int64
	checked    uint64
}

// beatBatch is one message of beats that waits for its window.
type beatBatch struct {
	done func(index uint64, ok bool)
}

// beat is one beat of a session.
type beat struct {
	fsm.NodeRef
	seq uint64
}

// confirmation is the answer to a message of beats.
type confirmation struct {
	index uint64
	beats []beat
	ok    bool
}

func newReign(s *server, term uint64) *reign {
	r := &reign{s: s, term: term, confirmed: -beatWindow, checkedAt: s.w.now, checked: s.m.Index()}
	r.tracker = liveness.New(term, s.mono())
	if s.w.weak == oldTimers {
		if s.kept != nil {
			r.tracker = s.kept
		}
		s.kept = r.tracker
	}
	return r
}

func (r *reign) run() {
	r.everyWindow()
	r.tick()
	r.checkpoint()
}

// end ends the reign; its window, if one is under way, goes on to its end as a
// goroutine would.
func (r *reign) end() {
	r.over = true
	waiting := r.waiting
	r.waiting = nil
	for _, b := range waiting {
		b.done(0, false)
	}
}

// observe is called for each applied entry.
func (r *reign) observe(out *fsm.Output) {
	for i := range out.Events {
		switch e := &out.Events[i]; e.Kind {
		case gpuai.NodeRegistered:
			r.registered = append(r.registered, e.Node)
			if r.s.w.weak == registeringFrees {
				r.freeSuperseded(e)
			}
		case gpuai.LeaseGrantedEvent:
			r.s.w.standStillOnGrant(e.Node)
		case gpuai.LeaseRevokingEvent:
			if r.s.w.weak == revokingFrees {
				r.freeRevoking(e)
			}
		}
	}
	r.tick()
}

// confirm touches the nodes of some beats and answers behind the next window's
// entry.
func (r *reign) confirm(beats []beat, done func(confirmation)) {
	refs := make([]fsm.NodeRef, len(beats))
	for i := range beats {
		refs[i] = beats[i].NodeRef
	}
	c := confirmation{ok: true}
	for i, ok := range r.tracker.Beats(r.s.m, r.s.mono(), refs) {
		if ok {
			c.beats = append(c.beats, beats[i])
		}
	}
	if len(c.beats) == 0 {
		done(c)
		return
	}
	if r.s.w.weak == ackOvertakes {
		r.overtake(c, done)
		return
	}
	r.waiting = append(r.waiting, &beatBatch{func(index uint64, ok bool) {
		c.index, c.ok = index, ok
		done(c)
	}})
	r.kick()
}

// kick runs a window at once when the one before was quiet.
func (r *reign) kick() {
	if !r.over && !r.inWindow && r.s.w.now-r.confirmed >= beatWindow {
		r.window()
	}
}

func (r *reign) everyWindow() {
	if r.over && r.s.w.weak != oldTimers {
		return
	}
	if r.over { // old timers run on
		if r.s.reign != nil {
			return
		}
		r.decide(nil)
	} else if !r.inWindow {
		r.window()
	}
	r.s.after(beatWindow, r.everyWindow)
}

// window decides who is silent and proposes it, with one entry that confirms
// the beats that came since the window before.
func (r *reign) window() {
	batch, registered := r.waiting, r.registered
	r.waiting, r.registered = nil, nil
	d := r.decide(registered)
	c := r.call(&d, len(batch) > 0)
	if len(c.cmds) == 0 {
		return
	}
	r.inWindow = true
	r.trace(&d)
	c.done = func(out []applied, code gpuai.Code) { r.windowOver(batch, out, code) }
	w := r.s.w
	switch {
	case !w.healed && len(d.Expire) > 0 && w.chance(w.prof.holdExpiry):
		w.holdUp(r, func() { r.proposeWindow(c) })
		return
	case w.healed || !w.chance(w.prof.slowWindow):
		r.proposeWindow(c)
		return
	}
	// The goroutine is not scheduled for a while, between the scan and the
	// proposal.
	r.s.after(w.about(w.prof.slowWindowMean), func() { r.proposeWindow(c) })
}

func (r *reign) proposeWindow(c *call) {
	if r.s.w.weak == currentTerm && c.remake != nil {
		c.cmds = c.remake(r.s.raft.term)
	}
	r.s.proposer.propose(c)
}

func (r *reign) windowOver(batch []*beatBatch, out []applied, code gpuai.Code) {
	r.inWindow = false
	if len(batch) > 0 {
		r.confirmed = r.s.w.now
	}
	last := out[len(out)-1]
	ok := code == gpuai.OK && last.res.Code == gpuai.OK
	for _, b := range batch {
		b.done(last.index, ok)
	}
}

// decide scans the nodes.
func (r *reign) decide(registered []gpuai.NodeID) liveness.Decision {
	m := r.s.region()
	p := r.s.m.Policy()
	for more := true; more; {
		n := min(len(registered), liveness.MaxRows)
		if n > 0 {
			r.tracker.Observe(m, r.s.mono(), registered[:n])
		}
		more = r.tracker.Scan(m, &p, r.s.mono())
		registered = registered[n:]
		more = more || len(registered) > 0
	}
	return r.tracker.Decide(&p, r.s.mono())
}

// call makes the commands of a decision; variants of the protocol change them.
func (r *reign) call(d *liveness.Decision, beats bool) *call {
	r.s.weaken(d, r.term)
	c := &call{cmds: d.Commands(beats)}
	if w := r.s.w.weak; w == noTermCheck || w == currentTerm {
		d := *d
		c.remake = func(term uint64) [][]byte {
			d.Term = term
			for i := range d.Expire {
				d.Expire[i].Term = term
			}
			return d.Commands(beats)
		}
	}
	return c
}

func (r *reign) trace(d *liveness.Decision) {
	w := r.s.w
	for i := range d.Expire {
		w.count(expiry)
		w.tracef("server %d, term %d: node %s of incarnation %s was silent for %d ms", r.s.id, r.term, d.Expire[i].Node, d.Expire[i].Incarnation, d.Expire[i].SilentFor)
	}
	if d.Tripped {
		w.count(breakerTripped)
	}
}

// tick proposes a Tick whenever the machine's next deadline has come.
func (r *reign) tick() {
	if r.over || r.ticking || r.s.proposer.term != r.term {
		return
	}
	wait := int64(min(r.s.m.NextDeadline()-r.s.proposer.now(), 1_000)) * ms
	if wait > 0 {
		r.tickGen++
		gen := r.tickGen
		r.s.after(wait, func() {
			if gen == r.tickGen {
				r.tick()
			}
		})
		return
	}
	r.ticking = true
	r.s.proposer.propose(&call{
		cmds: [][]byte{(&fsm.Tick{}).Append(nil, fsm.Envelope{})},
		done: func(_ []applied, code gpuai.Code) {
			again := func() {
				r.ticking = false
				r.tick()
			}
			if code != gpuai.OK {
				r.s.after(dutyRetry, again)
				return
			}
			r.s.after(0, again)
		},
	})
}

// checkpoint lets the replicas compare digests.
func (r *reign) checkpoint() {
	if r.over {
		return
	}
	w := r.s.w
	r.s.after(beatWindow, r.checkpoint)
	now := r.s.raft.applied
	if now < r.checked+checkpointEntries && (now <= r.checked || w.now-r.checkedAt < checkpointEvery) {
		return
	}
	r.checked, r.checkedAt = now, w.now
	c := fsm.Checkpoint{Index: r.s.m.Index(), Digest: r.s.m.Digest()}
	r.s.proposer.propose(&call{
		cmds: [][]byte{c.Append(nil, fsm.Envelope{})},
		done: func([]applied, gpuai.Code) {},
	})
}
