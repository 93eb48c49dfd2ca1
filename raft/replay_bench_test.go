package raft

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// BenchmarkReplay measures a start from the log alone: a member that was killed
// opens its bolt file and applies every entry of it anew, in entries of up to
// 1,000 commands. commands/s is from the first entry applied to the last;
// start-ms is the whole start, with the election and the log's check before it;
// cpu-us/command is the CPU time of the process from the first entry to the last,
// which other programs on the machine disturb less.
//
//	go test ./raft -run '^$' -bench Replay -benchtime 200000x
func BenchmarkReplay(b *testing.B) {
	b.Run("ticks", func(b *testing.B) {
		benchReplay(b, func() []byte { return (&fsm.Tick{}).Append(nil, fsm.Envelope{}) })
	})
	b.Run("placements", func(b *testing.B) { benchReplay(b, gpuJob) })
}

func benchReplay(b *testing.B, command func() []byte) {
	c := newCluster(b, 1)
	var first, last atomic.Int64 // nanoseconds since begun
	var firstCPU, lastCPU atomic.Int64
	var begun time.Time
	c.tweak = func(cfg *Config) {
		cfg.OnApply = func(*fsm.Output) {
			at, cpu := int64(time.Since(begun)), cpuTime()
			if first.CompareAndSwap(0, at) {
				firstCPU.Store(cpu)
			}
			last.Store(at)
			lastCPU.Store(cpu)
		}
	}
	begun = time.Now()
	c.start(c.ids...)
	n := c.leader()
	fillLog(b, n, prepared(b, command))
	index, _ := n.replica.position()
	c.kill(c.ids...)
	first.Store(0)
	begun = time.Now()
	b.ResetTimer()
	c.start(c.ids...)
	if err := c.leader().WaitApplied(context.Background(), index); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Duration(last.Load()-first.Load()).Seconds(), "commands/s")
	b.ReportMetric(float64(lastCPU.Load()-firstCPU.Load())/1e3/float64(b.N), "cpu-us/command")
	b.ReportMetric(float64(b.Elapsed().Milliseconds()), "start-ms")
	b.ReportMetric(0, "ns/op")
}

// cpuTime returns the CPU time of the process in nanoseconds.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// fillLog commits commands in batches, of nodes first that have room for a job
// each.
func fillLog(b *testing.B, n *Node, cmds [][]byte) {
	var nodes [][]byte
	for i := range b.N/gpuai.MaxGPUs + 1 {
		nodes = append(nodes, register(i, gpuai.MaxGPUs))
	}
	for _, all := range [][][]byte{nodes, cmds} {
		work := make(chan [][]byte)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for part := range work {
					done, err := n.ProposeAll(context.Background(), part)
					if err != nil || done[0].Result.Code != gpuai.OK {
						b.Error(done[0].Result, err)
					}
				}
			})
		}
		for part := range slices.Chunk(all, 500) {
			work <- part
		}
		close(work)
		wg.Wait()
	}
}
