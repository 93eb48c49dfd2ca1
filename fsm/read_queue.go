package fsm

import (
	"slices"

	"github.com/gpuai/gpuai"
)

// buckets in queue order: by the key of their first group.
func (m *Machine) bucketOrder() []candidate {
	var out []candidate
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		out = append(out, m.candidate(b, m.buckets.Get(b).first.slot()))
	}
	slices.SortFunc(out, func(a, b candidate) int {
		if a.before(&b) {
			return -1
		}
		return 1
	})
	return out
}

// queueTotals returns the devices that waiting tasks ask for, and how long the
// oldest has waited.
func (m *Machine) queueTotals() (gpus uint64, oldest gpuai.Duration) {
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		r := m.buckets.Get(b)
		g := m.groups.Get(r.first.slot())
		gpus += r.tasks * uint64(g.gpus)
		if !r.grows { // what runs and would grow does not wait to start
			oldest = max(oldest, gpuai.Duration(m.Time()-m.jobs.Get(g.job.slot()).submittedAt))
		}
	}
	return gpus, oldest
}

// Queue sums up what waits.
func (m *Machine) Queue() gpuai.QueueStatus {
	q := gpuai.QueueStatus{Index: m.Index(), Shapes: []gpuai.QueueShape{}}
	for _, c := range m.bucketOrder() {
		r := m.buckets.Get(c.bucket)
		g := m.groups.Get(c.group)
		needs, _ := m.sched.ShapeOf(r.shape)
		q.Jobs += r.groups
		q.Tasks += r.tasks
		q.GPUs += r.tasks * uint64(needs.GPU.Count)
		if !r.grows {
			q.OldestAge = max(q.OldestAge, gpuai.Duration(m.Time()-m.jobs.Get(g.job.slot()).submittedAt))
		}
		if len(q.Shapes) < 100 {
			q.Shapes = append(q.Shapes, gpuai.QueueShape{
				Priority: r.priority, Needs: needs, Gang: r.gang, Jobs: r.groups, Tasks: r.tasks,
				Oldest: m.jobs.Get(g.job.slot()).id, Reason: m.whyBucket(r),
			})
		}
	}
	return q
}

// QueueEntries returns waiting groups in queue order, limit of them behind the
// first after. It merges the buckets by their heads and looks at MaxScan groups
// at most.
func (m *Machine) QueueEntries(after, limit int) []gpuai.QueueEntry {
	var out []gpuai.QueueEntry
	heads := m.bucketOrder()
	for n := 0; len(heads) > 0 && len(out) < limit && n < after+MaxScan; n++ {
		c := heads[0]
		if n >= after {
			out = append(out, m.queueEntry(c.group, uint32(n)+1))
		}
		next := m.groups.Get(c.group).qnext
		heads = heads[1:]
		if next == 0 {
			continue
		}
		c = m.candidate(c.bucket, next.slot())
		i, _ := slices.BinarySearchFunc(heads, c, func(a, b candidate) int {
			if a.before(&b) {
				return -1
			}
			return 1
		})
		heads = slices.Insert(heads, i, c)
	}
	return out
}

func (m *Machine) queueEntry(group, position uint32) gpuai.QueueEntry {
	g := m.groups.Get(group)
	job := g.job.slot()
	j := m.job(job, false)
	return gpuai.QueueEntry{
		Position: position, Job: j.ID, Name: j.Name, Tenant: j.Tenant, Priority: j.Priority,
		Pending: g.ready(), GPUs: g.ready() * g.gpus, Waiting: gpuai.Duration(m.Time() - j.SubmittedAt),
	}
}

// ahead counts what stands before a group in the queue: jobs, tasks' devices.
// It looks at MaxScan groups at most.
func (m *Machine) ahead(group uint32) (jobs, gpus, length uint32) {
	me := m.candidate(0, group)
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		r := m.buckets.Get(b)
		length += r.groups
		for at, n := r.first, 0; at != 0 && n < MaxScan; n++ {
			x := m.groups.Get(at.slot())
			c := m.candidate(0, at.slot())
			if at.slot() == group || !c.before(&me) {
				break
			}
			jobs++
			gpus += x.ready() * x.gpus
			at = x.qnext
		}
	}
	return jobs, gpus, length
}
