package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// An endReason is why a job ended otherwise than by success.
type endReason uint8

const (
	endNone endReason = iota
	endStopped
	endQueueTime
	endTaskFailed
	endTaskLost
	endRunTime
	endDependency
)

var endReasons = [...]string{
	"", "stopped by its user", "not started within its queue-time limit",
	"a task failed", "a task was lost and its restarts are used up",
	"a task ran longer than the run-time limit",
	"a job that it waited for did not do what it waited for",
}

// A jobRec is a submitted job.
type jobRec struct {
	id          gpuai.JobID
	seq         uint64 // order of submits
	spec        ref    // blob, local
	specHash    uint64
	nameHash    uint64
	submitIndex uint64
	modified    uint64
	submittedAt gpuai.Instant
	startedAt   gpuai.Instant
	endedAt     gpuai.Instant
	submitTime  gpuai.WallTime
	queueUntil  gpuai.Instant // 0: no limit
	runTime     gpuai.Duration
	ttl         uint32 // ms; 0: the class's
	array       uint32
	tenant      uint32 // string number
	group       ref    // first
	timer       uint32 // derived
	tasks       uint32
	live        uint32 // leases
	restarts    uint32
	older       ref // submitted before
	newer       ref
	sameOlder   ref // of the same name hash
	sameNewer   ref
	openGroups  uint8 // groups that have not ended
	class       gpuai.Class
	priority    gpuai.Priority
	kind        gpuai.JobType
	status      gpuai.JobStatus
	reason      endReason
	stopping    bool
	wait        ref  // what keeps it out of the queue, or others that wait for it
	preemptible bool // it gives its room up; only for jobs of feature level 3
	// What follows is zero below LevelTenants.
	heldTime uint64       // device time of its leases that have ended
	billed   gpuai.Micros // fees included
}

// jobPreemptible is set in the byte of a job's stopping.
const jobPreemptible = 1 << 2

// jobCost is set there, too: what the job has cost follows.
const jobCost = 1 << 3

func (r *jobRec) put(b []byte) []byte {
	b = append(b, r.id[:]...)
	b = le.AppendUint64(b, r.seq)
	b = le.AppendUint64(b, r.specHash)
	b = le.AppendUint64(b, r.nameHash)
	b = le.AppendUint64(b, r.submitIndex)
	b = le.AppendUint64(b, r.modified)
	b = put64(b, int64(r.submittedAt))
	b = put64(b, int64(r.startedAt))
	b = put64(b, int64(r.endedAt))
	b = put64(b, int64(r.submitTime))
	b = put64(b, int64(r.queueUntil))
	b = put64(b, int64(r.runTime))
	b = le.AppendUint32(b, r.ttl)
	b = le.AppendUint32(b, r.array)
	b = le.AppendUint32(b, r.tenant)
	b = r.group.put(b)
	b = le.AppendUint32(b, r.tasks)
	b = le.AppendUint32(b, r.live)
	b = le.AppendUint32(b, r.restarts)
	b = r.older.put(b)
	b = r.newer.put(b)
	b = r.sameOlder.put(b)
	b = r.sameNewer.put(b)
	flags := bool8(r.stopping)
	if r.wait != 0 {
		flags |= flagTail
	}
	if r.preemptible {
		flags |= jobPreemptible
	}
	costs := r.heldTime != 0 || r.billed != 0
	flags |= bool8(costs) * jobCost
	b = append(b, r.openGroups, uint8(r.class), uint8(r.priority), uint8(r.kind),
		uint8(r.status), uint8(r.reason), flags)
	if r.wait != 0 {
		b = r.wait.put(b)
	}
	if costs {
		b = put64(le.AppendUint64(b, r.heldTime), int64(r.billed))
	}
	return b
}

func (r *jobRec) get(rd *wire.Reader) {
	copy(r.id[:], rd.Bytes(16))
	r.seq = rd.U64()
	r.specHash = rd.U64()
	r.nameHash = rd.U64()
	r.submitIndex = rd.U64()
	r.modified = rd.U64()
	r.submittedAt = gpuai.Instant(rd.I64())
	r.startedAt = gpuai.Instant(rd.I64())
	r.endedAt = gpuai.Instant(rd.I64())
	r.submitTime = gpuai.WallTime(rd.I64())
	r.queueUntil = gpuai.Instant(rd.I64())
	r.runTime = gpuai.Duration(rd.I64())
	r.ttl = rd.U32()
	r.array = rd.U32()
	r.tenant = rd.U32()
	r.group = ref(rd.U32())
	r.tasks = rd.U32()
	r.live = rd.U32()
	r.restarts = rd.U32()
	r.older = ref(rd.U32())
	r.newer = ref(rd.U32())
	r.sameOlder = ref(rd.U32())
	r.sameNewer = ref(rd.U32())
	r.openGroups = rd.U8()
	r.class = gpuai.Class(rd.U8())
	r.priority = gpuai.Priority(rd.U8())
	r.kind = gpuai.JobType(rd.U8())
	r.status = gpuai.JobStatus(rd.U8())
	r.reason = endReason(rd.U8())
	flags := rd.U8()
	r.stopping, r.preemptible = flags&1 != 0, flags&jobPreemptible != 0
	if flags&flagTail != 0 {
		r.wait = ref(rd.U32())
	}
	if flags&jobCost != 0 {
		r.heldTime, r.billed = rd.U64(), gpuai.Micros(rd.I64())
	}
}

func hashJobID(id gpuai.JobID) uint64 { return mem.HashBytes(1, id[:]) }

func hashOf(b []byte) uint64 { return mem.HashBytes(2, b) }

// jobSlot returns the slot of a kept job.
func (m *Machine) jobSlot(id gpuai.JobID) (uint32, bool) {
	return m.jobByID.Find(hashJobID(id), func(s uint32) bool { return m.jobs.Get(s).id == id })
}

// linkJob puts a new job at the newest end of the lists.
func (m *Machine) linkJob(slot uint32) {
	r, meta := m.jobs.Mut(slot), m.meta.Mut()
	if r.older = meta.newest; r.older != 0 {
		m.jobs.Mut(r.older.slot()).newer = refTo(slot)
	}
	meta.newest = refTo(slot)
	h := r.nameHash
	same, ok := m.jobByName.Find(h, func(s uint32) bool { return m.jobs.Get(s).nameHash == h })
	if ok {
		r.sameOlder = refTo(same)
		m.jobs.Mut(same).sameNewer = refTo(slot)
		m.jobByName.Delete(h, same)
	}
	m.jobByName.Insert(h, slot)
	m.jobByID.Insert(hashJobID(r.id), slot)
}

// unlinkJob takes a job out of the lists.
func (m *Machine) unlinkJob(slot uint32) {
	r := *m.jobs.Get(slot)
	if r.newer != 0 {
		m.jobs.Mut(r.newer.slot()).older = r.older
	} else {
		m.meta.Mut().newest = r.older
	}
	if r.older != 0 {
		m.jobs.Mut(r.older.slot()).newer = r.newer
	}
	if r.sameOlder != 0 {
		m.jobs.Mut(r.sameOlder.slot()).sameNewer = r.sameNewer
	}
	if r.sameNewer != 0 {
		m.jobs.Mut(r.sameNewer.slot()).sameOlder = r.sameOlder
	} else {
		m.jobByName.Delete(r.nameHash, slot)
		if r.sameOlder != 0 {
			m.jobByName.Insert(r.nameHash, r.sameOlder.slot())
		}
	}
	m.jobByID.Delete(hashJobID(r.id), slot)
}

// setJobStatus moves a job to another state.
func (m *Machine) setJobStatus(slot uint32, s gpuai.JobStatus) {
	r := m.jobs.Mut(slot)
	meta := m.meta.Mut()
	meta.jobStates[r.status]--
	meta.jobStates[s]++
	m.countJob(r.tenant, r.status, s)
	r.status, r.modified = s, m.now.index
	if s == gpuai.JobRunning && r.startedAt == 0 {
		r.startedAt = max(m.now.time, 1)
		m.timers.clear(&r.timer)
	}
	m.tell(slot)
}

// job converts a record to its edge type.
func (m *Machine) job(slot uint32, withSpec bool) gpuai.Job {
	r := m.jobs.Get(slot)
	j := gpuai.Job{
		ID: r.id, Tenant: gpuai.TenantID(m.strs.Get(r.tenant)), Region: m.opts.Region,
		Status: r.status, Reason: endReasons[r.reason], Type: r.kind, Class: r.class,
		Priority: r.priority, Tasks: r.tasks, Counts: m.taskCounts(slot), Restarts: r.restarts,
		SubmitIndex: r.submitIndex, ModifyIndex: r.modified, SubmittedAt: r.submittedAt,
		SubmitTime: r.submitTime, StartedAt: r.startedAt, EndedAt: r.endedAt,
	}
	if r.stopping && !r.status.Final() {
		j.Reason = "stopping: " + j.Reason
	}
	if r.reason == endTaskFailed || r.reason == endTaskLost {
		if why := m.whyFailed(slot); why != "" {
			j.Reason += ": " + why
		}
	}
	for g := r.group; g != 0; g = m.groups.Get(g.slot()).next {
		if x := m.groups.Get(g.slot()); x.image != 0 {
			j.Images = append(j.Images, gpuai.GroupImage{Group: uint16(x.idx), Digest: m.imageOf(x)})
		}
	}
	raw := m.blobs.Append(nil, uint32(r.spec))
	if withSpec {
		j.Cost = m.cost(slot)
		if s, err := wire.ReadJobSpec(raw); err == nil {
			j.Spec, j.Name = &s, s.Name
		}
		return j
	}
	var v wire.JobView
	if wire.ReadJobView(raw, &v) == nil {
		j.Name = string(v.Name)
	}
	return j
}

// taskCounts sums the states of a job's tasks over its groups.
func (m *Machine) taskCounts(slot uint32) gpuai.TaskCounts {
	var c gpuai.TaskCounts
	for g := m.jobs.Get(slot).group; g != 0; g = m.groups.Get(g.slot()).next {
		r := m.groups.Get(g.slot())
		c.Pending += r.pending()
		c.Leased += r.n[gpuai.TaskLeased]
		c.Running += r.n[gpuai.TaskRunning]
		c.Succeeded += r.n[gpuai.TaskSucceeded]
		c.Failed += r.n[gpuai.TaskFailed]
		c.Lost += r.n[gpuai.TaskLost]
		c.Stopped += r.n[gpuai.TaskStopped]
	}
	return c
}
