package fsm

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func preemptibleSpec(tenant, name string, tasks, gpus uint32) *gpuai.JobSpec {
	s, yes := tenantSpec(tenant, name, tasks, gpus), true
	s.Preemptible = &yes
	return s
}

// goes counts the leases of jobs that are being revoked.
func (r *region) goes(ids ...gpuai.JobID) (n int) {
	for _, id := range ids {
		n += len(r.revoking(id))
	}
	return n
}

// stopGoing has agents end what is being revoked, in one entry.
func (r *region) stopGoing() (stopped int) {
	r.t.Helper()
	var cmds []Command
	for _, s := range r.m.liveLeases() {
		if l := r.m.leases.Get(s); l.state == gpuai.LeaseRevoking {
			cmds = append(cmds, &ReportLease{Node: r.m.nodeName(l.node), Report: gpuai.Report{
				Lease: l.token, Seq: l.seq + 1, Incarnation: l.incarnation, State: gpuai.ReportStopped,
			}})
		}
	}
	r.apply(append(cmds, &Tick{})...)
	return len(cmds)
}

// A tenant waits for H100 of its own that no node has free: others of its cohort
// borrow MI300X, and what more is idle of H100 than is owed.
func TestOnlyWhatIsOwedIsKept(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.register(nodeSpec("m", 4, "MI300X"))
	models := func(h, x uint32) []gpuai.ModelQuota {
		return []gpuai.ModelQuota{{Model: "H100", GPUs: h}, {Model: "MI300X", GPUs: x}}
	}
	r.quota("owner", gpuai.Quota{Models: models(4, 2), Cohort: "x"})
	r.quota("bor", gpuai.Quota{Models: models(0, 0), Cohort: "x"})
	r.quota("more", gpuai.Quota{Models: models(4, 2), Cohort: "x"})
	on := func(s *gpuai.JobSpec, model string) *gpuai.JobSpec {
		s.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: model}}
		return s
	}
	no := false
	keeps := on(tenantSpec("bor", "keeps", 6, 1), "H100") // gives nothing back
	keeps.Preemptible = &no
	r.submit(keeps)
	owner := r.submit(on(tenantSpec("owner", "o", 1, 4), "H100"))
	if n := r.running(owner); n != 0 {
		t.Fatalf("%d tasks of the owner run", n)
	}
	other := r.submit(on(tenantSpec("bor", "mi", 4, 1), "MI300X"))
	if n := r.running(other); n != 4 {
		t.Errorf("%d of 4 idle MI300X are lent, while H100 are owed", n)
	}
	again := r.submit(on(tenantSpec("bor", "h", 1, 1), "H100"))
	if n := r.running(again); n != 0 {
		t.Error("H100 that are owed are lent")
	}
	if got := r.why(again, gpuai.QuotaExhausted); !strings.Contains(got, "owed to tenants who wait") {
		t.Errorf("the reason is %q", got)
	}
}

// newLendingRegion is a cohort of twelve devices of which a borrower without any of its
// own has nine, and gives none back.
func newLendingRegion(t testing.TB) (*region, gpuai.JobID) {
	r := newTenantRegion(t, 3)
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "x"})
	r.quota("lends", gpuai.Quota{GPUs: some(uint32(8)), Cohort: "x"})
	r.quota("bor", gpuai.Quota{GPUs: some(uint32(0)), Cohort: "x"})
	no := false
	s := tenantSpec("bor", "keeps", 9, 1)
	s.Preemptible = &no
	return r, r.submit(s)
}

// Of one resource, too, what is idle beyond what is owed is lent.
func TestWhatIsIdleBeyondDebtsIsLent(t *testing.T) {
	r, first := newLendingRegion(t)
	owner := r.submit(tenantSpec("owner", "o", 1, 4)) // the cohort has 3 idle
	if r.running(owner) != 0 || r.used("owner").Waiting != 1 {
		t.Fatal("the owner should wait for what is its own")
	}
	for _, l := range r.leases(first)[:2] {
		r.report(l, gpuai.ReportDone, 0)
	}
	if r.running(owner) != 0 { // the quota has five idle, no node has four
		t.Fatal("no node should have room for the owner")
	}
	bor := r.submit(preemptibleSpec("bor", "b", 4, 1))
	if n := r.running(bor); n != 1 {
		t.Errorf("%d devices are lent, want the one that is idle beyond the 4 owed", n)
	}
}

// All tasks of the owner's are taken back at once, not one in each round.
func TestReclaimsForAllTasksAtOnce(t *testing.T) {
	r := newTenantRegion(t, 4)
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(12)), Cohort: "x"})
	r.quota("bor", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "x"})
	bor := r.submit(preemptibleSpec("bor", "b", 16, 1))
	owner := r.submit(tenantSpec("owner", "o", 3, 4))
	if n := r.goes(bor); n != 12 {
		t.Fatalf("%d leases go for 12 devices", n)
	}
	r.stopGoing()
	if n := r.running(owner); n != 3 || r.goes(bor) != 0 || r.running(bor) != 4 {
		t.Errorf("%d of 3 tasks of the owner run, %d of the borrower's 4", n, r.running(bor))
	}
}

// A gang finds those who borrowed where it then has room, of several tenants, however
// many others have newer leases.
func TestGangTakesBackWhereItFits(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	for _, n := range []string{"a", "b", "c", "d"} {
		s := nodeSpec(n, 4, "H100")
		s.Labels = map[string]string{"host": n}
		r.register(s)
	}
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(8)), Cohort: "x"})
	for _, b := range []string{"b1", "b2"} {
		r.quota(b, gpuai.Quota{GPUs: some(uint32(4)), Cohort: "x"})
	}
	var ids []gpuai.JobID
	lend := func(tenant, node string, tasks uint32) {
		ids = append(ids, r.submit(onHost(tenantSpec(tenant, fmt.Sprint(tenant, node, len(ids)), tasks, 1), node)))
	}
	lend("b1", "a", 4)
	lend("b2", "b", 4)
	stays := onHost(tenantSpec("b1", "stays", 1, 1), "c")
	no := false
	stays.Preemptible = &no
	ids = append(ids, r.submit(stays))
	stays.Tenant, stays.Groups[0].Constraints[0].Values = "b2", []string{"d"}
	ids = append(ids, r.submit(stays))
	lend("b1", "c", 3) // newer, on nodes that never become empty
	lend("b2", "d", 3)
	gang := tenantSpec("owner", "gang", 2, 4)
	gang.Groups[0].Gang = true
	g := r.submit(gang)
	if n := r.goes(ids...); n != 8 {
		t.Fatalf("%d leases go for a gang of 8 devices", n)
	}
	r.stopGoing()
	if n := r.running(g); n != 2 {
		t.Errorf("%d of the gang's 2 tasks run, %d leases go still", n, r.goes(ids...))
	}
}

// Where all that may be taken back would not suffice nobody is asked to leave.
func TestNobodyLeavesInVain(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(6)), Cohort: "x"})
	r.quota("bor", gpuai.Quota{GPUs: some(uint32(2)), Cohort: "x"})
	no := false
	s := tenantSpec("bor", "keeps", 4, 1)
	s.Preemptible = &no
	keeps, leaves := r.submit(s), r.submit(preemptibleSpec("bor", "leaves", 4, 1))
	gang := tenantSpec("owner", "gang", 3, 2)
	gang.Groups[0].Gang = true
	g := r.submit(gang)
	if n := r.goes(keeps, leaves); n != 0 {
		t.Errorf("%d leases go, and the gang has 4 of 6 devices at most", n)
	}
	for _, l := range r.leases(keeps)[:2] {
		r.report(l, gpuai.ReportDone, 0)
	}
	if n := r.goes(leaves); n != 4 {
		t.Fatalf("%d leases go, want all that the gang needs", n)
	}
	r.stopGoing()
	if r.running(g) != 3 {
		t.Errorf("%d of the gang's tasks run", r.running(g))
	}
}

// A request that names a model is owed that one, whatever else of its tenant's is lent.
func TestReclaimsTheModelThatIsAsked(t *testing.T) {
	r := newTenantRegion(t, 1)
	r.register(nodeSpec("m", 4, "A100"))
	models := []gpuai.ModelQuota{{Model: "A100", GPUs: 4}, {Model: "H100", GPUs: 4}}
	r.quota("owner", gpuai.Quota{Models: models, Cohort: "x"})
	r.quota("bor", gpuai.Quota{Models: []gpuai.ModelQuota{{Model: "A100"}, {Model: "H100"}}, Cohort: "x"})
	bor := r.submit(preemptibleSpec("bor", "b", 8, 1))
	if r.running(bor) != 8 {
		t.Fatalf("%d tasks run of 8", r.running(bor))
	}
	s := tenantSpec("owner", "o", 1, 4)
	s.Groups[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: "H100"}}
	owner := r.submit(s)
	for _, l := range r.leases(bor) {
		if l.State == gpuai.LeaseRevoking && l.Node == "m" {
			t.Errorf("a lease of A100 goes for H100")
		}
	}
	r.stopGoing()
	if r.running(owner) != 1 {
		t.Error("the owner has not got its H100 back")
	}
}

// Another quota voids debts without a look at them; they are counted anew.
func TestDebtsAreCountedByTheNewestQuota(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "x"})
	r.quota("bor", gpuai.Quota{GPUs: some(uint32(4)), Cohort: "x"})
	no := false
	s := tenantSpec("bor", "keeps", 8, 1)
	s.Preemptible = &no
	r.submit(s)
	r.submit(tenantSpec("owner", "o", 1, 4))
	kept := func() uint64 { return r.m.cohorts.recs.Get(0).kept[ofGPUs] / 1_000 }
	if kept() != 4 {
		t.Fatalf("%d devices are kept, want 4", kept())
	}
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(6)), Cohort: "x"})
	r.wait(gpuai.Second)
	if kept() != 4 {
		t.Errorf("%d devices are kept under another quota, want 4", kept())
	}
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(2)), Cohort: "x"})
	r.wait(gpuai.Second)
	if kept() != 0 {
		t.Errorf("%d devices are kept, for what is not its own any more", kept())
	}
}

// Over random histories of a cohort that has the whole region: no device is idle that a
// waiting task could use but for what is owed to a tenant that waits, and a tenant has
// what is its own within three rounds of leaving.
func TestOwnersHaveTheirOwnSoon(t *testing.T) {
	t.Parallel()
	for seed := range few(12, 3) {
		r := newTenantRegion(t, 4)
		rnd := rand.New(rand.NewPCG(seed, 41))
		names := []string{"a", "b", "c", "d"}
		for i, q := range []uint32{6, 5, 3, 2} { // 16: all there is
			r.quota(names[i], gpuai.Quota{GPUs: some(q), Cohort: "x"})
		}
		jobs := map[string][]gpuai.JobID{}
		for step := range 40 {
			at := names[rnd.IntN(len(names))]
			if n := len(jobs[at]); n > 0 && rnd.IntN(3) == 0 {
				r.finish(jobs[at][rnd.IntN(n)])
			} else {
				s := preemptibleSpec(at, fmt.Sprint("j", step), 1+rnd.Uint32N(6), 1)
				jobs[at] = append(jobs[at], r.submit(s))
			}
			for range 3 {
				r.stopGoing()
			}
			if n := r.stopGoing(); n > 0 {
				t.Fatalf("seed %d, step %d: %d leases go after three rounds", seed, step, n)
			}
			r.wantShares(names)
		}
	}
}

// wantShares holds that nobody waits who has less than its own, and that nothing is
// idle while anybody waits.
func (r *region) wantShares(names []string) {
	r.t.Helper()
	idle, waits := uint64(16_000), false
	for _, n := range names {
		u := r.used(n)
		idle -= u.Use.GPUMilli
		waits = waits || u.Waiting > 0
		if own := uint64(*u.Quota.GPUs) * 1_000; u.Waiting > 0 && u.Use.GPUMilli < own {
			r.t.Fatalf("tenant %s waits with %d of its own %d", n, u.Use.GPUMilli, own)
		}
	}
	if waits && idle > 0 {
		r.t.Fatalf("%d milli are idle, and tenants wait", idle)
	}
}

// Who leaves a cohort is owed nothing any more.
func TestWhoLeavesACohortIsOwedNothing(t *testing.T) {
	r, bor := newLendingRegion(t)
	waits := r.submit(tenantSpec("owner", "o", 1, 4))
	for _, l := range r.leases(bor)[:2] {
		r.report(l, gpuai.ReportDone, 0)
	}
	if r.running(waits) != 0 {
		t.Fatal("there should be no room")
	}
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(4))})
	if r.wantLive(r.submit(tenantSpec("owner", "small", 1, 1)), 1); r.m.Check() != nil {
		t.Error(r.m.Check())
	}
}
