package main

import (
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// priced is a calm world whose books know a job of tenant blue, and a lease of it that
// cost 10 USD an hour and device on a node of ann's.
func priced(t *testing.T) (*world, *books) {
	t.Helper()
	w := calm(t)
	w.users.terms.on, w.users.terms.wallOff = true, 0
	b := w.check.books
	b.level = fsm.LevelTenants
	b.feeBps, b.list = 1_000, 10_000_000
	b.nodes["n0"] = nodeTerms{owner: "ann"}
	b.jobs[gpuai.JobID{1}] = jobTerms{tenant: "blue", milli: 1_000, limit: gpuai.Hour}
	b.event(w.servers[0], &gpuai.Event{Kind: gpuai.LeaseGrantedEvent, Lease: 1, Job: gpuai.JobID{1}, Node: "n0", At: 0})
	return w, b
}

func TestBooksBillByTheEvents(t *testing.T) {
	w, b := priced(t)
	l := b.leases[1]
	if b.held(&l) != 11_000_000 {
		t.Errorf("the lease holds %d", b.held(&l))
	}
	b.give("n0", "bob", gpuai.Instant(6*gpuai.Minute))
	b.event(w.servers[0], &gpuai.Event{Kind: gpuai.LeaseEndedEvent, Lease: 1, Node: "n0", At: gpuai.Instant(9 * gpuai.Minute), Cause: gpuai.CauseDone})
	if b.spent["blue"] != 1_650_000 || b.earned["ann"] != 1_000_000 || b.earned["bob"] != 500_000 {
		t.Errorf("spent %v, earned %v", b.spent, b.earned)
	}
	_, b = priced(t)
	b.give("n0", "bob", gpuai.Instant(6*gpuai.Minute))
	b.event(w.servers[0], &gpuai.Event{Kind: gpuai.LeaseEndedEvent, Lease: 1, Node: "n0", At: gpuai.Instant(9 * gpuai.Minute), Cause: gpuai.CauseExpired})
	if b.spent["blue"] != 1_100_000 || b.earned["ann"] != 1_000_000 || b.earned["bob"] != 0 {
		t.Errorf("of a lost lease spent %v, earned %v", b.spent, b.earned)
	}
}

// A machine that was never told of a lease has another ledger than the books.
func TestCheckLedger(t *testing.T) {
	w, b := priced(t)
	w.servers[0].m = fsm.New(fsm.Options{Region: "sim"})
	b.compare(w.servers[0])
	caught(t, w, "ledger")
}

func TestCheckHours(t *testing.T) {
	minute := minuteOf(wallBegin)
	later := gpuai.Schedule{Windows: []gpuai.Window{{From: weekMinute(minute + 5), To: weekMinute(minute + 9)}}}
	now := gpuai.Schedule{Windows: []gpuai.Window{{From: weekMinute(minute), To: weekMinute(minute + 2)}}}
	grant := &gpuai.Event{Kind: gpuai.LeaseGrantedEvent, Lease: 2, Node: "n0"}
	for limit, s := range map[gpuai.Duration]gpuai.Schedule{gpuai.Second: later, 2 * gpuai.Minute: now, 0: now} {
		w, b := priced(t)
		b.lasts(grant, &s, limit)
		caught(t, w, "hours")
	}
	w, b := priced(t)
	b.lasts(grant, &now, gpuai.Minute)
	b.nodes["n0"] = nodeTerms{owner: "ann", schedule: now}
	b.closed(1)
	if w.check.failed() {
		t.Errorf("within the hours: %+v", w.check.violations)
	}
	b.nodes["n0"] = nodeTerms{owner: "ann", schedule: later}
	b.closed(1)
	caught(t, w, "hours")
}

func TestCheckQuotaAndBudget(t *testing.T) {
	one, none := uint32(1), gpuai.Micros(10_000_000)
	w, b := priced(t)
	b.quotas["blue"] = gpuai.Quota{GPUs: &one, RunningJobs: &one}
	b.within(&gpuai.Event{Job: gpuai.JobID{1}}, "blue")
	if w.check.failed() {
		t.Fatalf("within the quota: %+v", w.check.violations)
	}
	b.budgets["blue"] = gpuai.Budget{Total: gpuai.BudgetLimit{Money: &none}}
	b.within(&gpuai.Event{Job: gpuai.JobID{1}}, "blue")
	caught(t, w, "budget")
}
