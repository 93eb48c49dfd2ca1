package fsm

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// BenchmarkReleaseAndServe measures the end of a task and the start of the next
// on a full region, with a million pending tasks of many shapes and tenants, in
// the order of tenants' shares. A shape is one tenant's when there are as many
// of both. Times are CPU time of Apply alone.
func BenchmarkReleaseAndServe(b *testing.B) {
	for _, c := range []struct{ shapes, tenants int }{{1, 1}, {1_000, 1}, {1_000, 1_000}, {10_000, 1_000}} {
		b.Run(fmt.Sprintf("shapes=%d/tenants=%d", c.shapes, c.tenants), func(b *testing.B) {
			r := filled(b, 1_000)
			r.do(&SetFeatureLevel{Level: MaxLevel})
			busy := jobSpec("busy", 8_000, 1)
			busy.Tenant = "busy"
			r.do(&SubmitJob{ID: r.newID(), Spec: busy})
			each := 1_000_000 / max(c.shapes, 2_000)
			for i := range max(c.shapes, 2_000) {
				s := jobSpec("wait", uint32(each), 1)
				s.Groups[0].Resources.CPU = gpuai.MilliCPU(1_000 + i%c.shapes)
				s.Tenant = gpuai.TenantID(fmt.Sprint("t", i%c.tenants))
				r.do(&SubmitJob{ID: r.newID(), Spec: s})
				r.log = r.log[:0]
			}
			for r.m.NextDeadline() <= r.m.Time() {
				r.apply(&Tick{})
			}
			var live []gpuai.Lease
			var from uint32
			took, out := make([]time.Duration, 0, b.N), Output{}
			runtime.LockOSThread()
			b.ResetTimer()
			for range b.N {
				for len(live) == 0 {
					live, from = r.m.Leases(from, 1_000, true)
				}
				l := live[len(live)-1]
				live = live[:len(live)-1]
				r.time += 10
				done := (&ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 9, Incarnation: l.Incarnation, State: gpuai.ReportDone}}).Append(nil, Envelope{})
				entry := AppendEntry(nil, Header{Time: r.time, Wall: 1, Term: r.term}, done)
				r.index++
				before := threadTime()
				err := r.m.Apply(r.index, r.term, entry, &out)
				if took = append(took, threadTime()-before); err != nil || out.Panics > 0 {
					b.Fatal(err, out.Panic)
				}
			}
			runtime.UnlockOSThread()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2]), "p50-cpu-ns")
			b.ReportMetric(float64(took[len(took)*99/100]), "p99-cpu-ns")
			b.ReportMetric(0, "ns/op")
			if n := r.m.Counts().Leases; n != 8_000 {
				b.Fatalf("%d leases, want all 8000 devices in use", n)
			}
		})
	}
}
