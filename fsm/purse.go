package fsm

import (
	"math"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// What a budget bounds, and by which period.
const (
	inTime  = iota // billing.DeviceTime
	inMoney        // micro-dollars, fees included
	numKindsSpent
)

const (
	byDay = iota
	byMonth
	inTotal
	numPeriods
)

// spending is an amount by kind and period.
type spending [numKindsSpent][numPeriods]uint64

func (s *spending) put(b []byte) []byte {
	for i := range s {
		for _, n := range s[i] {
			b = le.AppendUint64(b, n)
		}
	}
	return b
}

func (s *spending) get(rd *wire.Reader) {
	for i := range s {
		for k := range s[i] {
			s[i][k] = rd.U64()
		}
	}
}

// A purseRec is a tenant's account and budget. A tenant whose leases cost nothing, and
// that has no budget, has none.
type purseRec struct {
	name    uint32 // string number of the tenant
	account billing.Account
	held    uint64   // device time that bills hold; of money the account knows
	spent   spending // billed in the present periods
	most    spending // noBound: no bound
	warned  uint8    // bits of the bounds of which a warning was given
	kept    purseKept
}

func (r *purseRec) put(b []byte) []byte {
	b = le.AppendUint32(b, r.name)
	b = putAccount(b, &r.account)
	b = le.AppendUint64(b, r.held)
	b = r.spent.put(b)
	b = r.most.put(b)
	return append(b, r.warned)
}

func (r *purseRec) get(rd *wire.Reader) {
	r.name = rd.U32()
	getAccount(rd, &r.account)
	r.held = rd.U64()
	r.spent.get(rd)
	r.most.get(rd)
	r.warned = rd.U8()
}

func putAccount(b []byte, a *billing.Account) []byte {
	b = append(b, uint8(a.Kind))
	for _, n := range [...]gpuai.Micros{a.Debits, a.Credits, a.Held} {
		b = put64(b, int64(n))
	}
	return b
}

func getAccount(rd *wire.Reader, a *billing.Account) {
	a.Kind = billing.Kind(rd.U8())
	a.Debits, a.Credits, a.Held = gpuai.Micros(rd.I64()), gpuai.Micros(rd.I64()), gpuai.Micros(rd.I64())
}

// A moneyRec is what of money is the region's: the calendar, the price list, and the
// accounts that no tenant has. The provider is whoever owns the nodes that have no
// contributor.
type moneyRec struct {
	day, month           uint32        // since 1970, of the wall clock that entries carry
	turned               gpuai.Instant // when the last day began
	feeBps               uint32
	world, fee, provider billing.Account
	prices               [gpuai.MaxPrices]priceRec
}

// A priceRec is the price of a model.
type priceRec struct {
	model uint32 // string number; 0: none
	price gpuai.Micros
}

func (r *moneyRec) put(b []byte) []byte {
	for _, n := range [...]uint32{r.day, r.month, r.feeBps} {
		b = le.AppendUint32(b, n)
	}
	b = put64(b, int64(r.turned))
	b = putAccount(putAccount(putAccount(b, &r.world), &r.fee), &r.provider)
	for i := range r.prices {
		if r.prices[i].model != 0 {
			b = put64(le.AppendUint32(b, r.prices[i].model), int64(r.prices[i].price))
		}
	}
	return le.AppendUint32(b, 0)
}

func (r *moneyRec) get(rd *wire.Reader) {
	for _, n := range [...]*uint32{&r.day, &r.month, &r.feeBps} {
		*n = rd.U32()
	}
	r.turned = gpuai.Instant(rd.I64())
	getAccount(rd, &r.world)
	getAccount(rd, &r.fee)
	getAccount(rd, &r.provider)
	for i := 0; ; i++ {
		model := rd.U32()
		if model == 0 {
			return
		}
		if i == len(r.prices) {
			rd.Fail("too many prices")
			return
		}
		r.prices[i] = priceRec{model, gpuai.Micros(rd.I64())}
	}
}

// A billRec is the meter of a live lease, and what is held for it.
type billRec struct {
	lease    ref
	purse    uint32
	meter    billing.Meter
	hold     gpuai.Micros  // what the lease may yet be billed, fees included
	holdTime uint64        // device time, the same
	since    gpuai.Instant // what was billed until then is another owner's, and not paid back
	until    gpuai.Instant // the hold suffices until then, and is extended before; 0: to its end
	timer    uint32        // derived
}

func (r *billRec) put(b []byte) []byte {
	b = r.lease.put(b)
	b = le.AppendUint32(b, r.purse)
	x := &r.meter
	b = put64(b, int64(x.Price))
	b = le.AppendUint64(b, x.Milli)
	b = le.AppendUint32(b, x.FeeBps)
	b = put64(b, int64(x.From))
	b = put64(b, int64(x.Billed))
	b = put64(b, int64(x.Fee))
	b = le.AppendUint64(b, x.Time)
	b = put64(b, int64(r.hold))
	b = le.AppendUint64(b, r.holdTime)
	return put64(put64(b, int64(r.since)), int64(r.until))
}

func (r *billRec) get(rd *wire.Reader) {
	r.lease = ref(rd.U32())
	r.purse = rd.U32()
	r.meter = billing.Meter{
		Price: gpuai.Micros(rd.I64()), Milli: rd.U64(), FeeBps: rd.U32(), From: gpuai.Instant(rd.I64()),
		Billed: gpuai.Micros(rd.I64()), Fee: gpuai.Micros(rd.I64()), Time: rd.U64(),
	}
	r.hold = gpuai.Micros(rd.I64())
	r.holdTime = rd.U64()
	r.since = gpuai.Instant(rd.I64())
	r.until = gpuai.Instant(rd.I64())
}

const (
	// holdSlice is for how long money is held at a time for a lease of a job without
	// a run-time limit.
	holdSlice = gpuai.Hour
	// holdNotice is how long before the end of a slice the next is held: a lease for
	// which there is no budget has so long to end.
	holdNotice = 5 * gpuai.Minute
)

// priceAt is the price of what a fit takes: the node's, else that of the model.
func (m *Machine) priceAt(fit *scheduler.Fit) gpuai.Micros {
	if m.Level() < LevelTenants {
		return m.nodes.Get(fit.Node).price
	}
	if own, has := m.ownPrice(fit.Node); has || fit.Devices == 0 {
		return own
	}
	return m.listed(m.sched.ModelOf(fit.Node, fit.Devices))
}

// ownPrice is the price that a node has, whatever its devices are; false when it has
// none.
func (m *Machine) ownPrice(node uint32) (gpuai.Micros, bool) {
	n := m.nodes.Get(node)
	return min(n.price, gpuai.MaxPrice), n.price > 0 || n.priced || n.asked // it may have been registered below LevelTenants
}

// listed is the price of a model on the list, by its hash; 0 when it has none.
func (m *Machine) listed(h uint64) gpuai.Micros {
	money := m.money.Get()
	if money.prices[0].model == 0 {
		return 0
	}
	for i := range money.prices {
		if p := &money.prices[i]; p.model != 0 && scheduler.ModelHash(m.strs.Get(p.model)) == h {
			return p.price
		}
	}
	return 0
}

// purseSlot returns a tenant's purse by its string number.
func (m *Machine) purseSlot(tenant uint32) (uint32, bool) {
	if tenant >= m.purseOf.Len() || *m.purseOf.Get(tenant) == 0 {
		return 0, false
	}
	return m.purseOf.Get(tenant).slot(), true
}

// purseFor is purseSlot that makes one.
func (m *Machine) purseFor(tenant uint32) uint32 {
	if slot, ok := m.purseSlot(tenant); ok {
		return slot
	}
	r := purseRec{name: tenant, account: billing.Account{Kind: billing.Tenant}}
	for i := range r.most {
		for k := range r.most[i] {
			r.most[i][k] = noBound
		}
	}
	slot := m.purses.Append(r)
	m.purseOf.Grow(tenant + 1)
	*m.purseOf.Mut(tenant) = refTo(slot)
	if w := m.money.Mut(); w.world.Kind == 0 {
		w.world.Kind, w.fee.Kind, w.provider.Kind = billing.World, billing.Fee, billing.Provider
	}
	return slot
}

// newBill is the bill of a lease that is to be granted, and what it comes to; ok is
// false when the tenant's budget does not suffice. There is none for what costs
// nothing and counts against no budget.
func (m *Machine) newBill(job uint32, fit *scheduler.Fit, price gpuai.Micros) (b billRec, some, ok bool) {
	j := m.jobs.Get(job)
	purse, has := m.purseSlot(j.tenant)
	if fit.Devices == 0 || m.Level() < LevelTenants || price == 0 && !has {
		return b, false, true
	}
	l := leaseRec{devices: fit.Devices, share: fit.Share}
	b.meter = billing.Meter{Price: price, Milli: l.held(), FeeBps: m.money.Get().feeBps, From: m.now.time}
	d := j.runTime
	if d == 0 {
		d, b.until = holdSlice, m.now.time.Add(holdSlice)
	}
	c := b.meter.Cost(d)
	b.hold, b.holdTime = c.Amount+c.Fee, c.Time
	return b, true, m.lends(purse, has, b.hold) && (!has || m.affords(purse, b.hold, b.holdTime))
}

// lends reports whether the ledger has room for a hold: beyond that, nothing starts.
func (m *Machine) lends(purse uint32, has bool, hold gpuai.Micros) bool {
	lacks, credits := hold, gpuai.Micros(0)
	if has {
		a := &m.purses.Get(purse).account
		lacks, credits = hold-min(a.Free(), hold), a.Credits
	}
	return lacks <= billing.MaxAmount-max(credits, m.money.Get().world.Debits)
}

// affords reports whether a purse has so much left in each period.
func (m *Machine) affords(purse uint32, money gpuai.Micros, time uint64) bool {
	p := m.purses.Get(purse)
	money, time = money+p.kept.money, addSat(time, p.kept.time)
	for k := range numPeriods {
		if addSat(addSat(p.spent[inTime][k], p.held), time) > p.most[inTime][k] ||
			addSat(addSat(p.spent[inMoney][k], uint64(p.account.Held)), uint64(money)) > p.most[inMoney][k] {
			return false
		}
	}
	return true
}

// openBill begins the bill of a lease that was granted.
func (m *Machine) openBill(lease uint32, b billRec) {
	b.lease, b.purse = refTo(lease), m.purseFor(m.tenantOfLease(m.leases.Get(lease)))
	slot, _ := m.billSlots.Alloc() // no more than leases
	hold, time := b.hold, b.holdTime
	b.hold, b.holdTime = 0, 0
	m.bills.Put(slot, b)
	m.leases.Mut(lease).bill = refTo(slot)
	m.holdMore(slot, hold, time)
	if b.until != 0 {
		m.timers.set(b.until.Add(-holdNotice), timerBill, slot)
	}
}

// holdMore holds so much more for a lease. What the tenant's account lacks the world
// lends it: it is billed afterwards.
func (m *Machine) holdMore(bill uint32, money gpuai.Micros, time uint64) {
	b := m.bills.Mut(bill)
	p, w := m.purses.Mut(b.purse), m.money.Mut()
	if lacks := money - p.account.Free(); lacks > 0 && billing.Transfer(&w.world, &p.account, lacks) != nil {
		money = 0 // beyond any amount that an account holds; newBill and extendBill asked before
	}
	if p.account.Hold(money) == nil {
		b.hold += money
	}
	b.holdTime = addSat(b.holdTime, time)
	p.held = addSat(p.held, time)
	m.warn(b.purse)
}

// settleBill bills a lease up to an instant, at most what is held for it.
func (m *Machine) settleBill(bill uint32, at gpuai.Instant) {
	b := m.bills.Mut(bill)
	p, w := m.purses.Mut(b.purse), m.money.Mut()
	before := b.meter
	c := b.meter.Read(at)
	amount := min(c.Amount, b.hold)
	fee := min(c.Fee, b.hold-amount)
	time := min(c.Time, b.holdTime)
	if !m.pay(&p.account, m.leases.Get(b.lease.slot()).node, amount) { // an account is full: nothing more is billed
		amount, fee = 0, 0
	} else if billing.Capture(&p.account, &w.fee, fee) != nil {
		fee = 0
	}
	// What was not paid is due still.
	b.meter.Billed, b.meter.Fee, b.meter.Time = before.Billed+amount, before.Fee+fee, before.Time+time
	b.hold -= amount + fee
	b.holdTime -= time
	p.held -= time
	for k := range numPeriods {
		p.spent[inTime][k] = addSat(p.spent[inTime][k], time)
		p.spent[inMoney][k] = addSat(p.spent[inMoney][k], uint64(amount+fee))
	}
	j := m.jobs.Mut(m.groups.Get(m.tasks.Get(m.leases.Get(b.lease.slot()).task.slot()).group.slot()).job.slot())
	j.billed += amount + fee
}

// refundBill takes back what a lease was billed for behind an instant.
func (m *Machine) refundBill(bill uint32, at gpuai.Instant) {
	b := m.bills.Mut(bill)
	p, w := m.purses.Mut(b.purse), m.money.Mut()
	c := b.meter.Cost(gpuai.Duration(max(at, b.since, b.meter.From) - b.meter.From))
	amount, fee := max(b.meter.Billed-c.Amount, 0), max(b.meter.Fee-c.Fee, 0)
	time := b.meter.Time - min(c.Time, b.meter.Time)
	if !m.payBack(&p.account, m.leases.Get(b.lease.slot()).node, amount) {
		return
	}
	if billing.Reverse(&w.fee, &p.account, fee) != nil {
		fee = 0
	}
	b.meter.Billed, b.meter.Fee, b.meter.Time = b.meter.Billed-amount, b.meter.Fee-fee, b.meter.Time-time
	for k := range numPeriods { // of a day that is over nothing is left to take back
		p.spent[inTime][k] -= min(p.spent[inTime][k], time)
		p.spent[inMoney][k] -= min(p.spent[inMoney][k], uint64(amount+fee))
	}
	j := m.jobs.Mut(m.groups.Get(m.tasks.Get(m.leases.Get(b.lease.slot()).task.slot()).group.slot()).job.slot())
	j.billed -= amount + fee
}

// closeBill bills a lease that ends, gives back what is held for the rest of it, and
// returns what was lent for that.
func (m *Machine) closeBill(lease uint32, cause gpuai.LeaseCause) {
	l := m.leases.Mut(lease)
	m.countHeld(lease)
	if l.bill == 0 {
		return
	}
	slot := l.bill.slot()
	l.bill = 0
	to := m.billedTo(lease, cause)
	m.settleBill(slot, to)
	m.refundBill(slot, to)
	b := *m.bills.Get(slot)
	m.timers.clear(&m.bills.Mut(slot).timer)
	p, w := m.purses.Mut(b.purse), m.money.Mut()
	p.held -= b.holdTime
	if p.account.Release(b.hold) == nil {
		_ = billing.Reverse(&p.account, &w.world, p.account.Free()) // else it stays the tenant's
	}
	*m.bills.Mut(slot) = billRec{}
	m.billSlots.Free(slot)
	if q, ok := m.quotaSlot(p.name); ok {
		m.freed.Set(q)
	}
}

// billedTo is up to when a lease that ends is billed: of one that was lost without a
// fault of its task, up to the task's newest checkpoint.
func (m *Machine) billedTo(lease uint32, cause gpuai.LeaseCause) gpuai.Instant {
	l := m.leases.Get(lease)
	switch cause {
	case gpuai.CauseExpired, gpuai.CauseNodeRestarted, gpuai.CauseGPU, gpuai.CauseRestored:
		return m.savedSince(l.task.slot(), l.granted)
	}
	return m.now.time
}

// countHeld adds to a job what its lease that ends has held.
func (m *Machine) countHeld(lease uint32) {
	if m.Level() < LevelTenants {
		return
	}
	l := m.leases.Get(lease)
	j := m.jobs.Mut(m.groups.Get(m.tasks.Get(l.task.slot()).group.slot()).job.slot())
	j.heldTime = addSat(j.heldTime, billing.DeviceTime(l.held(), gpuai.Duration(m.now.time-l.granted)))
}

// extendBill holds the next slice for a lease, or has it end when there is no budget
// for that: it has holdNotice to save its work, and its task waits for the budget.
func (m *Machine) extendBill(bill uint32) {
	b := m.bills.Get(bill)
	lease := b.lease.slot()
	if m.leases.Get(lease).state >= gpuai.LeaseRevoking {
		return
	}
	m.settleBill(bill, m.now.time)
	b = m.bills.Get(bill)
	until := max(b.until, m.now.time).Add(holdSlice)
	c := b.meter.Cost(gpuai.Duration(until - b.meter.From))
	money := max(c.Amount+c.Fee-b.meter.Billed-b.meter.Fee-b.hold, 0)
	time := c.Time - min(c.Time, b.meter.Time+b.holdTime)
	if !m.lends(b.purse, true, money) || !m.affords(b.purse, money, time) {
		m.revoke(lease, gpuai.CausePreempted)
		return
	}
	m.holdMore(bill, money, time)
	m.bills.Mut(bill).until = until
	m.timers.set(until.Add(-holdNotice), timerBill, bill)
}

// warn tells once in a period when four fifths of a budget are spent or held.
func (m *Machine) warn(purse uint32) {
	p := m.purses.Get(purse)
	for k := range numPeriods {
		for kind, held := range [...]uint64{p.held, uint64(p.account.Held)} {
			bit := uint8(1) << (kind*numPeriods + k)
			most := p.most[kind][k]
			if most == noBound || p.warned&bit != 0 || addSat(p.spent[kind][k], held) < most-most/5 {
				continue
			}
			m.purses.Mut(purse).warned |= bit
			m.emit(gpuai.Event{Kind: gpuai.BudgetWarning, Tenant: gpuai.TenantID(m.strs.Get(p.name)), Reason: budgetNames[kind][k]})
		}
	}
}

var budgetNames = [numKindsSpent][numPeriods]string{
	{"four fifths of the day's GPU-hours are spent or held", "four fifths of the month's GPU-hours are spent or held", "four fifths of all GPU-hours are spent or held"},
	{"four fifths of the day's money is spent or held", "four fifths of the month's money is spent or held", "four fifths of all money is spent or held"},
}

// leastDay is the region time between two days of the calendar, at least: a wall
// clock that jumps to and fro renews nobody's budget more often.
const leastDay = 12 * gpuai.Hour

// turnCalendar begins a new day, and month, when the wall clock of the entry is in a
// later one: see docs/adr on why it decides here. A calendar that is two days ahead
// followed a wrong clock and is set back, which renews nothing.
func (m *Machine) turnCalendar() {
	if m.Level() < LevelTenants || m.now.wall <= 0 {
		return
	}
	day := uint32(min(uint64(m.now.wall)/uint64(gpuai.Day), math.MaxUint32))
	month := monthOf(day)
	switch old := m.money.Get(); {
	case day < old.day && old.day-day > 1:
		w := m.money.Mut()
		w.day, w.month = day, month
		return
	case day <= old.day, old.turned != 0 && m.now.time < old.turned.Add(leastDay):
		return
	}
	w := m.money.Mut()
	newMonth := month > w.month
	w.day, w.month, w.turned = day, month, m.now.time
	for s := range m.tenants.Len() {
		m.now.work -= workLook
		r := m.tenants.Mut(s)
		m.bringUp(r)
		if r.day = r.total; newMonth {
			r.month = r.total
		}
	}
	for s := range m.purses.Len() {
		m.now.work -= workLook
		p := m.purses.Mut(s)
		for kind := range p.spent {
			p.spent[kind][byDay] = 0
			p.warned &^= 1 << (kind*numPeriods + byDay)
			if newMonth {
				p.spent[kind][byMonth] = 0
				p.warned &^= 1 << (kind*numPeriods + byMonth)
			}
		}
		if q, ok := m.quotaSlot(p.name); ok {
			m.freed.Set(q)
		}
	}
	m.turnEarnings(newMonth)
}

// monthOf is the number of the month of a day, both since 1970.
func monthOf(day uint32) uint32 {
	z := uint64(day) + 719_468 // days since March 1 of year 0
	era := z / 146_097
	doe := z - era*146_097
	yoe := (doe - doe/1_460 + doe/36_524 - doe/146_096) / 365
	mp := (5*(doe-(365*yoe+yoe/4-yoe/100)) + 2) / 153 // 0 is March
	months := (era*400+yoe)*12 + mp + 2
	return uint32(months - 1_970*12)
}
