package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// A checkpointRec is a published checkpoint of a task. There is none below
// LevelPlacement.
type checkpointRec struct {
	task   ref
	older  ref // of the task
	seq    uint64
	token  gpuai.Token // of the lease that it was published under
	at     gpuai.Instant
	bytes  int64
	step   uint64
	digest gpuai.BlobDigest
}

func (r *checkpointRec) put(b []byte) []byte {
	b = r.task.put(b)
	b = r.older.put(b)
	b = le.AppendUint64(b, r.seq)
	b = le.AppendUint64(b, uint64(r.token))
	b = put64(b, int64(r.at))
	b = put64(b, r.bytes)
	b = le.AppendUint64(b, r.step)
	return append(b, r.digest[:]...)
}

func (r *checkpointRec) get(rd *wire.Reader) {
	r.task = ref(rd.U32())
	r.older = ref(rd.U32())
	r.seq = rd.U64()
	r.token = gpuai.Token(rd.U64())
	r.at = gpuai.Instant(rd.I64())
	r.bytes = rd.I64()
	r.step = rd.U64()
	copy(r.digest[:], rd.Bytes(len(r.digest)))
}

func hashTask(task ref) uint64 { return mem.Mix(uint64(task), 13) }

// newestCheckpoint returns the newest checkpoint of a task, by which the others
// are found.
func (m *Machine) newestCheckpoint(task uint32) ref {
	if m.checkpointSlots.Len() == 0 {
		return 0
	}
	slot, ok := m.checkpointByTask.Find(hashTask(refTo(task)), func(s uint32) bool { return m.checkpoints.Get(s).task == refTo(task) })
	if !ok {
		return 0
	}
	return refTo(slot)
}

// addCheckpoint makes r the newest checkpoint of its task, whose newest was old,
// and forgets those beyond the newest keep, before it takes the room of one more.
func (m *Machine) addCheckpoint(old ref, r checkpointRec, keep uint32) {
	if old != 0 {
		m.checkpointByTask.Delete(hashTask(r.task), old.slot())
	}
	r.older = m.keepNewest(old, keep-1)
	slot, _ := m.checkpointSlots.Alloc()
	m.checkpoints.Put(slot, r)
	m.checkpointByTask.Insert(hashTask(r.task), slot)
	*m.checkpointsBy(r.task.slot())++
}

// keepNewest forgets a list of checkpoints but for its first keep. It returns the
// list.
func (m *Machine) keepNewest(list ref, keep uint32) ref {
	if list == 0 || keep == 0 {
		m.dropCheckpoints(list)
		return 0
	}
	last := list.slot()
	for n := uint32(1); n < keep && m.checkpoints.Get(last).older != 0; n++ {
		last = m.checkpoints.Get(last).older.slot()
	}
	rest := m.checkpoints.Get(last).older
	m.checkpoints.Mut(last).older = 0
	m.dropCheckpoints(rest)
	return list
}

// checkpointsBy returns how many checkpoints the tenant of a task has.
func (m *Machine) checkpointsBy(task uint32) *uint32 {
	g := m.groups.Get(m.tasks.Get(task).group.slot())
	tenant := m.jobs.Get(g.job.slot()).tenant
	m.checkpointsOfTenant.Grow(tenant + 1)
	return m.checkpointsOfTenant.Mut(tenant)
}

// dropCheckpoints forgets a checkpoint and those older.
func (m *Machine) dropCheckpoints(c ref) {
	for c != 0 {
		m.now.work -= workLook
		next := m.checkpoints.Get(c.slot()).older
		*m.checkpointsBy(m.checkpoints.Get(c.slot()).task.slot())--
		*m.checkpoints.Mut(c.slot()) = checkpointRec{}
		m.checkpointSlots.Free(c.slot())
		c = next
	}
}

// forgetCheckpoints drops all checkpoints of a task.
func (m *Machine) forgetCheckpoints(task uint32) {
	if c := m.newestCheckpoint(task); c != 0 {
		m.checkpointByTask.Delete(hashTask(refTo(task)), c.slot())
		m.dropCheckpoints(c)
	}
}

// savedSince returns the instant up to which the work of a task is saved, if that
// is later than since.
func (m *Machine) savedSince(task uint32, since gpuai.Instant) gpuai.Instant {
	if c := m.newestCheckpoint(task); c != 0 {
		return max(since, m.checkpoints.Get(c.slot()).at)
	}
	return since
}

// checkpoint converts a record to its edge type.
func (m *Machine) checkpoint(c ref) gpuai.PublishedCheckpoint {
	r := m.checkpoints.Get(c.slot())
	ref := m.taskRef(r.task.slot())
	return gpuai.PublishedCheckpoint{
		TaskRef: ref, Seq: r.seq, Digest: r.digest, Bytes: gpuai.Bytes(r.bytes), Step: r.step,
		PublishedAt: r.at, Lease: r.token, Key: gpuai.CheckpointKey(ref, r.token, r.digest),
	}
}

// lastCheckpoint returns the newest checkpoint of a task; nil when it has none.
func (m *Machine) lastCheckpoint(task uint32) *gpuai.PublishedCheckpoint {
	c := m.newestCheckpoint(task)
	if c == 0 {
		return nil
	}
	p := m.checkpoint(c)
	return &p
}

// checkpointsOf appends the checkpoints of a task, the newest first.
func (m *Machine) checkpointsOf(out []gpuai.PublishedCheckpoint, task uint32) []gpuai.PublishedCheckpoint {
	for c := m.newestCheckpoint(task); c != 0; c = m.checkpoints.Get(c.slot()).older {
		out = append(out, m.checkpoint(c))
	}
	return out
}

// commonSeq returns which of a member's checkpoints its gang goes on from, if that
// is not its newest: the newest of a step that every member which has published
// anything saved in the same attempt of the gang. Steps alone do not tell: what was
// gone back behind is another line of the training. 0: the newest, also where there
// is no such step.
func (m *Machine) commonSeq(g *groupRec, own []gpuai.PublishedCheckpoint) uint64 {
	for i := range own {
		if own[i].Step > 0 && m.allSaved(g, &own[i]) {
			if i == 0 {
				return 0
			}
			return own[i].Seq
		}
	}
	return 0
}

// allSaved reports whether each member of a gang that holds a lease and has
// published anything keeps a checkpoint of c's step and attempt: the leases of an
// attempt are granted by one entry.
func (m *Machine) allSaved(g *groupRec, c *gpuai.PublishedCheckpoint) bool {
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		l := m.tasks.Get(t.slot()).lease
		if l == 0 || !m.leases.Get(l.slot()).live() {
			continue
		}
		n := m.newestCheckpoint(t.slot())
		if n == 0 {
			continue
		}
		for ; n != 0; n = m.checkpoints.Get(n.slot()).older {
			r := m.checkpoints.Get(n.slot())
			if r.step == c.Step && r.token.Epoch() == c.Lease.Epoch() && r.token.Index() == c.Lease.Index() {
				break
			}
		}
		if n == 0 {
			return false
		}
	}
	return true
}

// CheckpointsOf returns the checkpoints of the task that a live lease is of, the
// newest first.
func (m *Machine) CheckpointsOf(lease gpuai.Token) []gpuai.PublishedCheckpoint {
	slot, ok := m.leaseSlot(lease)
	if !ok || !m.leases.Get(slot).live() {
		return nil
	}
	return m.checkpointsOf(nil, m.leases.Get(slot).task.slot())
}

// Checkpoints returns what a job's tasks have published, by group and task, each
// task's newest first: of the tasks from the from-th on that have had a lease, at
// most MaxScan of them and not many more than limit checkpoints. next is where to
// go on; 0 at the end.
func (m *Machine) Checkpoints(id gpuai.JobID, from uint32, limit int) (page []gpuai.PublishedCheckpoint, next uint32) {
	slot, ok := m.jobSlot(id)
	if !ok || m.checkpointSlots.Len() == 0 {
		return nil, 0
	}
	at := uint32(0)
	for g := m.jobs.Get(slot).group; g != 0; g = m.groups.Get(g.slot()).next {
		if made := m.groups.Get(g.slot()).made; at+made <= from {
			at += made
			continue
		}
		for t := m.groups.Get(g.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
			if at++; at <= from {
				continue
			}
			if at-from > MaxScan || len(page) >= limit {
				return page, at - 1
			}
			page = m.checkpointsOf(page, t.slot())
		}
	}
	return page, 0
}

// rebuildCheckpoints counts the checkpoints of each tenant, and finds the newest of
// each task: the one that no other has as its older one.
func (m *Machine) rebuildCheckpoints() {
	older := map[ref]bool{}
	for s, ok := m.checkpointSlots.Next(0); ok; s, ok = m.checkpointSlots.Next(s + 1) {
		if o := m.checkpoints.Get(s).older; o != 0 {
			older[o] = true
		}
	}
	for s, ok := m.checkpointSlots.Next(0); ok; s, ok = m.checkpointSlots.Next(s + 1) {
		if t := m.checkpoints.Get(s).task; t == 0 || !m.taskSlots.Has(t.slot()) {
			continue // Check refuses it
		}
		*m.checkpointsBy(m.checkpoints.Get(s).task.slot())++
		if !older[refTo(s)] {
			m.checkpointByTask.Insert(hashTask(m.checkpoints.Get(s).task), s)
		}
	}
}

// checkCheckpoints holds each task's checkpoints to be a list in falling order.
func (m *Machine) checkCheckpoints() error {
	found, of := uint32(0), map[uint32]uint32{}
	for s, ok := m.checkpointSlots.Next(0); ok; s, ok = m.checkpointSlots.Next(s + 1) {
		r := m.checkpoints.Get(s)
		if r.task == 0 || !m.taskSlots.Has(r.task.slot()) || r.seq == 0 || r.digest.IsZero() || r.bytes < 0 || r.token == 0 {
			return fmt.Errorf("checkpoint %d is of no task or of no blob: %+v", s, *r)
		}
		of[m.jobs.Get(m.groups.Get(m.tasks.Get(r.task.slot()).group.slot()).job.slot()).tenant]++
		if m.newestCheckpoint(r.task.slot()) != refTo(s) {
			continue
		}
		kept := 1
		for c := r.older; c != 0; kept++ {
			o := m.checkpoints.Get(c.slot())
			if !m.checkpointSlots.Has(c.slot()) || o.task != r.task || o.seq >= r.seq || o.token > r.token {
				return fmt.Errorf("checkpoint %d of a task is before %d", r.seq, o.seq)
			}
			r, c = o, o.older
		}
		if found += uint32(kept); kept > gpuai.MaxCheckpointKeep {
			return fmt.Errorf("a task has %d checkpoints", kept)
		}
	}
	for tenant := range m.checkpointsOfTenant.Len() {
		if n := *m.checkpointsOfTenant.Get(tenant); n != of[tenant] {
			return fmt.Errorf("tenant %q has %d checkpoints, recorded %d", m.strs.Get(tenant), of[tenant], n)
		}
	}
	if n := m.checkpointSlots.Len(); n != found || n > MaxCheckpoints || n > 0 && m.Level() < LevelPlacement {
		return fmt.Errorf("of %d checkpoints %d are a task's, at level %d", n, found, m.Level())
	}
	return nil
}
