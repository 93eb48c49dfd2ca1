package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// StopJob ends a job: tasks without a lease at once, the others when their
// agents report the end, or their nodes fall silent. What an entry's budget does
// not reach of a large job is left to those that follow; none of it is placed again.
//
// Rejected: NotFound. Stopping a job that has ended is OK and changes nothing; of
// one that is being stopped, the tasks that were not told yet are, below
// LevelPlacement nothing.
type StopJob struct{ Job gpuai.JobID }

// Append appends the encoded command to dst.
func (c *StopJob) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeStopJob, env, func(b []byte) []byte { return append(b, c.Job[:]...) })
}

func (m *Machine) applyStopJob(r *wire.Reader) Result {
	b := r.Bytes(16)
	if r.Done() != nil {
		return malformed
	}
	id := gpuai.JobID(b)
	slot, ok := m.jobSlot(id)
	if !ok {
		return rejected(gpuai.NotFound, "no such job")
	}
	switch j := m.jobs.Get(slot); {
	case j.status.Final():
	case !j.stopping:
		m.jobs.Mut(slot).reason = endStopped
		m.stopJob(slot)
	case m.Level() >= LevelPlacement:
		m.stopAgain(slot)
	}
	return Result{Job: id}
}
