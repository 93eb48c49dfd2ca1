package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

var walkTenants = []string{"a", "b", "c", "d"}

// newQuotaWalk is a walk of tenants with quotas, that share cohorts.
func newQuotaWalk(t testing.TB, seed uint64) *walk {
	w := newWalk(t, seed)
	w.ports = uint16(seed % 4)
	w.preempts = seed%2 == 0
	w.do(&SetFeatureLevel{Level: MaxLevel})
	w.ofTenants(seed%3 > 0)
	for _, n := range walkNodes {
		w.node(n, 4)
		w.incs[n], _, _ = w.m.NodeLive(gpuai.NodeID(n))
	}
	return w
}

// ofTenants has jobs of some tenants, and draws their quotas, and with pays their
// budgets, prices, and steps of time in which those matter.
func (w *walk) ofTenants(pays bool) {
	w.more = func(s *gpuai.JobSpec) {
		s.Tenant = gpuai.TenantID(walkTenants[w.r.IntN(len(walkTenants))])
		if s.Groups[0].Gang && s.Groups[0].Count > 1 && w.r.IntN(3) == 0 {
			s.Groups[0].MinCount = 1
		}
		if len(s.Groups) > 1 && w.r.IntN(2) == 0 {
			s.Together = true
		}
	}
	w.extra = w.quotaCommand
	if pays {
		w.extra = func() Command {
			if w.r.IntN(12) == 0 {
				w.time = w.time.Add(gpuai.Duration(w.r.IntN(30)) * gpuai.Minute)
				w.wall += gpuai.WallTime(w.r.IntN(20)) * gpuai.WallTime(gpuai.Hour)
			}
			if c := w.moneyCommand(); c != nil {
				return c
			}
			return w.quotaCommand()
		}
	}
}

// moneyCommand is a random budget or price, or nothing.
func (w *walk) moneyCommand() Command {
	limit := func() (l gpuai.BudgetLimit) {
		if w.r.IntN(3) == 0 {
			l.GPUHours = some(uint32(w.r.IntN(40)))
		}
		if w.r.IntN(3) == 0 {
			l.Money = some(gpuai.Micros(w.r.IntN(60_000_000)))
		}
		return l
	}
	switch w.r.IntN(30) {
	case 0:
		b := gpuai.Budget{Day: limit(), Month: limit()}
		if w.r.IntN(4) == 0 {
			b.Total = limit()
		}
		return &SetBudget{Tenant: gpuai.TenantID(walkTenants[w.r.IntN(len(walkTenants))]), Budget: b}
	case 1:
		p := gpuai.Prices{FeeBps: w.r.Uint32N(1_000)}
		for _, model := range []string{"H100", "MI300X"} {
			p.Models = append(p.Models, gpuai.ModelPrice{Model: model, Price: gpuai.Micros(w.r.IntN(4_000_000))})
		}
		return &SetPrices{p}
	case 2:
		return &SetNodePrice{Node: gpuai.NodeID(walkNodes[w.r.IntN(len(walkNodes))]), Price: gpuai.Micros(w.r.IntN(3_000_000) - 500_000)}
	}
	return nil
}

// quotaCommand is a random quota, or nothing.
func (w *walk) quotaCommand() Command {
	if w.r.IntN(8) != 0 {
		return nil
	}
	q := gpuai.Quota{}
	maybe := func(most int) *uint32 {
		if w.r.IntN(2) == 0 {
			return nil
		}
		n := uint32(w.r.IntN(most))
		return &n
	}
	q.GPUs, q.RunningJobs, q.PendingJobs = maybe(12), maybe(8), maybe(40)
	for _, model := range []string{"H100", "MI300X"} {
		if n := maybe(8); n != nil {
			q.Models = append(q.Models, gpuai.ModelQuota{Model: model, GPUs: *n})
		}
	}
	if n := maybe(100); n != nil {
		cpu := gpuai.MilliCPU(*n) * 1_000
		q.CPU = &cpu
	}
	if w.r.IntN(3) > 0 {
		q.Cohort = []string{"x", "y"}[w.r.IntN(2)]
		if q.GPUs != nil {
			q.BorrowGPUs = maybe(6)
		}
	}
	return &SetQuota{Tenant: gpuai.TenantID(walkTenants[w.r.IntN(len(walkTenants))]), Quota: q}
}

// Machines with quotas that apply one log are equal, restored and forked or not.
func TestRandomQuotas(t *testing.T) {
	t.Parallel()
	for seed := range few(8, 2) {
		w := newQuotaWalk(t, seed)
		other := New(w.m.opts)
		for i, entry := range w.log {
			if err := other.Apply(uint64(i+1), w.term, entry, &Output{}); err != nil {
				t.Fatal(err)
			}
		}
		w.beside(seed, other, 150)
	}
}

// Whenever there is no backlog, nothing waits that could start but behind a
// reservation or a quota: what its quota lets start, and what is parked for its quota
// may not.
func TestQuotasConserveWork(t *testing.T) {
	t.Parallel()
	for seed := range few(6, 1) {
		w := newQuotaWalk(t, 500+seed)
		for range 120 {
			w.step()
			if w.m.backlog() {
				t.Fatalf("seed %d, entry %d: a backlog within the budget", seed, w.index)
			}
			for b, ok := w.m.bucketSlots.Next(0); ok; b, ok = w.m.bucketSlots.Next(b + 1) {
				w.wantKept(seed, b)
			}
		}
	}
}

// wantKept holds that the first group of a bucket has a reason to wait.
func (w *walk) wantKept(seed uint64, bucket uint32) {
	w.t.Helper()
	fork := w.m.Fork()
	fork.now, fork.out = entryState{index: w.index + 1, time: w.m.Time(), work: WorkPerEntry}, &Output{}
	r := *fork.buckets.Get(bucket)
	group := r.first.slot()
	if r.parked() {
		slot, _ := fork.quotaSlot(r.tenant)
		if v := fork.admit(slot, group); v.ok && r.curb&curbBudget == 0 {
			w.t.Fatalf("seed %d, entry %d: bucket %d is parked, and its quota lets it start", seed, w.index, bucket)
		}
		return
	}
	if fork.meta.Get().reserve.group != 0 {
		return // it may wait behind that
	}
	if placed, final := fork.placeGroup(group); placed || !final || fork.buckets.Get(bucket).tasks < r.tasks {
		w.t.Fatalf("seed %d, entry %d: a group of bucket %+v waits that could start", seed, w.index, r)
	}
}
