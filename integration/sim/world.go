package main

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Units of simulated time, in nanoseconds.
const (
	ms  int64 = 1e6
	sec int64 = 1e9
)

// A world is one simulation: everything in it happens on one goroutine, in the
// order of its queue, and all chance comes from its seed.
type world struct {
	seed uint64
	now  int64 // true time
	rnd  *rand.Rand
	q    queue
	prof profile
	weak variant
	tr   *tracer // nil: nothing is written down

	net     *network
	servers []*server
	hosts   []*host
	users   *users
	check   *checker
	faults  [numFaults]int
	healed  bool
	events  int

	restores int // of backups
}

// at has f happen at a time; what is due at the same time keeps its order.
func (w *world) at(t int64, f func()) { w.q.push(max(t, w.now), f) }

func (w *world) after(d int64, f func()) { w.at(w.now+d, f) }

// runUntil lets everything happen that is due by t, unless a checker has seen
// enough.
func (w *world) runUntil(t int64) {
	for len(w.q.heap) > 0 && w.q.heap[0].at <= t && !w.check.failed() {
		e := w.q.pop()
		w.now = e.at
		w.events++
		e.f()
	}
	if !w.check.failed() {
		w.now = max(w.now, t)
	}
}

func (w *world) chance(p float64) bool { return p > 0 && w.rnd.Float64() < p }

// between returns lo … hi, both included.
func (w *world) between(lo, hi int64) int64 { return lo + w.rnd.Int64N(hi-lo+1) }

// about returns a time with the given mean, as between the events of a Poisson
// process.
func (w *world) about(mean int64) int64 {
	return int64(-math.Log(1-w.rnd.Float64()) * float64(mean))
}

func pick[T any](w *world, all []T) T { return all[w.rnd.IntN(len(all))] }

func (w *world) tracef(format string, args ...any) {
	if w.tr != nil {
		w.tr.add(w.now, fmt.Sprintf(format, args...))
	}
}

// queue is a heap of what is going to happen, by time and then by order of
// being queued.
type queue struct {
	heap []event
	seq  uint64
}

type event struct {
	at  int64
	seq uint64
	f   func()
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (q *queue) push(at int64, f func()) {
	q.seq++
	q.heap = append(q.heap, event{at, q.seq, f})
	h := q.heap
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(&h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *queue) pop() event {
	h := q.heap
	top, n := h[0], len(h)-1
	h[0] = h[n]
	h[n] = event{}
	h = h[:n]
	q.heap = h
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			return top
		}
		if c+1 < n && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&h[i]) {
			return top
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// A proc is a process of a host: it may crash, which ends all that it had
// under way, or be stopped, which puts that off.
type proc struct {
	w       *world
	life    int // grows with each start
	up      bool
	stops   int // how many reasons there are for it to stand still
	waiting []func()
}

// start begins a life of the process.
func (p *proc) start() { p.life, p.up, p.waiting = p.life+1, true, nil }

// crash ends it.
func (p *proc) crash() { p.life, p.up, p.waiting = p.life+1, false, nil }

// after has f happen in this life, unless the process ends before.
func (p *proc) after(d int64, f func()) {
	life := p.life
	p.w.after(d, func() { p.run(life, f) })
}

func (p *proc) run(life int, f func()) {
	switch {
	case !p.up || life != p.life:
	case p.stops > 0:
		p.waiting = append(p.waiting, f)
	default:
		f()
	}
}

// wrap returns f as something that the process does, whoever calls it.
func (p *proc) wrap(f func()) func() {
	life := p.life
	return func() { p.run(life, f) }
}

// stop stands the process still; cont undoes one stop.
func (p *proc) stop() { p.stops++ }

func (p *proc) cont() {
	if p.stops--; p.stops > 0 {
		return
	}
	life, waiting := p.life, p.waiting
	p.waiting = nil
	for _, f := range waiting {
		p.run(life, f)
	}
}

// A clock runs at its own constant rate.
type clock struct {
	off int64
	ppm int64 // rate error
}

// read returns the clock's time at a true time.
func (c *clock) read(now int64) int64 {
	return c.off + now + now/1_000_000*c.ppm + now%1_000_000*c.ppm/1_000_000
}

// when returns the true time at which the clock shows at.
func (c *clock) when(at int64) int64 {
	r, rate := at-c.off, 1_000_000+c.ppm
	t := r/rate*1_000_000 + r%rate*1_000_000/rate - 2
	for c.read(t) < at {
		t++
	}
	return t
}

// tracer keeps the newest lines of what happened.
type tracer struct {
	lines []traceLine
	limit int // 0: all are printed at once
	print func(string)
}

type traceLine struct {
	at   int64
	text string
}

func (t *tracer) add(at int64, text string) {
	l := traceLine{at, text}
	if t.print != nil {
		t.print(l.String())
		return
	}
	if t.lines = append(t.lines, l); len(t.lines) > 2*t.limit {
		t.lines = append(t.lines[:0], t.lines[t.limit:]...)
	}
}

// String returns the line with its time in seconds.
func (l traceLine) String() string {
	return fmt.Sprintf("%10.3f %s", float64(l.at)/float64(sec), l.text)
}
