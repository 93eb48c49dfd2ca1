package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/billing"
)

// What an agent asks for its node does not fill the ledger: no price is above
// MaxPrice, and what is lent for holds and given back leaves no turnover.
func TestNoPriceFillsTheLedger(t *testing.T) {
	r := newRegion(t)
	dear := nodeSpec("dear", 4, "H100")
	dear.Price = 1<<63 - 1
	r.register(dear) // as one may have been below the level
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.node("good", 4)
	r.h100(1_000_000, 0)
	r.refuse(&RegisterNode{Spec: func() gpuai.NodeSpec { s := dear; s.ID = "worse"; return s }(), BootID: "b"}, gpuai.InvalidSpec)
	for range 20 {
		id := r.submit(timed("t", "x", 2, 4, gpuai.MaxDuration))
		r.do(&StopJob{Job: id})
		r.finish(id)
	}
	if w := r.m.money.Get().world; w.Debits != w.Credits || w.Debits != 0 {
		t.Errorf("nothing was billed, and the world's account is %+v", w)
	}
	r.do(&SetNodeEligibility{Node: "dear", Drained: true})
	id := r.submit(timed("u", "y", 1, 4, gpuai.Hour))
	r.time = r.time.Add(30 * gpuai.Minute)
	r.finish(id)
	if u := r.usage("u"); u.Total.Money != 2_000_000 {
		t.Errorf("two dollars' work is billed %d", u.Total.Money)
	}
}

// What the ledger has no room for does not start, rather than run unbilled.
func TestNothingStartsBeyondTheLedger(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.h100(1_000_000, 0)
	money := r.m.money.Mut() // as after four trillion dollars
	money.world.Kind, money.provider.Kind = billing.World, billing.Provider
	money.world.Debits = billing.MaxAmount - 2_000_000
	money.provider.Credits = money.world.Debits
	first, second := r.submit(timed("t", "x", 1, 2, gpuai.Hour)), r.submit(timed("t", "y", 1, 2, gpuai.Hour))
	if r.running(first) != 1 || r.running(second) != 0 {
		t.Errorf("%d and %d run, of which the ledger has room for the first", r.running(first), r.running(second))
	}
	if l := r.leases(first)[0]; l.Held != 2_000_000 {
		t.Errorf("%d are held", l.Held)
	}
}

// A lease that is lost without a checkpoint costs nothing, though it was billed by
// the hour meanwhile.
func TestLostLeaseIsRefundedBeyondASlice(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.h100(1_000_000, 500)
	id := r.submit(tenantSpec("t", "x", 1, 1))
	inc, _, _ := r.m.NodeLive("a")
	r.wait(56 * gpuai.Minute)
	if u := r.usage("t"); u.Total.Money == 0 {
		t.Fatal("nothing was billed with the second hour's hold")
	}
	r.expire("a", inc)
	if u := r.usage("t"); u.Total.Money != 0 || u.Day.Money != 0 || u.Billed.Total.GPUMilliHours != 0 || r.running(id) != 0 {
		t.Errorf("a lost lease is billed: %+v", u)
	}
	if m := r.m.money.Get(); m.provider.Balance() != 0 || m.fee.Balance() != 0 || m.world.Balance() != 0 {
		t.Errorf("accounts: %+v %+v %+v", m.provider, m.fee, m.world)
	}
}

// A wall clock that was wrong for an entry stops no later day, and renews a budget
// once at most.
func TestWrongWallClockStopsNoDay(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.h100(1_000_000, 0)
	day := gpuai.WallTime(gpuai.Day)
	r.wall = 20_000 * day
	r.budget("t", gpuai.Budget{Day: gpuai.BudgetLimit{Money: some(gpuai.Micros(1_000_000))}})
	ran := 0
	work := func() {
		id := r.submit(timed("t", "x", 1, 1, gpuai.Hour))
		if r.running(id) == 1 {
			ran++
		}
		r.time = r.time.Add(gpuai.Hour)
		if r.running(id) == 1 {
			r.finish(id)
		} else {
			r.do(&StopJob{Job: id})
		}
	}
	work()
	for range 5 { // to and fro
		r.wall = 40_000 * day
		r.apply(&Tick{})
		work()
		r.wall = 20_000 * day
		work()
	}
	if ran > 2 {
		t.Errorf("%d hours ran on the budget of one in 11 hours", ran)
	}
	ran = 0
	for range 10 {
		r.wall += day
		r.time = r.time.Add(gpuai.Day)
		work()
	}
	if ran < 9 {
		t.Errorf("on %d of 10 right days the budget was there", ran)
	}
}

// What a node's last owner earned is not paid back, least of all by its next one.
func TestRefundIsOfThePresentOwner(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.h100(1_000_000, 0)
	r.do(&SetNodeOwner{Node: "a", Contributor: "ann"})
	r.submit(tenantSpec("t", "x", 1, 1))
	inc, _, _ := r.m.NodeLive("a")
	r.time = r.time.Add(30 * gpuai.Minute)
	r.do(&SetNodeOwner{Node: "a", Contributor: "bob"})
	r.wait(26 * gpuai.Minute) // and the next hour is held
	r.expire("a", inc)
	if u := r.usage("t"); u.Total.Money != 500_000 {
		t.Errorf("half an hour was another's, and %d are billed", u.Total.Money)
	}
	for owner, want := range map[string]gpuai.Micros{"ann": 500_000, "bob": 0} {
		if slot, ok := r.m.earnerSlot(r.m.number(owner)); !ok || r.m.owners.earners.Get(slot).account.Balance() != want {
			t.Errorf("%s has not %d", owner, want)
		}
	}
}
