package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
	"github.com/gpuai/gpuai/fsm/wire"
)

// An earnerRec is a contributor's account. What is billed for a node of nobody's goes
// to the account of all those.
type earnerRec struct {
	name       uint32 // string number
	account    billing.Account
	day, month gpuai.Micros // paid in the present ones
}

func (r *earnerRec) put(b []byte) []byte {
	b = putAccount(le.AppendUint32(b, r.name), &r.account)
	return put64(put64(b, int64(r.day)), int64(r.month))
}

func (r *earnerRec) get(rd *wire.Reader) {
	r.name = rd.U32()
	getAccount(rd, &r.account)
	r.day, r.month = gpuai.Micros(rd.I64()), gpuai.Micros(rd.I64())
}

// earnerSlot returns a contributor's account by its string number.
func (m *Machine) earnerSlot(name uint32) (uint32, bool) {
	if name == 0 || name >= m.owners.earnerOf.Len() || *m.owners.earnerOf.Get(name) == 0 {
		return 0, false
	}
	return m.owners.earnerOf.Get(name).slot(), true
}

// pay moves what a lease on a node is billed from what its tenant holds for it to
// whoever owns the node. It reports false when an account is full.
func (m *Machine) pay(from *billing.Account, node uint32, amount gpuai.Micros) bool {
	n := m.nodes.Get(node)
	if n.owner == 0 {
		return billing.Capture(from, &m.money.Mut().provider, amount) == nil
	}
	if amount == 0 {
		return true
	}
	slot, ok := m.earnerSlot(n.owner)
	if !ok {
		slot = m.owners.earners.Append(earnerRec{name: n.owner, account: billing.Account{Kind: billing.Provider}})
		m.owners.earnerOf.Grow(n.owner + 1)
		*m.owners.earnerOf.Mut(n.owner) = refTo(slot)
	}
	e := m.owners.earners.Mut(slot)
	if billing.Capture(from, &e.account, amount) != nil {
		return false
	}
	e.day += amount
	e.month += amount
	m.nodes.Mut(node).earned += amount
	return true
}

// payBack undoes a part of pay. It reports false when the owner has not so much.
func (m *Machine) payBack(to *billing.Account, node uint32, amount gpuai.Micros) bool {
	slot, ok := m.earnerSlot(m.nodes.Get(node).owner)
	switch {
	case m.nodes.Get(node).owner == 0:
		return billing.Reverse(&m.money.Mut().provider, to, amount) == nil
	case amount == 0:
		return true
	case !ok:
		return false
	}
	e := m.owners.earners.Mut(slot)
	if billing.Reverse(&e.account, to, amount) != nil {
		return false
	}
	e.day -= min(e.day, amount)
	e.month -= min(e.month, amount)
	n := m.nodes.Mut(node)
	n.earned -= min(n.earned, amount)
	return true
}

// turnEarnings begins a new day, and perhaps month, of all contributors.
func (m *Machine) turnEarnings(newMonth bool) {
	for s := range m.owners.earners.Len() {
		m.now.work -= workLook
		e := m.owners.earners.Mut(s)
		if e.day = 0; newMonth {
			e.month = 0
		}
	}
}

// settleNode bills what runs on a node up to now: the rest is another's to earn.
func (m *Machine) settleNode(node uint32) {
	for l := m.nodes.Get(node).first; l != 0; l = m.leases.Get(l.slot()).next {
		m.now.work -= workLook
		if b := m.leases.Get(l.slot()).bill; b != 0 {
			m.settleBill(b.slot(), m.now.time)
			m.bills.Mut(b.slot()).since = m.now.time
		}
	}
}

// priceOf is the price of a node whose agent says so much: what an operator gave it
// stands before what its contributor asks, and that before the agent's word. What a
// contributor or its agent asks is kept within the policy's bounds.
func (m *Machine) priceOf(n *nodeRec, said gpuai.Micros) gpuai.Micros {
	if n.priced {
		return n.price
	}
	if n.asked {
		said = n.ask
	}
	if n.owner == 0 || !n.asked && said == 0 {
		return said
	}
	low, high := m.policy.Get().AskBounds()
	return max(low, min(said, high))
}

// checkOwners holds that each contributor's account is sound, and returns the sum of
// their balances.
func (m *Machine) checkOwners() (sum gpuai.Micros, ok bool) {
	ok = true
	for s := range m.owners.earners.Len() {
		e := m.owners.earners.Get(s)
		at, found := m.earnerSlot(e.name)
		ok = ok && found && at == s && e.account.Sound() && e.account.Kind == billing.Provider && e.account.Held == 0 &&
			0 <= e.day && e.day <= e.month && e.month <= e.account.Credits
		sum += e.account.Balance()
	}
	return sum, ok
}

// Contributor returns what a contributor has earned; false of one that owns no node
// and was paid nothing.
func (m *Machine) Contributor(id gpuai.ContributorID) (gpuai.ContributorStatus, bool) {
	name, ok := m.strs.Find(string(id))
	slot, paid := uint32(0), false
	if ok {
		slot, paid = m.earnerSlot(name)
	}
	if !paid {
		return gpuai.ContributorStatus{Contributor: id}, false
	}
	return m.earner(slot), true
}

// Contributors returns what those have earned who were paid, from a slot on, limit of
// them, and the slot to go on from; 0 at the end.
func (m *Machine) Contributors(from, limit uint32) (out []gpuai.ContributorStatus, next uint32) {
	for s := from; s < m.owners.earners.Len(); s++ {
		if s-from == limit {
			return out, s
		}
		out = append(out, m.earner(s))
	}
	return out, 0
}

func (m *Machine) earner(slot uint32) gpuai.ContributorStatus {
	e := m.owners.earners.Get(slot)
	return gpuai.ContributorStatus{Contributor: gpuai.ContributorID(m.strs.Get(e.name)), Day: e.day, Month: e.month, Total: e.account.Credits}
}

// fillTerms adds the terms of a node's contributor to what is told of it.
func (m *Machine) fillTerms(n *gpuai.Node, slot uint32) {
	r := m.nodes.Get(slot)
	if n.Earned = r.earned; r.asked {
		ask := r.ask
		n.Ask = &ask
	}
	at, ok := m.scheduleSlot(slot)
	if !ok || m.owners.schedules.Get(at).count == 0 {
		return
	}
	s := m.owners.schedules.Get(at).schedule()
	s.Windows = append([]gpuai.Window(nil), s.Windows...)
	n.Schedule, n.Outside = &s, r.outside
	if _, until := s.At(max(m.meta.Get().wall, m.owners.hours.Get().clock)); until < gpuai.MaxWallTime {
		n.ScheduleChanges = until
	}
}

// reasonHours says for how many nodes it is too late, or too early, by their
// schedules.
func (m *Machine) reasonHours(group uint32, rule *gpuai.Rule) gpuai.Reason {
	out := gpuai.Reason{Code: gpuai.OutsideSchedule, Nodes: rule.Nodes}
	now, ends := max(m.meta.Get().wall, m.owners.hours.Get().clock), m.endsBy(group)
	outside, soon, opens := 0, 0, gpuai.MaxWallTime
	for s := range m.owners.schedules.Len() {
		r := m.owners.schedules.Get(s)
		switch n := m.nodes.Get(r.node); {
		case n.outside:
			sched := r.schedule()
			_, until := sched.At(now)
			outside, opens = outside+1, min(opens, until)
		case n.closes != 0 && n.closes < ends:
			soon++
		}
	}
	out.Message = fmt.Sprintf("%d nodes, %d of which fail nothing else, may not be used now, or not for so long: in the region", rule.Nodes, rule.Alone)
	if outside > 0 {
		out.Message += fmt.Sprintf(" %d are outside of their schedule until, the first of them, %s from now", outside, gpuai.Duration(max(opens-now, 0)))
	}
	if soon > 0 {
		if outside > 0 {
			out.Message += ", and"
		}
		out.Message += fmt.Sprintf(" %d close before its run-time limit has passed", soon)
		out.Fix = "a run-time limit (limits.run_time) that ends before they close"
	}
	return out
}
