package server

import (
	"context"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// retireEvery … retireMost is how often ended jobs are looked for: a
	// twentieth of the time that they are kept, within these.
	retireEvery = time.Second
	retireMost  = 30 * time.Second
	// maxRetireJobs and maxRetireTasks bound one command: each replica reads the
	// jobs whole within Apply, in about 2 µs a job and 1 µs a task.
	maxRetireJobs  = 256
	maxRetireTasks = 2_048
	// archiveWait bounds how long a retirement waits for this server's archive.
	archiveWait = 10 * time.Second
	// Above fullFrom thousandths of a limit jobs leave earlier than they
	// should, at fullAt as soon as they have ended.
	fullFrom = 700
	fullAt   = 900
)

// keepFor is how long a job that ended stays, in a region of some age whose
// fullest limit is used to so many thousandths; negative: for good.
func keepFor(retain time.Duration, age gpuai.Duration, full uint32) gpuai.Duration {
	keep := gpuai.Duration(retain / time.Millisecond)
	if retain < 0 {
		keep = -1
	}
	switch {
	case full >= fullAt:
		return 0
	case full < fullFrom:
		return keep
	}
	if keep < 0 || keep > age {
		keep = age
	}
	return keep / (fullAt - fullFrom) * gpuai.Duration(fullAt-full)
}

// retirements takes ended jobs out of the machine while the reign lasts. They
// are archived here first, so that at least one server has their events; the
// jobs themselves come out of every replica with the command.
func (r *reign) retirements(ctx context.Context) {
	every := min(max(r.s.cfg.Retain/20, retireEvery), retireMost)
	if r.s.cfg.Retain < 0 {
		every = retireMost
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if err := r.retire(ctx); err != nil && ctx.Err() == nil {
			r.s.log.Warn("ended jobs stay in the region's memory for now", "error", err)
		}
	}
}

// retire looks at every job once, a bounded number at each hold of the machine.
func (r *reign) retire(ctx context.Context) error {
	for from, first := uint32(0), true; first || from != 0; first = false {
		var page []fsm.EndedJob
		now := r.s.node.RegionTime()
		r.s.node.View(func(m *fsm.Machine) {
			keep := keepFor(r.s.cfg.Retain, gpuai.Duration(now), m.Fullness())
			if keep < 0 {
				from = 0
				return
			}
			page, from = m.EndedJobs(from, now-gpuai.Instant(keep), maxRetireJobs)
		})
		for len(page) > 0 {
			n := retireSome(page)
			if err := r.proposeRetire(ctx, page[:n]); err != nil {
				return err
			}
			page = page[n:]
		}
	}
	return nil
}

// retireSome is how many jobs fit in one command; at least one does.
func retireSome(page []fsm.EndedJob) int {
	tasks := uint32(0)
	for i := range page {
		if tasks += page[i].Tasks; tasks > maxRetireTasks && i > 0 {
			return i
		}
	}
	return len(page)
}

func (r *reign) proposeRetire(ctx context.Context, jobs []fsm.EndedJob) error {
	var c fsm.RetireJobs
	index := uint64(0)
	for i := range jobs {
		c.Jobs = append(c.Jobs, jobs[i].ID)
		index = max(index, jobs[i].Modified)
	}
	wait, cancel := context.WithTimeout(ctx, archiveWait)
	defer cancel()
	if err := r.s.archive.await(wait, index); err != nil {
		return err
	}
	if r.s.archive.current() == nil {
		return errNoArchive
	}
	_, err := r.s.node.Propose(ctx, c.Append(nil, fsm.Envelope{}))
	r.sweepSoon()
	return err
}
