package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// BenchmarkPlan asks what a submit, two drains and a loss would lead to, on a
// fork of a region of 100,000 nodes and a million leases; then the same with a
// job that waits, with its reasons and its estimate; then why that job waits.
//
//	go test ./fsm -run '^$' -bench 'Plan$' -benchtime 20x
func BenchmarkPlan(b *testing.B) {
	r := leased(b, *benchNodes, *benchLeases)
	free := nodeSpec("free", 8, "H100")
	r.apply(&RegisterNode{Spec: free, BootID: "b", Nonce: "n"})
	waiting := r.submit(jobSpec("waiting", 1, 10))
	fits, waits := jobSpec("fits", 1, 8), jobSpec("waits", 100, 10)
	for _, c := range []struct {
		name string
		req  gpuai.PlanRequest
	}{
		{"submit", gpuai.PlanRequest{Submit: []gpuai.JobSpec{*fits}}},
		{"submit+drain+lose", gpuai.PlanRequest{Submit: []gpuai.JobSpec{*fits}, Drain: []gpuai.NodeID{"node-000001", "node-000002"}, Lose: []gpuai.NodeID{"node-000003"}}},
		{"waiting", gpuai.PlanRequest{Submit: []gpuai.JobSpec{*waits}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			id := r.newID()
			before := cpuTime(b)
			for b.Loop() {
				if _, err := r.m.Fork().Plan(&c.req, []gpuai.JobID{id}, Header{Time: r.time}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms")
		})
	}
	b.Run("explain", func(b *testing.B) {
		before := cpuTime(b)
		for b.Loop() {
			if x, ok := r.m.Fork().Ask(waiting); !ok || len(x.Groups) == 0 {
				b.Fatal("nothing to explain")
			}
		}
		b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms")
	})
}
