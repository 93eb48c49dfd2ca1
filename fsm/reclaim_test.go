package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// lentRegion is nodes a and b of two devices, and a cohort of owner and bor that has
// two each; first each of some tenants has a device on a and on b.
func lentRegion(t *testing.T, tenants ...string) (r *region, ids []gpuai.JobID) {
	r = newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	for _, n := range []string{"a", "b"} {
		s := nodeSpec(n, 2, "H100")
		s.Labels = map[string]string{"host": n}
		r.register(s)
	}
	for _, tenant := range []string{"owner", "bor"} {
		r.quota(tenant, gpuai.Quota{GPUs: some(uint32(2)), Cohort: "x"})
	}
	for i, tenant := range tenants {
		for _, n := range []string{"a", "b"} {
			ids = append(ids, r.submit(onHost(tenantSpec(tenant, fmt.Sprint(n, i), 1, 1), n)))
		}
	}
	return r, ids
}

func onHost(s *gpuai.JobSpec, host string) *gpuai.JobSpec {
	yes := true
	s.Preemptible = &yes
	s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "label.host", Op: gpuai.In, Values: []string{host}}}
	return s
}

// vacate has agents end what is revoked, for some minutes, and counts it.
func (r *region) vacate(minutes int, ids []gpuai.JobID) (revoked int) {
	for range minutes {
		for _, id := range ids {
			for _, l := range r.leases(id) {
				if l.State == gpuai.LeaseRevoking {
					r.report(l, gpuai.ReportStopped, 0)
					revoked++
				}
			}
		}
		r.wait(gpuai.Minute)
	}
	return revoked
}

// What is taken back is taken on one node, so that its owner finds the room.
func TestReclaimsWhereTheOwnerFits(t *testing.T) {
	r, ids := lentRegion(t, "bor", "bor")
	own := r.submit(tenantSpec("owner", "o", 1, 2))
	if n := r.vacate(100, ids); n != 2 || r.running(own) != 1 {
		t.Errorf("%d leases were revoked, and %d tasks of the owner run", n, r.running(own))
	}
}

// Where there is no such node the quota stays free for its owner, and nobody is asked
// to leave for it again; it starts as soon as a node has the room.
func TestReclaimsOnce(t *testing.T) {
	r, ids := lentRegion(t, "other", "bor")
	r.quota("bor", gpuai.Quota{GPUs: some(uint32(0)), Cohort: "x"})
	own := r.submit(tenantSpec("owner", "o", 1, 2))
	if n := r.vacate(100, ids); n > 2 || r.running(own) != 0 {
		t.Errorf("%d leases were revoked, and %d tasks of the owner run", n, r.running(own))
	}
	r.finish(ids[0])
	if r.running(own) != 1 {
		t.Errorf("the owner waits for room that is free")
	}
	r.finish(own)
	if r.running(ids[2])+r.running(ids[3]) != 2 {
		t.Errorf("what the owner has no more use for is not lent")
	}
}

// Over random histories of tenants that lend each other what they leave idle, nobody
// is asked to leave for ever: when nothing more happens from outside it comes to an
// end.
func TestReclaimsEnd(t *testing.T) {
	t.Parallel()
	total := 0
	for seed := range few(24, 4) {
		w := newQuotaWalk(t, 7_000+seed)
		w.check = false
		more := w.more
		w.more = func(s *gpuai.JobSpec) {
			more(s)
			yes := true
			s.Preemptible = &yes
		}
		for range 100 {
			w.step()
		}
		for i, tenant := range walkTenants { // two cohorts, with less than there is and half of it lent
			w.do(&SetQuota{Tenant: gpuai.TenantID(tenant), Quota: gpuai.Quota{GPUs: some(uint32(2 + 3*(i%2))), Cohort: []string{"x", "y"}[i/2]}})
		}
		leases := int(w.m.Counts().Leases) + int(w.m.Counts().TasksPending)
		n := w.calm()
		if n > 4*leases {
			t.Fatalf("seed %d: %d leases were revoked, of %d tasks", seed, n, leases)
		}
		total += n
		if err := w.m.Check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	if total < int(few(24, 4)) {
		t.Fatalf("only %d leases were revoked: the test shows nothing", total)
	}
}

// calm has agents end what is revoked, and time pass, until nothing is revoked any
// more for longer than tasks are safe or wait before they restart, and returns how many
// leases were.
func (w *walk) calm() (revoked int) {
	w.t.Helper()
	for round, quiet := 0, 0; quiet < 30; round++ {
		var cmds []Command
		for _, s := range w.m.liveLeases() {
			if l := w.m.leases.Get(s); l.state == gpuai.LeaseRevoking {
				cmds = append(cmds, &ReportLease{Node: w.m.nodeName(l.node), Report: gpuai.Report{
					Lease: l.token, Seq: l.seq + 1, Incarnation: l.incarnation, State: gpuai.ReportStopped,
				}})
			}
		}
		if quiet++; len(cmds) > 0 {
			quiet = 0
		}
		if revoked += len(cmds); round > 300 {
			w.t.Fatalf("entry %d: %d leases are still being revoked after %d rounds, it does not end", w.index, len(cmds), round)
		}
		w.time = w.time.Add(gpuai.Minute)
		w.apply(append(cmds, &Tick{})...)
	}
	return revoked
}
