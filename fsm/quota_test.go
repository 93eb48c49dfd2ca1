package fsm

import (
	"strconv"
	"testing"

	"github.com/gpuai/gpuai"
)

func some[T any](v T) *T { return &v }

// newTenantRegion is a region at the newest level with nodes a, b, … of four H100.
func newTenantRegion(t testing.TB, nodes int) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	for i := range nodes {
		r.node(string(rune('a'+i)), 4)
	}
	return r
}

func (r *region) quota(tenant string, q gpuai.Quota) {
	r.t.Helper()
	r.do(&SetQuota{Tenant: gpuai.TenantID(tenant), Quota: q})
}

func tenantSpec(tenant, name string, tasks, gpus uint32) *gpuai.JobSpec {
	s := jobSpec(name, tasks, gpus)
	s.Tenant = gpuai.TenantID(tenant)
	return s
}

func (r *region) used(tenant string) gpuai.QuotaStatus {
	r.t.Helper()
	q, ok := r.m.Quota(gpuai.TenantID(tenant))
	if !ok {
		r.t.Fatalf("tenant %s has no quota", tenant)
	}
	return q
}

// finish has the agent report the end of all leases of a job.
func (r *region) finish(id gpuai.JobID) {
	r.t.Helper()
	for _, l := range r.leases(id) {
		if l.State != gpuai.LeaseEnded {
			r.report(l, gpuai.ReportDone, 0)
		}
	}
}

func (r *region) running(id gpuai.JobID) (n int) {
	for _, l := range r.leases(id) {
		if l.State != gpuai.LeaseEnded {
			n++
		}
	}
	return n
}

// why returns the reasons of a job's explanation by their codes.
func (r *region) why(id gpuai.JobID, code gpuai.ReasonCode) string {
	r.t.Helper()
	x, _ := r.m.Fork().Explain(id)
	for _, reason := range x.Reasons {
		if reason.Code == code {
			return reason.Message
		}
	}
	r.t.Fatalf("the reasons are %+v, want %s", x.Reasons, code)
	return ""
}

func TestQuotaBoundsWhatATenantHas(t *testing.T) {
	r := newTenantRegion(t, 4)
	r.quota("t", gpuai.Quota{GPUs: some(uint32(12)), Models: []gpuai.ModelQuota{{Model: "H100", GPUs: 12}}})
	first := r.submit(tenantSpec("t", "first", 2, 4))
	second := r.submit(tenantSpec("t", "second", 2, 4))
	if r.running(first) != 2 || r.running(second) != 1 {
		t.Fatalf("%d and %d tasks run, want 2 and 1 within 12 devices", r.running(first), r.running(second))
	}
	if got := r.why(second, gpuai.QuotaExhausted); got != "tenant t uses 12 of 12 GPUs; waits for 4" {
		t.Errorf("the reason is %q", got)
	}
	if u := r.used("t"); u.Use.GPUMilli != 12_000 || u.Use.Models[0].GPUMilli != 12_000 || u.Use.RunningJobs != 2 || u.Waiting != 1 {
		t.Errorf("the quota is used as %+v", u)
	}
	other := r.submit(tenantSpec("u", "other", 1, 4))
	if r.running(other) != 1 {
		t.Error("another tenant waits, with room for it")
	}
	r.report(r.leases(first)[0], gpuai.ReportDone, 0)
	if r.running(second) != 2 {
		t.Errorf("what was freed of the quota wakes nobody")
	}
	r.quota("t", gpuai.Quota{GPUs: some(uint32(4))})
	if r.running(second) != 2 {
		t.Error("a smaller quota ends leases")
	}
}

func TestQuotaOfOneModelLeavesOthers(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.register(nodeSpec("m", 4, "MI300X"))
	r.quota("t", gpuai.Quota{Models: []gpuai.ModelQuota{{Model: "H100", GPUs: 2}}})
	any := r.submit(tenantSpec("t", "any", 6, 1))
	byModel := map[bool]int{}
	for _, l := range r.leases(any) {
		byModel[l.Node == "m"]++
	}
	if byModel[false] != 2 || byModel[true] != 4 {
		t.Fatalf("%d tasks on H100 and %d on MI300X, want 2 and 4", byModel[false], byModel[true])
	}
	s := tenantSpec("t", "h100", 1, 1)
	s.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: "H100"}}
	h := r.submit(s)
	if got := r.why(h, gpuai.QuotaExhausted); got != "tenant t uses 2 of 2 H100; waits for 1" {
		t.Errorf("the reason is %q", got)
	}
	gang := tenantSpec("t", "gang", 2, 2)
	gang.Groups[0].Gang = true
	g := r.submit(gang)
	r.register(nodeSpec("n", 4, "MI300X"))
	if r.running(g) != 2 {
		t.Error("a gang that may have another model waits")
	}
	r.finish(any)
	if r.running(h) != 1 {
		t.Error("what was freed of a model's quota wakes nobody")
	}
}

func TestQuotaOfCPUMemoryAndRunningJobs(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.quota("c", gpuai.Quota{CPU: some(gpuai.MilliCPU(2_500))})
	r.quota("m", gpuai.Quota{Memory: some(gpuai.Bytes(3 << 29))})
	r.quota("j", gpuai.Quota{RunningJobs: some(uint32(1))})
	c, m := r.submit(tenantSpec("c", "x", 3, 0)), r.submit(tenantSpec("m", "x", 3, 0))
	j1, j2 := r.submit(tenantSpec("j", "x", 3, 0)), r.submit(tenantSpec("j", "y", 1, 0))
	if r.running(c) != 2 || r.running(m) != 1 || r.running(j1) != 3 || r.running(j2) != 0 {
		t.Fatalf("%d, %d, %d and %d tasks run", r.running(c), r.running(m), r.running(j1), r.running(j2))
	}
	for id, want := range map[gpuai.JobID]string{
		c: "tenant c uses 2 of 2.5 CPUs; waits for 1", m: "tenant m uses 1 of 1.5 GiB of memory; waits for 1",
		j2: "tenant j uses 1 of 1 running jobs; waits for 1",
	} {
		if got := r.why(id, gpuai.QuotaExhausted); got != want {
			t.Errorf("the reason is %q, want %q", got, want)
		}
	}
	r.finish(j1)
	if r.running(j2) != 1 {
		t.Error("the end of a running job wakes nobody")
	}
}

func TestQuotaOfPendingJobsRefusesSubmits(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.quota("t", gpuai.Quota{GPUs: some(uint32(4)), PendingJobs: some(uint32(2)), RequestsPerSecond: some(uint32(7))})
	run := r.submit(tenantSpec("t", "run", 1, 4))
	r.submit(tenantSpec("t", "w1", 1, 4))
	r.submit(tenantSpec("t", "w2", 1, 4))
	r.refuse(&SubmitJob{ID: r.newID(), Spec: tenantSpec("t", "w3", 1, 4)}, gpuai.QuotaExceeded)
	r.finish(run)
	r.submit(tenantSpec("t", "w3", 1, 4))
	if n, ok := r.m.RequestRate("t"); !ok || n != 7 {
		t.Errorf("the rate is %d, %v", n, ok)
	}
	if _, ok := r.m.RequestRate("u"); ok {
		t.Error("a tenant without a quota has a rate")
	}
}

func TestQuotaIsRefused(t *testing.T) {
	r := newRegion(t)
	r.refuse(&SetQuota{Tenant: "t"}, gpuai.InvalidSpec) // below the level
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.refuse(&SetQuota{Tenant: "No"}, gpuai.InvalidSpec)
	for _, q := range []gpuai.Quota{
		{GPUs: some(uint32(1 << 30))}, {CPU: some(gpuai.MilliCPU(-1))}, {CPU: some(gpuai.MaxQuotaCPU + 1)}, {Memory: some(gpuai.MaxQuotaMemory + 1)}, {Cohort: "A B"},
		{Models: []gpuai.ModelQuota{{Model: "x"}, {Model: "x"}}}, {Models: []gpuai.ModelQuota{{}}},
		{BorrowGPUs: some(uint32(1)), GPUs: some(uint32(1))}, {BorrowGPUs: some(uint32(1)), Cohort: "c"},
	} {
		r.refuse(&SetQuota{Tenant: "t", Quota: q}, gpuai.InvalidSpec)
	}
	for i := range gpuai.MaxCohortMembers {
		r.quota("t"+strconv.Itoa(i), gpuai.Quota{Cohort: "c"})
	}
	r.refuse(&SetQuota{Tenant: "u", Quota: gpuai.Quota{Cohort: "c"}}, gpuai.TooLarge)
	r.quota("t0", gpuai.Quota{})
	r.quota("u", gpuai.Quota{Cohort: "c"})
}

// However much each member may have, what the cohort may have is no less.
func TestBoundsOfACohortHaveASum(t *testing.T) {
	r := newTenantRegion(t, 1)
	for i := range gpuai.MaxCohortMembers - 1 {
		r.quota("p"+strconv.Itoa(i), gpuai.Quota{CPU: some(gpuai.MaxQuotaCPU), Memory: some(gpuai.MaxQuotaMemory), Cohort: "x"})
	}
	r.quota("t", gpuai.Quota{CPU: some(gpuai.MilliCPU(1)), Memory: some(gpuai.Bytes(1)), Cohort: "x"})
	own, borrowed := r.submit(tenantSpec("p0", "x", 1, 1)), r.submit(tenantSpec("t", "x", 1, 1))
	if r.running(own) != 1 || r.running(borrowed) != 1 {
		t.Errorf("%d and %d tasks run in a cohort that leaves nearly all idle", r.running(own), r.running(borrowed))
	}
}

// What a member leaves idle others borrow, and it gets it back when it wants it.
func TestCohortBorrowsAndReclaims(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.quota("a", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "c"})
	r.quota("b", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "c"})
	yes := true
	lent := tenantSpec("b", "lent", 8, 1)
	lent.Preemptible = &yes
	b := r.submit(lent)
	if r.running(b) != 8 {
		t.Fatalf("%d tasks run of 8 with what is idle", r.running(b))
	}
	more := r.submit(tenantSpec("b", "more", 1, 1))
	a := r.submit(tenantSpec("a", "own", 2, 2))
	if got := r.why(a, gpuai.QuotaExhausted); got != "cohort c uses 8 of 8 GPUs; waits for 2: it is the tenant's own, and others who borrowed it are being asked to leave" {
		t.Errorf("the reason is %q", got)
	}
	for round := 0; r.running(a) < 2 && round < 10; round++ {
		for _, l := range r.leases(b) {
			if l.State == gpuai.LeaseRevoking {
				if l.PreemptedBy != a {
					t.Errorf("lease %d makes room for %s", l.ID, l.PreemptedBy)
				}
				r.report(l, gpuai.ReportStopped, 0)
				if r.running(more) > 0 {
					t.Fatal("what is taken back is lent again")
				}
			}
		}
	}
	if r.running(a) != 2 || r.running(b) != 4 || r.running(more) != 0 {
		t.Fatalf("%d tasks of the owner run, %d of the borrower, %d more", r.running(a), r.running(b), r.running(more))
	}
	r.finish(a)
	if n := r.running(b) + r.running(more); n != 8 {
		t.Errorf("%d tasks run with what is idle again, want 8", n)
	}
}

func TestCohortNeverTakesWhatIsTheirOwn(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.quota("a", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "c"})
	r.quota("b", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "c", BorrowGPUs: some(uint32(1))})
	no := false
	s := tenantSpec("b", "safe", 6, 1)
	s.Preemptible = &no
	b := r.submit(s)
	if r.running(b) != 5 {
		t.Fatalf("%d tasks run, want 4 of its own and 1 borrowed", r.running(b))
	}
	a := r.submit(tenantSpec("a", "own", 4, 1))
	if r.running(a) != 3 || r.m.Counts().Revoking != 0 {
		t.Fatalf("%d tasks of the owner run, %d leases go", r.running(a), r.m.Counts().Revoking)
	}
	r.report(r.leases(b)[0], gpuai.ReportDone, 0)
	if r.running(a) != 4 || r.running(b) != 4 {
		t.Errorf("%d tasks of the owner run, %d of the borrower", r.running(a), r.running(b))
	}
}

// Preemption by priority takes no more than the quota of the one it is for.
func TestPreemptionStaysWithinTheQuota(t *testing.T) {
	r := newTenantRegion(t, 2)
	p := gpuai.DefaultPolicy()
	p.PreemptionGap, p.PreemptionProtect = 10, 0
	r.do(&SetPolicy{Policy: p})
	r.quota("high", gpuai.Quota{GPUs: some(uint32(3))})
	yes := true
	low := tenantSpec("low", "low", 8, 1)
	low.Priority, low.Preemptible = 10, &yes
	l := r.submit(low)
	high := tenantSpec("high", "high", 5, 1)
	high.Priority = 90
	h := r.submit(high)
	going := 0
	for _, x := range r.leases(l) {
		if x.State == gpuai.LeaseRevoking {
			going++
		}
	}
	if going != 3 {
		t.Fatalf("%d leases go for a tenant that may have 3", going)
	}
	for _, x := range r.leases(l) {
		if x.State == gpuai.LeaseRevoking {
			r.report(x, gpuai.ReportStopped, 0)
		}
	}
	if r.running(h) != 3 {
		t.Errorf("%d tasks run", r.running(h))
	}
}

// Room that was kept for a job of a tenant that may run one at a time is not taken when
// another job of it has started meanwhile, whatever starts as a whole or alone.
func TestKeptRoomIsWithinTheRunningJobs(t *testing.T) {
	for _, gang := range []bool{false, true} {
		r := newTenantRegion(t, 1)
		p := gpuai.DefaultPolicy()
		p.PreemptionProtect = 0
		r.do(&SetPolicy{Policy: p})
		low := tenantSpec("s", "low", 1, 4)
		low.Priority, low.Preemptible = 10, some(true)
		victim := r.submit(low)
		r.quota("t", gpuai.Quota{RunningJobs: some(uint32(1))})
		high := tenantSpec("t", "high", 2, 2)
		high.Priority, high.Groups[0].Gang = 90, gang
		kept := r.submit(high)
		if l := r.leases(victim)[0]; l.State != gpuai.LeaseRevoking {
			t.Fatal("nobody makes room")
		}
		r.node("b", 1)
		other := r.submit(tenantSpec("t", "other", 1, 1))
		r.finish(victim)
		if n := r.used("t").Use.RunningJobs; n != 1 || r.running(other) != 1 || r.running(kept) != 0 {
			t.Fatalf("gang %v: %d jobs run, with %d and %d tasks", gang, n, r.running(other), r.running(kept))
		}
		r.why(kept, gpuai.QuotaExhausted)
		restored(t, r.m)
		r.finish(other)
		if r.running(kept) != 2 {
			t.Errorf("gang %v: it does not start when it may", gang)
		}
	}
}
