package raft

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// maxInFlight is how many entries are proposed and not yet answered. It
	// stays far below trailingLogs: a deposed leader with a longer suffix
	// could never be caught up.
	maxInFlight = 4
	// entryOverhead bounds what the frame adds to the commands, so that an
	// entry's buffer is allocated once and fsm.MaxEntryBytes is kept.
	entryOverhead = 64
	// sweepInterval is how often overdue calls are looked for.
	sweepInterval = 250 * time.Millisecond
)

// An Applied is the outcome of one command.
type Applied struct {
	Index  uint64 // of the entry; 0 when the outcome is not known
	Result fsm.Result
	Events []gpuai.Event // of this command; not to be changed
}

// call is one Propose or ProposeAll on its way. It is shared by the caller,
// the packer and whoever resolves its entries; each command is resolved
// exactly once, into its own place of out.
type call struct {
	cmds  [][]byte
	out   []Applied
	next  int       // commands packed so far; guarded by proposer.mu
	since time.Time // when it was queued
	left  atomic.Int64
	err   atomic.Pointer[error] // the first problem
	done  chan struct{}         // receives once, when left reaches 0
	// Of a single command, so that Propose allocates nothing.
	oneCmd [1][]byte
	oneOut [1]Applied
}

// settle counts n commands as resolved. After the last one the call belongs
// to its caller again.
func (c *call) settle(n int, err error) {
	if err != nil {
		c.err.CompareAndSwap(nil, &err)
	}
	if c.left.Add(int64(-n)) == 0 {
		c.done <- struct{}{}
	}
}

// span is commands from … to-1 of a call, in one entry.
type span struct {
	call     *call
	from, to int
}

// entry is a log entry in flight.
type entry struct {
	spans    []span
	future   hraft.ApplyFuture
	since    time.Time
	resolved atomic.Bool // claimed by the one who answers the waiters
}

// proposer packs waiting commands into log entries, and gives each waiter its
// result. Batching is natural: an entry holds what came while the entries
// before it were under way, and no timer makes anybody wait.
type proposer struct {
	raft    *hraft.Raft
	clock   *clock
	tune    tuning
	metrics *metrics

	calls    sync.Pool
	slots    chan struct{} // one per entry in flight
	inflight chan *entry   // in log order, to the completer
	wake     chan struct{} // something is queued
	stop     chan struct{}
	wg       sync.WaitGroup

	mu       sync.Mutex // guards below
	term     uint64     // 0: takes nothing
	queue    []*call    // head first
	commands int        // queued, not packed
	bytes    int
	pending  []*entry // in flight, oldest first
	scratch  [][]byte // of pack
}

func newProposer(r *hraft.Raft, c *clock, t tuning, m *metrics) *proposer {
	p := &proposer{
		raft:     r,
		clock:    c,
		tune:     t,
		metrics:  m,
		slots:    make(chan struct{}, maxInFlight),
		inflight: make(chan *entry, maxInFlight),
		wake:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
	}
	p.calls.New = func() any { return &call{done: make(chan struct{}, 1)} }
	p.wg.Go(p.pack)
	p.wg.Go(p.sweep)
	go p.complete() // ends with the packer, but a future may never answer
	return p
}

// open takes commands, stamped with term.
func (p *proposer) open(term uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.term = term
}

// close takes no more commands and fails those that wait with err: they have
// surely not been appended. Entries in flight are hraft's to answer.
func (p *proposer) close(err error) {
	p.mu.Lock()
	p.term = 0
	queue := p.queue
	p.queue, p.commands, p.bytes = nil, 0, 0
	p.mu.Unlock()
	for _, c := range queue {
		c.settle(len(c.cmds)-c.next, err)
	}
}

// shutdown ends the goroutines, after close. Entries still in flight are
// answered by the library until drain elapses, then by us.
func (p *proposer) shutdown(drain time.Duration) {
	deadline := time.NewTimer(drain)
	defer deadline.Stop()
	for range maxInFlight { // holding every slot: nothing is in flight
		select {
		case p.slots <- struct{}{}:
			continue
		case <-deadline.C:
		}
		break
	}
	close(p.stop)
	p.wg.Wait()
	p.expire(time.Time{})
}

// Propose appends one encoded command to the log and returns what it did, once
// that is durable on a majority and applied here. cmd must not be changed,
// after an error neither.
//
// The error is a *gpuai.Error: NoLeader (surely not applied: go to the
// leader), RateLimited (the queue is full), TooLarge, or OutcomeUnknown
// (leadership was lost, or ctx ended, before the outcome was known). A command
// that the machine rejected is no error: see Result.Code.
func (n *Node) Propose(ctx context.Context, cmd []byte) (Applied, error) {
	p := n.proposer
	c := p.calls.Get().(*call)
	c.oneCmd[0] = cmd
	c.cmds, c.out = c.oneCmd[:], c.oneOut[:]
	if err := n.do(ctx, c); err != nil {
		return Applied{}, err // not recycled: the entry may still refer to it
	}
	out := c.oneOut[0]
	c.oneCmd[0], c.oneOut[0] = nil, Applied{}
	c.cmds, c.out = nil, nil
	p.calls.Put(c)
	return out, nil
}

// ProposeAll is Propose for many commands under one wait. They are applied in
// order, over several entries where they do not fit in one; others' commands
// may come between. More than the queue holds (65,536 commands, 64 MiB) are
// refused as RateLimited. The error is the first problem; the outcomes that
// are known nevertheless have an Index.
func (n *Node) ProposeAll(ctx context.Context, cmds [][]byte) ([]Applied, error) {
	if len(cmds) == 0 {
		return nil, nil
	}
	c := &call{cmds: cmds, out: make([]Applied, len(cmds)), done: make(chan struct{}, 1)}
	err := n.do(ctx, c)
	if err != nil && c.left.Load() > 0 {
		return make([]Applied, len(cmds)), err // out is still being written
	}
	return c.out, err
}

// do queues c and waits for it.
func (n *Node) do(ctx context.Context, c *call) error {
	p := n.proposer
	size := 0
	for _, cmd := range c.cmds {
		if len(cmd) > fsm.MaxCommandBytes {
			return gpuai.NewError(gpuai.TooLarge, "the command is larger than the log takes; split the request")
		}
		size += len(cmd)
	}
	if err := n.admitAny(); err != nil {
		return err
	}
	c.next, c.since = 0, time.Now()
	c.err.Store(nil)
	c.left.Store(int64(len(c.cmds)))
	if err := p.enqueue(c, size); err != nil {
		if errors.Is(err, errNotOpen) {
			return n.notLeading()
		}
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		n.metrics.unknown.Add(float64(len(c.cmds)))
		return outcomeUnknown("the request ended while the command was under way (" + context.Cause(ctx).Error() + ")")
	}
	if err := c.err.Load(); err != nil {
		return *err
	}
	return nil
}

// errNotOpen stands for the sentence of notLeading.
var errNotOpen = errors.New("the proposer is closed")

func (p *proposer) enqueue(c *call, size int) error {
	p.mu.Lock()
	if p.term == 0 {
		p.mu.Unlock()
		return errNotOpen
	}
	if p.commands+len(c.cmds) > p.tune.queueCommands || p.bytes+size > p.tune.queueBytes {
		p.mu.Unlock()
		p.metrics.refused.Add(float64(len(c.cmds)))
		return rateLimited("the leader's queue is full; retry later, or with fewer commands at once")
	}
	p.queue = append(p.queue, c)
	p.commands += len(c.cmds)
	p.bytes += size
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return nil
}

func (p *proposer) queued() (commands, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.commands, p.bytes
}

// pack makes entries while there are slots and commands. Being the only one
// that proposes, it keeps the queue's order in the log.
func (p *proposer) pack() {
	defer close(p.inflight)
	for {
		select {
		case <-p.wake:
		case <-p.stop:
			return
		}
		for p.packOne() {
		}
	}
}

// packOne waits for a slot and proposes an entry of all that is queued by
// then, up to the limits. It returns false when nothing is, or at the stop.
func (p *proposer) packOne() bool {
	if commands, _ := p.queued(); commands == 0 {
		return false
	}
	select {
	case p.slots <- struct{}{}:
	case <-p.stop:
		return false
	}
	e, data := p.take()
	if e == nil { // the queue was failed meanwhile
		<-p.slots
		return false
	}
	if err := fsm.CheckEntry(data); err != nil { // in the log it would stop every server
		p.forget(e)
		p.resolve(e, nil, errMalformed)
		return true
	}
	e.future = p.raft.ApplyLog(hraft.Log{Data: data}, p.tune.enqueueTimeout)
	p.inflight <- e // has room: it is as long as there are slots
	return true
}

// take builds an entry of what waits, up to the limits; nil when nothing does.
func (p *proposer) take() (*entry, []byte) {
	p.mu.Lock()
	if len(p.queue) == 0 {
		p.mu.Unlock()
		return nil, nil
	}
	e := &entry{since: time.Now()}
	cmds, size := p.fill(e)
	p.pending = append(p.pending, e)
	term := p.term
	p.mu.Unlock()
	h := fsm.Header{Time: p.clock.now(), Wall: p.clock.wallTime(), Term: term}
	// The library keeps an entry's data in its cache: the buffer is fresh.
	data := fsm.AppendEntry(make([]byte, 0, size), h, cmds...)
	clear(cmds)
	p.metrics.entryCommands.Observe(float64(len(cmds)))
	p.metrics.entryBytes.Observe(float64(len(data)))
	return e, data
}

// fill moves commands from the head of the queue into e.
func (p *proposer) fill(e *entry) (cmds [][]byte, size int) {
	cmds, size = p.scratch[:0], entryOverhead
	for len(p.queue) > 0 && len(cmds) < fsm.MaxCommands {
		c := p.queue[0]
		s := span{call: c, from: c.next}
		for c.next < len(c.cmds) && len(cmds) < fsm.MaxCommands {
			need := len(c.cmds[c.next])
			if size+need > fsm.MaxEntryBytes && len(cmds) > 0 {
				break
			}
			cmds = append(cmds, c.cmds[c.next])
			size += need
			p.bytes -= need
			c.next++
		}
		if s.to = c.next; s.to > s.from {
			e.spans = append(e.spans, s)
		}
		if c.next < len(c.cmds) {
			break // the entry is full
		}
		p.queue[0] = nil
		p.queue = p.queue[1:]
	}
	p.commands -= len(cmds)
	p.scratch = cmds
	return cmds, size
}

// complete answers the waiters of each entry. Entries end in log order, the
// failed ones too.
func (p *proposer) complete() {
	for e := range p.inflight {
		err := e.future.Error()
		var out *fsm.Output
		if err == nil {
			out, _ = e.future.Response().(*fsm.Output)
		}
		p.forget(e)
		p.resolve(e, out, err)
	}
}

// forget takes e off the entries in flight and frees its slot.
func (p *proposer) forget(e *entry) {
	p.mu.Lock()
	for i := range p.pending {
		if p.pending[i] == e {
			p.pending = append(p.pending[:i], p.pending[i+1:]...)
			break
		}
	}
	p.mu.Unlock()
	<-p.slots
}

// resolve gives every command of e its outcome, once.
func (p *proposer) resolve(e *entry, out *fsm.Output, err error) {
	if e.resolved.Swap(true) {
		return // it came too late
	}
	if err != nil {
		err = proposalError(err)
	} else if out == nil {
		err = outcomeUnknown("this server stopped applying its log")
	}
	at := 0
	for _, s := range e.spans {
		n := s.to - s.from
		switch {
		case err != nil:
			if errors.Is(err, &gpuai.Error{Code: gpuai.OutcomeUnknown}) {
				p.metrics.unknown.Add(float64(n))
			}
		case at+n > len(out.Results):
			err = outcomeUnknown("the machine gave too few results")
		default:
			hand(s, out, at)
		}
		at += n
		s.call.settle(n, err)
	}
}

// hand copies the results of one span, which begin at out.Results[at].
func hand(s span, out *fsm.Output, at int) {
	for i := s.from; i < s.to; i++ {
		r := &out.Results[at]
		a := &s.call.out[i]
		a.Index, a.Result = out.Index, *r
		if r.EventsTo > r.EventsFrom {
			a.Events = out.Events[r.EventsFrom:r.EventsTo:r.EventsTo]
		}
		at++
	}
}

// sweep gives overdue waiters an answer: hraft's timeout bounds the enqueueing
// of an entry only, and its future may never answer.
func (p *proposer) sweep() {
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.expire(time.Now().Add(-p.tune.applyTimeout))
		case <-p.stop:
			return
		}
	}
}

// expire resolves what was proposed, and refuses what was queued, before the
// limit; the zero limit means all.
func (p *proposer) expire(limit time.Time) {
	overdue := func(t time.Time) bool { return limit.IsZero() || t.Before(limit) }
	var entries []*entry
	var calls []span
	p.mu.Lock()
	for _, e := range p.pending {
		if overdue(e.since) {
			entries = append(entries, e)
		}
	}
	for len(p.queue) > 0 && overdue(p.queue[0].since) {
		c := p.queue[0]
		calls = append(calls, span{c, c.next, len(c.cmds)})
		for _, cmd := range c.cmds[c.next:] {
			p.bytes -= len(cmd)
		}
		p.commands -= len(c.cmds) - c.next
		p.queue[0] = nil
		p.queue = p.queue[1:]
	}
	p.mu.Unlock()
	for _, e := range entries {
		if !e.resolved.Load() {
			p.resolve(e, nil, errOverdue)
		}
	}
	for _, s := range calls {
		s.call.settle(s.to-s.from, rateLimited("the leader did not come to the command in time; retry later"))
	}
}
