package gpuai

import "testing"

// BenchmarkValidate is the cost of checking a job that is all right, which
// every submit pays.
func BenchmarkValidate(b *testing.B) {
	s := JobSpec{Name: "bench", Groups: []Group{{
		Resources: Resources{GPU: GPURequest{Count: 1}},
		Task:      TaskSpec{Command: []string{"true"}},
	}}}
	s.Defaults()
	b.ReportAllocs()
	for b.Loop() {
		if s.Validate() != nil {
			b.Fatal("the spec is invalid")
		}
	}
}
