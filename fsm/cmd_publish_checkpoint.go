package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// PublishCheckpoint makes a stored checkpoint its task's newest: compare-and-set
// with the fencing token of the task's lease and the number of the checkpoint
// that it follows. It is idempotent: what is the newest already, by this lease and
// after the same one, is answered again.
//
// Rejected: Conflict when the lease is not the task's live one, belongs to another
// node or incarnation, or was granted before the region was restored from a backup
// (an event tells of it, if the lease was one of the task); PreconditionFailed when the task's newest checkpoint is
// not After, or below LevelPlacement; InvalidSpec beyond the limits of
// gpuai.Publish; RateLimited where a task would have more than before at
// MaxCheckpoints, or its tenant at MaxTenantCheckpoints. None changes anything.
type PublishCheckpoint struct {
	Node    gpuai.NodeID
	Publish gpuai.Publish
}

// Append appends the encoded command to dst.
func (c *PublishCheckpoint) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typePublishCheckpoint, env, func(b []byte) []byte {
		p := &c.Publish
		b = append(wire.AppendStr(b, string(c.Node)), p.Task.Job[:]...)
		b = le.AppendUint16(b, p.Task.Group)
		b = le.AppendUint32(b, p.Task.Task)
		b = le.AppendUint64(b, uint64(p.Lease))
		b = le.AppendUint64(b, uint64(p.Incarnation))
		b = le.AppendUint64(b, p.After)
		b = append(b, p.Digest[:]...)
		b = put64(b, int64(p.Bytes))
		b = le.AppendUint64(b, p.Step)
		return le.AppendUint32(b, p.Keep)
	})
}

func readPublish(r *wire.Reader) (c PublishCheckpoint, ok bool) {
	c.Node = gpuai.NodeID(r.Str())
	p := &c.Publish
	copy(p.Task.Job[:], r.Bytes(len(p.Task.Job)))
	p.Task.Group = r.U16()
	p.Task.Task = r.U32()
	p.Lease = gpuai.Token(r.U64())
	p.Incarnation = gpuai.Incarnation(r.U64())
	p.After = r.U64()
	copy(p.Digest[:], r.Bytes(len(p.Digest)))
	p.Bytes = gpuai.Bytes(r.I64())
	p.Step = r.U64()
	p.Keep = r.U32()
	return c, r.Done() == nil && p.Valid()
}

func (m *Machine) applyPublishCheckpoint(r *wire.Reader) Result {
	c, ok := readPublish(r)
	if !ok {
		return malformed
	}
	if m.Level() < LevelPlacement {
		return rejected(gpuai.PreconditionFailed, "the region is below feature level 3, which brings checkpoints: upgrade all its servers")
	}
	p := &c.Publish
	slot, why := m.publisher(&c)
	if why != "" {
		m.refusedPublish(&c)
		return rejected(gpuai.Conflict, why)
	}
	task := m.leases.Get(slot).task
	newest, seq := m.newestCheckpoint(task.slot()), uint64(0)
	if newest != 0 {
		last := m.checkpoints.Get(newest.slot())
		if seq = last.seq; last.token == p.Lease && last.digest == p.Digest && seq == p.After+1 {
			return Result{} // a repeated publish, answered again
		}
	}
	if seq != p.After {
		m.refusedPublish(&c)
		return rejected(gpuai.PreconditionFailed, "another checkpoint of the task was published meanwhile")
	}
	keep := min(p.Keep, m.keepOf(task.slot()))
	if res := m.roomForCheckpoint(task.slot(), newest, keep); res.Code != gpuai.OK {
		return res
	}
	m.addCheckpoint(newest, checkpointRec{
		task: task, seq: seq + 1, token: p.Lease, at: m.now.time, bytes: int64(p.Bytes), step: p.Step, digest: p.Digest,
	}, keep)
	m.now.work -= workEnd
	e := m.leaseEvent(gpuai.CheckpointPublished, slot)
	e.Checkpoint = seq + 1
	m.emit(e)
	return Result{}
}

// keepOf returns how many checkpoints of a task its job wants to be kept.
func (m *Machine) keepOf(task uint32) uint32 {
	g := m.groups.Get(m.tasks.Get(task).group.slot())
	var v wire.JobView
	if wire.ReadJobView(m.blobs.Append(nil, uint32(m.jobs.Get(g.job.slot()).spec)), &v) != nil || g.idx >= v.NumGroups {
		return gpuai.DefaultCheckpointKeep // written by us: cannot be
	}
	return v.Groups[g.idx].Checkpoint.Kept()
}

// roomForCheckpoint reports whether a task may have one more, of which keep are
// kept: one that replaces another takes no room.
func (m *Machine) roomForCheckpoint(task uint32, newest ref, keep uint32) Result {
	has := uint32(0)
	for c := newest; c != 0 && has < keep; c = m.checkpoints.Get(c.slot()).older {
		has++
	}
	switch {
	case has >= keep:
	case m.checkpointSlots.Len() >= MaxCheckpoints:
		return rejected(gpuai.RateLimited, "the region keeps its maximum of checkpoints: retire jobs, or keep fewer of each task")
	case *m.checkpointsBy(task) >= MaxTenantCheckpoints:
		return rejected(gpuai.RateLimited, "the region keeps as many checkpoints of this tenant as it may have: retire jobs, or keep fewer of each task")
	}
	return Result{}
}

// publisher returns the live lease that may publish, or why there is none.
func (m *Machine) publisher(c *PublishCheckpoint) (slot uint32, why string) {
	p := &c.Publish
	if p.Lease.Epoch() < m.Epoch() {
		return 0, "the lease is void: it was granted before the region was restored from a backup"
	}
	slot, ok := m.leaseSlot(p.Lease)
	if !ok || !m.leases.Get(slot).live() {
		return 0, "the lease has ended: its task runs elsewhere, or will"
	}
	l := m.leases.Get(slot)
	switch {
	case m.nodeName(l.node) != c.Node || l.incarnation != p.Incarnation:
		return 0, "the lease belongs to another incarnation or node"
	case m.taskRef(l.task.slot()) != p.Task:
		return 0, "the lease is of another task"
	}
	return slot, ""
}

// refusedPublish tells of a publish that came from a stale runner. What names a
// lease that the task never had, or that is another node's, tells nothing: any
// node could write such into the events of any job.
func (m *Machine) refusedPublish(c *PublishCheckpoint) {
	p := &c.Publish
	if m.wasRunner(c) {
		m.emit(gpuai.Event{
			Kind: gpuai.CheckpointRefused, Job: p.Task.Job, Group: p.Task.Group, Task: p.Task.Task,
			Lease: p.Lease, Node: c.Node, Incarnation: p.Incarnation, Checkpoint: p.After + 1,
		})
	}
}

// wasRunner reports whether a publish's lease is or was one of its task: one that
// is kept and of its node, or under which a checkpoint was published that is kept.
func (m *Machine) wasRunner(c *PublishCheckpoint) bool {
	p := &c.Publish
	if slot, ok := m.leaseSlot(p.Lease); ok {
		l := m.leases.Get(slot)
		return m.nodeName(l.node) == c.Node && m.taskRef(l.task.slot()) == p.Task
	}
	task, ok := m.findTask(&p.Task)
	if !ok {
		return false
	}
	for n := m.newestCheckpoint(task); n != 0; n = m.checkpoints.Get(n.slot()).older {
		if m.checkpoints.Get(n.slot()).token == p.Lease {
			return true
		}
	}
	return false
}

// taskRef returns what a task's record is of.
func (m *Machine) taskRef(task uint32) gpuai.TaskRef {
	t := m.tasks.Get(task)
	g := m.groups.Get(t.group.slot())
	return gpuai.TaskRef{Job: m.jobs.Get(g.job.slot()).id, Group: uint16(g.idx), Task: t.idx}
}

// findTask returns the record of a task that is among the first MaxScan of its
// group: they are a list.
func (m *Machine) findTask(of *gpuai.TaskRef) (task uint32, ok bool) {
	job, ok := m.jobSlot(of.Job)
	if !ok || of.Task >= MaxScan {
		return 0, false
	}
	g := m.jobs.Get(job).group
	for g != 0 && uint16(m.groups.Get(g.slot()).idx) != of.Group {
		g = m.groups.Get(g.slot()).next
	}
	if g == 0 {
		return 0, false
	}
	t := m.groups.Get(g.slot()).first
	for n := 0; t != 0 && n < MaxScan; n++ {
		m.now.work -= workLook
		if m.tasks.Get(t.slot()).idx == of.Task {
			return t.slot(), true
		}
		t = m.tasks.Get(t.slot()).next
	}
	return 0, false
}
