package fsm

import (
	"bytes"
	"flag"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"
)

var (
	benchNodes  = flag.Int("restore-nodes", 100_000, "nodes of BenchmarkRestore")
	benchLeases = flag.Int("restore-leases", 1_000_000, "leases of BenchmarkRestore")
)

// cpuTime is what this process has used, on all cores, its collector included.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// leased returns a region of nodes with so many live leases, ten a node, of
// jobs of 1,000 tasks each.
func leased(b *testing.B, nodes, leases int) *region {
	r := newRegion(b)
	r.check = false
	const perNode, perJob = 10, 1_000
	for i := range nodes {
		r.apply(&RegisterNode{Spec: nodeSpec(fmt.Sprintf("node-%06d", i), perNode, "H100"), BootID: "b", Nonce: "n"})
		r.log = r.log[:0]
	}
	for range leases / perJob {
		res := r.do(&SubmitJob{ID: r.newID(), Spec: jobSpec("bench", perJob, 1)})
		r.log = r.log[:0]
		for pending := res.Leased; pending < perJob; {
			before := r.m.Counts().Leases
			r.wait(1) // what the entry's budget did not reach
			r.log = r.log[:0]
			pending += r.m.Counts().Leases - before
		}
	}
	if got := int(r.m.Counts().Leases); got != leases {
		b.Fatalf("%d leases, want %d", got, leases)
	}
	return r
}

// BenchmarkRestore restores and verifies a snapshot of 100,000 nodes and a
// million live leases. cpu-ms is the CPU time of the process, of all threads.
//
//	go test ./fsm -run '^$' -bench 'Restore$' -benchtime 3x
func BenchmarkRestore(b *testing.B) {
	r := leased(b, *benchNodes, *benchLeases)
	var snap bytes.Buffer
	if err := r.m.WriteSnapshot(&snap); err != nil {
		b.Fatal(err)
	}
	want := r.m.Digest()
	r = nil
	runtime.GC()
	var used time.Duration
	b.ResetTimer()
	for b.Loop() {
		before := cpuTime(b)
		m, err := Restore(bytes.NewReader(snap.Bytes()), Options{})
		used += cpuTime(b) - before
		if err != nil || m.Digest() != want {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms")
	b.ReportMetric(float64(snap.Len()), "snapshot-B")
}
