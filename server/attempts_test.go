package server

import (
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/httpd"
)

// The machine knows the latest lease of a task only: where earlier attempts
// were is told by the history, by their number and by their lease.
func TestLogsOfEarlierAttempts(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	a := join(t, r.servers[0].Server, helloOf("n1", 1))
	asked := make(chan gpuai.LogRequest, 8)
	a.logs = func(q gpuai.LogRequest) gpuai.LogChunk {
		asked <- q
		return gpuai.LogChunk{Data: []byte("hello"), EOF: true}
	}
	r.submit(jobSpec("j", 1), "")
	first := a.awaitLeases(1)[0]
	if code := a.report(first, 1, gpuai.ReportLost); code != gpuai.OK {
		t.Fatal(code)
	}
	var second gpuai.Token
	eventually(t, "the second attempt", func() bool {
		tasks, _, err := r.servers[0].Tasks("j", httpd.Page{})
		if err == nil && len(tasks) == 1 && tasks[0].Lease != first.Lease.ID {
			second = tasks[0].Lease
		}
		return second != 0
	})
	for name, c := range map[string]struct {
		q    httpd.LogQuery
		want gpuai.Token
	}{
		"latest": {httpd.LogQuery{Job: "j"}, second}, "first": {httpd.LogQuery{Job: "j", Attempt: 1}, first.Lease.ID},
		"second":       {httpd.LogQuery{Job: "j", Attempt: 2, Since: 5, Tail: 7, Times: true}, second},
		"by its lease": {httpd.LogQuery{Lease: first.Lease.ID}, first.Lease.ID},
	} {
		if _, err := r.servers[0].Logs(t.Context(), c.q); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		q := <-asked
		if q.Lease != c.want || q.Since != c.q.Since || q.Tail != c.q.Tail || q.Times != c.q.Times {
			t.Errorf("%s: the agent was asked %+v, want lease %s", name, q, c.want)
		}
	}
	for name, q := range map[string]httpd.LogQuery{"no attempt": {Job: "j", Attempt: 3}, "no lease": {Lease: first.Lease.ID + 1}} {
		if _, err := r.servers[0].Logs(t.Context(), q); !isCode(err, gpuai.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
