package server

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/httpd"
)

// Any server says which one has the session of a task's node, and refuses what the
// region's policy, or the node's owner, denies.
func TestExecIsFoundOrRefusedByAnyServer(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 3)
	holder := r.followers()[0]
	h := helloOf("n1", 1)
	h.Node.Labels = map[string]string{gpuai.LabelExec: gpuai.LabelYes}
	a := join(t, holder.Server, h)
	denying := join(t, r.leader().Server, helloOf("n2", 1))
	r.submit(jobSpec("j", 2), "")
	mine, theirs := a.awaitLeases(1)[0].Lease, denying.awaitLeases(1)[0].Lease
	refused := func(m *member, l gpuai.Lease, code gpuai.Code, why string) {
		t.Helper()
		if _, _, err := m.ExecTarget(t.Context(), httpd.LogQuery{Lease: l.ID}); !isCode(err, code) || !strings.Contains(err.Error(), why) {
			t.Errorf("server %s: %v, want %s: %s", m.cfg.ID, err, code, why)
		}
	}
	for _, m := range r.servers {
		l, at, err := m.ExecTarget(t.Context(), httpd.LogQuery{Lease: mine.ID})
		if err != nil || l.ID != mine.ID || at != holder.cfg.ID {
			t.Errorf("server %s: lease %s at %s, %v", m.cfg.ID, l.ID, at, err)
		}
		refused(m, theirs, gpuai.Forbidden, "node n2 runs no commands beside tasks: its operator has denied it")
		if m == holder {
			continue
		}
		if err := m.StartExec("n1", gpuai.ExecRequest{}); !isCode(err, gpuai.NotFound) {
			t.Errorf("server %s has not the session, and starts a command: %v", m.cfg.ID, err)
		}
	}
	p := gpuai.DefaultPolicy()
	p.Exec = gpuai.ExecDeny
	r.write(func(m *member) error { return m.SetPolicy(t.Context(), p) })
	for _, m := range r.servers {
		eventually(t, "the policy on server "+string(m.cfg.ID), func() bool { return m.Policy().Exec == gpuai.ExecDeny })
		refused(m, mine, gpuai.Forbidden, "its policy says exec=deny")
	}
	p.Exec = gpuai.ExecAllow
	r.write(func(m *member) error { return m.SetPolicy(t.Context(), p) })
	a.report(a.held()[0], 1, gpuai.ReportDone)
	refused(r.leader(), mine, gpuai.Conflict, "its lease has ended")
}
