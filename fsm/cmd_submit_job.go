package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// SubmitJob stores a job and places as many of its tasks as fit, in one step.
//
// Result: OK with Job, Tasks and Leased.
//
// Rejected, and nothing is stored: InvalidSpec, also for a tenant that does not
// exist, if TenantExists; Unschedulable when no
// registered node could ever run a task of it, unless HoldAnyway; Conflict when
// the ID is taken; RateLimited or TooLarge at a limit of the machine.
type SubmitJob struct {
	ID         gpuai.JobID
	Spec       *gpuai.JobSpec // after Defaults and Validate
	HoldAnyway bool
	// TenantExists refuses a job whose tenant was not created (see CreateTenant);
	// from LevelTenants on.
	TenantExists bool
}

// Append appends the encoded command to dst.
func (c *SubmitJob) Append(dst []byte, env Envelope) []byte {
	dst, at := wire.BeginCommand(dst, typeSubmitJob, 1, string(env.Tenant), env.Actor, env.Key)
	dst = append(dst, c.ID[:]...)
	dst = append(dst, bool8(c.HoldAnyway)|bool8(c.TenantExists)<<1)
	dst = wire.AppendJobSpec(dst, c.Spec)
	return wire.EndCommand(dst, at)
}

const submitHeader = len(gpuai.JobID{}) + 1

func (m *Machine) applySubmitJob(c *wire.Command) Result {
	most := uint8(1)
	if m.Level() >= LevelTenants {
		most = 3
	}
	if len(c.Body) < submitHeader || c.Body[submitHeader-1] > most {
		return malformed
	}
	id, hold, spec := gpuai.JobID(c.Body[:16]), c.Body[16]&1 != 0, c.Body[submitHeader:]
	v := &m.view
	if err := wire.ReadJobView(spec, v); err != nil || id.IsZero() || v.Extended && m.Level() < LevelPlacement || wantsSecrets(v) && m.Level() < LevelTenants {
		return rejected(gpuai.InvalidSpec, "the job is invalid")
	}
	if c.Body[16]&2 != 0 && !m.tenantExists(v.Tenant) {
		return rejected(gpuai.InvalidSpec, "this tenant does not exist: an operator creates it with gpuai tenant create")
	}
	if _, taken := m.jobSlot(id); taken {
		return rejected(gpuai.Conflict, "this job ID is taken")
	}
	if res := m.room(v, len(spec)); res.Code != gpuai.OK {
		return res
	}
	if res := m.knownSecrets(v); res.Code != gpuai.OK {
		return res
	}
	if res := m.knownAfter(v); res.Code != gpuai.OK {
		return res
	}
	slot := m.storeJob(id, v, spec)
	if res := m.storeGroups(slot, v, hold); res.Code != gpuai.OK {
		m.takeBack()
		return res
	}
	m.linkJob(slot)
	m.emit(gpuai.Event{Kind: gpuai.JobSubmitted, Job: id})
	m.now.submitted = slot
	if m.hold(slot, v) {
		return Result{Job: id, Tasks: m.jobs.Get(slot).tasks}
	}
	m.limitQueueTime(slot, v)
	for g := m.jobs.Get(slot).group; g != 0; g = m.groups.Get(g.slot()).next {
		m.enqueue(g.slot(), 0)
	}
	return Result{Job: id, Tasks: m.jobs.Get(slot).tasks}
}

// room reports whether the machine has room for a job.
func (m *Machine) room(v *wire.JobView, spec int) Result {
	groups := uint32(v.NumGroups)
	var tasks uint64
	for i := range v.Groups[:v.NumGroups] {
		tasks += uint64(v.Groups[i].Count)
	}
	switch {
	case tasks > gpuai.MaxTasks:
		return rejected(gpuai.InvalidSpec, "the job has too many tasks")
	case m.jobSlots.Len() >= MaxJobs || m.groupSlots.Len()+groups > MaxGroupRecs:
		return rejected(gpuai.RateLimited, "the region keeps its maximum of jobs: retry later")
	case m.bucketSlots.Len()+groups > MaxBuckets:
		return rejected(gpuai.RateLimited, "too many different requests wait: retry later")
	case m.pendingFull(v.Tenant):
		return rejected(gpuai.QuotaExceeded, "as many jobs of this tenant wait as its quota lets: submit again when some have started or ended")
	case !m.blobs.Room(spec, MaxBlocks):
		return rejected(gpuai.RateLimited, "the region's memory for job specs is full: retry later")
	case m.strs.Len() >= MaxStrings:
		return rejected(gpuai.TooLarge, "the region knows too many names")
	case m.Level() >= LevelPlacement && m.tenants.Len() >= MaxTenants && !m.knownTenant(v.Tenant):
		return rejected(gpuai.TooLarge, "the region knows its maximum of tenants")
	}
	return Result{}
}

// storeJob writes the job's own record.
func (m *Machine) storeJob(id gpuai.JobID, v *wire.JobView, spec []byte) uint32 {
	slot, _ := m.jobSlots.Alloc()
	meta := m.meta.Mut()
	meta.seq++
	meta.jobStates[gpuai.JobPending]++
	p := m.policy.Get()
	r := jobRec{
		id: id, seq: meta.seq, spec: ref(m.blobs.Put(spec)), specHash: hashOf(spec),
		nameHash: mem.HashBytes(3, v.Name), submitIndex: m.now.index, modified: m.now.index,
		submittedAt: m.now.time, submitTime: m.now.wall, runTime: gpuai.Duration(v.RunTime),
		ttl: uint32(v.LeaseTTL), array: v.ArraySize, tenant: m.strs.InternBytes(v.Tenant),
		class: gpuai.Class(v.Class), priority: gpuai.Priority(v.Priority), kind: gpuai.JobType(v.Type),
		openGroups: v.NumGroups,
	}
	if r.priority == 0 {
		r.priority = p.PriorityOf(r.class)
	}
	if m.Level() >= LevelPlacement {
		r.preemptible = v.Preemptible == wire.SaidYes || v.Preemptible == wire.SaidNothing && p.Preemptible(r.class)
	}
	m.jobs.Put(slot, r)
	m.tallies.recs.Mut(m.tallies.slot(r.tenant)).status(gpuai.JobPending, 1)
	return slot
}

// limitQueueTime starts the clock of a job that is let into the queue.
func (m *Machine) limitQueueTime(job uint32, v *wire.JobView) {
	if v.QueueTime > 0 {
		j := m.jobs.Mut(job)
		j.queueUntil = m.now.time.Add(gpuai.Duration(v.QueueTime))
		m.timers.set(j.queueUntil, timerJob, job)
	}
}

// storeGroups writes the records of the job's groups.
func (m *Machine) storeGroups(job uint32, v *wire.JobView, hold bool) Result {
	var prev ref
	for i := range v.Groups[:v.NumGroups] {
		g := &v.Groups[i]
		shape, res := m.shapeOf(g)
		if res.Code != gpuai.OK {
			return res
		}
		if !hold && m.nodes.Len() > 0 && !m.canEver(shape, g, v) {
			return unschedulable
		}
		m.sched.RetainShape(shape)
		m.arrived(shape, g.Count)
		slot, _ := m.groupSlots.Alloc()
		m.groups.Put(slot, groupRec{
			job: refTo(job), shape: shape, count: g.Count, gpus: m.gpusOf(shape),
			backoff: uint32(g.Backoff), tries: uint16(g.Attempts), on: gpuai.RestartOn(g.On),
			idx: uint8(i), gang: g.Gang,
		})
		m.placeAs(slot, g, v)
		j := m.jobs.Mut(job)
		if j.tasks += g.Count; prev == 0 {
			j.group = refTo(slot)
		} else {
			m.groups.Mut(prev.slot()).next = refTo(slot)
		}
		prev = refTo(slot)
		m.meta.Mut().pending += uint64(g.Count)
	}
	if v.Together && !hold && m.nodes.Len() > 0 && !m.togetherEver(job) {
		return unschedulable
	}
	return m.joinKinds(job)
}

var unschedulable = rejected(gpuai.Unschedulable, "no registered node can ever run this: see the reasons, or submit with hold_anyway to wait for one")

// shapeOf returns the number of a group's needs.
func (m *Machine) shapeOf(g *wire.GroupView) (scheduler.ShapeID, Result) {
	if id, ok := m.sched.FindShape(g.Shape); ok {
		return id, Result{}
	}
	needs, constraints, err := wire.ReadShape(g.Shape)
	if err != nil {
		return 0, rejected(gpuai.InvalidSpec, "the job's needs are invalid")
	}
	id, code := m.sched.AddShape(g.Shape, needs, constraints)
	if code != gpuai.OK {
		return 0, rejected(code, "too many different requests are known: retry later")
	}
	return id, Result{}
}

// canEver reports whether the registered nodes, empty and healthy, could run a
// group: one task, or as many of a gang as are enough.
func (m *Machine) canEver(shape scheduler.ShapeID, g *wire.GroupView, v *wire.JobView) bool {
	if !g.Gang {
		return m.sched.CanEver(shape)
	}
	least := g.Count
	if g.MinCount != 0 {
		least = g.MinCount
	}
	one := [1]scheduler.Members{{Shape: shape, Count: g.Count, Min: least}}
	return m.sched.EverHolds(gpuai.Topology(v.Same), one[:])
}

// gpusOf returns how many devices a task of a shape asks for.
func (m *Machine) gpusOf(shape scheduler.ShapeID) uint32 {
	_, _, n := m.sched.Demand(shape)
	return n
}
