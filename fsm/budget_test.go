package fsm

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gpuai/gpuai"
)

func (r *region) budget(tenant string, b gpuai.Budget) {
	r.t.Helper()
	r.do(&SetBudget{Tenant: gpuai.TenantID(tenant), Budget: b})
}

func (r *region) usage(tenant string) gpuai.TenantUsage {
	r.t.Helper()
	u, ok := r.m.Usage(gpuai.TenantID(tenant))
	if !ok {
		r.t.Fatalf("tenant %s is not known", tenant)
	}
	return u
}

func (r *region) h100(price gpuai.Micros, fee uint32) {
	r.t.Helper()
	r.do(&SetPrices{gpuai.Prices{Models: []gpuai.ModelPrice{{Model: "H100", Price: price}}, FeeBps: fee}})
}

// timed is a job with a run-time limit.
func timed(tenant, name string, tasks, gpus uint32, d gpuai.Duration) *gpuai.JobSpec {
	s := tenantSpec(tenant, name, tasks, gpus)
	s.Limits.RunTime = d
	return s
}

func TestHoldsAndBillsALease(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.h100(2_000_000, 250)
	id := r.submit(timed("t", "x", 1, 4, 2*gpuai.Hour))
	l := r.leases(id)[0]
	if l.Price != 2_000_000 || l.Held != 16_400_000 || l.Billed != 0 {
		t.Fatalf("the lease holds %d at a price of %d, billed %d", l.Held, l.Price, l.Billed)
	}
	r.time = r.time.Add(30 * gpuai.Minute)
	r.apply(&Tick{})
	if u := r.usage("t"); u.Total.GPUMilliHours != 2_000 || u.HeldMoney != 16_400_000 || u.HeldGPUMilliHours != 8_000 {
		t.Errorf("used is %+v", u)
	}
	j, _ := r.m.Job(id, true)
	if j.Cost == nil || j.Cost.Hourly != 8_000_000 || j.Cost.GPUMilliHours != 2_000 {
		t.Errorf("the job costs %+v", j.Cost)
	}
	r.finish(id)
	if u := r.usage("t"); u.Total.Money != 4_100_000 || u.HeldMoney != 0 || u.HeldGPUMilliHours != 0 {
		t.Errorf("used is %+v, want half an hour of four devices and the fee", u)
	}
	if w := r.m.money.Get(); w.provider.Balance() != 4_000_000 || w.fee.Balance() != 100_000 || w.world.Balance() != -4_100_000 {
		t.Errorf("the accounts are %+v, %+v, %+v", w.world, w.fee, w.provider)
	}
	if j, _ = r.m.Job(id, true); j.Cost.Billed != 4_100_000 {
		t.Errorf("the job costs %+v", j.Cost)
	}
}

func TestLostLeaseIsBilledToItsCheckpoint(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.h100(1_000_000, 0)
	id := r.submit(timed("t", "x", 1, 1, gpuai.Hour))
	inc, _, _ := r.m.NodeLive("a")
	r.time = r.time.Add(30 * gpuai.Minute)
	r.expire("a", inc)
	if r.running(id) != 0 {
		t.Fatal("the lease lives")
	}
	if u := r.usage("t"); u.Total.Money != 0 || u.HeldMoney != 0 {
		t.Errorf("a lost lease without a checkpoint is billed: %+v", u)
	}
}

func TestBudgetKeepsAJobWaiting(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.h100(1_000_000, 0)
	r.budget("t", gpuai.Budget{Total: gpuai.BudgetLimit{Money: some(gpuai.Micros(10_000_000))}})
	first := r.submit(timed("t", "first", 1, 4, 2*gpuai.Hour))
	second := r.submit(timed("t", "second", 1, 4, gpuai.Hour))
	if r.running(first) != 1 || r.running(second) != 0 {
		t.Fatalf("%d and %d tasks run", r.running(first), r.running(second))
	}
	want := "the budget of tenant t does not suffice for what a task may cost; total: 0 of 10 USD are spent, 8 held"
	if got := r.why(second, gpuai.BudgetExhausted); got != want {
		t.Errorf("the reason is %q, want %q", got, want)
	}
	warned := 0
	for _, e := range r.apply(&SetBudget{Tenant: "t", Budget: gpuai.Budget{Total: gpuai.BudgetLimit{Money: some(gpuai.Micros(10_000_000))}}}).Events {
		if e.Kind == gpuai.BudgetWarning && e.Tenant == "t" {
			warned++
		}
	}
	if warned != 1 {
		t.Errorf("%d warnings at 80 %%", warned)
	}
	r.time = r.time.Add(gpuai.Hour)
	r.finish(first) // 4 of 10 are spent, the rest of the hold is back
	if r.running(second) != 1 {
		t.Error("what is held no longer wakes nobody")
	}
	third := r.submit(timed("t", "third", 1, 1, 3*gpuai.Hour))
	r.budget("t", gpuai.Budget{})
	if r.running(third) != 1 {
		t.Error("a larger budget wakes nobody")
	}
}

func TestBudgetOfADayBeginsAnew(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.budget("t", gpuai.Budget{Day: gpuai.BudgetLimit{GPUHours: some(uint32(4))}})
	first := r.submit(timed("t", "first", 1, 4, gpuai.Hour))
	second := r.submit(timed("t", "second", 1, 4, gpuai.Hour))
	r.time = r.time.Add(gpuai.Hour)
	r.finish(first)
	if r.running(second) != 0 {
		t.Fatal("the budget of the day does not bound")
	}
	day := func(n int64) *Output {
		c := (&Tick{}).Append(nil, Envelope{})
		return r.applyEntry(AppendEntry(nil, Header{Time: r.time, Wall: gpuai.WallTime(n * int64(gpuai.Day)), Term: 1}, c))
	}
	day(20_000)
	if r.running(second) != 1 {
		t.Fatal("a new day wakes nobody")
	}
	if u := r.usage("t"); u.Day.GPUMilliHours != 0 || u.Total.GPUMilliHours != 4_000 {
		t.Errorf("used is %+v", u)
	}
	r.time = r.time.Add(gpuai.Hour)
	r.finish(second)
	day(19_999) // a wall clock that goes back opens no day again
	third := r.submit(timed("t", "third", 1, 4, gpuai.Hour))
	if r.running(third) != 0 {
		t.Error("a day was opened twice")
	}
}

// A lease without a run-time limit is paid for by the hour; when there is no budget
// for the next, it is told to leave in time, and its task waits for the budget.
func TestUnlimitedLeaseIsHeldByTheHour(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.h100(1_000_000, 0)
	r.budget("t", gpuai.Budget{Total: gpuai.BudgetLimit{Money: some(gpuai.Micros(2_500_000))}})
	id := r.submit(tenantSpec("t", "service", 1, 1))
	r.wait(90 * gpuai.Minute)
	if u := r.usage("t"); u.HeldMoney+u.Total.Money != 2_000_000 || r.running(id) != 1 {
		t.Fatalf("%d run; %+v", r.running(id), u)
	}
	r.wait(20 * gpuai.Minute)
	if l := r.leases(id)[0]; l.State != gpuai.LeaseRunning && l.State != gpuai.LeaseGranted {
		t.Fatalf("the lease is %s before its time", l.State)
	}
	r.wait(6 * gpuai.Minute)
	l := r.leases(id)[0]
	if l.State != gpuai.LeaseRevoking || l.Cause != gpuai.CausePreempted {
		t.Fatalf("the lease is %s for %s", l.State, l.Cause)
	}
	r.report(l, gpuai.ReportStopped, 0)
	if got := r.why(id, gpuai.BudgetExhausted); got == "" || r.usage("t").Total.Money > 2_000_000 {
		t.Errorf("%q; %+v", got, r.usage("t"))
	}
}

func TestNodePriceStandsBeforeTheList(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.h100(3_000_000, 0)
	r.do(&SetNodePrice{Node: "b", Price: 500_000})
	r.refuse(&SetNodePrice{Node: "c", Price: 1}, gpuai.NotFound)
	r.refuse(&SetNodePrice{Node: "b", Price: gpuai.MaxPrice + 1}, gpuai.InvalidSpec)
	r.refuse(&SetPrices{gpuai.Prices{FeeBps: 10_001}}, gpuai.InvalidSpec)
	r.refuse(&SetBudget{Tenant: "t", Budget: gpuai.Budget{Day: gpuai.BudgetLimit{Money: some(gpuai.Micros(-1))}}}, gpuai.InvalidSpec)
	id := r.submit(tenantSpec("t", "x", 2, 4))
	byNode := map[gpuai.NodeID]gpuai.Micros{}
	for _, l := range r.leases(id) {
		byNode[l.Node] = l.Price
	}
	if byNode["a"] != 3_000_000 || byNode["b"] != 500_000 {
		t.Errorf("the prices are %v", byNode)
	}
	r.node("b", 4) // its agent says nothing of a price
	if n, _ := r.m.Node("b"); n.Price != 500_000 {
		t.Errorf("the node's price is %d", n.Price)
	}
	r.do(&SetNodePrice{Node: "b", Price: -1})
	if n, _ := r.m.Node("b"); n.Price != 0 {
		t.Errorf("the node's price is %d", n.Price)
	}
}

func TestMonthOf(t *testing.T) {
	for _, x := range [...][2]uint32{{0, 0}, {30, 0}, {31, 1}, {58, 1}, {59, 2}, {364, 11}, {365, 12}, {11_016, 361}, {11_017, 362}, {20_000, 657}} {
		if got := monthOf(x[0]); got != x[1] {
			t.Errorf("day %d is in month %d, want %d", x[0], got, x[1])
		}
	}
}

// What a job would cost is said before it is submitted: exactly of what starts, at the
// highest price that may apply of what waits.
func TestPlannedCost(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.do(&SetPrices{gpuai.Prices{FeeBps: 100, Models: []gpuai.ModelPrice{{Model: "H100", Price: 2_000_000}, {Model: "MI300X", Price: 3_000_000}}}})
	cost := func(s *gpuai.JobSpec) gpuai.PlannedCost {
		t.Helper()
		was := r.m
		r.m = r.m.Fork()
		defer func() { r.m = was }()
		check := r.check
		r.check = false
		defer func() { r.check = check }()
		id := r.submit(s)
		c := r.m.PlannedCost(id, s)
		if c == nil {
			t.Fatal("nothing is said of the cost")
		}
		return *c
	}
	if got, want := cost(timed("t", "fits", 2, 2, 2*gpuai.Hour)), (gpuai.PlannedCost{Hourly: 8_080_000, Held: 16_160_000, HourlyLeast: 8_080_000, HeldLeast: 16_160_000, HeldFor: 2 * gpuai.Hour}); got != want {
		t.Errorf("a job that starts: %+v, want %+v", got, want)
	}
	if got, want := cost(tenantSpec("t", "open", 1, 1)), (gpuai.PlannedCost{Hourly: 2_020_000, Held: 2_020_000, HourlyLeast: 2_020_000, HeldLeast: 2_020_000, HeldFor: gpuai.Hour}); got != want {
		t.Errorf("a job without a limit: %+v, want %+v", got, want)
	}
	if got, want := cost(timed("t", "half", 2, 4, gpuai.Hour)), (gpuai.PlannedCost{Hourly: 8_080_000 + 12_120_000, Held: 8_080_000 + 12_120_000, HourlyLeast: 16_160_000, HeldLeast: 16_160_000, HeldFor: gpuai.Hour, Waiting: 1}); got != want {
		t.Errorf("a job that starts in part: %+v, want %+v", got, want)
	}
	s := timed("t", "model", 2, 4, gpuai.Hour)
	s.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: "H100"}}
	if got, want := cost(s), (gpuai.PlannedCost{Hourly: 16_160_000, Held: 16_160_000, HourlyLeast: 16_160_000, HeldLeast: 16_160_000, HeldFor: gpuai.Hour, Waiting: 1}); got != want {
		t.Errorf("a job of one model: %+v, want %+v", got, want)
	}
	if got := cost(tenantSpec("t", "cpu", 1, 0)); got.Hourly != 0 || got.Held != 0 {
		t.Errorf("a job without devices: %+v", got)
	}
}

// Nobody is displaced for tasks whose room the budget does not suffice for.
func TestDisplacesNoMoreThanIsPaidFor(t *testing.T) {
	r := newest(t, nil)
	for i := range 4 {
		r.register(nodeSpec(string(rune('a'+i)), 1, "H100"))
	}
	r.h100(1_000_000, 0)
	var low []gpuai.JobID
	for range 4 {
		low = append(low, r.submit(at(tenantSpec("l", "low", 1, 1), 10)))
	}
	r.budget("t", gpuai.Budget{Total: gpuai.BudgetLimit{Money: some(gpuai.Micros(2_000_000))}})
	id := r.submit(at(timed("t", "x", 4, 1, gpuai.Hour), 90))
	other := restored(t, r.m)
	if err := other.Check(); err != nil || other.Digest() != r.m.Digest() {
		t.Fatalf("restored: %v", err)
	}
	n := 0
	for _, l := range low {
		for _, x := range r.revoking(l) {
			r.report(x, gpuai.ReportStopped, 0)
			n++
		}
	}
	if n != 2 || r.running(id) != 2 {
		t.Errorf("%d leases were displaced for 2 that can be paid, %d tasks run", n, r.running(id))
	}
}

// What is too dear is passed by for what can be paid, whichever is found first.
func TestBudgetBuysTheCheaperModel(t *testing.T) {
	for _, dearer := range []string{"H100", "MI300X"} {
		r := newRegion(t)
		r.do(&SetFeatureLevel{Level: MaxLevel})
		r.register(nodeSpec("a", 4, "H100"))
		r.register(nodeSpec("b", 4, "MI300X"))
		p := gpuai.Prices{Models: []gpuai.ModelPrice{{Model: "H100", Price: 1_000_000}, {Model: "MI300X", Price: 1_000_000}}}
		for i := range p.Models {
			if p.Models[i].Model == dearer {
				p.Models[i].Price = 10_000_000
			}
		}
		r.do(&SetPrices{p})
		r.budget("t", gpuai.Budget{Total: gpuai.BudgetLimit{Money: some(gpuai.Micros(5_000_000))}})
		if id := r.submit(timed("t", "x", 1, 1, gpuai.Hour)); r.running(id) != 1 {
			t.Errorf("with a dearer %s the job waits: it could pay for the other", dearer)
		}
	}
}

// A node that gains room is offered to who found only dearer ones.
func TestBudgetWaitsForTheCheaperNode(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.do(&SetNodePrice{Node: "a", Price: 10_000_000})
	r.do(&SetNodePrice{Node: "b", Price: 1_000_000})
	r.do(&SetNodeEligibility{Node: "a", Drained: true})
	other := r.submit(tenantSpec("o", "o", 1, 4))
	r.do(&SetNodeEligibility{Node: "a"})
	r.budget("t", gpuai.Budget{Total: gpuai.BudgetLimit{Money: some(gpuai.Micros(5_000_000))}})
	id := r.submit(timed("t", "x", 1, 1, gpuai.Hour))
	if r.running(id) != 0 || r.leases(other)[0].Node != "b" {
		t.Fatalf("it runs on a node that it cannot pay")
	}
	r.why(id, gpuai.BudgetExhausted)
	r.finish(other)
	if r.running(id) != 1 {
		t.Errorf("the node that it can pay is free, and the job waits")
	}
}

// In random regions of nodes with prices of their own, with what contributors ask and
// with a price list, what is said of a job's cost before its submit is no less than what
// its leases hold once they run, whenever and wherever that is while no price changes;
// what starts at once costs exactly that. The lowest price said is no more.
func TestPlannedCostCoversTheBill(t *testing.T) {
	t.Parallel()
	waited := 0
	for seed := range few(60, 10) {
		r := newRegion(t)
		r.check = false
		r.do(&SetFeatureLevel{Level: MaxLevel})
		rnd := rand.New(rand.NewPCG(seed, 8))
		models := []string{"H100", "A100", "MI300X"}
		for i := range 6 {
			s := nodeSpec(string(rune('a'+i)), 4, models[rnd.IntN(3)])
			s.Price = gpuai.Micros(rnd.IntN(2) * rnd.IntN(3_000_000))
			r.register(s)
			switch rnd.IntN(4) {
			case 0:
				r.do(&SetNodePrice{Node: s.ID, Price: gpuai.Micros(rnd.IntN(5_000_000))})
			case 1:
				r.do(&SetNodeOwner{Node: s.ID, Contributor: "carol"})
				r.do(&SetNodeAsk{Node: s.ID, Price: gpuai.Micros(rnd.IntN(5_000_000))})
			}
		}
		list := gpuai.Prices{FeeBps: rnd.Uint32N(900)}
		for _, m := range models[:1+rnd.IntN(3)] {
			list.Models = append(list.Models, gpuai.ModelPrice{Model: m, Price: gpuai.Micros(rnd.IntN(4_000_000))})
		}
		r.do(&SetPrices{list})
		for i := range 8 {
			s := timed("t", fmt.Sprint("j", i), 1+rnd.Uint32N(4), 1+rnd.Uint32N(4), gpuai.Duration(1+rnd.IntN(5))*gpuai.Hour)
			if rnd.IntN(2) == 0 {
				s.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: models[rnd.IntN(3)]}}
			}
			id := r.newID()
			if out := r.apply(&SubmitJob{ID: id, Spec: s, HoldAnyway: true}); out.Results[0].Code != gpuai.OK {
				t.Fatal(out.Results[0])
			}
			c := r.m.PlannedCost(id, s)
			if held, tasks := r.moneyHeld(id); c.Waiting == 0 && (held != c.Held || held != c.HeldLeast) || uint32(tasks)+c.Waiting != s.Groups[0].Count {
				t.Fatalf("seed %d: the leases of a job hold %d, said was %+v", seed, held, c)
			}
			most, waits := c.Held, c.Waiting
			for k := range i { // what waits starts as others end
				r.finish(r.first(k))
			}
			if held, tasks := r.moneyHeld(id); held > most || uint32(tasks) == s.Groups[0].Count && held < c.HeldLeast {
				t.Fatalf("seed %d: %d leases hold %d, said was %+v", seed, tasks, held, c)
			} else if waits > 0 && uint32(tasks) == s.Groups[0].Count {
				waited++
			}
		}
	}
	if waited < 3 {
		t.Errorf("only %d jobs waited and then ran: the test shows nothing", waited)
	}
}

// first is the ID of the k-th job that was submitted.
func (r *region) first(k int) gpuai.JobID {
	r.t.Helper()
	page, _ := r.m.Jobs(JobCursor{}, 100, nil) // the newest first
	return page[len(page)-1-k].ID
}

// moneyHeld is what the live leases of a job hold.
func (r *region) moneyHeld(id gpuai.JobID) (held gpuai.Micros, tasks int) {
	for _, s := range r.m.liveLeases() {
		l := r.m.leases.Get(s)
		if j := r.m.jobs.Get(r.m.groups.Get(r.m.tasks.Get(l.task.slot()).group.slot()).job.slot()); j.id != id {
			continue
		}
		if tasks++; l.bill != 0 {
			held += r.m.bills.Get(l.bill.slot()).hold
		}
	}
	return held, tasks
}

// What a lease held below level 4 counts in no day, month or sum of level 4: they are
// right from its first entry on.
func TestUsageBeginsWithItsLevel(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	r.node("a", 4)
	r.submit(tenantSpec("t", "x", 1, 2))
	r.wait(gpuai.Hour)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	if u := r.usage("t"); u.Total.GPUMilliHours != 0 || u.Day.GPUMilliHours != 0 || u.Month.GPUMilliHours != 0 {
		t.Errorf("the usage at the raise is %+v", u)
	}
	r.wait(gpuai.Hour)
	if u := r.usage("t"); u.Total.GPUMilliHours != 2_000 || u.Day.GPUMilliHours != 2_000 || u.Month.GPUMilliHours != 2_000 {
		t.Errorf("the usage an hour later is %+v, want 2 GPU-hours", u)
	}
}

// Who has no money left takes nothing back that is lent: it could not start.
func TestWhoCannotPayTakesNothingBack(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.h100(1_000_000, 0)
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(8)), Cohort: "x"})
	r.quota("bor", gpuai.Quota{GPUs: some(uint32(0)), Cohort: "x"})
	r.budget("owner", gpuai.Budget{Total: gpuai.BudgetLimit{Money: some(gpuai.Micros(0))}})
	bor := r.submit(preemptibleSpec("bor", "b", 12, 1))
	owner := r.submit(timed("owner", "o", 1, 4, gpuai.Hour))
	for range 3 {
		if r.running(bor) != 8 || r.goes(bor) != 0 {
			t.Fatalf("%d of 8 tasks run, %d are asked to leave for one who cannot pay", r.running(bor), r.goes(bor))
		}
		for _, l := range r.leases(bor) {
			if l.State < gpuai.LeaseRevoking {
				r.report(l, gpuai.ReportDone, 0)
				break
			}
		}
	}
	r.budget("owner", gpuai.Budget{})
	if n := r.goes(bor); n != 4 {
		t.Errorf("%d leases go once there is money, want 4", n)
	}
	r.stopGoing()
	if r.running(owner) != 1 {
		t.Error("the owner does not start on what is its own")
	}
}
