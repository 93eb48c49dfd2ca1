package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// Types of commands in the log. A number is never given to another command.
const (
	typeRegisterNode uint8 = iota + 1
	typeUpdateDevices
	typeSetNodeEligibility
	typeExpireLeases
	typeSubmitJob
	typeStopJob
	typeReportLease
	typeConfirmBeats
	typeTick
	typeSetPolicy
	typeSetFeatureLevel
	typeCheckpoint
	typeRetireJobs
	typeRetireServer
	typeMoveServer
	typeSetDemand
	typeSetTenantWeight
	typePublishCheckpoint
)

// Types of LevelTenants. Between them are numbers that nobody has.
const (
	typeAuditNote       uint8 = 19
	typePutAuthority    uint8 = 20
	typeCreateJoinToken uint8 = 21
	typeJoin            uint8 = 22
	typeRevokeIdentity  uint8 = 23
	typeRetireAuthority uint8 = 24
	typeCreateTenant    uint8 = 25
	typeCreateToken     uint8 = 26
	typeRevokeToken     uint8 = 27
	typeTouchTokens     uint8 = 28
	typeSetRole         uint8 = 29
	typeSetNodeOwner    uint8 = 30
	typeSetQuota        uint8 = 31
	typeSetBudget       uint8 = 32
	typeSetPrices       uint8 = 33
	typeSetNodePrice    uint8 = 34
	typePutSecret       uint8 = 40
	typeDeleteSecret    uint8 = 41
	typeGiveSecrets     uint8 = 42
	typeSetNodeSchedule uint8 = 43
	typeSetNodeAsk      uint8 = 44
	typeSetRegionKey    uint8 = 46

	numTypes = typeSetRegionKey + 1
)

// plainTypes are the types whose commands any machine of this version takes.
var plainTypes = func() (types uint64) {
	for t, name := range commandNames {
		if name != "" && uint8(t) != typeSetFeatureLevel {
			types |= 1 << t
		}
	}
	return types
}()

// unknownType reports whether no command has a type: numbers are handed out with
// gaps.
func unknownType(t uint8) bool { return t >= numTypes || commandNames[t] == "" }

// Apply applies one committed entry. Data is read during the call only. The
// slices of out are reused when they have room; what they hold is not kept.
//
// It never panics. It returns ErrDamaged, ErrUnknownCommand or ErrLevel, wrapped,
// without having applied anything: the server must stop. An index that was applied
// before is passed over.
func (m *Machine) Apply(index, term uint64, data []byte, out *Output) error {
	*out = Output{Index: index, Results: out.Results[:0], Events: out.Events[:0]}
	e, err := wire.OpenEntry(data)
	if err != nil {
		return fmt.Errorf("log entry %d: %w (%w)", index, ErrDamaged, err)
	}
	if err := known(e, m.opts.maxLevel()); err != nil {
		return fmt.Errorf("log entry %d: %w", index, err)
	}
	meta := m.meta.Get()
	if out.Prev = meta.index; index <= meta.index {
		out.Time, out.GPUMilli = meta.time, meta.milliUsed
		return nil
	}
	m.now = entryState{
		index: index, term: term, work: WorkPerEntry,
		time: max(meta.time, gpuai.Instant(e.Header.Time)), wall: gpuai.WallTime(e.Header.Wall),
	}
	m.out, out.Time = out, m.now.time
	if n := int(e.Count); cap(out.Results) < n { // at once, since a server keeps each output
		out.Results = make([]Result, 0, n)
		out.Events = make([]gpuai.Event, 0, 2*n)
	}
	m.trail.reset()
	m.begin()
	m.guard((*Machine).turnCalendar)
	m.guard((*Machine).turnHours)
	m.guard((*Machine).fireTimers)
	m.guard((*Machine).forgetDue)
	if !m.guard(func(m *Machine) { m.goOnStopping(WorkPerEntry / 2) }) {
		m.stopOneByOne(WorkPerEntry / 2)
	}
	m.guard((*Machine).packStep)
	m.guard((*Machine).ripenDue)
	for c, ok := e.Next(); ok; c, ok = e.Next() {
		m.command(&c)
	}
	m.guard((*Machine).refill)
	m.guard((*Machine).forgetResults)
	m.finish()
	return nil
}

// known reports whether this machine knows every command of an entry, and the
// level that one may set.
func known(e wire.Entry, maxLevel uint32) error {
	if e.Only(plainTypes) {
		return nil
	}
	for c, ok := e.Next(); ok; c, ok = e.Next() {
		if unknownType(c.Type) || c.Version != 1 {
			return fmt.Errorf("%w (type %d, version %d)", ErrUnknownCommand, c.Type, c.Version)
		}
		if err := levelOf(&c, maxLevel); err != nil {
			return err
		}
	}
	return nil
}

// begin moves the machine's clock and index to the entry's.
func (m *Machine) begin() {
	r := m.meta.Mut()
	r.index, r.term, r.time, r.wall = m.now.index, m.now.term, m.now.time, m.now.wall
	m.sp.Commit()
}

// finish writes the digest of the entry.
func (m *Machine) finish() {
	m.sealTrail()
	m.sp.Commit()
	if m.digests != nil {
		m.digests[m.now.index%DigestsKept] = m.Digest()
	}
	m.out.GPUMilli = m.meta.Get().milliUsed
	m.out = nil
}

// command applies one command and appends its result.
func (m *Machine) command(c *wire.Command) {
	from := len(m.out.Events)
	m.now.work -= workCommand
	var key [16]byte
	var res Result
	before := m.auditBefore(c)
	if len(c.Key) > 0 {
		key = resultKey(c)
	}
	if !m.repeated(c, &key, &res) {
		res = Result{Index: m.now.index}
		if !m.guard(func(m *Machine) { res = m.dispatch(c); res.Index = m.now.index }) {
			res = Result{Index: m.now.index, Code: gpuai.Internal, Detail: "the command failed inside the machine and was taken back; report this bug"}
		}
		m.guard((*Machine).refill)
		if c.Type == typeSubmitJob && res.Code == gpuai.OK {
			res.Leased = m.jobs.Get(m.now.submitted).live
		}
		if len(c.Key) > 0 && res.Code != gpuai.RateLimited && res.Code != gpuai.Internal {
			m.remember(&key, bodyHash(c), &res)
		}
	}
	res.Kind = CommandKind(c.Type)
	res.EventsFrom, res.EventsTo = uint32(from), uint32(len(m.out.Events))
	m.out.Results = append(m.out.Results, res)
	m.chain(c, &res)
	m.record(c, &res, before)
	if m.sp.Uncommitted() >= commitEvery {
		m.sp.Commit()
	}
}

// repeated answers a command whose key was answered before.
func (m *Machine) repeated(c *wire.Command, key *[16]byte, res *Result) bool {
	if len(c.Key) == 0 {
		return false
	}
	old, ok := m.remembered(key)
	switch {
	case !ok && m.resultSlots.Len() >= MaxResults:
		*res = Result{Index: m.now.index, Code: gpuai.RateLimited, Detail: "too many idempotency keys are remembered: retry later"}
	case !ok:
		return false
	case old.body != bodyHash(c):
		*res = Result{Index: m.now.index, Code: gpuai.IdempotencyMismatch, Detail: "this idempotency key was used with another body: use a new key"}
	default:
		*res = Result{
			Index: old.index, Code: old.code, Repeated: true, Job: old.job,
			Incarnation: old.inc, Tasks: old.tasks, Leased: old.leased,
		}
	}
	return true
}

// bodyHash is the hash of what a command asks, without what a server minted.
func bodyHash(c *wire.Command) uint64 {
	if c.Type == typeSubmitJob && len(c.Body) >= len(gpuai.JobID{}) {
		return hashOf(c.Body[len(gpuai.JobID{}):])
	}
	return hashOf(c.Body)
}

// chain takes a command and its result into the digest: codes and IDs only.
func (m *Machine) chain(c *wire.Command, res *Result) {
	h := mem.HashBytes(seedChain<<8|uint64(c.Type), c.Body)
	h = mem.Mix(h, mem.HashBytes(uint64(res.Code), res.Job[:]))
	h = mem.Mix(h, uint64(res.Incarnation)<<32^uint64(res.Leased)<<8^uint64(res.Tasks))
	r := m.meta.Mut()
	r.chain = mem.Mix(r.chain, h)
}

// commitEvery is after how many writes the commands of an entry are committed.
// Records that several of them write are hashed once, while their old values
// still fit in a processor's cache.
const commitEvery = 512

// guard runs a step. One that panics is taken back whole, on every replica
// alike: the last defence, for a bug of ours.
func (m *Machine) guard(step func(*Machine)) (ok bool) {
	now, events, retired := m.now, len(m.out.Events), len(m.out.Retired)
	m.mark = m.sp.Mark()
	defer func() {
		if r := recover(); r != nil {
			m.takeBack()
			m.now = now
			m.out.Events = m.out.Events[:events]
			m.out.Retired = m.out.Retired[:retired]
			m.panicked(r)
			ok = false
		}
	}()
	step(m)
	return true
}

// takeBack undoes what the present step has written.
func (m *Machine) takeBack() {
	m.sp.RollbackTo(m.mark)
	m.sched.Unbar() // a step that panicked may have left a bar
}

// panicked notes a panic, and gives up the backlog that may have led to it so
// that the next entry does not meet it again.
func (m *Machine) panicked(r any) {
	if m.out.Panics++; m.out.Panic == "" {
		m.out.Panic = fmt.Sprint(r)
	}
	if slot, ok := m.dirty.Next(0); ok {
		m.cleared(slot)
	}
	if slot, ok := m.unseen.Next(0); ok {
		m.seen(slot)
	}
	if slot, ok := m.waking.Next(0); ok {
		m.wokeAll(slot)
	}
	if slot, ok := m.vacated.Next(0); ok {
		m.vacated.Clear(slot)
		m.guard(func(m *Machine) { m.loseHolds(slot) }) // a restored machine would look at them
	}
}

// dispatch applies a command of a known type.
func (m *Machine) dispatch(c *wire.Command) Result {
	r := wire.NewReader(c.Body)
	switch c.Type {
	case typeRegisterNode:
		return m.applyRegisterNode(r)
	case typeUpdateDevices:
		return m.applyUpdateDevices(r)
	case typeSetNodeEligibility:
		return m.applySetNodeEligibility(r)
	case typeExpireLeases:
		return m.applyExpireLeases(r)
	case typeSubmitJob:
		return m.applySubmitJob(c)
	case typeStopJob:
		return m.applyStopJob(r)
	case typeReportLease:
		return m.applyReportLease(r)
	case typeConfirmBeats:
		return m.applyConfirmBeats(r)
	case typeTick:
		return applyTick(r)
	case typeSetPolicy:
		return m.applySetPolicy(r)
	case typeSetFeatureLevel:
		return m.applySetFeatureLevel(r)
	case typeCheckpoint:
		return m.applyCheckpoint(r)
	case typeRetireServer:
		return m.applyRetireServer(r)
	case typeMoveServer:
		return m.applyMoveServer(r)
	case typeSetDemand:
		return m.applySetDemand(r)
	case typeSetTenantWeight:
		return m.applySetTenantWeight(r)
	case typePublishCheckpoint:
		return m.applyPublishCheckpoint(r)
	case typeSetQuota, typeSetBudget, typeSetPrices, typeSetNodePrice:
		return m.applyTerms(c.Type, r)
	case typeCreateTenant:
		return m.applyCreateTenant(r)
	case typeCreateToken:
		return m.applyCreateToken(r)
	case typeRevokeToken:
		return m.applyRevokeToken(r)
	case typeTouchTokens:
		return m.applyTouchTokens(r)
	case typeSetRole:
		return m.applySetRole(r)
	case typeSetNodeOwner, typeSetNodeSchedule, typeSetNodeAsk:
		return m.applyOwners(c.Type, r)
	case typePutAuthority:
		return m.applyPutAuthority(r)
	case typeCreateJoinToken:
		return m.applyCreateJoinToken(r)
	case typeJoin:
		return m.applyJoin(r)
	case typeRevokeIdentity:
		return m.applyRevokeIdentity(r)
	case typeRetireAuthority:
		return m.applyRetireAuthority(r)
	case typeAuditNote:
		return m.applyAuditNote(r)
	case typePutSecret, typeDeleteSecret, typeGiveSecrets, typeSetRegionKey:
		return m.applySecrets(c.Type, r)
	default:
		return m.applyRetireJobs(r)
	}
}

// rejected is the result of a command that changed nothing.
func rejected(code gpuai.Code, detail string) Result { return Result{Code: code, Detail: detail} }

// belowTenants refuses what LevelTenants brings.
var belowTenants = rejected(gpuai.InvalidSpec, "the region is below feature level 4, which brings authentication, tenants and quotas: upgrade all its servers")

var malformed = rejected(gpuai.InvalidSpec, "the command is malformed")
