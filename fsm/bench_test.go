package fsm

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"
)

// filled returns a region of n nodes with 8 devices each, in pools of four
// zones, without checks.
func filled(b testing.TB, n int) *region {
	r := newRegion(b)
	r.check = false
	for i := 0; i < n; i += 500 {
		var cmds []Command
		for k := i; k < min(n, i+500); k++ {
			s := nodeSpec(fmt.Sprintf("node-%06d", k), 8, "H100")
			s.Zone = fmt.Sprintf("z%d", k%4)
			cmds = append(cmds, &RegisterNode{Spec: s, BootID: "b", Nonce: "n"})
		}
		r.apply(cmds...)
		r.log = r.log[:0]
	}
	return r
}

// blockBytes is the size of a block of blobs.
const blockBytes = 128

// heap returns the live bytes of the heap.
func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// BenchmarkSubmitAndPlace measures one submit with its placement inside the
// machine, 100 commands an entry. p50-ns is the median entry's time by 100.
func BenchmarkSubmitAndPlace(b *testing.B) {
	for _, nodes := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			r := filled(b, nodes)
			const batch = 100
			full := nodes * 8 * 9 / 10
			entries := make([][]byte, full/batch)
			spec := jobSpec("bench", 1, 1)
			for i := range entries {
				var cmds [][]byte
				for range batch {
					cmds = append(cmds, (&SubmitJob{ID: r.newID(), Spec: spec}).Append(nil, Envelope{Tenant: "default"}))
				}
				entries[i] = AppendEntry(nil, Header{Term: 1}, cmds...)
			}
			out := &Output{}
			m, index, k := r.m.Fork(), r.index, 0
			took := make([]time.Duration, 0, b.N/batch+1)
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; done += batch {
				if k == len(entries) {
					b.StopTimer()
					m, index, k = r.m.Fork(), r.index, 0
					b.StartTimer()
				}
				index++
				start := time.Now()
				if err := m.Apply(index, 1, entries[k], out); err != nil || out.Results[0].Leased != 1 {
					b.Fatal(err, out.Results[0])
				}
				took = append(took, time.Since(start))
				k++
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/batch, "p50-ns")
		})
	}
}

// BenchmarkMemory reports the memory of a node of 8 devices, and of a job with
// its group, task and lease, each without its spec's text and with nothing but.
func BenchmarkMemory(b *testing.B) {
	const nodes = 100_000
	for b.Loop() {
		before := heap()
		r := filled(b, nodes)
		atNodes := heap()
		nodeText := uint64(r.m.blobs.Len()) * blockBytes
		spec := jobSpec("bench", 1, 1)
		const jobs = nodes * 4
		for range jobs / 500 {
			var cmds []Command
			for range 500 {
				cmds = append(cmds, &SubmitJob{ID: r.newID(), Spec: spec})
			}
			r.apply(cmds...)
			r.log = r.log[:0]
		}
		atJobs := heap()
		jobText := uint64(r.m.blobs.Len())*blockBytes - nodeText
		b.ReportMetric(float64(atNodes-before-nodeText)/nodes, "B/node")
		b.ReportMetric(float64(nodeText)/nodes, "text-B/node")
		b.ReportMetric(float64(atJobs-atNodes-jobText)/jobs, "B/job+lease")
		b.ReportMetric(float64(jobText)/jobs, "text-B/job")
		runtime.KeepAlive(r)
	}
}

// BenchmarkFork measures what a fork holds Apply up for.
func BenchmarkFork(b *testing.B) {
	r := filled(b, 100_000)
	b.ResetTimer()
	for b.Loop() {
		r.m.Fork()
	}
}
