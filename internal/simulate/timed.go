package simulate

import (
	"container/heap"
	"context"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// An ending is the end of a running task.
type ending struct {
	at    gpuai.Instant
	lease gpuai.Token
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
	ends    endings
	placed  int // leases
	decided int // submits and ends
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
	p := &replay{world: newWorld(c.Policy), jobs: map[gpuai.JobID]*arrival{}, strict: c.Policy.strict}
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
			p.advance(e.at)
			p.decided++
			rep := gpuai.Report{Lease: e.lease, Seq: 1, Incarnation: e.inc, State: gpuai.ReportDone}
			if err := p.does(&fsm.ReportLease{Node: e.node, Report: rep}); err != nil {
				return err
			}
		default:
			p.advance(at)
			return nil
		}
	}
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
		case gpuai.LeaseEndedEvent:
			p.milli -= a.job.milliOf(e.Group)
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
	p.milli += a.job.milliOf(e.Group)
	heap.Push(&p.ends, ending{p.now.Add(a.job.runOf(e.Group, e.Task)), e.Lease, e.Node, e.Incarnation})
	if a.started {
		return
	}
	a.started, a.start = true, p.now
	p.waits(a, -1)
	if a == p.head {
		p.head = nil
	}
}
