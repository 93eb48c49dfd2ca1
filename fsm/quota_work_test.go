package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// crowded is a region with a cohort whose members have many kinds of requests waiting
// that it has no room for, and one, run, that has a device.
func crowded(t *testing.T, tenants, kinds int) (r *region, run gpuai.JobID, q gpuai.Quota) {
	r = newRegion(t)
	r.check = false
	r.do(&SetFeatureLevel{Level: MaxLevel})
	for i := range 4 {
		r.node(string(rune('a'+i)), 4)
	}
	q = gpuai.Quota{GPUs: some(uint32(0)), Cohort: "x"}
	for i := range gpuai.MaxQuotaModels {
		q.Models = append(q.Models, gpuai.ModelQuota{Model: fmt.Sprint("m", i), GPUs: 1})
	}
	for i := range tenants {
		r.quota(fmt.Sprint("t", i), q)
	}
	own := q
	own.GPUs = some(uint32(1))
	r.quota("run", own)
	run = r.submit(tenantSpec("run", "x", 1, 1))
	for i := range tenants {
		for k := range kinds {
			s := tenantSpec(fmt.Sprint("t", i), "w", 1, 1)
			s.Groups[0].Resources.CPU = gpuai.MilliCPU(1_000 + k)
			if out := r.apply(&SubmitJob{ID: r.newID(), Spec: s, HoldAnyway: true}); out.Results[0].Code != gpuai.OK {
				t.Fatal(i, k, out.Results[0])
			}
		}
	}
	return r, run, q
}

// However many kinds of requests wait for a quota, what comes free of it, and what is
// set of it, has them judged within the budget of an entry: the rest is backlog, which
// ends.
func TestWorkOfQuotas(t *testing.T) {
	lengthy(t)
	r, run, q := crowded(t, 62, 150)
	var cmds []Command
	for range 100 {
		cmds = append(cmds, &SetQuota{Tenant: "t0", Quota: q})
	}
	bound := int64(WorkPerEntry + perCommand)
	within(t, "100 quotas are set", r.spent(cmds...), bound)
	entries, most := r.catchUp()
	within(t, fmt.Sprintf("%d entries of backlog", entries), most, bound)
	cmds = nil
	for _, l := range r.leases(run) {
		cmds = append(cmds, &ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 1, Incarnation: l.Incarnation, State: gpuai.ReportDone}})
	}
	for range 100 { // each begins and ends
		id := r.newID()
		cmds = append(cmds, &SubmitJob{ID: id, Spec: tenantSpec("run", "y", 1, 0)}, &StopJob{Job: id})
	}
	within(t, "a lease ends, 100 jobs come and go", r.spent(cmds...), bound)
	entries, most = r.catchUp()
	within(t, fmt.Sprintf("%d entries of backlog", entries), most, bound)
	if err := r.m.Check(); err != nil {
		t.Fatal(err)
	}
	devices := uint64(0)
	for t := range r.m.tallies.recs.Len() {
		devices += r.m.tallies.recs.Get(t).of[ofGPUs] / 1_000
	}
	if devices != 1 {
		t.Errorf("%d devices are held, by a cohort of one", devices)
	}
}

// The owner of what is lent does not pay for each of its kinds of requests with a look
// at what others have borrowed.
func TestWorkOfReclaims(t *testing.T) {
	lengthy(t)
	r := large(t, 1_000)
	r.check = false
	r.quota("owner", gpuai.Quota{GPUs: some(uint32(100)), Cohort: "x"})
	r.quota("bor", gpuai.Quota{GPUs: some(uint32(7_900)), Cohort: "x"})
	cmds, _ := r.submits(1, tenantSpec("bor", "b", 8_000, 1))
	r.spent(cmds...)
	r.catchUp()
	cmds = nil
	for k := range 500 {
		s := tenantSpec("owner", "w", 1, 1)
		s.Groups[0].Resources.CPU = gpuai.MilliCPU(500 + k)
		cmds = append(cmds, &SubmitJob{ID: r.newID(), Spec: s})
	}
	bound := int64(WorkPerEntry + perCommand)
	within(t, "500 kinds of requests want back what is lent", r.spent(cmds...), bound)
	_, most := r.catchUp()
	within(t, "the backlog", most, bound)
	cmds = nil
	for _, s := range r.m.liveLeases()[:500] {
		l := r.m.leases.Get(s)
		cmds = append(cmds, &ReportLease{Node: r.m.nodeName(l.node), Report: gpuai.Report{Lease: l.token, Incarnation: l.incarnation, Seq: 1, State: gpuai.ReportDone}})
	}
	within(t, "500 leases end", r.spent(cmds...), bound)
	_, most = r.catchUp()
	within(t, "the backlog", most, bound)
	if n := r.m.tally(0).of[ofGPUs] / 1_000; n < 100 {
		t.Errorf("the owner has %d of its 100 devices", n)
	}
}
