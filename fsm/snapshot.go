package fsm

import (
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// A snapshot is a header, then frames, each of one section, then an end frame:
//
//	header: magic[8] format:u32 level:u32
//	frame:  section:u8 count:u32 size:u32 crc32c:u32 body[size]
//
// A section may take several frames, of at most frameBytes where its records
// allow. Records are written with their slots, so that a restored machine gives
// out the slots that the original would. What can be derived is not written:
// hashes, heaps, the scheduler's index.
const (
	snapshotMagic  = "GPUAIFSM"
	snapshotFormat = 1
	frameBytes     = 256 << 10
	frameHeader    = 1 + 4 + 4 + 4
	maxFrame       = 64 << 20
)

// Sections, in the order they are written.
const (
	secMeta uint8 = iota + 1
	secStrings
	secScheduler
	secNodes
	secJobs
	secGroups
	secTasks
	secLeases
	secResults
	secBuckets
	secDirty
	secServers // only where there are some: builds that do not know it read the rest
	secWaits   // the same
	secEdges
	secTenants
	secHolds       uint8 = 20
	secCheckpoints uint8 = 21
	secNotes       uint8 = 22
	secQuotas      uint8 = 45
	secPurses      uint8 = 46
	secBills       uint8 = 47
	secMoney       uint8 = 48
	secWaking      uint8 = 50
	secAccounts    uint8 = 37
	secTokens      uint8 = 38
	secRoles       uint8 = 39
	secAccess      uint8 = 40
	secAuthorities uint8 = 33
	secJoinTokens  uint8 = 34
	secIdentities  uint8 = 35
	secRegionKeys  uint8 = 58
	secPoints      uint8 = 23
	secEnd               = 255
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A frameWriter gathers records of one section into frames.
type frameWriter struct {
	w       io.Writer
	buf     []byte
	section uint8
	count   uint32
	err     error
}

func (f *frameWriter) begin(section uint8) {
	f.section, f.count = section, 0
	f.buf = append(f.buf[:0], make([]byte, frameHeader)...)
}

// added counts a record that was appended to buf, and writes a full frame.
func (f *frameWriter) added() {
	if f.count++; len(f.buf) >= frameBytes {
		f.end()
		f.begin(f.section)
	}
}

func (f *frameWriter) end() {
	if f.err != nil {
		return
	}
	body := f.buf[frameHeader:]
	f.buf[0] = f.section
	le.PutUint32(f.buf[1:], f.count)
	le.PutUint32(f.buf[5:], uint32(len(body)))
	sum := crc32.Update(crc32.Checksum(f.buf[:9], castagnoli), castagnoli, body)
	le.PutUint32(f.buf[9:], sum)
	_, f.err = f.w.Write(f.buf)
}

// WriteSnapshot writes the state to w. Call it on a fork: nothing may write to
// the machine meanwhile. It returns the first error of w.
func (m *Machine) WriteSnapshot(w io.Writer) error {
	f := &frameWriter{w: w}
	head := append([]byte(snapshotMagic), 0, 0, 0, 0, 0, 0, 0, 0)
	le.PutUint32(head[8:], snapshotFormat)
	le.PutUint32(head[12:], m.Level())
	if _, f.err = w.Write(head); f.err != nil {
		return fmt.Errorf("writing a snapshot: %w", f.err)
	}
	m.writeMeta(f)
	f.begin(secStrings)
	for i := uint32(1); i < m.strs.Len(); i++ {
		f.buf = wire.AppendStr(f.buf, m.strs.Get(i))
		f.added()
	}
	f.end()
	m.writeScheduler(f)
	m.writeNodes(f)
	m.writeJobs(f)
	writeTable(f, secGroups, m.groups, m.groupSlots)
	writeTable(f, secTasks, m.tasks, m.taskSlots)
	writeTable(f, secLeases, m.leases, m.leaseSlots)
	writeTable(f, secResults, m.results, m.resultSlots)
	writeTable(f, secBuckets, m.buckets, m.bucketSlots)
	m.writeDirty(f)
	m.writeServers(f)
	if m.waitSlots.Len() > 0 {
		writeTable(f, secWaits, m.waits, m.waitSlots)
		writeTable(f, secEdges, m.edges, m.edgeSlots)
	}
	if m.tenants.Len() > 0 {
		f.begin(secTenants)
		for s := range m.tenants.Len() {
			f.buf = m.tenants.Get(s).put(f.buf)
			f.added()
		}
		f.end()
	}
	if m.holdSlots.Len() > 0 {
		writeTable(f, secHolds, m.holds, m.holdSlots)
	}
	if m.checkpointSlots.Len() > 0 {
		writeTable(f, secCheckpoints, m.checkpoints, m.checkpointSlots)
	}
	m.writeNotes(f)
	m.writeTerms(f)
	m.writeAccounts(f)
	m.writeAccess(f)
	m.writeKeys(f)
	m.writeAudit(f)
	m.writeOwners(f)
	if m.pointSlots.Len() > 0 {
		writeTable(f, secPoints, m.points, m.pointSlots)
	}
	d := m.Digest()
	f.begin(secEnd)
	f.buf = append(f.buf, d[:]...)
	f.added()
	f.end()
	if f.err != nil {
		return fmt.Errorf("writing a snapshot: %w", f.err)
	}
	return nil
}

// writeDirty writes the buckets that are to be looked at, and whether they were asked.
func (m *Machine) writeDirty(f *frameWriter) {
	f.begin(secDirty)
	for s, ok := m.dirty.Next(0); ok; s, ok = m.dirty.Next(s + 1) {
		if m.asked.Has(s) {
			s |= dirtyAsked
		}
		f.buf = le.AppendUint32(f.buf, s)
		f.added()
		s &^= dirtyAsked
	}
	for s, ok := m.vacated.Next(0); ok; s, ok = m.vacated.Next(s + 1) {
		f.buf = le.AppendUint32(f.buf, s|dirtyVacated)
		f.added()
	}
	f.end()
}

// writeKeys writes what is sealed under the region's keys, and who may have some.
func (m *Machine) writeKeys(f *frameWriter) {
	m.writeAuthorities(f)
	m.writeSecrets(f)
}

func (m *Machine) writeMeta(f *frameWriter) {
	f.begin(secMeta)
	meta := m.meta.Get()
	f.buf = wire.AppendStr(f.buf, string(m.opts.Region))
	f.buf = le.AppendUint64(f.buf, meta.chain)
	f.buf = le.AppendUint32(f.buf, m.nodes.Len())
	f.buf = le.AppendUint32(f.buf, m.jobSlots.Len())
	f.buf = le.AppendUint32(f.buf, m.leaseSlots.Len())
	f.buf = meta.put(f.buf)
	f.buf = m.policy.Get().put(f.buf)
	f.added()
	f.end()
}

// writeScheduler writes the scheduler's part, which is read as a whole: one
// frame, but for a part that is longer than any frame.
func (m *Machine) writeScheduler(f *frameWriter) {
	state := m.sched.AppendState(nil)
	for piece := range slices.Chunk(state, maxFrame) {
		f.begin(secScheduler)
		f.buf = append(f.buf, piece...)
		f.count++
		f.end()
	}
}

func (m *Machine) writeServers(f *frameWriter) {
	if m.servers.Len() == 0 {
		return
	}
	f.begin(secServers)
	for s := range m.servers.Len() {
		f.buf = m.servers.Get(s).put(f.buf)
		f.added()
	}
	f.end()
}

func (m *Machine) writeNodes(f *frameWriter) {
	f.begin(secNodes)
	for s := range m.nodes.Len() {
		r := m.nodes.Get(s)
		f.buf = r.put(f.buf)
		f.buf = le.AppendUint32(f.buf, uint32(m.blobs.Size(uint32(r.spec))))
		f.buf = m.blobs.Append(f.buf, uint32(r.spec))
		f.added()
	}
	f.end()
}

func (m *Machine) writeJobs(f *frameWriter) {
	f.begin(secJobs)
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		r := m.jobs.Get(s)
		f.buf = le.AppendUint32(f.buf, s)
		f.buf = r.put(f.buf)
		f.buf = le.AppendUint32(f.buf, uint32(m.blobs.Size(uint32(r.spec))))
		f.buf = m.blobs.Append(f.buf, uint32(r.spec))
		f.added()
	}
	f.end()
}

func writeTable[T any, P putter[T]](f *frameWriter, section uint8, t *mem.Table[T], slots *mem.Slots) {
	f.begin(section)
	for s, ok := slots.Next(0); ok; s, ok = slots.Next(s + 1) {
		f.buf = le.AppendUint32(f.buf, s)
		f.buf = P(t.Get(s)).put(f.buf)
		f.added()
	}
	f.end()
}

// writeTerms writes quotas and money, where there are some.
func (m *Machine) writeTerms(f *frameWriter) {
	writeRows(f, secQuotas, m.quotas)
	m.writeWaking(f)
	writeRows(f, secPurses, m.purses)
	if m.billSlots.Len() > 0 {
		writeTable(f, secBills, m.bills, m.billSlots)
	}
	if *m.money.Get() != (moneyRec{}) {
		f.begin(secMoney)
		f.buf = m.money.Get().put(f.buf)
		f.added()
		f.end()
	}
}

// writeRows writes a table whose records never leave, if it has any.
func writeRows[T any, P putter[T]](f *frameWriter, section uint8, t *mem.Table[T]) {
	if t.Len() == 0 {
		return
	}
	f.begin(section)
	for s := range t.Len() {
		f.buf = P(t.Get(s)).put(f.buf)
		f.added()
	}
	f.end()
}

// InspectSnapshot reads a snapshot through, checks every frame and says what it
// is. The state itself is not built.
func InspectSnapshot(r io.Reader) (SnapshotInfo, error) {
	fr := &frameReader{r: r, maxLevel: MaxLevel}
	info := SnapshotInfo{}
	if err := fr.header(&info); err != nil {
		return info, err
	}
	for {
		section, body, err := fr.next()
		if err != nil {
			return info, err
		}
		switch section {
		case secMeta:
			var s snapshotMeta
			if err := s.read(body); err != nil {
				return info, err
			}
			s.describe(&info)
		case secEnd:
			if len(body) < len(Digest{}) {
				return info, errSnapshot("its end is cut off")
			}
			info.Digest, info.Bytes = Digest(body[:16]).String(), fr.read
			return info, nil
		}
	}
}

// snapshotMeta is the content of the first section.
type snapshotMeta struct {
	region              gpuai.RegionID
	chain               uint64
	nodes, jobs, leases uint32
	meta                metaRec
	policy              gpuai.Policy
}

func (s *snapshotMeta) read(body []byte) error {
	r := wire.NewReader(body)
	s.region = gpuai.RegionID(r.Str())
	s.chain = r.U64()
	s.nodes, s.jobs, s.leases = r.U32(), r.U32(), r.U32()
	s.meta.get(r)
	s.meta.chain = s.chain
	var err error
	if s.policy, err = wire.ReadPolicyFrom(r); err == nil {
		_, err = wire.ReadSettings(r, &s.policy)
	}
	if err != nil || r.Done() != nil {
		return errSnapshot("its first section is malformed")
	}
	return nil
}

func (s *snapshotMeta) describe(info *SnapshotInfo) {
	info.Region, info.Index, info.Term = s.region, s.meta.index, s.meta.term
	info.Time, info.Wall, info.Epoch = s.meta.time, s.meta.wall, s.meta.epoch
	if s.meta.restore != [16]byte{} {
		info.RestoreID = Digest(s.meta.restore).String()
	}
	info.QuietUntil = s.meta.quietUntil
	info.Nodes, info.Jobs, info.Leases = s.nodes, s.jobs, s.leases
}

func (r *metaRec) get(rd *wire.Reader) {
	r.index = rd.U64()
	r.term = rd.U64()
	r.time = gpuai.Instant(rd.I64())
	r.wall = gpuai.WallTime(rd.I64())
	r.seq = rd.U64()
	r.level = rd.U32()
	r.epoch = rd.U8()
	copy(r.restore[:], rd.Bytes(16))
	r.newest = ref(rd.U32())
	r.results = ref(rd.U32())
	r.resultsEnd = ref(rd.U32())
	r.pending = rd.U64()
	r.milliUsed = rd.U64()
	r.liveLeases = rd.U32()
	r.revoking = rd.U32()
	for i := range r.jobStates {
		r.jobStates[i] = rd.U32()
	}
	if r.level >= LevelRestore {
		r.quietUntil = gpuai.Instant(rd.I64())
	}
	if r.level >= LevelPlacement {
		r.countedFrom = gpuai.Token(rd.U64())
		r.reserve.group = ref(rd.U32())
		r.reserve.shadow = gpuai.Instant(rd.I64())
		r.reserve.wanted = rd.U8() != 0
	}
}
