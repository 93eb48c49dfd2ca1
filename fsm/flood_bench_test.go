package fsm

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// BenchmarkBesideAFlood measures what another tenant pays for one that floods a
// full region of 1,000 nodes with distinct requests until it is refused: the end
// of its task and the start of its next. Times are CPU time of Apply alone.
func BenchmarkBesideAFlood(b *testing.B) {
	for _, name := range []string{"none", "shapes", "labels", "models", "dependents", "priorities and gangs"} {
		b.Run("flood="+name, func(b *testing.B) {
			r := filled(b, 1_000)
			r.do(&SetFeatureLevel{Level: MaxLevel})
			for range 2 {
				s := jobSpec("own", 8_000, 1)
				s.Tenant = "other"
				r.do(&SubmitJob{ID: r.newID(), Spec: s})
			}
			if by := floods[name]; by != nil {
				b.ReportMetric(float64(r.flood(by, MaxBuckets)), "requests")
			}
			for r.m.backlog() {
				r.apply(&Tick{})
			}
			var live []gpuai.Lease
			var from uint32
			took, out := make([]time.Duration, 0, b.N), Output{}
			started := 0
			runtime.LockOSThread()
			b.ResetTimer()
			for range min(b.N, 7_000) {
				if len(live) == 0 {
					live, from = r.m.Leases(from, 1_000, true)
				}
				l := live[0]
				live = live[1:]
				r.time += 10
				done := (&ReportLease{Node: l.Node, Report: gpuai.Report{Lease: l.ID, Seq: 9, Incarnation: l.Incarnation, State: gpuai.ReportDone}}).Append(nil, Envelope{})
				entry := AppendEntry(nil, Header{Time: r.time, Wall: 1, Term: r.term}, done)
				r.index++
				before := threadTime()
				err := r.m.Apply(r.index, r.term, entry, &out)
				if took = append(took, threadTime()-before); err != nil || out.Panics > 0 {
					b.Fatal(err, out.Panic)
				}
				for i := range out.Events {
					if out.Events[i].Kind == gpuai.LeaseGrantedEvent {
						started++
					}
				}
			}
			runtime.UnlockOSThread()
			slices.Sort(took)
			if started != len(took) {
				b.Fatal(fmt.Sprintf("%d tasks started for %d that ended", started, len(took)))
			}
			b.ReportMetric(float64(took[len(took)/2]), "p50-cpu-ns")
			b.ReportMetric(float64(took[len(took)*99/100]), "p99-cpu-ns")
			b.ReportMetric(0, "ns/op")
		})
	}
}
