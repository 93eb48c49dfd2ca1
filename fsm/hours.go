package fsm

import (
	"math"
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// Sections and seeds of contributors.
const (
	secSchedules uint8 = 56
	secHours     uint8 = 57
	secEarners   uint8 = 49
	seedSchedule       = 56
	seedHours          = 57
	seedEarner         = 49
)

// A scheduleRec is when a node may be used. Nodes that always may have none, or one
// without windows: records never leave.
type scheduleRec struct {
	node    uint32
	offset  int16
	count   uint8
	windows [gpuai.MaxWindows]gpuai.Window
}

func (r *scheduleRec) put(b []byte) []byte {
	b = le.AppendUint32(b, r.node)
	b = append(le.AppendUint16(b, uint16(r.offset)), r.count)
	for _, w := range r.windows[:r.count] {
		b = le.AppendUint16(le.AppendUint16(b, uint16(w.From)), uint16(w.To))
	}
	return b
}

func (r *scheduleRec) get(rd *wire.Reader) {
	r.node = rd.U32()
	r.offset = int16(rd.U16())
	if r.count = rd.U8(); r.count > gpuai.MaxWindows {
		rd.Fail("a schedule has too many windows")
		r.count = 0
	}
	for i := range r.windows[:r.count] {
		r.windows[i] = gpuai.Window{From: gpuai.WeekMinute(rd.U16()), To: gpuai.WeekMinute(rd.U16())}
	}
}

func (r *scheduleRec) schedule() gpuai.Schedule {
	return gpuai.Schedule{UTCOffset: r.offset, Windows: r.windows[:r.count]}
}

// hoursRec is up to when the schedules of all nodes have been followed.
type hoursRec struct {
	clock gpuai.WallTime // all nodes are as they are to be at it
	next  gpuai.WallTime // the first of them is to be otherwise
}

func (r *hoursRec) put(b []byte) []byte { return put64(put64(b, int64(r.clock)), int64(r.next)) }

func (r *hoursRec) get(rd *wire.Reader) {
	r.clock, r.next = gpuai.WallTime(rd.I64()), gpuai.WallTime(rd.I64())
}

// ownerTables is what the machine knows of contributors beside their nodes.
type ownerTables struct {
	schedules  *mem.Table[scheduleRec] // in the order in which nodes got one
	scheduleOf *mem.Table[ref]         // by the slot of the node; derived
	hours      mem.Var[hoursRec]
	earners    *mem.Table[earnerRec] // in the order in which they were first paid
	earnerOf   *mem.Table[ref]       // by string number; derived
}

func newOwnerTables(s *mem.Space) ownerTables {
	return ownerTables{
		schedules: mem.NewHashed(s, 4, hasher[scheduleRec](seedSchedule)), scheduleOf: mem.NewTable[ref](s, 10),
		hours:   mem.NewHashedVar(s, hoursRec{}, hasher[hoursRec](seedHours)),
		earners: mem.NewHashed(s, 5, hasher[earnerRec](seedEarner)), earnerOf: mem.NewTable[ref](s, 10),
	}
}

func (t *ownerTables) fork(s *mem.Space) ownerTables {
	return ownerTables{
		schedules: t.schedules.Fork(s), scheduleOf: t.scheduleOf.Fork(s), hours: t.hours.Fork(s),
		earners: t.earners.Fork(s), earnerOf: t.earnerOf.Fork(s),
	}
}

func (t *ownerTables) sum() uint64 { return t.schedules.Sum() + t.hours.Sum() + t.earners.Sum() }

// clockBack is by how much the wall clock of entries may go back before schedules
// are followed anew: leaders' clocks differ a little, and what has closed is not to
// open again for that; one that was years ahead must not keep nodes as they were then.
const clockBack = gpuai.WallTime(gpuai.Hour)

// scanPerUnit is how many schedules are looked at for a unit of work.
const scanPerUnit = 8

// turnHours opens and closes nodes when the wall clock of the entry says so. As the
// days of budgets do, hours follow it and not region time: docs/adr.
func (m *Machine) turnHours() {
	h, now := m.owners.hours.Get(), m.now.wall
	if m.owners.schedules.Len() == 0 || now < h.next && now > h.clock-clockBack {
		return
	}
	next := gpuai.MaxWallTime
	for s := range m.owners.schedules.Len() {
		if s%scanPerUnit == 0 {
			m.now.work -= workLook
		}
		next = min(next, m.followSchedule(s, now))
		if m.now.work <= 0 && s+1 < m.owners.schedules.Len() {
			next = now // the next entry goes on: what is done costs little
			break
		}
	}
	*m.owners.hours.Mut() = hoursRec{now, next}
}

// followSchedule has a node be as its schedule says at a wall time, and returns until
// when that holds.
func (m *Machine) followSchedule(s uint32, now gpuai.WallTime) gpuai.WallTime {
	r := m.owners.schedules.Get(s)
	sched := r.schedule()
	open, until := sched.At(now)
	n, closes := m.nodes.Get(r.node), uint32(0)
	if until < gpuai.MaxWallTime {
		closes = uint32(min(int64(until)/int64(gpuai.Minute), math.MaxUint32))
	}
	switch {
	case !open && !n.outside:
		if n.closes == 0 { // it is to be known as one whose hours have ended, not as one that is out of order
			closes = uint32(max(min(int64(now)/int64(gpuai.Minute), math.MaxUint32), 1))
			m.attempt(func() bool { return m.openNode(r.node, closes) == gpuai.OK })
		}
		m.closeNode(r.node)
	case open && (n.outside || n.closes != closes):
		if !m.attempt(func() bool { return m.openNode(r.node, closes) == gpuai.OK }) {
			m.closeNode(r.node) // there is no room for one more kind of node: until it changes again
		}
	}
	return until
}

// closeNode drains a node whose hours end. It is drained as by its operator.
func (m *Machine) closeNode(node uint32) {
	n := m.nodes.Mut(node)
	if n.outside {
		return
	}
	n.outside = true
	m.setNodeState(node, n.state)
	for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workEnd
		m.revoke(l.slot(), gpuai.CauseDrained)
	}
}

// openNode has a node take what ends before the minute closes; 0: anything.
func (m *Machine) openNode(node uint32, closes uint32) gpuai.Code {
	if m.nodes.Get(node).reserved > 0 {
		m.unreserve()
	}
	m.loseHolds(node)
	n := m.nodes.Mut(node)
	n.outside, n.closes = false, closes
	body := m.nodeBody(node)
	m.now.work -= workEnd
	if code := m.tellScheduler(node, &body); code != gpuai.OK {
		return code
	}
	m.setNodeState(node, n.state)
	return gpuai.OK
}

// hoursDeadline is when, in region time, the first node is to open or close.
func (m *Machine) hoursDeadline() gpuai.Instant {
	if m.owners.schedules.Len() == 0 || m.owners.hours.Get().next >= gpuai.MaxWallTime {
		return gpuai.MaxInstant
	}
	return m.Time().Add(gpuai.Duration(max(m.owners.hours.Get().next-m.meta.Get().wall, 0)))
}

// lastsMinutes is how long a job may run, in minutes: rounded up to 32 steps in each
// doubling, so that groups which wait in one bucket differ in nothing; noLimit for
// more than a week.
func lastsMinutes(j *jobRec) uint32 {
	n := uint64(j.runTime+gpuai.Minute-1) / uint64(gpuai.Minute)
	if j.runTime <= 0 || n > uint64(7*gpuai.Day/gpuai.Minute) {
		return noLimit
	}
	if cut := bits.Len64(n) - 6; cut > 0 {
		n = (n + 1<<cut - 1) >> cut << cut
	}
	return uint32(n)
}

const noLimit = math.MaxUint32

// endsBy is the minute of the wall clock by which what a group's job starts now has
// ended; 0 where no node's hours end.
func (m *Machine) endsBy(group uint32) uint32 {
	if m.owners.schedules.Len() == 0 || !m.sched.Closing() {
		return 0
	}
	lasts := lastsMinutes(m.jobs.Get(m.groups.Get(group).job.slot()))
	now := uint64(max(m.meta.Get().wall, m.owners.hours.Get().clock, 0)+gpuai.WallTime(gpuai.Minute)-1) / uint64(gpuai.Minute)
	return uint32(min(now+uint64(lasts), noLimit))
}

// lastsOn reports whether what a group's job starts on a node now ends before its
// hours do.
func (m *Machine) lastsOn(group, node uint32) bool {
	c := m.nodes.Get(node).closes
	return c == 0 || m.endsBy(group) <= c
}

// placeLasting is placeFree on nodes whose hours are long enough.
func (m *Machine) placeLasting(group uint32) (placed, final bool) {
	ends := m.endsBy(group)
	if ends == 0 {
		return m.placeFree(group)
	}
	m.bar(nil, ends)
	placed, final = m.placeFree(group)
	m.sched.Unbar()
	return placed, final
}

// bar leaves models and nodes out of all searches, until m.sched.Unbar.
func (m *Machine) bar(models []uint64, ends uint32) {
	before := m.sched.Work()
	m.sched.Bar(models, ends)
	m.now.work -= int64(m.sched.Work()-before) / 16
}

// outside reports whether a node may not be used at this hour, and nothing else is the
// matter with it. Where a schedule was replaced by one in which it is closed, the
// scheduler knows the end of the hours that it had.
func (m *Machine) outside(node uint32) bool {
	n := m.nodes.Get(node)
	return n.outside && n.state == gpuai.NodeReady && !n.drained
}
