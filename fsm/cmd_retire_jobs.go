package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// RetireJobs takes ended jobs out of the machine, with their tasks and leases:
// Output.Retired is all that is left of them. Jobs that are unknown or have not
// ended are passed over, and so are those behind the one with which the command has
// cost half of an entry's budget: they are to be named again.
type RetireJobs struct{ Jobs []gpuai.JobID }

// Append appends the encoded command to dst.
func (c *RetireJobs) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeRetireJobs, env, func(b []byte) []byte {
		b = le.AppendUint16(b, uint16(len(c.Jobs)))
		for i := range c.Jobs {
			b = append(b, c.Jobs[i][:]...)
		}
		return b
	})
}

func (m *Machine) applyRetireJobs(r *wire.Reader) Result {
	n := int(r.U16())
	if n > MaxRetire {
		return malformed
	}
	ids := r.Bytes(16 * n)
	if r.Done() != nil {
		return malformed
	}
	for i, before := 0, m.now.work; i < n; i++ {
		if before-m.now.work > WorkPerEntry/2 && m.Level() >= LevelPlacement {
			break
		}
		slot, ok := m.jobSlot(gpuai.JobID(ids[16*i : 16*i+16]))
		if ok && m.jobs.Get(slot).status.Final() && m.jobs.Get(slot).live == 0 && m.due(slot) == 0 {
			m.retireJob(slot)
		}
	}
	return Result{}
}

func (m *Machine) retireJob(slot uint32) {
	m.out.Retired = append(m.out.Retired, m.retired(slot))
	j := *m.jobs.Get(slot)
	for g := j.group; g != 0; {
		next := m.groups.Get(g.slot()).next
		for t := m.groups.Get(g.slot()).first; t != 0; {
			x := *m.tasks.Get(t.slot())
			m.dropLease(x.lease)
			m.dropNote(x.note)
			m.forgetCheckpoints(t.slot())
			*m.tasks.Mut(t.slot()) = taskRec{}
			m.taskSlots.Free(t.slot())
			m.now.work -= workLook
			t = x.next
		}
		m.dropNote(m.groups.Get(g.slot()).image)
		*m.groups.Mut(g.slot()) = groupRec{}
		m.groupSlots.Free(g.slot())
		g = next
	}
	m.unlinkJob(slot)
	m.dropWait(&j)
	m.blobs.Free(uint32(j.spec))
	m.meta.Mut().jobStates[j.status]--
	*m.jobs.Mut(slot) = jobRec{}
	m.jobSlots.Free(slot)
	m.now.work -= workEnd
}

// retired reads a job whole. The time is spent here, once in a job's life, so
// that every replica has the same record without asking another.
func (m *Machine) retired(slot uint32) gpuai.RetiredJob {
	r := gpuai.RetiredJob{Job: m.job(slot, true)}
	n := 0
	for g := m.jobs.Get(slot).group; g != 0; g = m.groups.Get(g.slot()).next {
		n += int(m.groups.Get(g.slot()).made)
	}
	r.Tasks, r.Leases = make([]gpuai.Task, 0, n), make([]gpuai.Lease, 0, n)
	for g := m.jobs.Get(slot).group; g != 0; g = m.groups.Get(g.slot()).next {
		for t := m.groups.Get(g.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
			r.Tasks = append(r.Tasks, m.task(t.slot()))
			r.Leases = append(r.Leases, m.lease(m.tasks.Get(t.slot()).lease.slot()))
			m.now.work -= workLook
		}
	}
	return r
}
