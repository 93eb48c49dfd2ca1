package httpd

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// instant takes every batch at once, so that what is measured is this package.
type instant struct{ *twin }

func (instant) SubmitBatch(_ context.Context, specs []*gpuai.JobSpec, _ string) ([]gpuai.BatchResult, error) {
	out := make([]gpuai.BatchResult, len(specs))
	for i := range out {
		out[i] = gpuai.BatchResult{Job: gpuai.JobID{0: 1, 15: byte(i)}, Tasks: 1, Leased: 1, Index: 1 << 20}
	}
	return out, nil
}

// BenchmarkBatch is one jobs:batch of 1,000 jobs through the handler; ns/job
// is what decoding, checking and answering cost a job.
func BenchmarkBatch(b *testing.B) {
	const n = 1000
	var body strings.Builder
	body.WriteString(`{"jobs":[`)
	for i := range n {
		if i > 0 {
			body.WriteByte(',')
		}
		body.WriteString(`{"name":"bench-` + strconv.Itoa(i) + `","groups":[{"count":1,"resources":{"gpu":{"count":1,"any":[{"vendor":"sim","model":"H100","memory_min_bytes":25769803776}]},"cpu_milli":1000,"memory_bytes":1073741824},"task":{"command":["/bin/sh","-c","true"],"env":{"A":"1"}}}]}`)
	}
	body.WriteString(`]}`)
	h := New(Config{Hosts: testHosts, Backend: instant{newTwin()}})
	b.SetBytes(int64(body.Len()))
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), "POST", "/v1/jobs:batch", strings.NewReader(body.String()))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/job")
}
