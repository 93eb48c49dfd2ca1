package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// What waits for a quota is in another order in a machine that was restored: what is
// taken back, and for whom, is the same.
func TestRestoredMachineTakesBackForTheSameJobs(t *testing.T) {
	r := newTenantRegion(t, 2)
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(0)), Cohort: "c"})
	r.quota("guest", gpuai.Quota{GPUs: some(uint32(0)), Cohort: "c"})
	r.quota("idle", gpuai.Quota{GPUs: some(uint32(8)), Cohort: "c"})
	lent := tenantSpec("guest", "lent", 8, 1)
	lent.Preemptible = some(true)
	guest := r.submit(lent)
	if r.running(guest) != 8 {
		t.Fatalf("%d tasks run, want 8", r.running(guest))
	}
	wait := func(name string, cpu gpuai.MilliCPU) gpuai.JobID {
		s := tenantSpec("owner", name, 1, 1)
		s.Groups[0].Resources.CPU = cpu
		return r.submit(s)
	}
	gone := wait("gone", 100)
	second := wait("second", 200)
	r.do(&StopJob{Job: gone})
	third := wait("third", 300) // in the place of the first, behind the second
	other := restored(t, r.m)
	r.quota("idle", gpuai.Quota{GPUs: some(uint32(0)), Cohort: "c"})
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(8)), Cohort: "c"})
	for _, entry := range r.log[len(r.log)-2:] {
		if err := other.Apply(other.Index()+1, r.term, entry, &Output{}); err != nil {
			t.Fatal(err)
		}
	}
	by := map[gpuai.JobID]int{}
	for _, l := range r.leases(guest) {
		if l.State == gpuai.LeaseRevoking {
			by[l.PreemptedBy]++
		}
	}
	if by[second] != 1 || by[third] != 1 || len(by) != 2 {
		t.Errorf("leases are taken back for %v, want one for each job that waits for what is its tenant's own", by)
	}
	if other.Digest() != r.m.Digest() {
		t.Error("a restored machine takes back for another job")
	}
}

// The first quota of a tenant costs the same however much it has: nothing is looked at.
func TestFirstQuotaLooksAtNothing(t *testing.T) {
	took := func(tasks uint32) (work int64) {
		r := newTenantRegion(t, 1)
		for i := range 16 {
			r.node(fmt.Sprint("n", i), 8)
		}
		id := r.submit(tenantSpec("t", "x", tasks, 1))
		if r.running(id) != int(tasks) {
			t.Fatalf("%d tasks run, want %d", r.running(id), tasks)
		}
		r.quota("t", gpuai.Quota{Models: []gpuai.ModelQuota{{Model: "H100", GPUs: 1}}, Cohort: "c"})
		work = WorkPerEntry - r.m.now.work
		if use := r.used("t").Use; use.Models[0].GPUMilli != uint64(tasks)*1_000 || use.RunningJobs != 1 {
			t.Errorf("of %d leases %+v are counted", tasks, use)
		}
		return work
	}
	if one, many := took(1), took(100); one != many {
		t.Errorf("a first quota costs %d units with 1 lease, %d with 100", one, many)
	}
}
