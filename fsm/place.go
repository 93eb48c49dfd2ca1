package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// A candidate is a bucket that may have something to place, by the key of its
// first group.
type candidate struct {
	seq      uint64 // place of the job in the queue
	bucket   uint32
	group    uint32
	idx      uint8
	priority gpuai.Priority
	grows    bool
	claim    claim // of the tenant; below LevelPlacement all are equal
	tenant   uint32
	inTurn   bool           // it stands for its turn: the next of that follows
	base     gpuai.Priority // of the turn, as are of and grows
	of       uint32         // tenant; 0 where its buckets were made below LevelPlacement
	lazy     bool           // the turn's first bucket that may fit is not looked for yet
	below    ref            // not 0: it stands for this turn and those below in their band's tree
	but      ref            // of those below, one that is in the heap by itself
	opens    bool           // it stands for a band that is not looked at yet
}

// before is the order of the queue: higher priority, then what waits to start
// before what wants to grow, then the tenant that has had less for its weight,
// then the older job, then the group's place in it,
// then the bucket.
func (a *candidate) before(b *candidate) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	if a.grows != b.grows {
		return b.grows
	}
	if c := a.claim.compare(b.claim); c != 0 {
		return c < 0
	}
	if a.seq != b.seq {
		return a.seq < b.seq
	}
	if a.idx != b.idx {
		return a.idx < b.idx
	}
	return a.bucket < b.bucket
}

// candidate returns a bucket's candidate.
func (m *Machine) candidate(bucket, group uint32) candidate {
	g := m.groups.Get(group)
	j := m.jobs.Get(g.job.slot())
	c := candidate{seq: m.place(j), bucket: bucket, group: group, idx: g.idx, priority: j.priority}
	if m.Level() >= LevelPlacement {
		c.tenant, c.claim = j.tenant, m.claimOf(j.tenant)
		if c.grows = g.grows(); !c.grows { // nobody is kept waiting by it: it does not age
			c.priority = m.aged(j)
		}
	}
	return c
}

// backlog reports whether the queue must be looked at again.
func (m *Machine) backlog() bool {
	return !m.sched.PackingSettled() || m.unserved() || m.wakesSomebody()
}

// unserved reports whether buckets or nodes are marked to be looked at.
func (m *Machine) unserved() bool {
	if _, ok := m.unseen.Next(0); ok {
		return true
	}
	if _, ok := m.vacated.Next(0); ok {
		return true
	}
	_, ok := m.dirty.Next(0)
	return ok
}

// refill places what waits on what has become free, in queue order, within the
// entry's budget. What the budget leaves over stays marked.
func (m *Machine) refill() {
	for {
		m.wakeQuotas()
		m.refillRoom()
		if !m.mayWake() {
			return
		}
	}
}

// refillRoom is refill but for those who wait for their quota.
func (m *Machine) refillRoom() {
	if m.meta.Get().quietUntil > m.now.time {
		m.settle()
		return
	}
	for m.now.work > 0 {
		if !m.claimDue() {
			return
		}
		m.settle()
		m.wakeQuotas()
		node, gained := m.dirty.Next(0)
		if _, ok := m.unseen.Next(0); !ok && !gained {
			if m.reserve(); !m.unserved() {
				return
			}
			continue
		}
		if gained && !m.nodes.Get(node).open() {
			m.cleared(node)
			continue
		}
		kept := gained && m.nodes.Get(node).reserved != 0
		if gained && m.Level() >= LevelPlacement {
			if !m.serve(node) {
				return
			}
		} else if m.collect(node, gained); !m.drain() {
			return
		}
		if gained && (!kept || m.nodes.Get(node).reserved != 0) { // else what had to pass it by may have it now
			m.cleared(node)
		}
	}
}

// gained notes that a node has room that it had not, for whoever waits.
func (m *Machine) gained(node uint32) {
	m.dirty.Set(node)
	m.asked.Clear(node)
}

// cleared notes that what a node gained has been offered to all.
func (m *Machine) cleared(node uint32) {
	m.dirty.Clear(node)
	m.asked.Clear(node)
}

// What the number of a node in a snapshot says besides that it is dirty, or instead.
const (
	dirtyAsked   = 1 << 31
	dirtyVacated = 1 << 30 // it is in vacated: looking in vain costs tokens, too
)

func (m *Machine) restoreDirty(n uint32) {
	node := n & (mem.MaxSlots - 1)
	if n&dirtyVacated != 0 {
		m.vacated.Set(node)
		return
	}
	m.dirty.Set(node)
	if n&dirtyAsked != 0 {
		m.asked.Set(node)
	}
}

// collect fills the heap of candidates: buckets that nobody has looked at, and
// those of which a task fits on the node that gained room.
func (m *Machine) collect(node uint32, gained bool) {
	m.cands = m.cands[:0]
	if !gained {
		for b, ok := m.unseen.Next(0); ok; b, ok = m.unseen.Next(b + 1) {
			m.offer(b)
		}
		return
	}
	for b, ok := m.bucketSlots.Next(0); ok; b, ok = m.bucketSlots.Next(b + 1) {
		m.now.work -= workLook
		r := m.buckets.Get(b)
		if r.unseen || m.wakes(r, node) {
			m.offer(b)
		}
	}
}

// offer adds a bucket to the heap of candidates.
func (m *Machine) offer(bucket uint32) {
	m.push(m.candidate(bucket, m.buckets.Get(bucket).first.slot()))
}

func (m *Machine) push(c candidate) {
	m.cands = append(m.cands, c)
	for i := len(m.cands) - 1; i > 0; {
		p := (i - 1) / 2
		if !m.cands[i].before(&m.cands[p]) {
			return
		}
		m.cands[i], m.cands[p] = m.cands[p], m.cands[i]
		i = p
	}
}

// take removes the best candidate from the heap.
func (m *Machine) take() candidate {
	c := m.cands
	best := c[0]
	n := len(c) - 1
	c[0] = c[n]
	m.cands = c[:n]
	for i := 0; ; {
		k := 2*i + 1
		if k >= n {
			return best
		}
		if k+1 < n && c[k+1].before(&c[k]) {
			k++
		}
		if !c[k].before(&c[i]) {
			return best
		}
		c[i], c[k] = c[k], c[i]
		i = k
	}
}

// drain places the candidates in order until none fits; false when the budget
// ended first.
func (m *Machine) drain() bool {
	for len(m.cands) > 0 {
		if m.now.work <= 0 || m.now.ordinal >= MaxLeasesPerEntry {
			m.now.work = min(m.now.work, 0)
			return false
		}
		c := m.take()
		placed, final := m.placeGroup(c.group)
		if !final {
			m.look(c.bucket) // cut short: it must be tried everywhere
			m.now.work = min(m.now.work, 0)
			return false
		}
		if !m.buckets.Get(c.bucket).used {
			continue // its last group has gone
		}
		switch {
		case placed:
			m.offer(c.bucket)
		case m.displace(c.bucket):
			m.seen(c.bucket)
		default:
			m.look(c.bucket)
			m.now.work = min(m.now.work, 0)
			return false
		}
	}
	return true
}

// placeFree gives leases to as many ready tasks of a group as fit: to all or
// none of a gang, or of all groups of a job that start together. placed says whether the whole group was placed, final whether
// the answer is: false when the entry's tokens or budget ended.
func (m *Machine) placeFree(group uint32) (placed, final bool) {
	g := m.groups.Get(group)
	m.now.group, m.now.reserved, m.now.onReserved = refTo(group), 0, false
	switch {
	case g.together != 0:
		return m.placeTogether(group)
	case g.gang && g.live() > 0:
		return m.growGang(group)
	case g.gang:
		return m.placeGang(group)
	}
	for n := g.ready(); n > 0; n-- {
		if m.now.ordinal >= MaxLeasesPerEntry || m.now.work <= 0 {
			return false, false
		}
		fit, ok := m.find(g.shape)
		if !ok {
			return false, true
		}
		if !m.grant(group, fit) {
			return false, true
		}
		if m.dequeue(group, 1); m.groups.Get(group).bucket == 0 {
			return true, true // none is left, or the array has all that it may have
		}
	}
	return true, true
}

func (m *Machine) find(sh scheduler.ShapeID) (scheduler.Fit, bool) {
	if m.reservedFor(m.now.group) {
		if fit, ok := m.findReserved(sh); ok {
			return fit, true
		}
	}
	if m.opts.FirstFit {
		return m.firstFit(sh)
	}
	before := m.sched.Work()
	fit, ok := m.sched.Place(sh)
	m.now.work -= int64(m.sched.Work()-before) + workLook
	if !ok && m.now.group != 0 && m.meta.Get().reserve.group != 0 && !m.reservedFor(m.now.group) {
		return m.findPast(m.now.group.slot())
	}
	return fit, ok
}

// grant gives the next task of a group its lease; false when the machine is
// full.
func (m *Machine) grant(group uint32, fit scheduler.Fit) bool {
	if m.leaseSlots.Len() >= MaxLeaseRecs || m.taskSlots.Len() >= MaxTaskRecs {
		return false
	}
	if m.quotas.Len() > 0 && !m.grantable(group, &fit) || !m.lastsOn(group, fit.Node) {
		return false
	}
	bill, bills, ok := m.newBill(m.groups.Get(group).job.slot(), &fit, m.priceAt(&fit))
	if !ok {
		m.noteDear(&fit)
		return false
	}
	slot, ok := m.leaseSlots.Alloc()
	if !ok {
		return false
	}
	task, ok := m.nextTask(group)
	if !ok {
		m.leaseSlots.Free(slot)
		return false
	}
	g := m.groups.Get(group)
	jslot := g.job.slot()
	t := m.tasks.Mut(task)
	m.dropLease(t.lease)
	t.lease, t.retryAt, t.exit = refTo(slot), 0, 0
	if m.traced != nil {
		m.trace(task, fit)
	}
	m.sched.Take(fit, g.shape)
	l := m.newLease(jslot, task, &fit, gpuai.MakeToken(m.meta.Get().epoch, m.now.index, uint16(m.now.ordinal)))
	cpu, memory, _ := m.sched.Demand(g.shape)
	l.cpu, l.memory = uint32(cpu), memory
	m.leases.Put(slot, l)
	m.now.ordinal++
	m.now.work -= workPlace
	m.linkLease(slot)
	m.protect(slot, jslot)
	m.relisted(fit.Node)
	m.leaseByToken.Insert(hashToken(l.token), slot)
	if bills {
		m.openBill(slot, bill)
	}
	m.setTask(task, gpuai.TaskLeased)
	if m.groups.Get(group).held {
		m.groups.Mut(group).unready++
	}
	m.jobs.Mut(jslot).live++
	if m.jobs.Get(jslot).status == gpuai.JobPending {
		m.setJobStatus(jslot, gpuai.JobRunning)
	}
	m.emit(m.leaseEvent(gpuai.LeaseGrantedEvent, slot))
	return true
}

// newLease returns the record of a lease whose TTL and grace are fixed now.
func (m *Machine) newLease(job, task uint32, fit *scheduler.Fit, token gpuai.Token) leaseRec {
	j, p := m.jobs.Get(job), m.policy.Get()
	n := m.nodes.Get(fit.Node)
	ttl := max(p.TTL(j.class), gpuai.Duration(j.ttl), p.MinTTL())
	return leaseRec{
		token: token, task: refTo(task), node: fit.Node, incarnation: n.incarnation,
		devices: fit.Devices, share: fit.Share,
		price: m.priceAt(fit), granted: m.now.time, modified: m.now.index,
		ttl: uint32(ttl), grace: uint32(p.GraceFor(ttl)), state: gpuai.LeaseGranted,
	}
}
