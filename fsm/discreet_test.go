package fsm

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// An explanation to a tenant names no job of another: not the one that made its own
// leave, nor the one that nodes are reserved for, nor those ahead.
func TestExplanationsNameNoJobsOfOthers(t *testing.T) {
	r := placing(t)
	r.node("a", 4)
	of := func(tenant gpuai.TenantID, gpus uint32, priority gpuai.Priority) gpuai.JobID {
		s := jobSpec("job-of-"+string(tenant), 1, gpus)
		yes := true
		s.Tenant, s.Priority, s.Preemptible = tenant, priority, &yes
		return r.submit(s)
	}
	p := gpuai.DefaultPolicy()
	p.PreemptionProtect = 0
	r.do(&SetPolicy{Policy: p})
	mine := of("acme", 4, 30)
	r.wait(gpuai.Hour)
	theirs := of("beta", 4, 90)
	for _, l := range r.leases(mine) {
		r.do(&ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 9, Incarnation: l.Incarnation, State: gpuai.ReportStopped}})
	}
	r.status(theirs, gpuai.JobRunning)
	reserved := of("beta", 4, 60)
	for asker, names := range map[gpuai.TenantID]bool{"acme": false, "": true} {
		r.m.AnswerTo(asker)
		b, err := json.Marshal(r.ask(mine))
		r.m.AnswerTo("")
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []gpuai.JobID{theirs, reserved} {
			if strings.Contains(string(b), id.String()) != names {
				t.Errorf("to %q it names %s: %v, want %v: %s", asker, id, !names, names, b)
			}
		}
		if strings.Contains(string(b), "beta") != names {
			t.Errorf("to %q: %s", asker, b)
		}
	}
}
