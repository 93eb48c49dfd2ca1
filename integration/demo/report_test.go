package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/gpuai/gpuai/integration/oracle"
)

func TestQuantiles(t *testing.T) {
	many := make([]float64, 200)
	for i := range many {
		many[i] = float64(200 - i)
	}
	cases := []struct {
		times []float64
		want  latency
	}{
		{nil, latency{}},
		{[]float64{3}, latency{N: 1, P50: 3, P99: 3, Max: 3}},
		{[]float64{4, 1, 3, 2}, latency{N: 4, P50: 2, P99: 4, Max: 4}},
		{many, latency{N: 200, P50: 100, P99: 198, Max: 200}},
	}
	for _, c := range cases {
		if got := quantiles(c.times); got != c.want {
			t.Errorf("%d times: %+v, want %+v", len(c.times), got, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	r := report{
		NewLeaderMS: 812.5, Allocation: latency{N: 75, P50: 4.25, P99: 9},
		Digests: digests{Index: 42, ByServer: map[string]string{"a": "ff", "b": "ff", "c": "ff"}},
		Runners: oracle.Runners{Tasks: 279, Runs: 290, Beats: 12345},
	}
	var text, data bytes.Buffer
	if err := r.write(&text, "text"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"p50 4.2 ms, p99 9.0 ms", "812 ms after kill -9", "equal on 3 servers at index 42: ff",
		"no task had two runners (12345 beats, 290 runs of 279 tasks checked)",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
	if err := r.write(&data, "json"); err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(data.Bytes(), &back); err != nil || back.Runners != r.Runners || back.NewLeaderMS != r.NewLeaderMS {
		t.Errorf("%+v, %v", back, err)
	}
}
