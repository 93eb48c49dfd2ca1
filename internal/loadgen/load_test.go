package loadgen

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

func TestLoadConfigValidate(t *testing.T) {
	good := LoadConfig{Rate: 10, Duration: time.Second, Batch: 1, GPUs: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want   string
		change func(*LoadConfig)
	}{
		{"rate", func(c *LoadConfig) { c.Rate = 0 }},
		{"rate", func(c *LoadConfig) { c.Rate = -1 }},
		{"rate", func(c *LoadConfig) { c.Rate = 2e6 }},
		{"duration", func(c *LoadConfig) { c.Duration = 0 }},
		{"duration", func(c *LoadConfig) { c.Duration = 2 * time.Hour }},
		{"batch", func(c *LoadConfig) { c.Batch = 0 }},
		{"batch", func(c *LoadConfig) { c.Batch = gpuai.MaxBatchJobs + 1 }},
		{"GPUs", func(c *LoadConfig) { c.GPUs = -1 }},
		{"GPUs", func(c *LoadConfig) { c.GPUs = gpuai.MaxGPUs + 1 }},
		{"not one batch", func(c *LoadConfig) { c.Batch = 11 }},
	} {
		cfg := good
		c.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error about %s", cfg, err, c.want)
		}
	}
}

func TestSpecIsValid(t *testing.T) {
	for gpus := range 3 {
		s := (&LoadConfig{GPUs: gpus}).spec()
		s.Defaults()
		if wrong := s.Validate(); len(wrong) > 0 {
			t.Errorf("with %d GPUs: %v", gpus, wrong)
		}
	}
}

// A region answers submits as its function says.
func region(t *testing.T, answer func(w http.ResponseWriter, r *http.Request)) string {
	s := httptest.NewServer(http.HandlerFunc(answer))
	t.Cleanup(s.Close)
	return s.URL
}

// accept answers a submit with a new job.
func accept(w http.ResponseWriter, n int64) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(map[string]any{"job": map[string]any{"id": job(int(n)).String()}, "leases": []any{}})
}

// A region that stands still for 300 ms is measured as one that does: the
// submits that were due meanwhile count from when they were due.
func TestOpenLoopHidesNoStall(t *testing.T) {
	var n atomic.Int64
	rec := NewRecorder()
	gate := make(chan struct{})
	url := region(t, func(w http.ResponseWriter, r *http.Request) {
		<-gate
		id := n.Add(1)
		accept(w, id)
		rec.Lease(job(int(id)), monotonic())
	})
	time.AfterFunc(300*time.Millisecond, func() { close(gate) })
	cfg := LoadConfig{Addrs: []string{url}, Rate: 2000, Duration: 400 * time.Millisecond, GPUs: 1, Batch: 1, Settle: time.Second}
	if err := Run(t.Context(), cfg, rec); err != nil {
		t.Fatal(err)
	}
	r := rec.Result()
	if r.Submitted != 800 || r.Placed != 800 || r.Refused != 0 {
		t.Fatalf("%d of %d placed, %d refused: %v", r.Placed, r.Submitted, r.Refused, r.Why)
	}
	// Those due in the first 200 ms, half of all, waited 100 ms or more; only
	// 256 of them could be called before the gate opened.
	if r.LatencyMs.P50 < 90 || r.LatencyMs.P999 < 250 {
		t.Errorf("the latencies are %+v", r.LatencyMs)
	}
}

func TestRunInBatches(t *testing.T) {
	var n atomic.Int64
	rec := NewRecorder()
	url := region(t, func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Jobs []any }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body.Jobs) != 10 {
			t.Errorf("a batch of %d jobs: %v", len(body.Jobs), err)
		}
		var results []map[string]any
		for i := range body.Jobs {
			id := job(int(n.Add(1)))
			if i == 3 {
				results = append(results, map[string]any{"code": "rate_limited", "detail": "the machine is full"})
				continue
			}
			results = append(results, map[string]any{"job": id.String(), "code": "ok", "tasks": 1, "leased": 1})
			rec.Lease(id, monotonic())
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"results": results})
	})
	var told atomic.Int64
	cfg := LoadConfig{
		Addrs: []string{url}, Rate: 100, Duration: 1200 * time.Millisecond, GPUs: 1, Batch: 10, Settle: time.Second,
		Progress: func(_, _ int) { told.Add(1) },
	}
	if err := Run(t.Context(), cfg, rec); err != nil {
		t.Fatal(err)
	}
	r := rec.Result()
	if r.Submitted != 120 || r.Placed != 108 || r.Refused != 12 || !strings.Contains(fmt.Sprint(r.Why), "full") {
		t.Errorf("%d of %d placed, %d refused: %v", r.Placed, r.Submitted, r.Refused, r.Why)
	}
	if told.Load() == 0 {
		t.Error("there was no progress")
	}
}

// Run comes back soon after its context ends, with what there is.
func TestRunStops(t *testing.T) {
	var n atomic.Int64
	rec := NewRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	url := region(t, func(w http.ResponseWriter, r *http.Request) {
		id := n.Add(1)
		accept(w, id)
		rec.Lease(job(int(id)), monotonic())
		if id == 20 {
			cancel()
		}
	})
	cfg := LoadConfig{Addrs: []string{url}, Rate: 100, Duration: time.Minute, GPUs: 1, Batch: 1, Settle: time.Minute}
	if err := Run(ctx, cfg, rec); err != nil {
		t.Fatal(err)
	}
	if r := rec.Result(); r.Placed < 20 || r.Placed > 1000 || r.Submitted < r.Placed {
		t.Errorf("%d of %d placed", r.Placed, r.Submitted)
	}
}

// Leases that do not come are given up once none has come for a while.
func TestSettleGivesUp(t *testing.T) {
	var n atomic.Int64
	url := region(t, func(w http.ResponseWriter, r *http.Request) { accept(w, n.Add(1)) })
	cfg := LoadConfig{Addrs: []string{url}, Rate: 100, Duration: 100 * time.Millisecond, GPUs: 1, Batch: 1, Settle: 50 * time.Millisecond}
	rec := NewRecorder()
	if err := Run(t.Context(), cfg, rec); err != nil {
		t.Fatal(err)
	}
	if r := rec.Result(); r.Submitted != 10 || r.Placed != 0 || r.Refused != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestRunWithRefusals(t *testing.T) {
	url := region(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnprocessableEntity)
		w.Write([]byte(`{"code":"unschedulable","detail":"no node could ever run it"}`))
	})
	cfg := LoadConfig{Addrs: []string{url}, Rate: 100, Duration: 100 * time.Millisecond, GPUs: 1, Batch: 1, Settle: time.Minute}
	rec := NewRecorder()
	if err := Run(t.Context(), cfg, rec); err != nil {
		t.Fatal(err)
	}
	if r := rec.Result(); r.Refused != 10 || !strings.Contains(fmt.Sprint(r.Why), "no node could ever run it") {
		t.Errorf("got %+v", r)
	}
	if err := Run(t.Context(), LoadConfig{}, rec); err == nil {
		t.Error("an empty load runs")
	}
	cfg.Addrs = nil
	if err := Run(t.Context(), cfg, rec); err == nil {
		t.Error("a load without servers runs")
	}
}

func TestLeaderFirst(t *testing.T) {
	status := func(self string) string {
		return region(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"server":%q,"leader":"b","members":[]}`, self)
		})
	}
	a, b, c := status("a"), status("b"), status("c")
	got, err := LeaderFirst(t.Context(), Access{}, []string{a, b, c})
	if want := []string{b, a, c}; err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := LeaderFirst(t.Context(), Access{}, nil); err == nil {
		t.Error("no servers have a leader")
	}
	if _, err := LeaderFirst(t.Context(), Access{}, []string{"http://"}); err == nil {
		t.Error("a URL without a host has a leader")
	}
}
