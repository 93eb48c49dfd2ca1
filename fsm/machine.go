package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// A Machine is the state of a region. See the package comment for who may call
// what when.
type Machine struct {
	opts Options
	sp   *mem.Space

	meta   mem.Var[metaRec]
	policy mem.Var[policyRec]
	audit  mem.Var[auditRec]
	strs   *mem.Strings
	blobs  *mem.Blobs

	nodes  *mem.Table[nodeRec] // by the order of registration: nodes never leave
	nodeOf *mem.Table[ref]     // by string number

	jobs      *mem.Table[jobRec]
	jobSlots  *mem.Slots
	jobByID   *mem.Hash
	jobByName *mem.Hash // the newest of each name hash

	groups     *mem.Table[groupRec]
	groupSlots *mem.Slots
	tasks      *mem.Table[taskRec]
	taskSlots  *mem.Slots

	leases       *mem.Table[leaseRec]
	leaseSlots   *mem.Slots
	leaseByToken *mem.Hash

	results     *mem.Table[resultRec]
	resultSlots *mem.Slots
	resultByKey *mem.Hash

	buckets     *mem.Table[bucketRec]
	bucketSlots *mem.Slots
	bucketByKey *mem.Hash

	waits     *mem.Table[waitRec]
	waitSlots *mem.Slots
	edges     *mem.Table[edgeRec]
	edgeSlots *mem.Slots

	tenants  *mem.Table[tenantRec]  // in the order in which they became known
	tenantOf *mem.Table[ref]        // by string number
	accounts *mem.Table[accountRec] // by the tenants' slots
	turns    *turns                 // derived
	kinds    *kinds                 // derived

	quotas    *mem.Table[quotaRec] // in the order in which they were set
	quotaOf   *mem.Table[ref]      // by string number of the tenant
	quotaUses *mem.Table[quotaUse] // derived
	tallies   *tallies             // derived
	cohorts   *cohorts             // derived
	curbs     treap                // buckets that wait for quotas; derived
	freed     *mem.Bitmap          // quotas of which something came free: their cohorts are not told yet
	waking    *mem.Bitmap          // quotas whose buckets are being judged again

	money     mem.Var[moneyRec]
	purses    *mem.Table[purseRec] // in the order in which tenants had one
	purseOf   *mem.Table[ref]      // by string number of the tenant
	bills     *mem.Table[billRec]
	billSlots *mem.Slots

	owners ownerTables

	servers *mem.Table[serverRec] // in the order in which they became known

	access     mem.Var[accessRec]
	tokens     *mem.Table[tokenRec]
	tokenSlots *mem.Slots
	tokenByID  *mem.Hash
	tokensOf   *mem.Table[uint32] // how many each tenant has, by string number; derived
	roles      *mem.Table[roleRec]
	roleSlots  *mem.Slots

	notes     *mem.Table[noteRec]
	noteSlots *mem.Slots
	// points are where members of gangs are reached from other nodes.
	points     *mem.Table[pointRec]
	pointSlots *mem.Slots

	checkpoints      *mem.Table[checkpointRec]
	checkpointSlots  *mem.Slots
	checkpointByTask *mem.Hash // the newest of each task
	// checkpointsOfTenant is how many each has, by string number; derived.
	checkpointsOfTenant *mem.Table[uint32]

	authorities    *mem.Table[authorityRec]
	authoritySlots *mem.Slots

	regionKeys      *mem.Table[regionKeyRec]
	regionKeySlots  *mem.Slots
	joinTokens      *mem.Table[joinTokenRec]
	joinTokenSlots  *mem.Slots
	joinTokenByHash *mem.Hash

	identities     *mem.Table[identityRec]
	identitySlots  *mem.Slots
	identityByName *mem.Hash

	secrets secretTables

	holds         *mem.Table[holdRec]
	holdSlots     *mem.Slots
	holdByGroup   *mem.Hash             // the newest of each group
	holdOf        *mem.Table[ref]       // by node: its oldest
	vacated       *mem.Bitmap           // nodes with holds that may have become vacant
	starving      *mem.Bitmap           // buckets
	starvingWhole *mem.Bitmap           // of these, those whose groups start as a whole
	starvedAt     *mem.Table[uint32]    // how many, by priority
	unripe        *mem.Table[unripeRec] // by unripeOf
	ripening      *mem.Bitmap           // those that are not empty

	dirty  *mem.Bitmap // nodes that gained room
	asked  *mem.Bitmap // of these, those of which displacers have been asked
	unseen *mem.Bitmap // buckets that nobody has tried
	news   *mem.Bitmap // jobs of which others must be told; derived
	// halting are the groups of which tasks are still to be told that they stop; derived.
	halting *mem.Bitmap
	// reserved are the nodes of the reservation; derived.
	reserved *mem.Bitmap
	timers   *timers
	sched    *scheduler.State

	// What follows is no state: it lives for one entry, or is derived.
	now      entryState
	mark     mem.Mark // where the present step began
	out      *Output
	trail    trail
	cands    []candidate
	needs    []scheduler.Members
	members  []uint32 // groups that start together
	scan     []uint32 // nodes that are looked at
	barren   []lent   // of which there is nothing more to take back for a tenant
	openings []opening
	free     scheduler.Free
	view     wire.JobView
	texts    wire.Texts
	body     []byte // scratch of setNodeBody
	victims  []victim
	holdings []scheduler.Holding
	gone     []bool
	fits     []scheduler.Fit // of a gang that is being placed
	digests  []Digest        // ring by index; nil in a fork
	traced   *tracing        // nil but in a machine that replays to explain
	asker    gpuai.TenantID  // whose jobs answers name; "": all
	// overQuota and overBudget: a place was found that the tenant may not have.
	overQuota, overBudget bool
	dear                  dear
}

// entryState is what holds for the entry being applied.
type entryState struct {
	index, term uint64
	time        gpuai.Instant
	wall        gpuai.WallTime
	ordinal     uint32 // of the next lease
	submitted   uint32 // slot of the newest job
	work        int64  // left of the budget
	woken       int64  // of it, what judging those took that wait for their quotas
	looks       int64  // at leafs of a turn, not charged yet
	group       ref    // that is being placed
	reserved    uint32 // the reserved nodes before it have no room for the group that is being placed
	emptying    ref    // node of which victims go: it is listed anew once all have been told
	joined      ref    // node that began a life with the present command; for the audit
	met         bool   // the gang that room is being kept for has a port
	meetless    bool   // the node of its oldest hold lends none
	onReserved  bool   // its groups may have the nodes that are reserved for them
}

// A policyRec is the region's policy.
type policyRec struct{ gpuai.Policy }

// New returns the machine of a new region.
func New(o Options) *Machine {
	s := mem.NewSpace()
	m := &Machine{
		opts: o, sp: s,
		meta:   mem.NewHashedVar(s, metaRec{level: MinLevel}, hasher[metaRec](seedMeta)),
		policy: mem.NewHashedVar(s, policyRec{gpuai.DefaultPolicy()}, hasher[policyRec](seedPolicy)),
		audit:  mem.NewHashedVar(s, auditRec{}, hasher[auditRec](seedAudit)),
		strs:   mem.NewStrings(s), blobs: mem.NewBlobs(s),
		nodes: mem.NewHashed(s, 5, hasher[nodeRec](seedNode)), nodeOf: mem.NewTable[ref](s, 10),
		jobs: mem.NewHashed(s, 5, hasher[jobRec](seedJob)), jobSlots: mem.NewSlots(s),
		jobByID: mem.NewHash(s), jobByName: mem.NewHash(s),
		groups: mem.NewHashed(s, 6, hasher[groupRec](seedGroup)), groupSlots: mem.NewSlots(s),
		tasks: mem.NewHashed(s, 7, hasher[taskRec](seedTask)), taskSlots: mem.NewSlots(s),
		leases: mem.NewHashed(s, 6, hasher[leaseRec](seedLease)), leaseSlots: mem.NewSlots(s),
		leaseByToken: mem.NewHash(s),
		results:      mem.NewHashed(s, 6, hasher[resultRec](seedResult)), resultSlots: mem.NewSlots(s),
		resultByKey: mem.NewHash(s),
		buckets:     mem.NewHashed(s, 6, hasher[bucketRec](seedBucket)), bucketSlots: mem.NewSlots(s),
		bucketByKey: mem.NewHash(s),
		waits:       mem.NewHashed(s, 5, hasher[waitRec](seedWait)), waitSlots: mem.NewSlots(s),
		edges: mem.NewHashed(s, 6, hasher[edgeRec](seedEdge)), edgeSlots: mem.NewSlots(s),
		tenants: mem.NewHashed(s, 5, hasher[tenantRec](seedTenant)), tenantOf: mem.NewTable[ref](s, 10), turns: newTurns(s), kinds: newKinds(s),
		quotas: mem.NewHashed(s, 4, hasher[quotaRec](seedQuota)), quotaOf: mem.NewTable[ref](s, 10),
		quotaUses: mem.NewTable[quotaUse](s, 4), tallies: newTallies(s), cohorts: newCohorts(s), freed: mem.NewBitmap(s), waking: mem.NewBitmap(s), curbs: treap{mem.NewTable[leafRec](s, 6)},
		money:  mem.NewHashedVar(s, moneyRec{}, hasher[moneyRec](seedMoney)),
		purses: mem.NewHashed(s, 3, hasher[purseRec](seedPurse)), purseOf: mem.NewTable[ref](s, 10),
		bills: mem.NewHashed(s, 5, hasher[billRec](seedBill)), billSlots: mem.NewSlots(s),
		accounts: mem.NewHashed(s, 5, hasher[accountRec](seedAccount)),
		servers:  mem.NewHashed(s, 5, hasher[serverRec](seedServer)),
		access:   mem.NewHashedVar(s, accessRec{}, hasher[accessRec](seedAccess)),
		tokens:   mem.NewHashed(s, 5, hasher[tokenRec](seedToken)), tokenSlots: mem.NewSlots(s),
		tokenByID: mem.NewHash(s), tokensOf: mem.NewTable[uint32](s, 10),
		roles: mem.NewHashed(s, 5, hasher[roleRec](seedRole)), roleSlots: mem.NewSlots(s),
		notes: mem.NewHashed(s, 6, hasher[noteRec](seedNote)), noteSlots: mem.NewSlots(s),
		points: mem.NewHashed(s, 6, hasher[pointRec](seedPoint)), pointSlots: mem.NewSlots(s),
		checkpoints: mem.NewHashed(s, 5, hasher[checkpointRec](seedCheckpoint)), checkpointSlots: mem.NewSlots(s),
		checkpointByTask: mem.NewHash(s), checkpointsOfTenant: mem.NewTable[uint32](s, 10),
		authorities: mem.NewHashed(s, 2, hasher[authorityRec](seedAuthority)), authoritySlots: mem.NewSlots(s),
		regionKeys: mem.NewHashed(s, 3, hasher[regionKeyRec](seedRegionKey)), regionKeySlots: mem.NewSlots(s),
		joinTokens: mem.NewHashed(s, 4, hasher[joinTokenRec](seedJoinToken)), joinTokenSlots: mem.NewSlots(s),
		joinTokenByHash: mem.NewHash(s),
		identities:      mem.NewHashed(s, 6, hasher[identityRec](seedIdentity)), identitySlots: mem.NewSlots(s),
		identityByName: mem.NewHash(s),
		secrets:        newSecretTables(s), owners: newOwnerTables(s),
		holds: mem.NewHashed(s, 6, hasher[holdRec](seedHold)), holdSlots: mem.NewSlots(s),
		holdByGroup: mem.NewHash(s), holdOf: mem.NewTable[ref](s, 9),
		vacated: mem.NewBitmap(s), starving: mem.NewBitmap(s),
		starvedAt: mem.NewTable[uint32](s, 7), unripe: mem.NewTable[unripeRec](s, 7), ripening: mem.NewBitmap(s),
		dirty: mem.NewBitmap(s), asked: mem.NewBitmap(s), starvingWhole: mem.NewBitmap(s), unseen: mem.NewBitmap(s), news: mem.NewBitmap(s), halting: mem.NewBitmap(s), reserved: mem.NewBitmap(s),
		timers: newTimers(s), sched: scheduler.New(s),
		digests: make([]Digest, DigestsKept),
	}
	m.timers.place = m.timerPlace
	m.starvedAt.Grow(uint32(gpuai.MaxPriority) + 1)
	m.unripe.Grow(unripeUpTo(gpuai.MaxPriority))
	s.Commit()
	return m
}

// Fork returns a machine that is equal to m and independent of it from now on.
// It costs a copy of the page tables; pages are copied when either side first
// writes to them. A fork remembers no digests but its own. Call it where m may
// be written to: it must not run beside Apply or a read.
func (m *Machine) Fork() *Machine {
	s := m.sp.Fork()
	f := &Machine{
		opts: m.opts, sp: s, meta: m.meta.Fork(s), policy: m.policy.Fork(s), audit: m.audit.Fork(s),
		strs: m.strs.Fork(s), blobs: m.blobs.Fork(s),
		nodes: m.nodes.Fork(s), nodeOf: m.nodeOf.Fork(s),
		jobs: m.jobs.Fork(s), jobSlots: m.jobSlots.Fork(s),
		jobByID: m.jobByID.Fork(s), jobByName: m.jobByName.Fork(s),
		groups: m.groups.Fork(s), groupSlots: m.groupSlots.Fork(s),
		tasks: m.tasks.Fork(s), taskSlots: m.taskSlots.Fork(s),
		leases: m.leases.Fork(s), leaseSlots: m.leaseSlots.Fork(s),
		leaseByToken: m.leaseByToken.Fork(s),
		results:      m.results.Fork(s), resultSlots: m.resultSlots.Fork(s),
		resultByKey: m.resultByKey.Fork(s),
		buckets:     m.buckets.Fork(s), bucketSlots: m.bucketSlots.Fork(s),
		bucketByKey: m.bucketByKey.Fork(s),
		waits:       m.waits.Fork(s), waitSlots: m.waitSlots.Fork(s),
		edges: m.edges.Fork(s), edgeSlots: m.edgeSlots.Fork(s),
		tenants: m.tenants.Fork(s), tenantOf: m.tenantOf.Fork(s), turns: m.turns.fork(s), kinds: m.kinds.fork(s),
		quotas: m.quotas.Fork(s), quotaOf: m.quotaOf.Fork(s),
		quotaUses: m.quotaUses.Fork(s), tallies: m.tallies.fork(s), cohorts: m.cohorts.fork(s), freed: m.freed.Fork(s), waking: m.waking.Fork(s), curbs: treap{m.curbs.leafs.Fork(s)},
		money: m.money.Fork(s), purses: m.purses.Fork(s), purseOf: m.purseOf.Fork(s),
		bills: m.bills.Fork(s), billSlots: m.billSlots.Fork(s),
		accounts: m.accounts.Fork(s), servers: m.servers.Fork(s), access: m.access.Fork(s),
		tokens: m.tokens.Fork(s), tokenSlots: m.tokenSlots.Fork(s), tokenByID: m.tokenByID.Fork(s), tokensOf: m.tokensOf.Fork(s),
		roles: m.roles.Fork(s), roleSlots: m.roleSlots.Fork(s),
		notes: m.notes.Fork(s), noteSlots: m.noteSlots.Fork(s),
		points: m.points.Fork(s), pointSlots: m.pointSlots.Fork(s),
		checkpoints: m.checkpoints.Fork(s), checkpointSlots: m.checkpointSlots.Fork(s),
		checkpointByTask: m.checkpointByTask.Fork(s), checkpointsOfTenant: m.checkpointsOfTenant.Fork(s),
		authorities: m.authorities.Fork(s), authoritySlots: m.authoritySlots.Fork(s),
		regionKeys: m.regionKeys.Fork(s), regionKeySlots: m.regionKeySlots.Fork(s),
		joinTokens: m.joinTokens.Fork(s), joinTokenSlots: m.joinTokenSlots.Fork(s),
		joinTokenByHash: m.joinTokenByHash.Fork(s),
		identities:      m.identities.Fork(s), identitySlots: m.identitySlots.Fork(s),
		identityByName: m.identityByName.Fork(s),
		secrets:        m.secrets.fork(s), owners: m.owners.fork(s),
		holds: m.holds.Fork(s), holdSlots: m.holdSlots.Fork(s),
		holdByGroup: m.holdByGroup.Fork(s), holdOf: m.holdOf.Fork(s),
		vacated: m.vacated.Fork(s), starving: m.starving.Fork(s),
		starvedAt: m.starvedAt.Fork(s), unripe: m.unripe.Fork(s), ripening: m.ripening.Fork(s),
		dirty: m.dirty.Fork(s), asked: m.asked.Fork(s), starvingWhole: m.starvingWhole.Fork(s), unseen: m.unseen.Fork(s), news: m.news.Fork(s), halting: m.halting.Fork(s), reserved: m.reserved.Fork(s),
		timers: m.timers.fork(s), sched: m.sched.Fork(s), asker: m.asker,
	}
	f.timers.place = f.timerPlace
	return f
}

// Index returns the index of the newest entry applied; 0 before the first.
func (m *Machine) Index() uint64 { return m.meta.Get().index }

// Term returns the Raft term of the newest entry applied.
func (m *Machine) Term() uint64 { return m.meta.Get().term }

// Time returns region time.
func (m *Machine) Time() gpuai.Instant { return m.meta.Get().time }

// Epoch returns how many restores from a backup the region has lived through.
func (m *Machine) Epoch() uint8 { return m.meta.Get().epoch }

// RestoreID names the restore that began the epoch; "" when there was none.
func (m *Machine) RestoreID() string {
	if r := m.meta.Get().restore; r != [16]byte{} {
		return Digest(r).String()
	}
	return ""
}

// QuietUntil returns the region time before which nothing is granted, since a
// backup was restored; 0 when none was, or Time is past it.
func (m *Machine) QuietUntil() gpuai.Instant {
	if q := m.meta.Get().quietUntil; q > m.Time() {
		return q
	}
	return 0
}

// Level returns the feature level of the state.
func (m *Machine) Level() uint32 { return m.meta.Get().level }

// Policy returns the region's policy.
func (m *Machine) Policy() gpuai.Policy { return m.policy.Get().Policy }

// NextDeadline returns when the machine wants a Tick: at or before Time when
// there is a backlog, MaxInstant when nothing is due. Remembered answers are
// dropped in passing and want none.
func (m *Machine) NextDeadline() gpuai.Instant {
	at := gpuai.MaxInstant
	if m.backlog() {
		at = max(m.Time(), m.QuietUntil())
	}
	if _, ok := m.news.Next(0); ok {
		at = m.Time()
	}
	if _, ok := m.halting.Next(0); ok {
		at = m.Time()
	}
	if e, ok := m.timers.next(); ok {
		at = min(at, e.at)
	}
	return min(at, m.ripensAt(), m.hoursDeadline())
}

// Digest returns the digest of the state.
func (m *Machine) Digest() Digest {
	var d Digest
	le.PutUint64(d[:8], m.meta.Get().chain)
	le.PutUint64(d[8:], m.sp.Hash())
	return d
}

// DigestAt returns the digest after an index, when it was applied here and is
// among the newest DigestsKept.
func (m *Machine) DigestAt(index uint64) (Digest, bool) {
	last := m.Index()
	if index == 0 || index > last || index+DigestsKept <= last || m.digests == nil {
		return Digest{}, false
	}
	d := m.digests[index%DigestsKept]
	return d, d != Digest{}
}

// emit adds an event to the entry's output.
func (m *Machine) emit(e gpuai.Event) {
	e.Index, e.At = m.now.index, m.now.time
	e.Ordinal = uint32(len(m.out.Events))
	m.out.Events = append(m.out.Events, e)
}
