package main

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	maxInFlight  = 4
	applyTimeout = 10 * sec
)

// proposer is the model of raft's proposer: a queue that is packed into
// entries, at most four under way, in order.
type proposer struct {
	s        *server
	term     uint64 // 0: closed
	base     gpuai.Instant
	since    int64 // on the server's clock
	last     gpuai.Instant
	queue    []*call
	inFlight []*entry
	handing  bool // an entry is on its way to the raft, which may be held up
}

// applied is the outcome of one command; index 0 when it is not known.
type applied struct {
	index uint64
	res   fsm.Result
}

// A call is commands that are proposed together. done is called once.
type call struct {
	cmds [][]byte
	// remake encodes the commands anew for a term: only variants of the
	// protocol without the term's check have it.
	remake func(term uint64) [][]byte
	done   func(out []applied, code gpuai.Code)

	out  []applied
	next int // commands that are packed
	left int
	code gpuai.Code
	over bool
}

// entry is one log entry under way.
type entry struct {
	cmds        [][]byte
	spans       []span
	term, index uint64 // index 0: not appended yet
	over        bool
}

type span struct {
	c        *call
	from, to int
}

func (p *proposer) reset() {
	p.term, p.queue, p.inFlight, p.handing = 0, nil, nil, false
}

func (p *proposer) open(term uint64) {
	p.term = term
	p.base, p.since = p.s.m.Time(), p.s.clock.read(p.s.w.now)
	if p.s.w.weak == restoreNotQuiet {
		p.base = p.base.Add(p.s.w.skipQuiet(p.s.m))
	}
	p.last = max(p.last, p.base)
}

// close fails what waits: what is queued was surely not applied.
func (p *proposer) close() {
	p.term = 0
	queue, flying := p.queue, p.inFlight
	p.queue, p.inFlight = nil, nil
	for _, e := range flying {
		p.fail(e, gpuai.OutcomeUnknown)
	}
	for _, c := range queue {
		c.settle(len(c.cmds)-c.next, gpuai.NoLeader)
	}
}

// now is region time.
func (p *proposer) now() gpuai.Instant {
	p.last = max(p.last, p.base.Add(gpuai.Duration((p.s.clock.read(p.s.w.now)-p.since)/ms)))
	return p.last
}

func (p *proposer) propose(c *call) {
	c.left, c.out = len(c.cmds), make([]applied, len(c.cmds))
	if p.term == 0 {
		c.settle(c.left, gpuai.NoLeader)
		return
	}
	p.queue = append(p.queue, c)
	p.pack()
}

// pack makes entries while there are slots and commands.
func (p *proposer) pack() {
	for len(p.queue) > 0 && len(p.inFlight) < maxInFlight && !p.handing && p.term != 0 {
		e := p.take()
		h := fsm.Header{Time: p.now(), Wall: p.s.w.users.terms.wall(p.s), Term: p.term}
		p.inFlight = append(p.inFlight, e)
		p.s.after(applyTimeout, func() { p.fail(e, gpuai.OutcomeUnknown) })
		w := p.s.w
		if w.healed || !w.chance(w.prof.slowRaft) {
			p.hand(e, h)
			return
		}
		p.handing = true // the raft's goroutine is held up, all of it
		p.s.after(w.about(w.prof.slowRaftMean), func() {
			p.handing = false
			p.hand(e, h)
		})
	}
}

// take moves commands from the head of the queue into an entry.
func (p *proposer) take() *entry {
	e := &entry{}
	size := 64
	for len(p.queue) > 0 && len(e.cmds) < fsm.MaxCommands {
		c := p.queue[0]
		from := c.next
		for c.next < len(c.cmds) && len(e.cmds) < fsm.MaxCommands && size+len(c.cmds[c.next]) <= fsm.MaxEntryBytes {
			e.cmds = append(e.cmds, c.cmds[c.next])
			size += len(c.cmds[c.next])
			c.next++
		}
		e.spans = append(e.spans, span{c, from, c.next})
		if c.next < len(c.cmds) {
			return e
		}
		p.queue = p.queue[1:]
	}
	return e
}

// hand gives an entry to the raft, whatever its term is by now.
func (p *proposer) hand(e *entry, h fsm.Header) {
	r := &p.s.raft
	if r.role != leader {
		p.fail(e, gpuai.NoLeader)
		return
	}
	if p.s.w.weak == noTermCheck {
		e.remake(r.term)
	}
	e.term = r.term
	e.index = r.append(fsm.AppendEntry(nil, h, e.cmds...))
	p.s.w.check.books.wrote(e.index, e.term, h.Wall, e.cmds)
	p.pack()
}

// remake encodes an entry's commands anew.
func (e *entry) remake(term uint64) {
	e.cmds = nil
	for _, s := range e.spans {
		cmds := s.c.cmds
		if s.c.remake != nil {
			cmds = s.c.remake(term)
		}
		e.cmds = append(e.cmds, cmds[s.from:s.to]...)
	}
}

// applied answers who waits for an entry.
func (p *proposer) applied(index, term uint64, out *fsm.Output) {
	for i, e := range p.inFlight {
		if e.index != index || e.term != term {
			continue
		}
		p.inFlight = append(p.inFlight[:i:i], p.inFlight[i+1:]...)
		if !e.over {
			e.over = true
			at := 0
			for _, s := range e.spans {
				for k := s.from; k < s.to; k++ {
					s.c.out[k] = applied{index, out.Results[at]}
					at++
				}
				s.c.settle(s.to-s.from, gpuai.OK)
			}
		}
		p.pack()
		return
	}
}

// fail gives up on an entry: its slot is free, its outcome is what code says.
func (p *proposer) fail(e *entry, code gpuai.Code) {
	for i, o := range p.inFlight {
		if o == e {
			p.inFlight = append(p.inFlight[:i:i], p.inFlight[i+1:]...)
			break
		}
	}
	if e.over {
		return
	}
	e.over = true
	for _, s := range e.spans {
		s.c.settle(s.to-s.from, code)
	}
	p.pack()
}

// settle notes the outcome of n of the call's commands.
func (c *call) settle(n int, code gpuai.Code) {
	if c.code == gpuai.OK {
		c.code = code
	}
	if c.left -= n; c.left <= 0 && !c.over {
		c.over = true
		c.done(c.out, c.code)
	}
}
