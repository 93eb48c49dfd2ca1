package fsm

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// ErrSnapshot is returned, wrapped with what is wrong, for a snapshot that
// cannot be restored. Nothing of it was taken over.
var ErrSnapshot = errors.New("the snapshot cannot be restored")

func errSnapshot(what string) error { return fmt.Errorf("%w: %s", ErrSnapshot, what) }

// A frameReader reads the frames of a snapshot.
type frameReader struct {
	r        io.Reader
	maxLevel uint32
	read     uint64
	buf      []byte
	// count is the number of records in the frame that next returned.
	count uint32
}

func (f *frameReader) header(info *SnapshotInfo) error {
	var head [16]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil || string(head[:8]) != snapshotMagic {
		return errSnapshot("it is no snapshot of a region")
	}
	f.read += uint64(len(head))
	info.Format, info.Level = le.Uint32(head[8:]), le.Uint32(head[12:])
	if info.Format != snapshotFormat {
		return errSnapshot(fmt.Sprintf("it has format %d, this version of gpuai reads %d: use the version that wrote it", info.Format, snapshotFormat))
	}
	if info.Level > f.maxLevel {
		return fmt.Errorf("%w: %w (it has feature level %d, this server goes to %d)", ErrSnapshot, ErrLevel, info.Level, f.maxLevel)
	}
	if info.Level < MinLevel {
		return errSnapshot(fmt.Sprintf("it has feature level %d, this version of gpuai reads %d to %d: use an older version", info.Level, MinLevel, MaxLevel))
	}
	return nil
}

// next returns the next frame's body, which is valid until the call after it.
func (f *frameReader) next() (section uint8, body []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, errSnapshot("it is cut off")
	}
	size := le.Uint32(head[5:])
	if size > maxFrame {
		return 0, nil, errSnapshot("a frame is too large")
	}
	if uint32(cap(f.buf)) < size {
		f.buf = make([]byte, size)
	}
	body = f.buf[:size]
	if _, err := io.ReadFull(f.r, body); err != nil {
		return 0, nil, errSnapshot("it is cut off")
	}
	if crc32.Update(crc32.Checksum(head[:9], castagnoli), castagnoli, body) != le.Uint32(head[9:]) {
		return 0, nil, errSnapshot(fmt.Sprintf("a frame at byte %d fails its checksum", f.read))
	}
	f.read += uint64(frameHeader) + uint64(size)
	f.count = le.Uint32(head[1:])
	return head[0], body, nil
}

// Restore builds a machine from a snapshot and verifies it: checksums, counts,
// the digest, and the invariants of Check. The error wraps ErrSnapshot.
func Restore(r io.Reader, o Options) (m *Machine, err error) {
	defer func() {
		if p := recover(); p != nil { // numbers in it that point nowhere
			m, err = nil, errSnapshot(fmt.Sprint("its records contradict each other: ", p))
		}
	}()
	fr := &frameReader{r: r, maxLevel: o.maxLevel()}
	if err := fr.header(&SnapshotInfo{}); err != nil {
		return nil, err
	}
	l := &loader{Machine: New(o)}
	l.sp.Load()
	for {
		section, body, err := fr.next()
		if err != nil {
			return nil, err
		}
		if section == secEnd {
			return l.Machine, l.restored(body)
		}
		if err := l.frame(section, fr.count, wire.NewReader(body)); err != nil {
			return nil, err
		}
	}
}

// A loader fills a machine from the frames of a snapshot. Nothing of it can be
// taken back: after an error the machine is thrown away.
type loader struct {
	*Machine
	head  snapshotMeta
	state []byte // the scheduler's part, until all of it is read
	// Scratch, so that the many nodes of few kinds cost few allocations.
	brief wire.Brief
	info  scheduler.NodeInfo
}

func (m *loader) frame(section uint8, count uint32, rd *wire.Reader) error {
	f := rows{rd, count}
	if section > secScheduler && m.state != nil {
		if err := m.sched.RestoreState(m.state); err != nil {
			return errSnapshot(err.Error())
		}
		m.state = nil
	}
	switch section {
	case secMeta:
		return m.restoreMeta(rd, &m.head)
	case secStrings:
		for range count {
			m.strs.Intern(rd.Str())
		}
	case secScheduler:
		// In pieces when it is longer than a frame; builds before level 3 wrote
		// an empty one behind any of more than frameBytes.
		m.state = append(m.state, rd.Rest()...)
	case secNodes:
		for range count {
			m.restoreNode(rd)
		}
	case secJobs:
		for range count {
			m.restoreJob(rd)
		}
	case secGroups:
		readTable(f, m.groups, m.groupSlots)
	case secTasks:
		readTable(f, m.tasks, m.taskSlots)
	case secLeases:
		readTable(f, m.leases, m.leaseSlots)
	case secResults:
		readTable(f, m.results, m.resultSlots)
	case secBuckets:
		readTable(f, m.buckets, m.bucketSlots)
	case secWaits:
		readTable(f, m.waits, m.waitSlots)
	case secTenants:
		m.restoreTenants(rd, count)
	case secEdges:
		readTable(f, m.edges, m.edgeSlots)
	case secHolds:
		readTable(f, m.holds, m.holdSlots)
	case secPoints, secCheckpoints:
		m.restoreMembers(section, f)
	case secNotes:
		for range count {
			m.restoreNote(rd)
		}
	case secServers:
		readServers(rd, count, m.servers)
	case secAccounts, secTokens, secRoles, secAccess:
		m.restoreAccess(section, count, rd)
	case secDirty:
		for range count {
			m.restoreDirty(rd.U32())
		}
	default:
		if !m.tenantFrame(section, f) && !m.ownerFrame(section, f) {
			return errSnapshot(fmt.Sprintf("it has a section %d that this version does not know", section))
		}
	}
	return wellFormed(rd, section)
}

func wellFormed(rd *wire.Reader, section uint8) error {
	if rd.Done() != nil {
		return errSnapshot(fmt.Sprintf("section %d is malformed", section))
	}
	return nil
}

func (m *loader) restoreTenants(rd *wire.Reader, count uint32) {
	for range count {
		var r tenantRec
		r.get(rd)
		m.restoreTenant(r)
	}
}

// tenantFrame reads a frame of what LevelTenants brings; false for another.
func (m *loader) tenantFrame(section uint8, f rows) bool {
	switch section {
	case secAuthorities:
		for range f.count {
			m.restoreAuthority(f.rd)
		}
	case secJoinTokens:
		readTable(f, m.joinTokens, m.joinTokenSlots)
	case secRegionKeys:
		readTable(f, m.regionKeys, m.regionKeySlots)
	case secIdentities:
		readTable(f, m.identities, m.identitySlots)
	case secAudit:
		m.audit.Mut().get(f.rd)
	case secCheckpoints:
		readTable(f, m.checkpoints, m.checkpointSlots)
	case secQuotas:
		readRows(f, m.quotas, MaxTenants)
	case secWaking:
		for range f.count {
			m.readWaking(f.rd)
		}
	case secPurses:
		readRows(f, m.purses, MaxStrings)
	case secBills:
		readTable(f, m.bills, m.billSlots)
	case secMoney:
		m.money.Mut().get(f.rd)
	default:
		return m.secretFrame(section, f)
	}
	return true
}

// restoreMembers reads what tasks and their agents have told of themselves.
func (m *loader) restoreMembers(section uint8, f rows) {
	if section == secPoints {
		readTable(f, m.points, m.pointSlots)
		return
	}
	readTable(f, m.checkpoints, m.checkpointSlots)
}

func (m *Machine) restoreMeta(rd *wire.Reader, s *snapshotMeta) error {
	if err := s.read(rd.Rest()); err != nil {
		return err
	}
	if m.opts.Region == "" {
		m.opts.Region = s.region
	}
	if s.region != m.opts.Region {
		return errSnapshot(fmt.Sprintf("it is of region %q, this server belongs to %q", s.region, m.opts.Region))
	}
	*m.meta.Mut() = s.meta
	m.policy.Mut().Policy = s.policy
	return nil
}

// reader is the other half of putter.
type reader[T any] interface {
	*T
	get(*wire.Reader)
}

// rows are a frame's records.
type rows struct {
	rd    *wire.Reader
	count uint32
}

func readTable[T any, P reader[T]](f rows, t *mem.Table[T], slots *mem.Slots) {
	rd := f.rd
	for range f.count {
		slot := rd.U32()
		if rd.Err() != nil || slot >= mem.MaxSlots || slots.Has(slot) {
			rd.Fail("a slot is out of range or given twice")
			return
		}
		slots.Take(slot)
		t.Grow(slot + 1)
		P(t.Mut(slot)).get(rd)
	}
}

// readRows reads a table whose records never leave, of at most so many.
func readRows[T any, P reader[T]](f rows, t *mem.Table[T], most uint32) {
	for range f.count {
		if f.rd.Err() != nil || t.Len() >= most {
			f.rd.Fail("a section has too many records")
			return
		}
		var r T
		P(&r).get(f.rd)
		t.Append(r)
	}
}

func (m *loader) restoreNode(rd *wire.Reader) {
	slot := m.nodes.Append(nodeRec{})
	r := m.nodes.Mut(slot)
	r.get(rd)
	body := rd.Bytes(int(rd.U32()))
	if rd.Err() != nil || r.name == 0 || r.name >= m.strs.Len() || r.owner >= m.strs.Len() {
		rd.Fail("a node has no name")
		return
	}
	r.spec = ref(m.blobs.Put(body))
	m.nodeOf.Grow(r.name + 1)
	*m.nodeOf.Mut(r.name) = refTo(slot)
	spec, err := m.brief.ReadNodeSpec(wire.NewReader(body))
	if err != nil {
		rd.Fail("a node is malformed")
		return
	}
	r.refuses = spec.Refuses != nil
	fillCapacity(&m.info, r, &spec)
	m.info.Scratch = m.lentScratch(&spec)
	if m.sched.SetNode(slot, &m.info) != gpuai.OK {
		rd.Fail("a node's pool is not among the scheduler's")
	}
}

func (m *Machine) restoreJob(rd *wire.Reader) {
	slot := rd.U32()
	if rd.Err() != nil || slot >= mem.MaxSlots || m.jobSlots.Has(slot) {
		rd.Fail("a slot is out of range or given twice")
		return
	}
	m.jobSlots.Take(slot)
	m.jobs.Grow(slot + 1)
	r := m.jobs.Mut(slot)
	r.get(rd)
	r.spec = ref(m.blobs.Put(rd.Bytes(int(rd.U32()))))
	if _, twice := m.jobSlot(r.id); twice {
		rd.Fail("two jobs have one ID")
		return
	}
	m.jobByID.Insert(hashJobID(r.id), slot)
	if r.sameNewer == 0 {
		m.jobByName.Insert(r.nameHash, slot)
	}
}

func (m *Machine) restoreTenant(r tenantRec) {
	if r.name >= MaxStrings {
		return // the digest will tell
	}
	m.tenantOf.Grow(r.name + 1)
	*m.tenantOf.Mut(r.name) = refTo(m.tenants.Append(r))
}

// restored rebuilds what is derived and verifies the whole.
func (m *loader) restored(end []byte) error {
	s := &m.head
	if err := m.rebuild(); err != nil {
		return err
	}
	m.sp.Loaded()
	if m.nodes.Len() != s.nodes || m.jobSlots.Len() != s.jobs || m.leaseSlots.Len() != s.leases {
		return errSnapshot("it does not hold what its first section counts")
	}
	if len(end) != len(Digest{}) || Digest(end) != m.Digest() {
		return errSnapshot("its records do not have the digest it names")
	}
	if err := m.checkTables(); err != nil { // hash and indexes were made just now
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	m.digests[m.Index()%DigestsKept] = m.Digest()
	return nil
}

// rebuild makes the indexes and the timers anew, and has the scheduler take what
// leases hold of the nodes that restoreNode made known to it.
func (m *Machine) rebuild() error {
	if err := m.rebuildLeases(); err != nil {
		return err
	}
	for s, ok := m.resultSlots.Next(0); ok; s, ok = m.resultSlots.Next(s + 1) {
		m.restoreResult(s)
	}
	for s, ok := m.bucketSlots.Next(0); ok; s, ok = m.bucketSlots.Next(s + 1) {
		b := m.buckets.Get(s)
		k := b.key()
		m.bucketByKey.Insert(k.hash(), s)
		m.buildLanes(s)
		if b.unseen {
			m.unseen.Set(s)
		}
		if b.starved {
			m.starve(s)
			*m.starvedAt.Mut(uint32(b.priority)) += 1
		}
	}
	m.linkAll()
	m.joinAllKinds()
	m.rebuildTimers()
	m.rebuildBarriers()
	m.rebuildHolds()
	m.rebuildTallies()
	if err := m.rebuildQuotas(); err != nil {
		return err
	}
	if err := m.rebuildMoney(); err != nil {
		return err
	}
	if err := m.rebuildOwners(); err != nil {
		return err
	}
	m.rebuildCheckpoints()
	m.rebuildAuthorities()
	m.rebuildSecrets()
	for s := range m.nodes.Len() {
		m.retake(s)
		m.keepHolds(s)
		m.countYielding(s)
		if m.nodes.Get(s).reserved > 0 {
			m.reserved.Set(s)
		}
		m.sched.SetOpen(s, m.opens(s))
		m.relist(s)
	}
	return nil
}

func (m *Machine) rebuildLeases() error {
	m.leaseByToken.Reserve(m.leaseSlots.Len())
	var safe []uint32
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		if _, twice := m.leaseSlot(l.token); twice {
			return errSnapshot(fmt.Sprintf("two leases have token %d", l.token))
		}
		m.leaseByToken.Insert(hashToken(l.token), s)
		if l.state >= gpuai.LeaseRevoking {
			continue
		}
		j := m.jobs.Get(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot())
		if j.preemptible && !l.yields {
			safe = append(safe, s)
		}
		if j.runTime > 0 && l.state == gpuai.LeaseRunning {
			m.timers.set(l.started.Add(j.runTime), timerLease, s)
		}
	}
	// Tokens grow, so this is the order in which they were granted.
	slices.SortFunc(safe, func(a, b uint32) int { return cmp.Compare(m.leases.Get(a).token, m.leases.Get(b).token) })
	for _, s := range safe {
		m.protect(s, m.groups.Get(m.tasks.Get(m.leases.Get(s).task.slot()).group.slot()).job.slot())
	}
	return nil
}

// rebuildHolds finds the newest hold of each group and the oldest of each node.
func (m *Machine) rebuildHolds() {
	after := map[uint32]bool{} // holds that follow another one of their node
	for s, ok := m.holdSlots.Next(0); ok; s, ok = m.holdSlots.Next(s + 1) {
		h := m.holds.Get(s)
		if h.next != 0 {
			after[h.next.slot()] = true
		}
		if h.newer == 0 {
			m.holdByGroup.Insert(hashGroup(h.group), s)
		}
	}
	for s, ok := m.holdSlots.Next(0); ok; s, ok = m.holdSlots.Next(s + 1) {
		if node := m.holds.Get(s).node; !after[s] {
			m.holdOf.Grow(node + 1)
			*m.holdOf.Mut(node) = refTo(s)
		}
	}
}

// countYielding counts the leases of a node that may have to go.
func (m *Machine) countYielding(node uint32) {
	n := m.nodes.Mut(node)
	n.yielding = 0
	for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
		if m.leases.Get(l.slot()).yields {
			n.yielding++
		}
	}
}

// keepHolds tells the scheduler of the room of a node that is kept.
func (m *Machine) keepHolds(node uint32) {
	for h := m.firstHold(node); h != 0; h = m.holds.Get(h.slot()).next {
		r := m.holds.Get(h.slot())
		n := m.nodes.Mut(node)
		n.kept, n.lastKept = n.kept+1, h
		m.sched.Hold(node, r.devices, r.share, int64(r.cpu), r.memory)
		m.sched.Lend(node, m.sched.Scratch(m.groups.Get(r.group.slot()).shape))
	}
}

// restoreResult indexes a remembered answer, unless a newer one has its key.
func (m *Machine) restoreResult(s uint32) {
	r := m.results.Get(s)
	h := hashResult(&r.key)
	if old, ok := m.resultByKey.Find(h, func(o uint32) bool { return m.results.Get(o).key == r.key }); ok {
		if m.results.Get(old).index > r.index {
			return
		}
		m.resultByKey.Delete(h, old)
	}
	m.resultByKey.Insert(h, s)
}

func (m *Machine) rebuildTimers() {
	for s, ok := m.taskSlots.Next(0); ok; s, ok = m.taskSlots.Next(s + 1) {
		if t := m.tasks.Get(s); t.status == gpuai.TaskPending && t.retryAt != 0 {
			m.timers.set(t.retryAt, timerTask, s)
		}
	}
	for s, ok := m.groupSlots.Next(0); ok; s, ok = m.groupSlots.Next(s + 1) {
		g := m.groups.Get(s)
		if g.stop != 0 {
			m.halting.Set(s)
		}
		if g.retryAt != 0 && !g.ended {
			m.timers.set(g.retryAt, timerGroup, s)
		}
	}
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		j := m.jobs.Get(s)
		if at := m.waitOf(j).beginAt; at != 0 {
			m.timers.set(at, timerBegin, s)
		}
		m.tell(s)
		if j.queueUntil != 0 && j.startedAt == 0 && !j.status.Final() && !j.stopping {
			m.timers.set(j.queueUntil, timerJob, s)
		}
	}
	for s := range m.nodes.Len() {
		if n := m.nodes.Get(s); n.state == gpuai.NodeQuarantined {
			m.timers.set(n.until, timerNode, s)
		}
	}
}
