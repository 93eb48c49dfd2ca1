package simulate

import "testing"

func TestGrowthMeasuresAFullMachine(t *testing.T) {
	ps, err := ParsePolicies("bestfit")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Growth(t.Context(), 20, 500, ps[0])
	if err != nil {
		t.Fatal(err)
	}
	again, err := Growth(t.Context(), 20, 500, ps[0])
	if err != nil || again.Digest != r.Digest {
		t.Fatalf("two runs differ: %+v and %+v, %v", r, again, err)
	}
	if r.GPUs != 160 || r.Leases < 40 || r.PerSecond <= 0 || r.CPUMillis <= 0 || r.SubmitMicros["p99"] < r.SubmitMicros["p50"] {
		t.Fatalf("%+v", r)
	}
}
