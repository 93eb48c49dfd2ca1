package fsm

import (
	"fmt"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A noteRec is a text that an agent told: of a task, how it last ended; of a
// group, the digest of its image. There is none below LevelPlacement, and none
// where there is nothing to say beside the lease.
type noteRec struct {
	hash  uint64 // of the text
	lease gpuai.Token
	at    gpuai.Instant
	node  uint32
	exit  int32
	text  ref // blob; its hash stands for it
	cause gpuai.LeaseCause
	code  gpuai.EndCode
}

func (r *noteRec) put(b []byte) []byte {
	b = le.AppendUint64(b, r.hash)
	b = le.AppendUint64(b, uint64(r.lease))
	b = put64(b, int64(r.at))
	b = le.AppendUint32(b, r.node)
	b = le.AppendUint32(b, uint32(r.exit))
	return append(b, uint8(r.cause), uint8(r.code))
}

func (r *noteRec) get(rd *wire.Reader) {
	r.hash = rd.U64()
	r.lease = gpuai.Token(rd.U64())
	r.at = gpuai.Instant(rd.I64())
	r.node = rd.U32()
	r.exit = int32(rd.U32())
	r.cause, r.code = gpuai.LeaseCause(rd.U8()), gpuai.EndCode(rd.U8())
}

// A leaseEnd is how a lease ends. Code and reason are what its agent says, from
// LevelPlacement on.
type leaseEnd struct {
	cause  gpuai.LeaseCause
	exit   int32
	code   gpuai.EndCode
	reason string
}

// keepNote stores a note, for which the caller has seen that there is room.
func (m *Machine) keepNote(r noteRec, text string) ref {
	slot, ok := m.noteSlots.Alloc()
	if !ok {
		return 0
	}
	r.hash, r.text = hashOf([]byte(text)), ref(m.blobs.Put([]byte(text)))
	m.notes.Put(slot, r)
	m.now.work -= workLook
	return refTo(slot)
}

// dropNote forgets a note.
func (m *Machine) dropNote(r ref) {
	if r == 0 {
		return
	}
	m.blobs.Free(uint32(m.notes.Get(r.slot()).text))
	*m.notes.Mut(r.slot()) = noteRec{}
	m.noteSlots.Free(r.slot())
}

func (m *Machine) noteText(r ref) string {
	return string(m.blobs.Append(nil, uint32(m.notes.Get(r.slot()).text)))
}

// noteEnd keeps what was said of the end of a lease with its task, in place of
// what was said of the one before.
func (m *Machine) noteEnd(lease uint32, end *leaseEnd) {
	l := m.leases.Get(lease)
	task := l.task.slot()
	if old := m.tasks.Get(task).note; old != 0 {
		m.dropNote(old)
		m.tasks.Mut(task).note = 0
	}
	if end.cause == gpuai.CauseDone || end.code == gpuai.EndOther && end.reason == "" {
		return
	}
	if m.noteSlots.Len() >= MaxEndNotes || !m.blobs.Room(len(end.reason), MaxNoteBlocks) {
		return // the text is not worth refusing anything for
	}
	r := noteRec{lease: l.token, at: l.ended, node: l.node, exit: end.exit, cause: end.cause, code: end.code}
	if n := m.keepNote(r, end.reason); n != 0 {
		m.tasks.Mut(task).note = n
	}
}

// resolved records the digest of a group's image: the first that any of its
// tasks tells is that of all. So a digest comes from a live lease only, and is
// never another later. roomForDigest has seen that there is room.
func (m *Machine) resolved(lease uint32, digest string) {
	l := m.leases.Get(lease)
	group := m.tasks.Get(l.task.slot()).group.slot()
	if m.groups.Get(group).image != 0 {
		return
	}
	m.groups.Mut(group).image = m.keepNote(noteRec{lease: l.token, at: m.now.time, node: l.node}, digest)
	m.jobs.Mut(m.groups.Get(group).job.slot()).modified = m.now.index
	e := m.leaseEvent(gpuai.ImageResolved, lease)
	e.Image = digest
	m.emit(e)
}

// roomForDigest reports whether the digest of the image of a lease's group is
// kept, or can be. Where it cannot nobody may start: each task would run what its
// node found.
func (m *Machine) roomForDigest(lease uint32, digest string) bool {
	return m.groups.Get(m.tasks.Get(m.leases.Get(lease).task.slot()).group.slot()).image != 0 ||
		m.noteSlots.Len() < MaxNotes && m.blobs.Room(len(digest), MaxBlocks)
}

// imageOf returns the digest of a group's image; "" when none was told.
func (m *Machine) imageOf(g *groupRec) string {
	if g.image == 0 {
		return ""
	}
	return m.noteText(g.image)
}

// lastEnd converts a task's note to its edge type; nil without one.
func (m *Machine) lastEnd(t *taskRec) *gpuai.TaskEnd {
	if t.note == 0 {
		return nil
	}
	n := m.notes.Get(t.note.slot())
	return &gpuai.TaskEnd{
		Lease: n.lease, Node: m.nodeName(n.node), Cause: n.cause, Code: n.code, ExitCode: n.exit,
		Reason: m.noteText(t.note), At: n.at,
	}
}

// looksForEnd is how many tasks of a group are looked at for one that says why
// its job failed: jobs are listed by the hundred.
const looksForEnd = 64

// whyFailed is what the first failed task of a job said of its end, with where;
// "" when none of those that are looked at has said anything.
func (m *Machine) whyFailed(job uint32) string {
	for g := m.jobs.Get(job).group; g != 0; g = m.groups.Get(g.slot()).next {
		r := m.groups.Get(g.slot())
		t := r.first
		for n := 0; t != 0 && n < looksForEnd; n++ {
			x := m.tasks.Get(t.slot())
			if x.note != 0 && (x.status == gpuai.TaskFailed || x.status == gpuai.TaskLost) {
				return fmt.Sprintf("task %d[%d] on %s: %s", r.idx, x.idx, m.nodeName(m.notes.Get(x.note.slot()).node), m.noteText(x.note))
			}
			t = x.next
		}
	}
	return ""
}

// reasonOfEnds says how the tasks of a group last ended that are in their
// back-off, or wait since their image could not be had: by the first of them that
// has something to say.
func (m *Machine) reasonOfEnds(group uint32) (gpuai.Reason, bool) {
	g := m.groups.Get(group)
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		x := m.tasks.Get(t.slot())
		if x.status != gpuai.TaskPending || x.note == 0 {
			continue
		}
		n := m.notes.Get(x.note.slot())
		if n.code != gpuai.EndImagePull && x.retryAt == 0 && g.retryAt == 0 {
			continue // it waits for other reasons now
		}
		r := gpuai.Reason{Code: gpuai.BackOff, Message: fmt.Sprintf("task %d last ended on %s (%s): %s", x.idx, m.nodeName(n.node), n.cause, m.noteText(x.note))}
		if n.code == gpuai.EndImagePull {
			r.Code = gpuai.ImagePull
		}
		return r, true
	}
	return gpuai.Reason{}, false
}

// cleanReason is a report's reason as it is kept.
func cleanReason(s string) string { return strings.ToValidUTF8(s, "?") }

// writeNotes writes the notes with their texts, where there are some.
func (m *Machine) writeNotes(f *frameWriter) {
	if m.noteSlots.Len() == 0 {
		return
	}
	f.begin(secNotes)
	for s, ok := m.noteSlots.Next(0); ok; s, ok = m.noteSlots.Next(s + 1) {
		r := m.notes.Get(s)
		f.buf = le.AppendUint32(f.buf, s)
		f.buf = r.put(f.buf)
		f.buf = wire.AppendBytes(f.buf, m.blobs.Append(nil, uint32(r.text)))
		f.added()
	}
	f.end()
}

func (m *Machine) restoreNote(rd *wire.Reader) {
	slot := rd.U32()
	if rd.Err() != nil || slot >= MaxNotes || m.noteSlots.Has(slot) {
		rd.Fail("a slot is out of range or given twice")
		return
	}
	m.noteSlots.Take(slot)
	m.notes.Grow(slot + 1)
	r := m.notes.Mut(slot)
	r.get(rd)
	text := rd.Blob()
	if r.text = ref(m.blobs.Put(text)); hashOf(text) != r.hash {
		rd.Fail("a note's text is another one than its hash says")
	}
}

// checkNotes verifies that every note is of one task or group.
func (m *Machine) checkNotes() error {
	n := uint32(0)
	of := func(r ref, what string) error {
		if r == 0 {
			return nil
		}
		n++
		if !m.noteSlots.Has(r.slot()) || hashOf(m.blobs.Append(nil, uint32(m.notes.Get(r.slot()).text))) != m.notes.Get(r.slot()).hash {
			return fmt.Errorf("%s has note %d, which is not what it was", what, r.slot())
		}
		return nil
	}
	for s, ok := m.taskSlots.Next(0); ok; s, ok = m.taskSlots.Next(s + 1) {
		if err := of(m.tasks.Get(s).note, "a task"); err != nil {
			return err
		}
	}
	for s, ok := m.groupSlots.Next(0); ok; s, ok = m.groupSlots.Next(s + 1) {
		if err := of(m.groups.Get(s).image, "a group"); err != nil {
			return err
		}
	}
	if n != m.noteSlots.Len() {
		return fmt.Errorf("%d notes, %d are of tasks and groups", m.noteSlots.Len(), n)
	}
	return nil
}
