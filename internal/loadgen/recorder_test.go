package loadgen

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/gpuai/gpuai"
)

const ms = 1_000_000 // nanoseconds

func job(n int) gpuai.JobID { return gpuai.JobID{byte(n >> 8), byte(n), 1} }

func TestRank(t *testing.T) {
	for _, c := range []struct {
		n    int
		q    float64
		want int
	}{
		{1, 0.5, 0}, {1, 0.999, 0}, {2, 0.5, 0}, {3, 0.5, 1}, {4, 0.5, 1}, {10, 0.9, 8}, {100, 0.99, 98},
		{100, 0.999, 99}, {1000, 0.999, 998}, {1000, 0, 0}, {1000, 1, 999},
	} {
		if got := rank(c.n, c.q); got != c.want {
			t.Errorf("the %v quantile of %d values is number %d, want %d", c.q, c.n, got, c.want)
		}
	}
}

func TestResultOfNothing(t *testing.T) {
	if got, want := NewRecorder().Result(), (Result{}); got != want {
		t.Errorf("an empty recorder has %+v", got)
	}
	r := NewRecorder()
	r.call(3, 5)
	r.failed(3, errors.New("no"))
	got := r.Result()
	if got.Submitted != 3 || got.Refused != 3 || got.Placed != 0 || got.PlacementsPerSecond != 0 || got.Why == nil {
		t.Errorf("three refused jobs are %+v", got)
	}
}

// Jobs 0 … 999 are due each 2 ms from 1 s on, and job n takes n+1 ms.
func TestResultArithmetic(t *testing.T) {
	r := NewRecorder()
	for n := range 1000 {
		due := int64(1000*ms + 2*n*ms)
		at := due + int64(n+1)*ms
		r.call(1, due)
		if n%2 == 0 { // the lease may be there before the answer
			r.Lease(job(n), at)
			r.accepted([]gpuai.JobID{job(n)}, due)
		} else {
			r.accepted([]gpuai.JobID{job(n)}, due)
			r.Lease(job(n), at)
		}
		r.Lease(job(n), at+900*ms) // a second lease changes nothing
		r.accepted([]gpuai.JobID{job(n)}, due-ms)
	}
	r.Lease(job(5000), 99_000*ms) // of somebody else
	if called, refused, placed := r.counts(); called != 1000 || refused != 0 || placed != 1000 {
		t.Errorf("the counts are %d, %d, %d", called, refused, placed)
	}
	got := r.Result()
	if got.Submitted != 1000 || got.Placed != 1000 || got.Refused != 0 {
		t.Errorf("%d of %d placed, %d refused", got.Placed, got.Submitted, got.Refused)
	}
	if want := (Quantile{500, 900, 990, 999}); got.LatencyMs != want {
		t.Errorf("the latencies are %+v, want %+v", got.LatencyMs, want)
	}
	// From 1,000 ms to 1,000 + 2·999 + 1,000 ms.
	if want := 1000 / 2.998; got.PlacementsPerSecond < want-1e-6 || got.PlacementsPerSecond > want+1e-6 {
		t.Errorf("%v placements a second, want %v", got.PlacementsPerSecond, want)
	}
}

func TestResultCountsLostOnes(t *testing.T) {
	r := NewRecorder()
	r.call(10, 7*ms)
	r.call(10, 3*ms)
	r.accepted([]gpuai.JobID{job(1), job(2)}, 3*ms)
	r.failed(8, errors.New("first"))
	r.failed(10, errors.New("second"))
	r.Lease(job(2), 13*ms)
	got := r.Result()
	if got.Submitted != 20 || got.Refused != 18 || got.Placed != 1 || got.Why.Error() != "first" {
		t.Errorf("got %+v", got)
	}
	if got.PlacementsPerSecond != 100 || got.LatencyMs.P999 != 10 {
		t.Errorf("%v a second and %v ms", got.PlacementsPerSecond, got.LatencyMs.P999)
	}
}

func TestSpend(t *testing.T) {
	r := Result{Placed: 400}
	r.Spend(Usage{CPUSeconds: 2, RSS: 1 << 20}, Usage{CPUSeconds: 3, RSS: 3 << 20}, 1024)
	if r.ServerCPUMs != 2.5 || r.RSSPerNode != 3072 {
		t.Errorf("%v ms a placement and %v bytes a node", r.ServerCPUMs, r.RSSPerNode)
	}
	none := Result{}
	none.Spend(Usage{}, Usage{CPUSeconds: 1, RSS: 1}, 0)
	if none.ServerCPUMs != 0 || none.RSSPerNode != 0 {
		t.Errorf("without placements and nodes there is %+v", none)
	}
}

func TestResultAsJSON(t *testing.T) {
	b, err := json.Marshal(Result{Submitted: 1, Refused: 1, Why: errors.New("x")})
	want := `{"submitted":1,"placed":0,"placements_per_second":0,"latency_ms":{"p50":0,"p90":0,"p99":0,"p999":0},"server_cpu_ms_per_placement":0,"rss_bytes_per_node":0}`
	if err != nil || string(b) != want {
		t.Errorf("got %s, %v\nwant %s", b, err, want)
	}
}
