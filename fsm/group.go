package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// A groupRec is a group of equal tasks. Tasks that have never had a lease have
// no record: they are the indexes from made on, and are taken in order.
type groupRec struct {
	job     ref
	next    ref // group of the job
	shape   scheduler.ShapeID
	count   uint32
	made    uint32 // tasks that have a record
	first   ref    // task, by index
	last    ref
	again   ref // first task that is to be placed again; FIFO
	againTo ref
	bucket  ref // that it waits in
	qprev   ref
	qnext   ref
	n       [gpuai.NumTaskStatus]uint32 // tasks by state; pending ones are not counted
	waiting uint32                      // tasks in their back-off
	gpus    uint32                      // whole devices a task asks for, for display
	backoff uint32                      // ms
	retryAt gpuai.Instant               // gang: end of its back-off
	timer   uint32                      // gang; derived
	tries   uint16                      // attempts allowed
	used    uint16                      // gang: attempts used
	on      gpuai.RestartOn
	idx     uint8
	gang    bool
	broken  gpuai.LeaseCause // gang: why it is being stopped
	ended   bool
	// What follows is zero below LevelPlacement.
	min      uint32 // elastic gang: it runs with no fewer; 0: not elastic
	shrinks  uint16 // elastic gang: members lost, for the back-off of its growth
	same     gpuai.Topology
	near     gpuai.Topology
	together uint8              // of a job whose groups have not started together yet
	done     bool               // elastic gang that succeeded: the tasks it did without are stopped
	stop     ref                // first task that is to be told that its job is being stopped
	image    ref                // note: the digest of its image, once a task has told it
	held     bool               // its barrier is up, see barrier.go
	joint    bool               // it waits for the other groups of its job, and they for it
	readyBy  gpuai.Instant      // held, once a member is ready: all must be by then
	unready  uint32             // held: members that are not ready; derived
	barrier  uint32             // timer of readyBy; derived
	lanes    [numLanes]laneLink // derived
	kind     ref                // until it has ended; derived
}

// Values of groupRec.together.
const (
	togetherFirst = 1 // waits for the whole job
	togetherOther = 2 // waits with the first
)

func (r *groupRec) put(b []byte) []byte {
	b = r.job.put(b)
	b = r.next.put(b)
	b = le.AppendUint32(b, uint32(r.shape))
	b = le.AppendUint32(b, r.count)
	b = le.AppendUint32(b, r.made)
	for _, x := range [...]ref{r.first, r.last, r.again, r.againTo, r.bucket, r.qprev, r.qnext} {
		b = x.put(b)
	}
	for _, x := range r.n {
		b = le.AppendUint32(b, x)
	}
	b = le.AppendUint32(b, r.waiting)
	b = le.AppendUint32(b, r.gpus)
	b = le.AppendUint32(b, r.backoff)
	b = put64(b, int64(r.retryAt))
	b = le.AppendUint16(b, r.tries)
	b = le.AppendUint16(b, r.used)
	b = append(b, uint8(r.on), r.idx, bool8(r.gang), uint8(r.broken))
	flags := bool8(r.ended)
	if r.placed() {
		flags |= flagTail
	}
	if r.image != 0 {
		flags |= groupImage
	}
	if b = append(b, flags); r.placed() {
		b = le.AppendUint32(b, r.min)
		b = le.AppendUint16(b, r.shrinks)
		b = append(b, uint8(r.same), uint8(r.near), r.together, bool8(r.done), bool8(r.held)|bool8(r.joint)<<1)
		b = r.stop.put(b)
		b = put64(b, int64(r.readyBy))
	}
	if r.image != 0 {
		b = r.image.put(b)
	}
	return b
}

// groupImage is set in the byte of a group's ended.
const groupImage = 1 << 2

// placed reports whether any field of LevelPlacement is set.
func (r *groupRec) placed() bool {
	return r.min != 0 || r.shrinks != 0 || r.same != 0 || r.near != 0 || r.together != 0 || r.done || r.stop != 0 || r.held || r.joint
}

func (r *groupRec) get(rd *wire.Reader) {
	r.job = ref(rd.U32())
	r.next = ref(rd.U32())
	r.shape = scheduler.ShapeID(rd.U32())
	r.count = rd.U32()
	r.made = rd.U32()
	for _, x := range [...]*ref{&r.first, &r.last, &r.again, &r.againTo, &r.bucket, &r.qprev, &r.qnext} {
		*x = ref(rd.U32())
	}
	for i := range r.n {
		r.n[i] = rd.U32()
	}
	r.waiting = rd.U32()
	r.gpus = rd.U32()
	r.backoff = rd.U32()
	r.retryAt = gpuai.Instant(rd.I64())
	r.tries = rd.U16()
	r.used = rd.U16()
	r.on = gpuai.RestartOn(rd.U8())
	r.idx = rd.U8()
	r.gang = rd.U8() != 0
	r.broken = gpuai.LeaseCause(rd.U8())
	flags := rd.U8()
	if r.ended = flags&1 != 0; flags&flagTail != 0 {
		r.min = rd.U32()
		r.shrinks = rd.U16()
		r.same, r.near = gpuai.Topology(rd.U8()), gpuai.Topology(rd.U8())
		r.together, r.done = rd.U8(), rd.U8() != 0
		waits := rd.U8()
		r.held, r.joint = waits&1 != 0, waits&2 != 0
		r.stop = ref(rd.U32())
		r.readyBy = gpuai.Instant(rd.I64())
	}
	if flags&groupImage != 0 {
		r.image = ref(rd.U32())
	}
}

// elastic reports whether a gang may run with fewer tasks than count.
func (r *groupRec) elastic() bool { return r.min != 0 }

// least is how many tasks must start together.
func (r *groupRec) least() uint32 {
	switch {
	case r.elastic():
		return r.min
	case r.gang || r.together != 0:
		return r.count
	}
	return 1
}

// pending is how many tasks wait for a lease or sit in a back-off.
func (r *groupRec) pending() uint32 {
	p := r.count
	for _, n := range r.n {
		p -= n
	}
	return p
}

// ready is how many tasks could take a lease at once.
func (r *groupRec) ready() uint32 { return r.pending() - r.waiting }

// grows reports whether what waits of a group are tasks beside those that run.
func (r *groupRec) grows() bool { return r.gang && r.live() > 0 }

// live is how many tasks hold a lease.
func (r *groupRec) live() uint32 { return r.n[gpuai.TaskLeased] + r.n[gpuai.TaskRunning] }

// A taskRec is a task that has had a lease.
type taskRec struct {
	group   ref
	idx     uint32
	next    ref // task of the group, by index
	qnext   ref // task that is to be placed again
	lease   ref // latest
	note    ref // how it last ended, where its agent said something
	retryAt gpuai.Instant
	timer   uint32 // derived
	exit    int32
	used    uint16 // attempts
	status  gpuai.TaskStatus
	moved   uint8 // how often it made room for another; up to maxMoved
}

// Flags in the byte of a task's status: what follows, in this order.
const (
	taskTail = 1 << 7 // moved
	taskNote = 1 << 6
)

func (r *taskRec) put(b []byte) []byte {
	b = r.group.put(b)
	b = le.AppendUint32(b, r.idx)
	b = r.next.put(b)
	b = r.qnext.put(b)
	b = r.lease.put(b)
	b = put64(b, int64(r.retryAt))
	b = le.AppendUint32(b, uint32(r.exit))
	b = le.AppendUint16(b, r.used)
	status := uint8(r.status)
	if r.moved != 0 {
		status |= taskTail
	}
	if r.note != 0 {
		status |= taskNote
	}
	if b = append(b, status); r.moved != 0 {
		b = append(b, r.moved)
	}
	if r.note != 0 {
		b = r.note.put(b)
	}
	return b
}

func (r *taskRec) get(rd *wire.Reader) {
	r.group = ref(rd.U32())
	r.idx = rd.U32()
	r.next = ref(rd.U32())
	r.qnext = ref(rd.U32())
	r.lease = ref(rd.U32())
	r.retryAt = gpuai.Instant(rd.I64())
	r.exit = int32(rd.U32())
	r.used = rd.U16()
	status := rd.U8()
	if r.status = gpuai.TaskStatus(status &^ (taskTail | taskNote)); status&taskTail != 0 {
		r.moved = rd.U8()
	}
	if status&taskNote != 0 {
		r.note = ref(rd.U32())
	}
}

// setTask moves a task to another state and keeps the counts.
func (m *Machine) setTask(slot uint32, s gpuai.TaskStatus) {
	t := m.tasks.Mut(slot)
	g := m.groups.Mut(t.group.slot())
	meta := m.meta.Mut()
	if t.status != gpuai.TaskPending {
		g.n[t.status]--
	} else {
		meta.pending--
	}
	if t.status = s; s != gpuai.TaskPending {
		g.n[s]++
	} else {
		meta.pending++
	}
}

// makeTask gives the group's next task a record.
func (m *Machine) makeTask(group uint32) (uint32, bool) {
	slot, ok := m.taskSlots.Alloc()
	if !ok {
		return 0, false
	}
	g := m.groups.Mut(group)
	m.tasks.Put(slot, taskRec{group: refTo(group), idx: g.made})
	if g.last != 0 {
		m.tasks.Mut(g.last.slot()).next = refTo(slot)
	} else {
		g.first = refTo(slot)
	}
	g.last = refTo(slot)
	g.made++
	return slot, true
}

// nextTask returns the task of a group that is to take the next lease: one
// that is placed again before one that never ran.
func (m *Machine) nextTask(group uint32) (uint32, bool) {
	g := m.groups.Get(group)
	if g.again == 0 {
		if g.made >= g.count {
			return 0, false
		}
		return m.makeTask(group)
	}
	slot := g.again.slot()
	t := m.tasks.Mut(slot)
	w := m.groups.Mut(group)
	if w.again = t.qnext; w.again == 0 {
		w.againTo = 0
	}
	t.qnext = 0
	return slot, true
}

// putAgain queues a pending task of a group behind those to be placed again.
func (m *Machine) putAgain(slot uint32) {
	t := m.tasks.Get(slot)
	g := m.groups.Mut(t.group.slot())
	if g.againTo != 0 {
		m.tasks.Mut(g.againTo.slot()).qnext = refTo(slot)
	} else {
		g.again = refTo(slot)
	}
	g.againTo = refTo(slot)
}

// task converts a record to its edge type.
func (m *Machine) task(slot uint32) gpuai.Task {
	t := m.tasks.Get(slot)
	g := m.groups.Get(t.group.slot())
	x := gpuai.Task{
		TaskRef: gpuai.TaskRef{Job: m.jobs.Get(g.job.slot()).id, Group: uint16(g.idx), Task: t.idx},
		Status:  t.status, Attempts: uint32(t.used), ExitCode: t.exit, RetryAt: t.retryAt,
		LastEnd: m.lastEnd(t),
	}
	if g.gang {
		x.Attempts = uint32(g.used)
		if t.status == gpuai.TaskPending { // of an elastic one the others run
			x.RetryAt = g.retryAt
		}
	}
	if t.lease != 0 {
		l := m.leases.Get(t.lease.slot())
		x.Lease, x.Node = l.token, m.nodeName(l.node)
		x.Checkpoint = m.lastCheckpoint(slot)
	}
	return x
}
