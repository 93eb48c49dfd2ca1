package fsm

import "github.com/gpuai/gpuai"

// An EndedJob is a job that could be retired.
type EndedJob struct {
	ID       gpuai.JobID
	EndedAt  gpuai.Instant
	Modified uint64 // index of its last change
	Tasks    uint32 // that have a record
}

// EndedJobs returns jobs that ended at or before an instant, in the order of
// their slots from the from-th slot on: at most limit, of at most MaxScan
// slots. next is where to go on; 0 at the end.
func (m *Machine) EndedJobs(from uint32, before gpuai.Instant, limit int) (page []EndedJob, next uint32) {
	for n := 0; n < MaxScan && len(page) < limit; n++ {
		slot, ok := m.jobSlots.Next(from)
		if !ok {
			return page, 0
		}
		from = slot + 1
		r := m.jobs.Get(slot)
		if !r.status.Final() || r.live > 0 || r.endedAt > before {
			continue
		}
		e := EndedJob{ID: r.id, EndedAt: r.endedAt, Modified: r.modified}
		for g := r.group; g != 0; g = m.groups.Get(g.slot()).next {
			e.Tasks += m.groups.Get(g.slot()).made
		}
		page = append(page, e)
	}
	return page, from
}

// Fullness is how much of the limits on jobs is used, in thousandths: of
// whichever of jobs, groups, tasks, leases, specs, checkpoints and notes is nearest to its own.
func (m *Machine) Fullness() uint32 {
	full := uint64(0)
	for _, x := range [...]struct{ n, limit uint32 }{
		{m.jobSlots.Len(), MaxJobs}, {m.groupSlots.Len(), MaxGroupRecs}, {m.taskSlots.Len(), MaxTaskRecs},
		{m.leaseSlots.Len(), MaxLeaseRecs}, {m.blobs.Len(), MaxBlocks},
		{m.checkpointSlots.Len(), MaxCheckpoints}, {m.noteSlots.Len(), MaxNotes},
	} {
		full = max(full, uint64(x.n)*1_000/uint64(x.limit))
	}
	return uint32(full)
}
