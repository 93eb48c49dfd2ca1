package simulate

import (
	"container/heap"
	"context"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// An ending is when a task ends, or is stopped that has to make room, or when
// an elastic job is done.
type ending struct {
	at      gpuai.Instant
	lease   gpuai.Token // 0: of an elastic job
	node    gpuai.NodeID
	inc     gpuai.Incarnation
	stopped bool
	job     *elastic
	plan    int // of the job: another one has taken its place when it differs
}

// stopTime is how long a task that has to make room takes to stop.
const stopTime = gpuai.Second

// A run is a task that holds a lease.
type run struct {
	a     *arrival
	milli int64
	since gpuai.Instant
	node  gpuai.NodeID
	inc   gpuai.Incarnation
}

type endings []ending

func (e endings) Len() int { return len(e) }
func (e endings) Less(i, j int) bool {
	if e[i].at != e[j].at {
		return e[i].at < e[j].at
	}
	return e[i].lease < e[j].lease
}
func (e endings) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *endings) Push(x any)   { *e = append(*e, x.(ending)) }
func (e *endings) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// A replay is the state of one Timed.
type replay struct {
	*world
	meter
	jobs    map[gpuai.JobID]*arrival
	runs    map[gpuai.Token]run
	ends    endings
	placed  int // leases
	decided int // submits and ends
	saves   bool
	// Of a strict policy: the jobs that the machine has not been given, and
	// the one that it has been given last, until it starts.
	strict bool
	line   []*arrival
	head   *arrival
}

// Timed lets jobs arrive and run, and what does not fit wait. It ends with the
// last arrival: the wait of a job that has not started by then counts up to
// that moment.
func Timed(ctx context.Context, c Config) (Report, error) {
	as, window, err := c.load()
	if err != nil {
		return Report{}, err
	}
	p := &replay{world: newWorld(c.Policy), jobs: map[gpuai.JobID]*arrival{}, runs: map[gpuai.Token]run{}, strict: c.Policy.strict, saves: c.Policy.saves}
	nodes := sortedNodes(c.Nodes)
	if err := p.setPolicy(&c); err != nil {
		return Report{}, err
	}
	if err := p.register(nodes, sequence(len(nodes))); err != nil {
		return Report{}, err
	}
	p.watch(&c, nodes, window)
	p.spent = 0
	for i := range as {
		if ctx.Err() != nil {
			return Report{}, ctx.Err()
		}
		if err := p.runUntil(as[i].at); err != nil {
			return Report{}, err
		}
		if err := p.arrive(&as[i]); err != nil {
			return Report{}, err
		}
		c.progress(i+1, len(as))
	}
	p.advance(window[1])
	return p.report(&c, nodes, as), p.m.Check()
}

// watch sets the meter up.
func (p *replay) watch(c *Config, nodes []TraceNode, window [2]gpuai.Instant) {
	p.window, p.total = window, totalMilli(nodes)
	p.every = max(1, gpuai.Duration(window[1])/points)
	p.fragEvery = max(1, points*len(nodes)/fragLooks)
	if demands := demandsOf(c.Jobs); len(demands) > 0 {
		p.fragmentation = func() float64 { return fragmentationOf(p.m, demands) }
	}
}

// advance moves the clock and counts what held until then.
func (p *replay) advance(to gpuai.Instant) {
	p.meter.advance(to)
	p.now = to
}

// runUntil lets everything happen that comes before an instant: tasks end, and
// the machine is given the ticks that it wants.
func (p *replay) runUntil(at gpuai.Instant) error {
	for {
		due := max(p.m.NextDeadline(), p.now)
		switch ends := len(p.ends) > 0 && p.ends[0].at <= at; {
		case due <= at && (!ends || due <= p.ends[0].at):
			p.advance(due)
			if err := p.does(&fsm.Tick{}); err != nil {
				return err
			}
		case ends:
			e := heap.Pop(&p.ends).(ending)
			if err := p.end(&e); err != nil {
				return err
			}
		default:
			p.advance(at)
			return nil
		}
	}
}

// end lets a task end, or an elastic job, unless it has been stopped meanwhile.
func (p *replay) end(e *ending) error {
	leases := []gpuai.Token{e.lease}
	if e.job != nil {
		if e.plan != e.job.plan {
			return nil
		}
		leases = slices.Clone(e.job.leases)
	}
	for _, l := range leases {
		x, ok := p.runs[l]
		if !ok {
			continue
		}
		p.advance(e.at)
		p.decided++
		rep := gpuai.Report{Lease: l, Seq: 1, Incarnation: x.inc, State: gpuai.ReportDone}
		if e.stopped {
			rep.State = gpuai.ReportStopped
		}
		if err := p.does(&fsm.ReportLease{Node: x.node, Report: rep}); err != nil {
			return err
		}
	}
	return nil
}

// does applies a command and takes note of what it did.
func (p *replay) does(c fsm.Command) error {
	if _, err := p.apply(c); err != nil {
		return err
	}
	return p.settle()
}

// arrive hands a job in, or lets it stand in line.
func (p *replay) arrive(a *arrival) error {
	p.waits(a, 1)
	if p.strict {
		p.line = append(p.line, a)
		return p.nextInLine()
	}
	return p.hand(a)
}

// hand hands a job to the machine.
func (p *replay) hand(a *arrival) error {
	p.decided++
	p.jobs[p.nextID()] = a
	before := p.spent
	if _, _, err := p.submit(a.job); err != nil {
		return err
	}
	a.took = float64((p.spent - before).Nanoseconds()) / 1000
	return p.settle()
}

// nextInLine hands jobs in until one does not start at once.
func (p *replay) nextInLine() error {
	for p.head == nil && len(p.line) > 0 {
		p.head, p.line = p.line[0], p.line[1:]
		if err := p.hand(p.head); err != nil {
			return err
		}
	}
	return nil
}

// settle takes note of the leases that the last entry granted and ended, and
// retires jobs that ended.
func (p *replay) settle() error {
	var ended []gpuai.JobID
	for i := range p.out.Events {
		e := &p.out.Events[i]
		a := p.jobs[e.Job]
		switch e.Kind {
		case gpuai.LeaseGrantedEvent:
			p.granted(a, e)
		case gpuai.LeaseRevokingEvent:
			heap.Push(&p.ends, ending{at: p.now.Add(stopTime), lease: e.Lease, stopped: true})
		case gpuai.LeaseEndedEvent:
			p.left(e)
		case gpuai.JobEnded:
			ended = append(ended, e.Job)
			a.ended, a.end = true, p.now
			delete(p.jobs, e.Job)
		}
	}
	if len(ended) > 0 {
		if _, err := p.apply(&fsm.RetireJobs{Jobs: ended}); err != nil {
			return err
		}
	}
	if p.head == nil && len(p.line) > 0 {
		return p.nextInLine()
	}
	return nil
}

// granted begins a task.
func (p *replay) granted(a *arrival, e *gpuai.Event) {
	p.placed++
	x := run{a: a, milli: a.job.milliOf(e.Group), since: p.now, node: e.Node, inc: e.Incarnation}
	p.milli += x.milli
	p.runs[e.Lease] = x
	if a.job.Speed != nil {
		p.resize(a, e.Lease, true)
	} else {
		rest := a.job.runOf(e.Group, e.Task) - a.saved[saved{e.Group, e.Task}]
		heap.Push(&p.ends, ending{at: p.now.Add(max(0, rest)), lease: e.Lease})
	}
	if a.started {
		return
	}
	a.started, a.start = true, p.now
	p.waits(a, -1)
	if a == p.head {
		p.head = nil
	}
}

// left ends a task. Unless it was done, what it did is lost, and it runs anew when
// it gets another lease; or it is saved, where the policy says so.
func (p *replay) left(e *gpuai.Event) {
	x := p.runs[e.Lease]
	delete(p.runs, e.Lease)
	p.milli -= x.milli
	if e.Cause == gpuai.CausePreempted {
		x.a.preempted++
	}
	switch {
	case x.a.job.Speed != nil:
		p.resize(x.a, e.Lease, false)
	case e.Cause != gpuai.CauseDone && p.saves:
		if x.a.saved == nil {
			x.a.saved = map[saved]gpuai.Duration{}
		}
		x.a.saved[saved{e.Group, e.Task}] += gpuai.Duration(p.now - x.since)
	case e.Cause != gpuai.CauseDone:
		x.a.lost += float64(x.milli) * float64(p.now-x.since)
	}
}
