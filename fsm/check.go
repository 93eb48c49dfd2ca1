package fsm

import (
	"fmt"
	"math/bits"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/scheduler"
)

// Check verifies the invariants of the state and says which one does not hold:
// no device in two live exclusive leases, sums within capacity, counts equal to
// what they count, indexes equal to tables, the hash equal to the records. It
// looks at everything: for tests, restores and samples.
func (m *Machine) Check() error {
	for _, f := range []func() error{m.checkHash, m.checkIndexes, m.checkTables} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// checkIndexes is the part of Check that a restore ensures as it makes the
// indexes.
func (m *Machine) checkIndexes() error {
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		id := m.jobs.Get(s).id
		if at, ok := m.jobSlot(id); !ok || at != s {
			return fmt.Errorf("invariant: job %s is not found by its ID", id)
		}
	}
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		t := m.leases.Get(s).token
		if at, ok := m.leaseSlot(t); !ok || at != s {
			return fmt.Errorf("invariant: lease %d is not found by its token", t)
		}
	}
	return nil
}

// checkTables is Check without the hash and the indexes of jobs and leases.
func (m *Machine) checkTables() error {
	for _, f := range []func() error{
		m.checkNodes, m.checkJobs, m.checkLeases, m.checkBuckets, m.checkWaits, m.checkTurns, m.checkBands, m.checkKinds, m.checkTenants, m.checkReservation, m.checkHalting,
		m.checkHolds, m.checkTallies, m.checkQuotas, m.checkMoney, m.checkKept, m.checkHours, m.checkCheckpoints, m.checkTimers, m.checkExpiries, m.checkServers, m.checkNotes, m.checkPoints,
		m.checkAuthorities, m.checkRegionKeys, m.checkSecrets, m.checkAccounts, m.checkAccess, m.checkAudit, m.sched.Check,
	} {
		if err := f(); err != nil {
			return fmt.Errorf("invariant: %w", err)
		}
	}
	return nil
}

func (m *Machine) checkNodes() error {
	live := uint32(0)
	for s := range m.nodes.Len() {
		n := m.nodes.Get(s)
		if *m.nodeOf.Get(n.name) != refTo(s) {
			return fmt.Errorf("node %d is not found by its name", s)
		}
		var milli [gpuai.MaxGPUs]uint32
		var cpu, mem, scratch int64
		count := uint32(0)
		for l := n.first; l != 0; l = m.leases.Get(l.slot()).next {
			x := m.leases.Get(l.slot())
			if x.node != s || !x.live() {
				return fmt.Errorf("node %s lists lease %d, which is not its", m.nodeName(s), x.token)
			}
			if count++; count > n.live {
				return fmt.Errorf("node %s lists more leases than its %d", m.nodeName(s), n.live)
			}
			cpu += int64(x.cpu)
			mem += x.memory
			scratch += m.scratchOf(x)
			for d := x.devices; d != 0; d &= d - 1 {
				milli[bits.TrailingZeros64(d)] += uint32(x.milli())
			}
		}
		for i, u := range milli {
			if u > uint32(gpuai.WholeDevice) {
				return fmt.Errorf("device %d of node %s is leased %d milli", i, m.nodeName(s), u)
			}
		}
		if err := m.checkScratch(s, scratch); err != nil {
			return err
		}
		if cpu != n.cpuUsed || mem != n.memUsed || count != n.live {
			return fmt.Errorf("node %s: used %d/%d in %d leases, recorded %d/%d in %d", m.nodeName(s), cpu, mem, count, n.cpuUsed, n.memUsed, n.live)
		}
		live += count
	}
	if live != m.meta.Get().liveLeases {
		return fmt.Errorf("%d leases on nodes, %d recorded", live, m.meta.Get().liveLeases)
	}
	return nil
}

func (m *Machine) checkJobs() error {
	var states [5]uint32
	var pending uint64
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		j := m.jobs.Get(s)
		states[j.status]++
		var live, open uint32
		for g := j.group; g != 0; g = m.groups.Get(g.slot()).next {
			r := m.groups.Get(g.slot())
			if err := m.checkGroup(g.slot()); err != nil {
				return fmt.Errorf("job %s: %w", j.id, err)
			}
			live += r.live()
			if !r.ended {
				open++
			}
			pending += uint64(r.pending())
		}
		if live != j.live || open != uint32(j.openGroups) || (open == 0) != j.status.Final() {
			return fmt.Errorf("job %s is %s with %d leases of %d and %d open groups of %d", j.id, j.status, live, j.live, open, j.openGroups)
		}
		if !j.status.Final() && (j.status == gpuai.JobRunning) != (live > 0) {
			return fmt.Errorf("job %s is %s with %d leases", j.id, j.status, live)
		}
	}
	if meta := m.meta.Get(); states != meta.jobStates || pending != meta.pending {
		return fmt.Errorf("jobs by state %v and %d pending tasks, recorded %v and %d", states, pending, meta.jobStates, meta.pending)
	}
	return nil
}

func (m *Machine) checkGroup(group uint32) error {
	g := m.groups.Get(group)
	var n [gpuai.NumTaskStatus]uint32
	var waiting, idx uint32
	for t := g.first; t != 0; t = m.tasks.Get(t.slot()).next {
		x := m.tasks.Get(t.slot())
		if x.group != refTo(group) || x.idx != idx {
			return fmt.Errorf("group %d: task %d is out of place", g.idx, x.idx)
		}
		idx++
		if x.status != gpuai.TaskPending {
			n[x.status]++
		} else if x.retryAt != 0 {
			waiting++
		}
		holds := x.status == gpuai.TaskLeased || x.status == gpuai.TaskRunning
		if x.lease != 0 && m.leases.Get(x.lease.slot()).live() != holds || x.lease == 0 && holds {
			return fmt.Errorf("group %d: task %d is %s, its lease is not", g.idx, x.idx, x.status)
		}
	}
	if fresh := g.count - g.made; m.jobs.Get(g.job.slot()).stopping || g.ended {
		n[gpuai.TaskStopped] += fresh
	}
	if n != g.n || idx != g.made || !g.gang && g.together != togetherOther && waiting != g.waiting {
		return fmt.Errorf("group %d: tasks by state %v with %d waiting, recorded %v with %d", g.idx, n, waiting, g.n, g.waiting)
	}
	j := m.jobs.Get(g.job.slot())
	if (g.bucket != 0) != (g.ready() > 0 && !g.ended && !j.stopping && !m.waitOf(j).held && !m.throttled(j)) {
		return fmt.Errorf("group %d: %d tasks ready, queued %v", g.idx, g.ready(), g.bucket != 0)
	}
	if err := checkElastic(g); err != nil {
		return err
	}
	if err := m.checkBarrier(g); err != nil {
		return err
	}
	if g.gang && !g.elastic() && g.live() > 0 && g.ready() > 0 && !j.stopping {
		return fmt.Errorf("group %d: a gang with %d leases has %d tasks ready", g.idx, g.live(), g.ready())
	}
	return nil
}

// checkElastic checks what holds of elastic gangs alone.
func checkElastic(g *groupRec) error {
	members := g.live() + g.n[gpuai.TaskSucceeded]
	switch {
	case g.elastic() && (!g.gang || g.min >= g.count):
		return fmt.Errorf("group %d: %d of %d tasks are enough, a gang: %v", g.idx, g.min, g.count, g.gang)
	case g.elastic() && !g.ended && g.broken == gpuai.CauseNone && g.live() > 0 && members < g.min && g.n[gpuai.TaskStopped] == 0:
		return fmt.Errorf("group %d: an elastic gang runs with %d of at least %d tasks", g.idx, members, g.min)
	case g.together == togetherOther && (g.bucket != 0 || g.made > 0):
		return fmt.Errorf("group %d: it waits for its job, and has started", g.idx)
	}
	return nil
}

func (m *Machine) checkLeases() error {
	n, revoking, milli := uint32(0), uint32(0), uint64(0)
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		if m.tasks.Get(l.task.slot()).lease != refTo(s) {
			return fmt.Errorf("lease %d is not its task's latest", l.token)
		}
		if l.live() {
			n++
			milli += l.held()
		}
		if l.state == gpuai.LeaseRevoking {
			revoking++
		}
	}
	if meta := m.meta.Get(); n != meta.liveLeases || revoking != meta.revoking || milli != meta.milliUsed {
		return fmt.Errorf("%d leases, %d revoking, %d milli; recorded %d, %d, %d", n, revoking, milli, meta.liveLeases, meta.revoking, meta.milliUsed)
	}
	return nil
}

func (m *Machine) checkBuckets() error {
	for s, ok := m.bucketSlots.Next(0); ok; s, ok = m.bucketSlots.Next(s + 1) {
		b := m.buckets.Get(s)
		k := b.key()
		mine := m.keyOf(b.first.slot())
		if k.tenant == 0 {
			mine.tenant = 0 // made below LevelPlacement, of any tenant
		}
		if mine != k {
			mine.sig = m.plainSig(b.first.slot()) // made before any node had a schedule
		}
		if at, ok := m.findBucket(&k); !ok || at != s || mine != k || m.unseen.Has(s) != b.unseen {
			return fmt.Errorf("bucket %d is not found, or not marked as it says", s)
		}
		groups, tasks, prev := uint32(0), uint64(0), ref(0)
		for at := b.first; at != 0; at = m.groups.Get(at.slot()).qnext {
			g := m.groups.Get(at.slot())
			if g.qprev != prev || g.bucket != refTo(s) || prev != 0 && !m.groupBefore(prev.slot(), at.slot()) {
				return fmt.Errorf("bucket %d is out of order", s)
			}
			groups++
			tasks += uint64(g.ready())
			prev = at
		}
		if err := m.checkLanes(s); err != nil {
			return err
		}
		if groups != b.groups || tasks != b.tasks || b.last != prev || groups == 0 {
			return fmt.Errorf("bucket %d: %d groups and %d tasks, recorded %d and %d", s, groups, tasks, b.groups, b.tasks)
		}
		if m.turns.has(s) != (m.Level() >= LevelPlacement && !b.unseen && !b.parked()) {
			return fmt.Errorf("bucket %d: in a turn %v, unseen %v", s, m.turns.has(s), b.unseen)
		}
		if m.turns.has(s) && (m.turns.leafs.Get(s).key != m.queueKeyOf(b.first.slot()) || m.turns.recs.Get(m.turns.leafs.Get(s).turn.slot()).tenant != b.tenant) {
			return fmt.Errorf("bucket %d is out of place in its turn", s)
		}
		if m.turns.has(s) && m.turns.leafs.Get(s).need != m.needOf(b) {
			return fmt.Errorf("bucket %d has another need than its turn knows", s)
		}
	}
	return nil
}

func (m *Machine) checkWaits() error {
	used := uint32(0)
	for s, ok := m.waitSlots.Next(0); ok; s, ok = m.waitSlots.Next(s + 1) {
		w := m.waits.Get(s)
		j := m.jobs.Get(w.job.slot())
		if j.wait != refTo(s) {
			return fmt.Errorf("wait %d is not of its job", s)
		}
		if w.held && (w.edges == 0 && w.beginAt == 0 || j.status != gpuai.JobPending) || !w.held && (w.edges > 0 || w.beginAt != 0) {
			return fmt.Errorf("job %s is %s, kept out %v for %d jobs and until %d", j.id, j.status, w.held, w.edges, w.beginAt)
		}
		if w.parallel > 0 && j.live > w.parallel {
			return fmt.Errorf("array %s has %d leases of %d", j.id, j.live, w.parallel)
		}
		n := uint8(0)
		for e := w.after; e != 0; e = m.edges.Get(e.slot()).more {
			if n++; m.edges.Get(e.slot()).from != w.job || n > w.edges {
				return fmt.Errorf("job %s waits for a job that another waits for", j.id)
			}
		}
		if used += uint32(n); n != w.edges || m.due(w.job.slot()) != 0 && !m.news.Has(w.job.slot()) {
			return fmt.Errorf("job %s waits for %d jobs of %d, or holds back news", j.id, n, w.edges)
		}
		for _, on := range [...]gpuai.Stage{gpuai.StageStarted, gpuai.StageEnded} {
			prev := ref(0)
			for e := *w.list(on); e != 0; prev, e = e, m.edges.Get(e.slot()).next {
				if x := m.edges.Get(e.slot()); x.to != w.job || x.prev != prev || (x.on == gpuai.StageStarted) != (on == gpuai.StageStarted) {
					return fmt.Errorf("the jobs that wait for job %s are out of order", j.id)
				}
			}
		}
	}
	if used != m.edgeSlots.Len() {
		return fmt.Errorf("jobs wait for %d others, %d are recorded", used, m.edgeSlots.Len())
	}
	return nil
}

func (m *Machine) checkReservation() error {
	tasks, group := uint32(0), m.meta.Get().reserve.group
	for s := range m.nodes.Len() {
		n := m.nodes.Get(s)
		if m.reserved.Has(s) != (n.reserved > 0) || n.reserved > 0 && !n.open() {
			return fmt.Errorf("node %s is reserved for %d tasks, and not open or not known as that", m.nodeName(s), n.reserved)
		}
		tasks += uint32(n.reserved)
		if n.reserved > 0 && group != 0 {
			if same := m.groups.Get(group.slot()).same; m.sched.ScopeOf(same, s) != m.reservedScope(same) {
				return fmt.Errorf("node %s is reserved for what must be in another domain", m.nodeName(s))
			}
		}
	}
	want := uint32(0)
	if group != 0 {
		g := m.groups.Get(group.slot())
		if want = g.least(); g.bucket == 0 {
			return fmt.Errorf("group %d has a reservation and does not wait", group)
		}
		for x := m.jobs.Get(g.job.slot()).group; x != 0 && g.together != 0; x = m.groups.Get(x.slot()).next {
			if x != group {
				want += m.groups.Get(x.slot()).least()
			}
		}
	}
	if tasks != want {
		return fmt.Errorf("nodes are reserved for %d tasks of group %d, which needs them for %d", tasks, group, want)
	}
	return nil
}

func (m *Machine) checkTenants() error {
	held := make([]uint64, m.tenants.Len())
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		if !l.live() || !m.counted(l.token) {
			continue
		}
		if name := m.tenantOfLease(l); name < m.tenantOf.Len() && *m.tenantOf.Get(name) != 0 {
			held[m.tenantOf.Get(name).slot()] += l.held()
		}
	}
	for s := range m.tenants.Len() {
		r := m.tenants.Get(s)
		if *m.tenantOf.Get(r.name) != refTo(s) || r.held != held[s] || r.weight < 1 {
			return fmt.Errorf("tenant %q of weight %d holds %d milli, recorded %d", m.strs.Get(r.name), r.weight, held[s], r.held)
		}
	}
	return nil
}

// checkTurns holds that each turn is in order and knows the least need below.
func (m *Machine) checkTurns() error {
	t := m.turns
	for s, ok := t.slots.Next(0); ok; s, ok = t.slots.Next(s + 1) {
		var first, last queueKey
		n := uint32(0)
		var walk func(at ref) (scheduler.Need, bool)
		walk = func(at ref) (scheduler.Need, bool) {
			l := t.leafs.Get(at.slot())
			least := l.need
			if l.left != 0 {
				below, ok := walk(l.left)
				if least = least.Least(&below); !ok || rank(l.left.slot()) > rank(at.slot()) {
					return least, false
				}
			}
			if l.turn != refTo(s) || n > 0 && l.key.before(last) {
				return least, false
			}
			if n == 0 {
				first = l.key
			}
			n, last = n+1, l.key
			if l.right != 0 {
				below, ok := walk(l.right)
				if least = least.Least(&below); !ok || rank(l.right.slot()) > rank(at.slot()) {
					return least, false
				}
			}
			return least, least == l.least
		}
		r := t.recs.Get(s)
		if r.buckets == 0 && r.root == 0 {
			continue // until arrange
		}
		if _, ok := walk(r.root); !ok || n != r.buckets || r.first != first {
			return fmt.Errorf("turn %d is out of order, or has not its %d buckets but %d", s, r.buckets, n)
		}
	}
	return nil
}

func (m *Machine) checkTimers() error { return m.checkHeap(m.timers) }

func (m *Machine) checkHeap(t *timers) error {
	for i := range *t.n.Get() {
		e := t.heap.Get(i)
		if p := m.timerAt(e.kind, e.slot); p != i+1 {
			return fmt.Errorf("timer %d of kind %d thinks it is at %d, it is at %d", e.slot, e.kind, p, i+1)
		}
		if i > 0 && e.before(t.heap.Get((i-1)/2)) {
			return fmt.Errorf("timer %d of kind %d is out of order", e.slot, e.kind)
		}
	}
	return nil
}

// timerAt is timerPlace for reading.
func (m *Machine) timerAt(kind timerKind, slot uint32) uint32 {
	switch kind {
	case timerTask:
		return m.tasks.Get(slot).timer
	case timerGroup:
		return m.groups.Get(slot).timer
	case timerJob, timerBegin:
		return m.jobs.Get(slot).timer
	case timerLease:
		return m.leases.Get(slot).timer
	case timerBarrier:
		return m.groups.Get(slot).barrier
	case timerBill:
		return m.bills.Get(slot).timer
	case timerToken:
		return m.tokens.Get(slot).timer
	case timerJoinToken:
		return m.joinTokens.Get(slot).timer
	case timerIdentity:
		return m.identities.Get(slot).timer
	case timerUsedJoin:
		return m.joinTokens.Get(slot).usedAt
	default:
		return m.nodes.Get(slot).timer
	}
}

func (m *Machine) checkHash() error {
	sum := m.meta.Sum() + m.policy.Sum() + m.audit.Sum() + m.nodes.Sum() + m.jobs.Sum() + m.groups.Sum() +
		m.tasks.Sum() + m.leases.Sum() + m.results.Sum() + m.buckets.Sum() + m.servers.Sum() + m.waits.Sum() + m.edges.Sum() +
		m.tenants.Sum() + m.holds.Sum() + m.quotas.Sum() + m.money.Sum() + m.purses.Sum() + m.bills.Sum() + m.checkpoints.Sum() + m.notes.Sum() + m.points.Sum() +
		m.authorities.Sum() + m.joinTokens.Sum() + m.identities.Sum() + m.regionKeys.Sum() + m.secrets.recs.Sum() + m.secrets.given.Sum() + m.owners.sum() +
		m.accounts.Sum() + m.access.Sum() + m.tokens.Sum() + m.roles.Sum() + m.sched.Sum()
	if sum != m.sp.Hash() {
		return fmt.Errorf("invariant: the records hash to %x, the incremental hash is %x", sum, m.sp.Hash())
	}
	return nil
}
