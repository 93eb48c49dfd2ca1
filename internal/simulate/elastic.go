package simulate

import (
	"container/heap"
	"slices"

	"github.com/gpuai/gpuai"
)

// An elastic job is one whose tasks share its work: it is done the sooner the
// more of them run.
type elastic struct {
	leases []gpuai.Token
	done   float64 // of the job's Run, in ms at the speed of one task
	since  gpuai.Instant
	plan   int // of its end: grows when the number of its tasks changes
}

// resize takes note of a task that an elastic job has got or lost, and plans the
// job's end anew. When its last task leaves what was done is lost.
func (p *replay) resize(a *arrival, lease gpuai.Token, got bool) {
	if a.elastic == nil {
		a.elastic = &elastic{}
	}
	x := a.elastic
	if n := len(x.leases); n > 0 {
		x.done += float64(p.now-x.since) * a.job.Speed(n)
	}
	x.since = p.now
	if x.plan++; got {
		x.leases = append(x.leases, lease)
	} else if i := slices.Index(x.leases, lease); i >= 0 {
		x.leases = slices.Delete(x.leases, i, i+1)
	}
	rest := float64(a.job.Run) - x.done
	switch {
	case len(x.leases) > 0:
		at := p.now.Add(gpuai.Duration(max(0, rest) / a.job.Speed(len(x.leases))))
		heap.Push(&p.ends, ending{at: at, job: x, plan: x.plan})
	case rest > 1: // by rounding, one that is done may be a moment short of it
		a.lost += x.done * float64(a.job.milliOf(0))
		x.done = 0
	}
}
