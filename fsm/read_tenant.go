package fsm

import (
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// FindJobOf is FindJob among the jobs of a tenant; "" is all. Another's job is as
// unknown as none: the error is the same.
func (m *Machine) FindJobOf(ref string, tenant gpuai.TenantID) (gpuai.JobID, error) {
	if tenant == "" {
		return m.FindJob(ref)
	}
	of, known := m.strs.Find(string(tenant))
	mine := func(slot uint32) bool { return known && m.jobs.Get(slot).tenant == of }
	if id, err := gpuai.ParseJobID(ref); err == nil {
		if slot, ok := m.jobSlot(id); ok && mine(slot) {
			return id, nil
		}
	}
	if id, ok := m.ownJobByName(ref, mine); ok {
		return id, nil
	}
	prefix := strings.ToUpper(ref)
	var found gpuai.JobID
	n := 0
	for j := m.meta.Get().newest; j != 0 && n < MaxScan && len(prefix) >= 4; n++ {
		r := m.jobs.Get(j.slot())
		if mine(j.slot()) && strings.HasPrefix(r.id.String(), prefix) {
			if !found.IsZero() {
				return gpuai.JobID{}, gpuai.NewError(gpuai.Conflict, "several jobs begin with "+prefix+": give more of the ID")
			}
			found = r.id
		}
		j = r.older
	}
	if found.IsZero() {
		return found, gpuai.NewError(gpuai.NotFound, "no job is called, or begins with, "+ref)
	}
	return found, nil
}

// ownJobByName returns the newest job of a name that is wanted, of the newest
// MaxScan of that name.
func (m *Machine) ownJobByName(name string, want func(slot uint32) bool) (gpuai.JobID, bool) {
	h := mem.HashBytes(3, []byte(name))
	slot, ok := m.jobByName.Find(h, func(s uint32) bool { return m.jobs.Get(s).nameHash == h })
	if !ok {
		return gpuai.JobID{}, false
	}
	var v wire.JobView
	n := 0
	for at := refTo(slot); at != 0 && n < MaxScan; n++ {
		r := m.jobs.Get(at.slot())
		if want(at.slot()) && wire.ReadJobView(m.blobs.Append(nil, uint32(r.spec)), &v) == nil && string(v.Name) == name {
			return r.id, true
		}
		at = r.sameOlder
	}
	return gpuai.JobID{}, false
}

// TenantOf returns the tenant of a kept job.
func (m *Machine) TenantOf(id gpuai.JobID) (gpuai.TenantID, bool) {
	slot, ok := m.jobSlot(id)
	if !ok {
		return "", false
	}
	return gpuai.TenantID(m.strs.Get(m.jobs.Get(slot).tenant)), true
}

// JobsOf is Jobs of a tenant; "" is all.
func (m *Machine) JobsOf(tenant gpuai.TenantID, after JobCursor, limit int, status *gpuai.JobStatus) (page []gpuai.Job, last JobCursor) {
	if tenant == "" {
		return m.Jobs(after, limit, status)
	}
	of, known := m.strs.Find(string(tenant))
	at := m.behind(after)
	scanned := 0
	for last = after; at != 0 && known; {
		r := m.jobs.Get(at.slot())
		if r.seq < after.Seq || after.Seq == 0 {
			if len(page) == limit {
				return page, last
			}
			if r.tenant == of && (status == nil || r.status == *status) {
				page = append(page, m.job(at.slot(), false))
			}
			last.Seq = r.seq
		}
		last.Slot, at = at.slot(), r.older
		if scanned++; scanned == MaxScan && at != 0 {
			return page, last
		}
	}
	return page, JobCursor{}
}

// LeasesOf is Leases of a tenant; "" is all.
func (m *Machine) LeasesOf(tenant gpuai.TenantID, from uint32, limit int, liveOnly bool) (page []gpuai.Lease, next uint32) {
	if tenant == "" {
		return m.Leases(from, limit, liveOnly)
	}
	of, known := m.strs.Find(string(tenant))
	for n := 0; n < MaxScan && len(page) < limit; n++ {
		slot, ok := m.leaseSlots.Next(from)
		if !ok || !known {
			return page, 0
		}
		if l := m.leases.Get(slot); m.tenantOfLease(l) == of && (!liveOnly || l.live()) {
			page = append(page, m.lease(slot))
		}
		from = slot + 1
	}
	return page, from
}

// NodesOf returns the nodes of a contributor in the order of their registration, from
// the from-th node of all on: at most limit, of at most MaxScan looked at. next is
// where to go on; 0 at the end.
func (m *Machine) NodesOf(owner gpuai.ContributorID, from uint32, limit int) (page []gpuai.Node, next uint32) {
	of, known := m.strs.Find(string(owner))
	for n := 0; n < MaxScan && len(page) < limit; n++ {
		if from >= m.nodes.Len() || !known || owner == "" {
			return page, 0
		}
		if m.nodes.Get(from).owner == of {
			page = append(page, m.node(from))
		}
		from++
	}
	return page, from
}

// AnswerTo has m's answers name the jobs of a tenant only; "" is all. It is for
// forks: whoever asks has it set for the question.
func (m *Machine) AnswerTo(tenant gpuai.TenantID) { m.asker = tenant }

// tells reports whether whoever asks may know of a job.
func (m *Machine) tells(id gpuai.JobID) bool {
	if m.asker == "" {
		return true
	}
	tenant, ok := m.TenantOf(id)
	return ok && tenant == m.asker
}

// anothers stands for the name of a job that the one who asks may not know.
const anothers = "another tenant's job"

// discreet takes what whoever asks may not know from a place in the queue.
func (m *Machine) discreet(e *gpuai.QueueEntry) {
	if !m.tells(e.Job) {
		e.Job, e.Name, e.Tenant = gpuai.JobID{}, anothers, ""
	}
}

// QueueFor is Queue, naming jobs of a tenant only; "" is all.
func (m *Machine) QueueFor(tenant gpuai.TenantID) gpuai.QueueStatus {
	q := m.Queue()
	for i := range q.Shapes {
		if of, ok := m.TenantOf(q.Shapes[i].Oldest); tenant != "" && (!ok || of != tenant) {
			q.Shapes[i].Oldest = gpuai.JobID{}
		}
	}
	return q
}
