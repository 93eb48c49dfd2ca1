package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A waitRec is what a job has that waits for a time or for other jobs, whose
// array is throttled, or that others wait for. Most jobs have none.
type waitRec struct {
	job      ref
	beginAt  gpuai.Instant // before it nothing is placed; 0: no such time, or it is over
	since    gpuai.Instant // when the job was let into the queue
	place    uint64        // its place in the queue when that is not the order of submits
	parallel uint32        // leases of the array at a time; 0: no bound
	after    ref           // first edge from the job to one that it waits for
	onStart  ref           // first edge to the job of those that wait for its start
	onEnd    ref           // the same, for its end
	edges    uint8         // from the job
	held     bool          // it is not in the queue yet
}

func (r *waitRec) put(b []byte) []byte {
	b = r.job.put(b)
	b = put64(b, int64(r.beginAt))
	b = put64(b, int64(r.since))
	b = le.AppendUint64(b, r.place)
	b = le.AppendUint32(b, r.parallel)
	b = r.after.put(b)
	b = r.onStart.put(b)
	b = r.onEnd.put(b)
	return append(b, r.edges, bool8(r.held))
}

func (r *waitRec) get(rd *wire.Reader) {
	r.job = ref(rd.U32())
	r.beginAt = gpuai.Instant(rd.I64())
	r.since = gpuai.Instant(rd.I64())
	r.place = rd.U64()
	r.parallel = rd.U32()
	r.after = ref(rd.U32())
	r.onStart = ref(rd.U32())
	r.onEnd = ref(rd.U32())
	r.edges = rd.U8()
	r.held = rd.U8() != 0
}

// An edgeRec says that one job waits for another.
type edgeRec struct {
	from ref // job that waits
	to   ref // job that it waits for
	more ref // next edge from the same job
	next ref // next edge in the list of the other
	prev ref
	on   gpuai.Stage
}

func (r *edgeRec) put(b []byte) []byte {
	for _, x := range [...]ref{r.from, r.to, r.more, r.next, r.prev} {
		b = x.put(b)
	}
	return append(b, uint8(r.on))
}

func (r *edgeRec) get(rd *wire.Reader) {
	for _, x := range [...]*ref{&r.from, &r.to, &r.more, &r.next, &r.prev} {
		*x = ref(rd.U32())
	}
	r.on = gpuai.Stage(rd.U8())
}

// list returns the list of r that an edge of a stage is in.
func (r *waitRec) list(on gpuai.Stage) *ref {
	if on == gpuai.StageStarted {
		return &r.onStart
	}
	return &r.onEnd
}

// waitOf returns what a job has, for reading.
func (m *Machine) waitOf(j *jobRec) (w waitRec) {
	if j.wait != 0 {
		w = *m.waits.Get(j.wait.slot())
	}
	return w
}

// waitFor returns a job's waitRec for writing; it makes one when there is none.
func (m *Machine) waitFor(job uint32) *waitRec {
	if w := m.jobs.Get(job).wait; w != 0 {
		return m.waits.Mut(w.slot())
	}
	slot, _ := m.waitSlots.Alloc() // no more than jobs, whose limit is below that of slots
	m.waits.Put(slot, waitRec{job: refTo(job)})
	m.jobs.Mut(job).wait = refTo(slot)
	return m.waits.Mut(slot)
}

// place is a job's place in the queue: by when it was let in.
func (m *Machine) place(j *jobRec) uint64 {
	if p := m.waitOf(j).place; p != 0 {
		return p
	}
	return j.seq
}

// since is when a job was let into the queue.
func (m *Machine) since(j *jobRec) gpuai.Instant { return max(j.submittedAt, m.waitOf(j).since) }

// throttled reports whether a job's array has as many leases as it may.
func (m *Machine) throttled(j *jobRec) bool {
	w := m.waitOf(j)
	return w.parallel > 0 && j.live >= w.parallel
}

// knownAfter reports whether every job that a spec waits for is here and its
// tenant's. An ID must exist to be named, so that no cycle can come about.
func (m *Machine) knownAfter(v *wire.JobView) Result {
	if m.edgeSlots.Len()+uint32(v.NumAfter) > MaxEdges {
		return rejected(gpuai.RateLimited, "too many jobs wait for others: retry later")
	}
	for i := range v.After[:v.NumAfter] {
		slot, ok := m.jobSlot(v.After[i].Job)
		if !ok || m.strs.Get(m.jobs.Get(slot).tenant) != string(v.Tenant) {
			return rejected(gpuai.InvalidSpec, "a job in after is not known here: the ID is wrong, or the job ended long ago and was retired; leave it out, or name one that the region still keeps")
		}
	}
	return Result{}
}

// hold keeps a new job out of the queue when its spec says so, and notes the
// bound of its array. It reports whether the job is kept out.
func (m *Machine) hold(job uint32, v *wire.JobView) bool {
	wait := gpuai.Duration(v.Begin) - gpuai.Duration(m.now.wall)
	begins := v.Begin > 0 && wait > 0
	if !begins && v.NumAfter == 0 && v.MaxParallel == 0 {
		return false
	}
	w := m.waitFor(job)
	w.parallel = v.MaxParallel
	w.held = begins || v.NumAfter > 0
	if begins {
		w.beginAt = max(m.now.time.Add(min(wait, gpuai.MaxDuration)), 1)
		m.timers.set(w.beginAt, timerBegin, job)
	}
	for i := range v.After[:v.NumAfter] {
		to, _ := m.jobSlot(v.After[i].Job)
		m.addEdge(job, to, v.After[i].On)
	}
	return begins || v.NumAfter > 0
}

// addEdge has a job wait for another. One whose stage has passed already is
// settled with the others, by settle.
func (m *Machine) addEdge(from, to uint32, on gpuai.Stage) {
	slot, _ := m.edgeSlots.Alloc()
	target := m.waitFor(to)
	list := target.list(on)
	e := edgeRec{from: refTo(from), to: refTo(to), next: *list, on: on}
	if e.next != 0 {
		m.edges.Mut(e.next.slot()).prev = refTo(slot)
	}
	*list = refTo(slot)
	w := m.waitFor(from)
	e.more, w.after = w.after, refTo(slot)
	w.edges++
	m.edges.Put(slot, e)
	m.tell(to)
}

// dropEdge forgets that a job waits for another.
func (m *Machine) dropEdge(slot uint32) {
	e := *m.edges.Get(slot)
	to := m.waitFor(e.to.slot())
	if e.prev != 0 {
		m.edges.Mut(e.prev.slot()).next = e.next
	} else {
		*to.list(e.on) = e.next
	}
	if e.next != 0 {
		m.edges.Mut(e.next.slot()).prev = e.prev
	}
	w := m.waitFor(e.from.slot())
	w.edges--
	if w.after == refTo(slot) {
		w.after = e.more
	} else {
		at := w.after // one of at most MaxAfter
		for m.edges.Get(at.slot()).more != refTo(slot) {
			at = m.edges.Get(at.slot()).more
		}
		m.edges.Mut(at.slot()).more = e.more
	}
	*m.edges.Mut(slot) = edgeRec{}
	m.edgeSlots.Free(slot)
}

// release ends all that keeps a job out of the queue: it is let in, or it ends.
func (m *Machine) release(job uint32) {
	if !m.waitOf(m.jobs.Get(job)).held {
		return
	}
	w := m.waitFor(job)
	w.held, w.beginAt = false, 0
	for w.after != 0 {
		m.dropEdge(w.after.slot())
	}
}

// letIn puts a job into the queue that nothing keeps out any more. It stands
// behind all that are there: what it waited for is no time in the queue.
func (m *Machine) letIn(job uint32) {
	if w := m.waitOf(m.jobs.Get(job)); !w.held || w.edges > 0 || w.beginAt != 0 {
		return
	}
	m.release(job)
	meta, w, j := m.meta.Mut(), m.waitFor(job), m.jobs.Mut(job)
	meta.seq++
	w.place, w.since = meta.seq, max(m.now.time, 1)
	var v wire.JobView
	raw := m.blobs.Append(nil, uint32(j.spec))
	if wire.ReadJobView(raw, &v) == nil {
		m.limitQueueTime(job, &v)
	}
	for g := j.group; g != 0; g = m.groups.Get(g.slot()).next {
		m.enqueue(g.slot(), 0)
	}
}

// beginOver lets a job in whose time to begin has come.
func (m *Machine) beginOver(job uint32) {
	m.waitFor(job).beginAt = 0
	m.letIn(job)
}

// unthrottle has an array tried again, or puts it back into the queue, that may
// have one more lease.
func (m *Machine) unthrottle(job uint32) {
	j := m.jobs.Get(job)
	if m.waitOf(j).parallel == 0 || m.throttled(j) {
		return
	}
	if g := m.groups.Get(j.group.slot()); g.ready() > 0 && !g.ended {
		m.enqueue(j.group.slot(), 0)
	}
}

// due returns an edge to a job that can be settled: its stage has passed, or
// cannot come any more.
func (m *Machine) due(job uint32) ref {
	j := m.jobs.Get(job)
	w := m.waitOf(j)
	switch {
	case w.onStart != 0 && (j.startedAt != 0 || j.status.Final()):
		return w.onStart
	case j.status.Final():
		return w.onEnd
	default:
		return 0
	}
}

// tell has settle look at a job that others wait for.
func (m *Machine) tell(job uint32) {
	if m.due(job) != 0 {
		m.news.Set(job)
	}
}

// settle tells jobs what became of those that they wait for, within the entry's
// budget: a job may have any number that wait for it, and each that ends may
// have others.
func (m *Machine) settle() {
	for m.now.work > 0 {
		job, ok := m.news.Next(0)
		if !ok {
			return
		}
		e := m.due(job)
		if e == 0 {
			m.news.Clear(job)
			continue
		}
		m.now.work -= workEnd
		m.settleEdge(e.slot())
	}
}

func (m *Machine) settleEdge(slot uint32) {
	e := *m.edges.Get(slot)
	to := m.jobs.Get(e.to.slot())
	m.dropEdge(slot)
	from := e.from.slot()
	if stagePassed(e.on, to) {
		m.letIn(from)
		return
	}
	m.jobs.Mut(from).reason = endDependency
	m.stopJob(from)
}

// stagePassed reports whether a job that has started or ended passed a stage.
func stagePassed(on gpuai.Stage, j *jobRec) bool {
	switch on {
	case gpuai.StageStarted:
		return j.startedAt != 0
	case gpuai.StageSucceeded:
		return j.status == gpuai.JobSucceeded
	case gpuai.StageFailed:
		return j.status != gpuai.JobSucceeded
	default:
		return true
	}
}

// dropWait forgets what a job had, when it leaves the machine.
func (m *Machine) dropWait(j *jobRec) {
	if j.wait != 0 {
		*m.waits.Mut(j.wait.slot()) = waitRec{}
		m.waitSlots.Free(j.wait.slot())
	}
}

// reasonsHeld says what keeps a job, or the rest of an array, out of the queue.
func (m *Machine) reasonsHeld(job uint32) []gpuai.Reason {
	j := m.jobs.Get(job)
	w := m.waitOf(j)
	var out []gpuai.Reason
	if w.beginAt != 0 {
		out = append(out, gpuai.Reason{Code: gpuai.BeginTime, Message: fmt.Sprintf("its time to begin comes in %s", gpuai.Duration(max(w.beginAt-m.Time(), 0)))})
	}
	for e := w.after; e != 0; e = m.edges.Get(e.slot()).more {
		x := m.edges.Get(e.slot())
		to := m.jobs.Get(x.to.slot())
		out = append(out, gpuai.Reason{
			Code: gpuai.Dependency, Message: fmt.Sprintf("it waits until job %s has %s; that job is %s", to.id, x.on, to.status),
			Fix: "gpuai job explain " + to.id.String(),
		})
	}
	if !w.held && m.throttled(j) {
		out = append(out, gpuai.Reason{Code: gpuai.ArrayThrottled, Message: fmt.Sprintf("%d elements of the array hold a lease, which is all that max_parallel lets it have at a time", j.live)})
	}
	return out
}
