package simulate

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func policyOf(t *testing.T, name string) Policy {
	t.Helper()
	ps, err := ParsePolicies(name)
	if err != nil {
		t.Fatal(err)
	}
	return ps[0]
}

// Every policy is audited on the small trace, and one seed gives one run.
func TestPackingPoliciesAreRightAndRepeatable(t *testing.T) {
	for _, p := range []string{"bestfit", "efw", "fgd"} {
		for _, learn := range []bool{false, true} {
			c := fixture(t)
			if c.Policy = policyOf(t, p); learn {
				c.Policy = c.Policy.Learning()
			}
			c.Audit = true
			a, err := Fill(context.Background(), c)
			if err != nil {
				t.Fatalf("%s: %v", p, err)
			}
			b, _ := Fill(context.Background(), c)
			rejected := 0
			for _, n := range a.Rejected {
				rejected += n
			}
			if a.Digest != b.Digest || a.Audit.Grants != a.Placed || a.Audit.Waits < rejected || rejected != a.Jobs-a.Placed {
				t.Fatalf("%s: %+v, audit %+v, again %s", p, a, *a.Audit, b.Digest)
			}
		}
	}
}

func TestChurnOffersTheLoad(t *testing.T) {
	c := fixture(t)
	c.Load, c.Count, c.Audit, c.Policy = 0.5, 3_000, true, policyOf(t, "efw")
	low, err := Churn(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	c.Load = 1.5
	high, err := Churn(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Churn(context.Background(), c); again.Digest != high.Digest {
		t.Fatal("one seed gave two runs")
	}
	l, h := low.Churn, high.Churn
	if l.Offered < 0.4 || l.Offered > 0.6 || h.Offered < 1.3 || h.Offered > 1.7 ||
		l.RejectedTime >= h.RejectedTime || h.RejectedTime < 25 || l.Allocated >= h.Allocated || h.Allocated > 100 {
		t.Fatalf("low %+v\nhigh %+v", *l, *h)
	}
	c.Jobs[3].Timed = false
	if _, err := Churn(context.Background(), c); !errors.Is(err, ErrUntimed) {
		t.Fatal(err)
	}
}

// The audit sees a device that is given twice, a lease that is beyond what its
// node has, and a task that waits although it fits.
func TestAuditFindsWrongDecisions(t *testing.T) {
	run := func() *auditor {
		w := newWorld(Policy{})
		w.keep = true
		c := fixture(t)
		as := NewArrivals(c.Nodes, c.Jobs, 1, 1)
		if err := w.register(sortedNodes(c.Nodes), as.order()); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if _, _, err := w.submit(&c.Jobs[i]); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.audit(); err != nil {
			t.Fatal(err)
		}
		a := &auditor{m: w.m, byID: map[gpuai.NodeID]*auditNode{}, held: map[gpuai.Token]gpuai.Lease{}, jobs: map[gpuai.JobID]*auditJob{}}
		for _, n := range w.m.Nodes("", fsm.MaxScan) {
			a.node(n.ID)
		}
		return a
	}
	a := run()
	leases, _ := a.m.Leases(0, 100, true)
	event := func(l gpuai.Lease) *gpuai.Event {
		return &gpuai.Event{Kind: gpuai.LeaseGrantedEvent, Lease: l.ID, Node: l.Node, Job: l.Job}
	}
	for name, c := range map[string]struct {
		spoil func(*auditor, gpuai.Lease)
		want  string
	}{
		"device": {func(a *auditor, l gpuai.Lease) { a.byID[l.Node].free[l.Devices[0]] = 0 }, "beyond what is free"},
		"cpu":    {func(a *auditor, l gpuai.Lease) { a.byID[l.Node].cpu = 0 }, "too many"},
		"twice":  {func(a *auditor, l gpuai.Lease) { a.held[l.ID] = l }, "granted twice"},
		"needs": {func(a *auditor, l gpuai.Lease) {
			a.jobs[l.Job] = &auditJob{needs: gpuai.Resources{GPU: gpuai.GPURequest{Count: 64}}, waiting: 1}
		}, "not what its job asked for"},
	} {
		for _, l := range leases {
			if len(l.Devices) == 0 {
				continue
			}
			b := run()
			c.spoil(b, l)
			if err := b.grant(event(l)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
			break
		}
	}
	idle := &auditJob{needs: gpuai.Resources{CPU: 1}, waiting: 1, judged: true}
	if err := a.waits([]*auditJob{idle}, nil); err == nil || !strings.Contains(err.Error(), "has room for it") {
		t.Errorf("a task that waits: %v", err)
	}
}

// Quality on the published trace: one workload, one seed; the others are in
// scheduler/EFW.md.
func TestPackingQualityOnPublishedTrace(t *testing.T) {
	dir := openb(t)
	c := load(t, dir, "openb_node_list_gpu_node.csv", "openb_pod_list_default.csv")
	c.Policy = policyOf(t, "efw")
	r, err := Fill(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if r.AllocAt["130"] < 96.0 || r.AllocAt["100"] < 95.9 || r.FirstReject < 95.8 {
		t.Fatalf("%+v", r)
	}
}
