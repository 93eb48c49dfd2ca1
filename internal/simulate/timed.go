package simulate

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// ErrUntimed is returned when a trace has no times to replay.
var ErrUntimed = errors.New("mode time needs the columns creation_time, deletion_time and scheduled_time")

func sortedNodes(nodes []TraceNode) []TraceNode {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(a, b TraceNode) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// An arrival is a job with its scaled time and its duration, in milliseconds.
type arrival struct {
	job      *TraceJob
	at       gpuai.Instant
	duration gpuai.Duration
	started  bool
}

// arrivalsOf orders the jobs by creation and scales the gaps between them by
// one factor, so that the mean load offered over the span is load.
func arrivalsOf(c *Config) ([]arrival, error) {
	var out []arrival
	var work float64
	for i := range c.Jobs {
		j := &c.Jobs[i]
		if !j.Timed {
			return nil, fmt.Errorf("job %s: %w", j.Name, ErrUntimed)
		}
		start := j.Started
		if start == 0 {
			start = j.Created
		}
		d := max(0, j.Deleted-start)
		work += float64(j.Milli()) * float64(d)
		out = append(out, arrival{job: j, at: gpuai.Instant(j.Created), duration: gpuai.Duration(d) * gpuai.Second})
	}
	slices.SortStableFunc(out, func(a, b arrival) int {
		return cmp.Or(cmp.Compare(a.at, b.at), strings.Compare(a.job.Name, b.job.Name))
	})
	first, last := out[0].at, out[len(out)-1].at
	capacity := float64(totalMilli(c.Nodes)) * float64(last-first)
	if capacity <= 0 || work <= 0 || c.Load <= 0 {
		return nil, errors.New("mode time needs a load above 0, and jobs with GPUs that arrive and last over some time")
	}
	factor := work / capacity / c.Load * 1000 // and seconds to milliseconds
	for i := range out {
		out[i].at = gpuai.Instant(float64(out[i].at-first) * factor)
	}
	return out, nil
}

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
	jobs    map[gpuai.JobID]*arrival
	ends    endings
	waits   []float64 // seconds
	milli   int64     // allocated now
	area    float64   // milli × ms
	since   gpuai.Instant
	placed  int
	decided int
}

// Timed replays the jobs' arrivals and durations and lets what does not fit
// wait. It ends when the last job has arrived: waits of jobs that have not
// started by then count up to that moment.
func Timed(ctx context.Context, c Config) (Report, error) {
	as, err := arrivalsOf(&c)
	if err != nil {
		return Report{}, err
	}
	p := &replay{world: newWorld(), jobs: map[gpuai.JobID]*arrival{}}
	nodes := sortedNodes(c.Nodes)
	order := make([]int, len(nodes))
	for i := range order {
		order[i] = i
	}
	if err := p.pack(&c); err != nil {
		return Report{}, err
	}
	if err := p.register(nodes, order); err != nil {
		return Report{}, err
	}
	p.spent = 0
	for i := range as {
		if ctx.Err() != nil {
			return Report{}, ctx.Err()
		}
		if err := p.endUntil(as[i].at); err != nil {
			return Report{}, err
		}
		if err := p.arrive(&as[i]); err != nil {
			return Report{}, err
		}
		c.progress(i+1, len(as))
	}
	return p.report(&c, nodes, len(as)), p.m.Check()
}

// advance moves the clock and counts what was allocated until then.
func (p *replay) advance(to gpuai.Instant) {
	p.area += float64(p.milli) * float64(to-p.since)
	p.since, p.now = to, to
}

// endUntil ends the tasks whose time comes before an instant.
func (p *replay) endUntil(at gpuai.Instant) error {
	for len(p.ends) > 0 && p.ends[0].at <= at {
		e := heap.Pop(&p.ends).(ending)
		p.advance(e.at)
		p.decided++
		rep := gpuai.Report{Lease: e.lease, Seq: 1, Incarnation: e.inc, State: gpuai.ReportDone}
		if _, err := p.apply(&fsm.ReportLease{Node: e.node, Report: rep}); err != nil {
			return err
		}
		if err := p.settle(); err != nil {
			return err
		}
	}
	p.advance(at)
	return nil
}

func (p *replay) arrive(a *arrival) error {
	p.decided++
	id := p.nextID()
	p.jobs[id] = a
	if _, _, err := p.submit(a.job); err != nil {
		return err
	}
	return p.settle()
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
			p.placed++
			a.started = true
			p.milli += a.job.Milli()
			p.waits = append(p.waits, float64(p.now-a.at)/1000)
			heap.Push(&p.ends, ending{p.now.Add(a.duration), e.Lease, e.Node, e.Incarnation})
		case gpuai.LeaseEndedEvent:
			p.milli -= a.job.Milli()
		case gpuai.JobEnded:
			ended = append(ended, e.Job)
			delete(p.jobs, e.Job)
		}
	}
	if len(ended) == 0 {
		return nil
	}
	_, err := p.apply(&fsm.RetireJobs{Jobs: ended})
	return err
}

func (p *replay) report(c *Config, nodes []TraceNode, jobs int) Report {
	for _, a := range p.jobs { // in any order: waits are sorted below
		if !a.started {
			p.waits = append(p.waits, float64(p.now-a.at)/1000)
		}
	}
	total := totalMilli(nodes)
	r := Report{
		Mode: "time", Seed: c.Seed, Policy: c.policyName(), Load: c.Load, Nodes: len(nodes),
		GPUs: int(total / 1000), Jobs: jobs, Placed: p.placed,
		Decisions: float64(p.decided) / p.spent.Seconds(), Digest: p.m.Digest().String(),
		WaitSeconds: percentiles(p.waits),
	}
	if p.now > 0 {
		r.Allocation = p.area / float64(total) / float64(p.now)
	}
	return r
}

// percentiles sums up waits.
func percentiles(v []float64) map[string]float64 {
	if len(v) == 0 {
		return nil
	}
	slices.Sort(v)
	at := func(q float64) float64 { return v[min(len(v)-1, int(q*float64(len(v))))] }
	return map[string]float64{"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": v[len(v)-1]}
}
