package main

import (
	"fmt"
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// books are a naive account of a region with terms: of each entry of the log they
// take the commands that they know and the events, and compute from these what every
// lease costs, who is paid for it, and where leases may be. They share no code with the
// machine. What they do not know (commands of agents and servers) they see in events.
type books struct {
	w        *world
	known    map[string]fsm.Command
	proposed map[entryKey]*written
	wall     gpuai.WallTime // of the newest entry
	ledger
}

// An entryKey names a log entry.
type entryKey struct{ index, term uint64 }

// written is what an entry was made of; a command that is not known is nil.
type written struct {
	wall gpuai.WallTime
	cmds []fsm.Command
}

// A ledger is what a backup has of the books.
type ledger struct {
	level   uint32
	feeBps  int64
	list    gpuai.Micros // price of the model
	nodes   map[gpuai.NodeID]nodeTerms
	jobs    map[gpuai.JobID]jobTerms
	leases  map[gpuai.Token]leaseBill
	quotas  map[gpuai.TenantID]gpuai.Quota
	budgets map[gpuai.TenantID]gpuai.Budget
	spent   map[gpuai.TenantID]gpuai.Micros
	earned  map[gpuai.ContributorID]gpuai.Micros
}

// nodeTerms are a node's; without a price it has none of its own.
type nodeTerms struct {
	schedule gpuai.Schedule
	owner    gpuai.ContributorID
	ask      *gpuai.Micros
	price    *gpuai.Micros
}

type jobTerms struct {
	tenant gpuai.TenantID
	milli  int64
	limit  gpuai.Duration
	old    bool // from before tenants were counted: no quota holds it back
}

// A leaseBill is what a live lease came to.
type leaseBill struct {
	job      gpuai.JobID
	node     gpuai.NodeID
	price    gpuai.Micros
	feeBps   int64
	from     gpuai.Instant
	since    gpuai.Instant // what was billed up to then is another owner's
	amount   gpuai.Micros
	fee      gpuai.Micros
	free     bool  // it has no bill
	revoked  bool  // it is revoking
	revoking int64 // true time since when
	cause    gpuai.LeaseCause
}

func newBooks(w *world) *books {
	return &books{w: w, known: map[string]fsm.Command{}, proposed: map[entryKey]*written{}, wall: wallBegin, ledger: ledger{
		level: 1, nodes: map[gpuai.NodeID]nodeTerms{}, jobs: map[gpuai.JobID]jobTerms{}, leases: map[gpuai.Token]leaseBill{},
		quotas: map[gpuai.TenantID]gpuai.Quota{}, budgets: map[gpuai.TenantID]gpuai.Budget{},
		spent: map[gpuai.TenantID]gpuai.Micros{}, earned: map[gpuai.ContributorID]gpuai.Micros{},
	}}
}

// clone returns a ledger that goes its own way.
func (l *ledger) clone() ledger {
	c := *l
	c.nodes, c.jobs, c.leases = maps.Clone(l.nodes), maps.Clone(l.jobs), maps.Clone(l.leases)
	c.quotas, c.budgets = maps.Clone(l.quotas), maps.Clone(l.budgets)
	c.spent, c.earned = maps.Clone(l.spent), maps.Clone(l.earned)
	return c
}

// know has a command be known where it is found in the log.
func (b *books) know(encoded []byte, c fsm.Command) {
	if b.w.users.terms.on {
		b.known[string(encoded)] = c
	}
}

// wrote notes what an entry was made of.
func (b *books) wrote(index, term uint64, wall gpuai.WallTime, cmds [][]byte) {
	if !b.w.users.terms.on {
		return
	}
	e := &written{wall: wall, cmds: make([]fsm.Command, len(cmds))}
	for i, c := range cmds {
		e.cmds[i] = b.known[string(c)]
	}
	b.proposed[entryKey{index, term}] = e
}

// take takes an entry's commands and events in their order.
func (b *books) take(s *server, term uint64, out *fsm.Output) {
	if !b.w.users.terms.on {
		return
	}
	e := b.proposed[entryKey{out.Index, term}]
	if e == nil {
		b.w.check.fail("books", fmt.Sprintf("index %d, term %d: nobody wrote this entry", out.Index, term))
		return
	}
	b.wall = e.wall
	next := uint32(0)
	until := func(end uint32) {
		for ; next < end; next++ {
			b.event(s, &out.Events[next])
		}
	}
	for i := range out.Results {
		r := &out.Results[i]
		until(r.EventsFrom)
		if c := e.cmds[i]; c != nil && r.Code == gpuai.OK && !r.Repeated {
			b.command(c, r, out.Time)
		}
		until(r.EventsTo)
	}
	until(uint32(len(out.Events)))
	b.closed(out.Index)
	if b.w.check.applies%7 == 0 {
		b.compare(s)
	}
}

// command takes one that was accepted.
func (b *books) command(c fsm.Command, r *fsm.Result, now gpuai.Instant) {
	switch c := c.(type) {
	case *fsm.SetFeatureLevel:
		b.level = c.Level
	case *fsm.SubmitJob:
		t := termsOf(c.Spec)
		t.old = b.level < fsm.LevelTenants
		b.jobs[r.Job] = t
	case *fsm.SetNodeSchedule:
		n := b.nodes[c.Node]
		n.schedule = c.Schedule
		b.nodes[c.Node] = n
	case *fsm.SetNodeOwner:
		b.give(c.Node, c.Contributor, now)
	case *fsm.SetNodeAsk:
		n := b.nodes[c.Node]
		n.ask = priceOrNone(c.Price)
		b.nodes[c.Node] = n
	case *fsm.SetNodePrice:
		n := b.nodes[c.Node]
		n.price = priceOrNone(c.Price)
		b.nodes[c.Node] = n
	case *fsm.SetPrices:
		b.feeBps, b.list = int64(c.Prices.FeeBps), c.Prices.Models[0].Price
	case *fsm.SetQuota:
		b.quotas[c.Tenant] = c.Quota
	case *fsm.SetBudget:
		b.budgets[c.Tenant] = c.Budget
	}
}

func priceOrNone(p gpuai.Micros) *gpuai.Micros {
	if p < 0 {
		return nil
	}
	return &p
}

func termsOf(s *gpuai.JobSpec) jobTerms {
	g := s.Groups[0].Resources.GPU
	t := jobTerms{tenant: s.Tenant, milli: int64(g.Count) * 1_000, limit: s.Limits.RunTime}
	if g.Share.Milli > 0 {
		t.milli = int64(g.Share.Milli)
	}
	return t
}

// event takes one event.
func (b *books) event(s *server, e *gpuai.Event) {
	switch e.Kind {
	case gpuai.LeaseGrantedEvent:
		b.granted(s, e)
	case gpuai.LeaseRevokingEvent:
		if l, ok := b.leases[e.Lease]; ok {
			l.revoked, l.revoking, l.cause = true, b.w.now, e.Cause
			b.leases[e.Lease] = l
		}
	case gpuai.LeaseEndedEvent:
		b.ended(e)
	}
}

func (b *books) granted(s *server, e *gpuai.Event) {
	job, ok := b.jobs[e.Job]
	if !ok {
		b.w.check.fail("books", fmt.Sprintf("index %d: lease %s is of job %s, which nobody submitted", e.Index, e.Lease, e.Job))
		return
	}
	n := b.nodes[e.Node]
	l := leaseBill{job: e.Job, node: e.Node, price: b.priceOf(&n), feeBps: b.feeBps, from: e.At, since: e.At}
	_, has := b.budgets[job.tenant]
	_, paid := b.spent[job.tenant]
	l.free = b.level < fsm.LevelTenants || l.price == 0 && !has && !paid
	if !l.free && !paid {
		b.spent[job.tenant] = 0
	}
	b.leases[e.Lease] = l
	b.lasts(e, &n.schedule, job.limit)
	if !job.old {
		b.within(e, job.tenant)
	}
}

// priceOf is what a device and hour costs on a node: what an operator gave it, else
// what its contributor asks, else what the list says, since no agent says anything.
func (b *books) priceOf(n *nodeTerms) gpuai.Micros {
	switch {
	case n.price != nil:
		return *n.price
	case n.ask != nil:
		return *n.ask
	}
	return b.list
}

// cost is what a lease comes to in a time, and the fee, at most what is held for it.
func (b *books) cost(l *leaseBill, d gpuai.Duration) (amount, fee gpuai.Micros) {
	job := b.jobs[l.job]
	limit := job.limit
	if limit == 0 {
		limit = gpuai.Hour
	}
	due := func(d gpuai.Duration) (gpuai.Micros, gpuai.Micros) {
		a := l.price * gpuai.Micros(job.milli) * gpuai.Micros(d) / (gpuai.Micros(gpuai.Hour) * 1_000)
		return a, a * gpuai.Micros(l.feeBps) / 10_000
	}
	a, f := due(max(d, 0))
	mostA, mostF := due(limit)
	amount = min(a, mostA+mostF-l.fee)
	return amount, min(f, mostA+mostF-amount)
}

// held is what a lease may yet cost.
func (b *books) held(l *leaseBill) gpuai.Micros {
	job := b.jobs[l.job]
	a, f := b.cost(&leaseBill{job: l.job, price: l.price, feeBps: l.feeBps}, max(job.limit, 0))
	if job.limit == 0 {
		a, f = b.cost(&leaseBill{job: l.job, price: l.price, feeBps: l.feeBps}, gpuai.Hour)
	}
	return a + f - l.amount - l.fee
}

// bill bills a lease up to an instant, less than what it was billed where that is
// before: who owns the node has it.
func (b *books) bill(l *leaseBill, to gpuai.Instant) {
	amount, fee := b.cost(l, gpuai.Duration(to-l.from))
	b.spent[b.jobs[l.job].tenant] += amount + fee - l.amount - l.fee
	b.earned[b.nodes[l.node].owner] += amount - l.amount
	l.amount, l.fee = amount, fee
}

func (b *books) ended(e *gpuai.Event) {
	l, ok := b.leases[e.Lease]
	if !ok {
		return
	}
	delete(b.leases, e.Lease)
	if l.free {
		return
	}
	switch e.Cause {
	case gpuai.CauseExpired, gpuai.CauseNodeRestarted, gpuai.CauseGPU, gpuai.CauseRestored:
		b.bill(&l, l.since) // no task of these regions has a checkpoint
	default:
		b.bill(&l, e.At)
	}
}

// give gives a node to a contributor: so far it is the other's.
func (b *books) give(node gpuai.NodeID, to gpuai.ContributorID, now gpuai.Instant) {
	n := b.nodes[node]
	if n.owner == to {
		return
	}
	for _, t := range slices.Sorted(maps.Keys(b.leases)) {
		if l := b.leases[t]; l.node == node && !l.free {
			b.bill(&l, now)
			l.since = now
			b.leases[t] = l
		}
	}
	n.owner, n.ask = to, nil
	b.nodes[node] = n
}

// reclaims reports whether one tenant may take back what it lent to another, whatever
// their jobs' priorities are.
func (b *books) reclaims(from, by gpuai.TenantID) bool {
	return b.w.users.terms.on && from != by && b.quotas[from].Cohort != "" && b.quotas[by].Cohort != ""
}

// compare compares a machine's ledger with the books.
func (b *books) compare(s *server) {
	held := map[gpuai.TenantID]gpuai.Micros{}
	for _, t := range slices.Sorted(maps.Keys(b.leases)) {
		if l := b.leases[t]; !l.free {
			held[b.jobs[l.job].tenant] += b.held(&l)
		}
	}
	for _, tenant := range termTenants {
		u, _ := s.m.Usage(tenant)
		if u.Billed.Total.Money != b.spent[tenant] || u.HeldMoney != held[tenant] {
			b.w.check.fail("ledger", fmt.Sprintf("server %d, index %d: tenant %s was billed %d and holds %d, by the log %d and %d", s.id, s.m.Index(), tenant, u.Billed.Total.Money, u.HeldMoney, b.spent[tenant], held[tenant]))
		}
	}
	for _, owner := range termOwners[1:] {
		if c, _ := s.m.Contributor(owner); c.Total != b.earned[owner] {
			b.w.check.fail("ledger", fmt.Sprintf("server %d, index %d: %s has earned %d, by the log %d", s.id, s.m.Index(), owner, c.Total, b.earned[owner]))
		}
	}
}

// within looks whether a tenant had so much left of its quota and its budget.
func (b *books) within(e *gpuai.Event, tenant gpuai.TenantID) {
	milli, held, jobs := int64(0), gpuai.Micros(0), map[gpuai.JobID]int{}
	for _, l := range b.leases {
		if job := b.jobs[l.job]; job.tenant == tenant {
			milli += job.milli
			jobs[l.job]++
			if !l.free {
				held += b.held(&l)
			}
		}
	}
	q, m := b.quotas[tenant], b.budgets[tenant]
	if q.GPUs != nil && q.Cohort == "" && milli > int64(*q.GPUs)*1_000 {
		b.w.check.fail("quota", fmt.Sprintf("index %d: with lease %s tenant %s has %d milli of a device, its quota is %d devices", e.Index, e.Lease, tenant, milli, *q.GPUs))
	}
	if q.RunningJobs != nil && jobs[e.Job] == 1 && len(jobs) > int(*q.RunningJobs) { // what runs already may have more tasks
		b.w.check.fail("quota", fmt.Sprintf("index %d: with lease %s tenant %s runs %d jobs of %d, with so many leases %v", e.Index, e.Lease, tenant, len(jobs), *q.RunningJobs, jobs))
	}
	if t := m.Total.Money; t != nil && b.spent[tenant]+held > *t {
		b.w.check.fail("budget", fmt.Sprintf("index %d: with lease %s tenant %s has spent %d and holds %d of %d", e.Index, e.Lease, tenant, b.spent[tenant], held, *t))
	}
}

// rewound goes back to what a backup has, and ends every lease as the restore does.
func (b *books) rewound(saved *backup, m *fsm.Machine) {
	b.ledger = saved.ledger.clone()
	b.level = m.Level()
	for _, t := range slices.Sorted(maps.Keys(b.leases)) {
		e := gpuai.Event{Lease: t, Cause: gpuai.CauseRestored, At: m.Time()}
		if l := b.leases[t]; l.cause == gpuai.CauseRunTime {
			e.Cause = l.cause // it has had its time
		}
		b.ended(&e)
	}
}
