package simulate

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// churnJobs is how many jobs arrive, of which the first third warms up.
	churnJobs = 60_000
	// churnLeast and churnMost bound durations, in milliseconds: those of openb
	// reach from nothing to months.
	churnLeast = 60_000
	churnMost  = 6_518_000
)

// A ChurnReport is what only mode churn finds. Shares are in percent, over the
// arrivals behind the warm-up.
type ChurnReport struct {
	Offered      float64 `json:"offered_load"`         // drawn, as a part of all devices
	RejectedTime float64 `json:"rejected_gpu_time"`    // of the device time that was asked for
	RejectedJobs float64 `json:"rejected_gpu_jobs"`    // of the jobs that ask for devices
	Allocated    float64 `json:"allocated_percentage"` // time-averaged
}

// A churn is the state of one Churn.
type churn struct {
	*world
	ends    endings
	running map[gpuai.Token]running
	milli   int64   // allocated now
	area    float64 // milli × ms behind the warm-up
	from    gpuai.Instant
	since   gpuai.Instant
}

// A running task.
type running struct {
	job   gpuai.JobID
	milli int64
}

// Churn lets jobs arrive as a Poisson process, each drawn from the trace with
// replacement, at the rate at which they ask for Load of all devices in the
// mean. A job that does not fit when it arrives is dropped; one that does runs
// for its duration.
func Churn(ctx context.Context, c Config) (Report, error) {
	lasts, rate, err := churnRate(&c)
	if err != nil {
		return Report{}, err
	}
	p := &churn{world: newWorld(c.Policy), running: map[gpuai.Token]running{}}
	p.keep, c.Policy.keeps = c.Audit, true // what is placed stays
	nodes := sortedNodes(c.Nodes)
	r := rand.New(rand.NewSource(c.Seed))
	if err := p.setPolicy(&c); err != nil {
		return Report{}, err
	}
	if err := p.register(nodes, r.Perm(len(nodes))); err != nil {
		return Report{}, err
	}
	total := totalMilli(nodes)
	count := churnJobs
	if c.Count > 0 {
		count = c.Count
	}
	rep := Report{Mode: "churn", Seed: c.Seed, Policy: c.Policy.Name, Load: c.Load, Nodes: len(nodes), GPUs: int(total / 1000), Jobs: count}
	var asked, rejected, at float64
	var gpuJobs, gpuRejected int
	p.spent = 0
	for i := range count {
		if ctx.Err() != nil {
			return rep, ctx.Err()
		}
		at += r.ExpFloat64() / rate
		k := r.Intn(len(c.Jobs))
		if err := p.endUntil(gpuai.Instant(at)); err != nil {
			return rep, err
		}
		warm := i >= count/3
		if warm && p.from == 0 {
			p.from, p.area = p.now, 0
		}
		j := &c.Jobs[k]
		leased, err := p.arrive(j, lasts[k])
		if err != nil {
			return rep, err
		}
		if leased {
			rep.Placed++
		} else {
			rep.reject(j)
		}
		if warm && j.GPUs > 0 {
			gpuJobs++
			asked += float64(j.Milli()) * float64(lasts[k])
			if !leased {
				gpuRejected++
				rejected += float64(j.Milli()) * float64(lasts[k])
			}
		}
		c.progress(i+1, count)
	}
	measured := float64(p.now-p.from) * float64(total)
	rep.Churn = &ChurnReport{
		Offered: asked / measured, RejectedTime: 100 * rejected / asked,
		RejectedJobs: 100 * float64(gpuRejected) / float64(max(gpuJobs, 1)), Allocated: 100 * p.area / measured,
	}
	rep.Allocation = p.area / measured
	return rep, p.finish(&c, &rep, count)
}

// churnRate returns each job's duration in milliseconds, and how many jobs
// arrive in a millisecond.
func churnRate(c *Config) (lasts []gpuai.Duration, rate float64, err error) {
	var work float64
	for i := range c.Jobs {
		j := &c.Jobs[i]
		if !j.Timed {
			return nil, 0, fmt.Errorf("job %s: %w", j.Name, ErrUntimed)
		}
		d := min(max(j.Run, churnLeast), churnMost)
		lasts = append(lasts, d)
		work += float64(j.Milli()) * float64(d)
	}
	total := float64(totalMilli(c.Nodes))
	if work <= 0 || total <= 0 || c.Load <= 0 {
		return nil, 0, errors.New("mode churn needs a load above 0, nodes with devices, and jobs that ask for some")
	}
	return lasts, c.Load * total / (work / float64(len(c.Jobs))), nil
}

// advance moves the clock and counts what was allocated until then.
func (p *churn) advance(to gpuai.Instant) {
	p.area += float64(p.milli) * float64(to-p.since)
	p.since, p.now = to, to
}

// endUntil ends the tasks whose time comes before an instant.
func (p *churn) endUntil(at gpuai.Instant) error {
	for len(p.ends) > 0 && p.ends[0].at <= at {
		e := heap.Pop(&p.ends).(ending)
		p.advance(e.at)
		rep := gpuai.Report{Lease: e.lease, Seq: 1, Incarnation: e.inc, State: gpuai.ReportDone}
		if _, err := p.apply(&fsm.ReportLease{Node: e.node, Report: rep}); err != nil {
			return err
		}
		was := p.running[e.lease]
		delete(p.running, e.lease)
		p.milli -= was.milli
		if _, err := p.apply(&fsm.RetireJobs{Jobs: []gpuai.JobID{was.job}}); err != nil {
			return err
		}
	}
	p.advance(at)
	return nil
}

// arrive offers a job, and drops it if it does not fit.
func (p *churn) arrive(j *TraceJob, lasts gpuai.Duration) (leased bool, err error) {
	id, leased, err := p.submit(j)
	if err != nil {
		return false, err
	}
	if !leased {
		return false, p.drop(id)
	}
	for i := range p.out.Events {
		if e := &p.out.Events[i]; e.Kind == gpuai.LeaseGrantedEvent {
			heap.Push(&p.ends, ending{at: p.now.Add(lasts), lease: e.Lease, node: e.Node, inc: e.Incarnation})
			p.running[e.Lease] = running{id, j.Milli()}
			p.milli += j.Milli()
		}
	}
	return true, nil
}
