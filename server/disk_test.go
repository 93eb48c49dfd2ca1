package server

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gpuai/gpuai"
)

// TestCase7DiskLow is case 7 as clients and agents see it: commands of clients
// get 503 with path and free bytes; reads, beats and reports go on.
func TestCase7DiskLow(t *testing.T) {
	r := startRegion(t, 1)
	m := r.servers[0]
	var free atomic.Uint64
	free.Store(8 << 30)
	r.halt(m)
	m.cfg.DiskFree = func(string) (uint64, uint64, error) { return free.Load(), 10 << 30, nil }
	r.restart(m)
	agent := join(t, m.Server, helloOf("n1", 1))
	defer agent.keepBeating()()
	out := r.submit(jobSpec("before", 1), "")
	lease := agent.awaitLeases(1)[0]

	free.Store(300 << 20)
	eventually(t, "refused command", func() bool { return m.node.AdmitClient() != nil })
	resp, err := http.Post("http://"+m.HTTPAddr()+"/v1/jobs", "application/json",
		strings.NewReader(`{"name":"late","groups":[{"count":1,"resources":{"gpu":{"count":1}},"task":{"command":["true"]}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "5" {
		t.Errorf("a submit: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	refusals := map[string]error{}
	_, refusals["batch"] = m.SubmitBatch(t.Context(), []*gpuai.JobSpec{jobSpec("late", 1)}, "")
	_, refusals["stop"] = m.StopJob(t.Context(), out.Job.ID.String(), "")
	_, refusals["drain"] = m.SetDrained(t.Context(), "n1", true)
	for what, err := range refusals {
		if !isCode(err, gpuai.DiskLow) || !strings.Contains(err.Error(), m.cfg.DataDir) || !strings.Contains(err.Error(), "314572800 bytes") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := m.ReadIndex(t.Context()); err != nil {
		t.Errorf("a read: %v", err)
	}
	agent.beatUntilAcked()
	if code := agent.report(lease, 1, gpuai.ReportRunning); code != gpuai.OK {
		t.Errorf("a report: %v", code)
	}

	free.Store(8 << 30)
	eventually(t, "command that is taken again", func() bool { return m.node.AdmitClient() == nil })
	r.submit(jobSpec("after", 1), "")
}
