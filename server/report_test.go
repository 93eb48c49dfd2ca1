package server

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/offline"
)

// A report of a server that runs replays to its digests, and to what the region
// holds; the range is the server's, and bounded.
func TestReportOfARunningServer(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader().Server
	a := join(t, s, helloOf("n1", 2))
	spec := jobSpec("hunter2-canary", 1)
	spec.Groups[0].Task.Script, spec.Groups[0].Task.Command = "echo hunter2-canary", nil
	r.submit(spec, "")
	a.report(a.awaitLeases(1)[0], 1, gpuai.ReportRunning)
	middle := s.Status().Index
	for range 3 {
		r.submit(jobSpec("later", 2), "")
	}
	for _, from := range []uint64{0, middle} {
		var b bytes.Buffer
		if err := s.Report(t.Context(), gpuai.IndexRange{From: from}, &b); err != nil {
			t.Fatal(err)
		}
		rec, err := offline.ReadReport("it", &b)
		if err != nil {
			t.Fatal(err)
		}
		m, err := rec.MachineAt(t.Context(), rec.Last, nil)
		if err != nil || m.Digest().String() != rec.Report.Digest || rec.First != from || rec.Last < middle+3 {
			t.Fatalf("%+v: %v", rec.Report, err)
		}
		var jobs, leases uint32
		s.node.View(func(m *fsm.Machine) { jobs, leases = m.Counts().Jobs, m.Counts().Leases })
		if c := m.Counts(); c.Jobs != jobs || c.Leases != leases {
			t.Errorf("from %d: %+v, the region has %d jobs and %d leases", from, c, jobs, leases)
		}
		if all, _ := m.Jobs(fsm.JobCursor{}, 100, nil); strings.Contains(all[len(all)-1].Name, "canary") {
			t.Errorf("a job is called %s", all[0].Name)
		}
	}
	for _, c := range []struct {
		span gpuai.IndexRange
		code gpuai.Code
	}{
		{gpuai.IndexRange{From: 1 << 40}, gpuai.InvalidSpec},
		{gpuai.IndexRange{To: 1 << 40, From: 2}, gpuai.NotFound},
		{gpuai.IndexRange{From: middle, To: middle - 1}, gpuai.InvalidSpec},
	} {
		var b bytes.Buffer
		if err := s.Report(t.Context(), c.span, &b); !isCode(err, c.code) || b.Len() > 0 {
			t.Errorf("%+v: %v, and %d bytes", c.span, err, b.Len())
		}
	}
}

// While one report is made another waits, and is told to come again.
func TestOneReportAtATime(t *testing.T) {
	t.Parallel()
	s := startRegion(t, 1).leader().Server
	first := &stuckWriter{began: make(chan struct{}), end: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- s.Report(t.Context(), gpuai.IndexRange{}, first) }()
	<-first.began
	if err := s.Report(t.Context(), gpuai.IndexRange{}, new(bytes.Buffer)); !isCode(err, gpuai.RateLimited) {
		t.Errorf("a second report: %v", err)
	}
	close(first.end)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A stuckWriter lets nothing through until end.
type stuckWriter struct {
	began, end chan struct{}
	open       bool
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	if !w.open {
		close(w.began)
		<-w.end
		w.open = true
	}
	return len(p), nil
}
