package raft

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

var (
	benchCallers = flag.Int("callers", 1024, "concurrent Propose calls of BenchmarkCommit3")
	benchRate    = flag.Int("rate", 60_000, "jobs a second of BenchmarkCommit3/placements-offered")
)

// BenchmarkCommit3 commits commands through the proposer on three members in
// this process, over TCP on loopback, with bolt files and fsync. Ticks leave
// the machine nearly nothing to do, so what is measured is the way to it;
// submits also queue a job each on every replica, placements lease it a GPU.
// Callers wait for their answer before they call again, but in the offered row:
// there calls come at a rate, and their latency counts from when they were due.
//
//	go test ./raft -run '^$' -bench Commit3 -benchtime 300000x
func BenchmarkCommit3(b *testing.B) {
	tick := func() []byte { return (&fsm.Tick{}).Append(nil, fsm.Envelope{}) }
	submit := func() []byte { _, cmd := job(); return cmd }
	b.Run("ticks", func(b *testing.B) { benchPropose(b, tick) })
	b.Run("submits", func(b *testing.B) { benchPropose(b, submit) })
	b.Run("placements", func(b *testing.B) { benchPlace(b, proposeEach) })
	b.Run("placements-offered", func(b *testing.B) { benchPlace(b, proposeAtRate) })
	b.Run("ticks-in-batches", func(b *testing.B) { benchProposeAll(b, tick) })
	b.Run("submits-in-batches", func(b *testing.B) { benchProposeAll(b, submit) })
	b.Run("bare-library", benchBare)
	b.Run("lone", func(b *testing.B) { benchLone(b, tick) })
	b.Run("follower-lag", func(b *testing.B) { benchLag(b, tick) })
}

// samples collects latencies and reports them with the rate.
type samples struct {
	cpu int64 // ns that this process had used when the measurement began
	mu  sync.Mutex
	all []time.Duration
}

// begin starts the measurement.
func begin(b *testing.B) *samples {
	s := &samples{cpu: cpuTime()}
	b.ResetTimer()
	return s
}

func (s *samples) add(some []time.Duration) {
	s.mu.Lock()
	s.all = append(s.all, some...)
	s.mu.Unlock()
}

func (s *samples) report(b *testing.B, commands int) {
	b.StopTimer()
	b.ReportMetric(float64(cpuTime()-s.cpu)/1e3/float64(commands), "cpu-µs")
	b.ReportMetric(float64(commands)/b.Elapsed().Seconds(), "commands/s")
	if slices.Sort(s.all); len(s.all) > 0 {
		at := func(q float64) float64 {
			return float64(s.all[int(q*float64(len(s.all)-1))]) / float64(time.Millisecond)
		}
		b.ReportMetric(at(0.50), "p50-ms")
		b.ReportMetric(at(0.99), "p99-ms")
	}
	b.ReportMetric(0, "ns/op")
}

func benchCluster(b *testing.B) *Node { return benchServers(b).leader() }

func benchServers(b *testing.B) *cluster {
	c := newCluster(b, 3)
	// A machine that others use too must not cost the leader its office.
	c.tweak = func(cfg *Config) { cfg.OnApply, cfg.Multiplier = nil, 3 }
	c.start(c.ids...)
	return c
}

// prepared makes the commands beforehand: encoding is not measured.
func prepared(b *testing.B, command func() []byte) [][]byte {
	cmds := make([][]byte, b.N)
	for i := range cmds {
		cmds[i] = command()
	}
	return cmds
}

func benchPropose(b *testing.B, command func() []byte) {
	cmds := prepared(b, command)
	proposeEach(b, benchCluster(b), cmds)
}

// benchPlace commits jobs of one GPU each, and all of them find their place.
func benchPlace(b *testing.B, propose func(*testing.B, *Node, [][]byte)) {
	cmds := prepared(b, gpuJob)
	n := benchCluster(b)
	const gpus = gpuai.MaxGPUs
	var nodes [][]byte
	for i := range max(1000, 2*b.N/gpus) {
		nodes = append(nodes, register(i, gpus))
	}
	for c := range slices.Chunk(nodes, 500) {
		done, err := n.ProposeAll(context.Background(), c)
		if err != nil || done[0].Result.Code != gpuai.OK {
			b.Fatal(done[0].Result, err)
		}
	}
	propose(b, n, cmds)
	n.View(func(m *fsm.Machine) {
		if got := m.Counts().Leases; int(got) != b.N {
			b.Errorf("%d of %d jobs have a lease", got, b.N)
		}
	})
}

// gpuJob encodes a job that needs one GPU.
func gpuJob() []byte {
	var c fsm.SubmitJob
	rand.Read(c.ID[:])
	c.Spec = &gpuai.JobSpec{Name: "bench", Groups: []gpuai.Group{{
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}},
		Task:      gpuai.TaskSpec{Command: []string{"true"}},
	}}}
	c.Spec.Defaults()
	return c.Append(nil, fsm.Envelope{Tenant: gpuai.DefaultTenant, Actor: "bench"})
}

// register encodes the registration of a node.
func register(i, gpus int) []byte {
	c := fsm.RegisterNode{BootID: "b", Nonce: "n", Spec: gpuai.NodeSpec{
		ID: gpuai.NodeID(fmt.Sprintf("node-%06d", i)), CPU: gpuai.MilliCPU(16_000 * gpus),
		Memory: gpuai.Bytes(gpus) << 37, Address: "127.0.0.1", Version: gpuai.Version,
	}}
	for d := range gpus {
		c.Spec.Devices = append(c.Spec.Devices, gpuai.Device{
			ID: gpuai.DeviceID(fmt.Sprintf("%02d", d)), Vendor: "sim", Model: "bench-80", Memory: 80 << 30,
		})
	}
	return c.Append(nil, fsm.Envelope{Actor: "bench"})
}

// proposeEach has many callers propose the commands one by one.
func proposeEach(b *testing.B, n *Node, cmds [][]byte) {
	s := begin(b)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(*benchCallers, b.N) {
		wg.Go(func() {
			var own []time.Duration
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				began := time.Now()
				if _, err := n.Propose(context.Background(), cmds[i]); err != nil {
					b.Error(err)
					return
				}
				own = append(own, time.Since(began))
			}
			s.add(own)
		})
	}
	wg.Wait()
	s.report(b, b.N)
}

// proposeAtRate proposes the commands one by one at benchRate, however long
// their answers take.
func proposeAtRate(b *testing.B, n *Node, cmds [][]byte) {
	type due struct {
		cmd []byte
		at  time.Time
	}
	const tick = time.Millisecond
	work := make(chan due, b.N)
	s := begin(b)
	var wg sync.WaitGroup
	for range 4 * *benchCallers {
		wg.Go(func() {
			var own []time.Duration
			for d := range work {
				if _, err := n.Propose(context.Background(), d.cmd); err != nil {
					b.Error(err)
					return
				}
				own = append(own, time.Since(d.at))
			}
			s.add(own)
		})
	}
	began, clock := time.Now(), time.NewTicker(tick)
	defer clock.Stop()
	for sent := 0; sent < len(cmds); <-clock.C {
		for ; sent < len(cmds) && sent < int(time.Since(began).Seconds()*float64(*benchRate)); sent++ {
			work <- due{cmds[sent], began.Add(time.Duration(float64(sent) / float64(*benchRate) * float64(time.Second)))}
		}
	}
	close(work)
	wg.Wait()
	s.report(b, b.N)
}

func benchProposeAll(b *testing.B, command func() []byte) {
	const batch, callers = 500, 8
	cmds := prepared(b, command)
	n := benchCluster(b)
	work := make(chan [][]byte, b.N/batch+1)
	for c := range slices.Chunk(cmds, batch) {
		work <- c
	}
	close(work)
	s := begin(b)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			var own []time.Duration
			for c := range work {
				began := time.Now()
				if _, err := n.ProposeAll(context.Background(), c); err != nil {
					b.Error(err)
					return
				}
				own = append(own, time.Since(began))
			}
			s.add(own)
		})
	}
	wg.Wait()
	s.report(b, b.N)
}

// benchLone commits one command at a time.
func benchLone(b *testing.B, command func() []byte) {
	n := benchCluster(b)
	s := begin(b)
	for range min(b.N, 2000) {
		cmd := command()
		began := time.Now()
		if _, err := n.Propose(context.Background(), cmd); err != nil {
			b.Fatal(err)
		}
		s.all = append(s.all, time.Since(began))
	}
	s.report(b, min(b.N, 2000))
}

// benchLag measures from the leader's answer until a follower has applied it.
func benchLag(b *testing.B, command func() []byte) {
	c := benchServers(b)
	leader, follower := c.leader(), c.follower()
	s := begin(b)
	for range min(b.N, 500) {
		a, err := leader.Propose(context.Background(), command())
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := follower.WaitApplied(context.Background(), a.Index); err != nil {
			b.Fatal(err)
		}
		s.all = append(s.all, time.Since(began))
	}
	s.report(b, min(b.N, 500))
}

// nothing is a state machine that only answers.
type nothing struct{ hraft.FSM }

func (nothing) Apply(*hraft.Log) any { return true }

func (nothing) ApplyBatch(logs []*hraft.Log) []any { return make([]any, len(logs)) }

// benchBare commits entries of the same size and number in flight through
// hashicorp/raft, its bolt store and its TCP transport alone, in 1,000
// commands each.
func benchBare(b *testing.B) {
	lib, entry := bareLeader(b), make([]byte, 0, 32<<10)
	for len(entry) < 28_000 { // of 1,000 ticks
		entry = binary.BigEndian.AppendUint64(entry, uint64(len(entry)))
	}
	s := begin(b)
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64((b.N + fsm.MaxCommands - 1) / fsm.MaxCommands))
	for range maxInFlight {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				began := time.Now()
				if err := lib.Apply(entry, 0).Error(); err != nil {
					b.Error(err)
					return
				}
				s.add([]time.Duration{time.Since(began)})
			}
		})
	}
	wg.Wait()
	s.report(b, b.N)
}

// bareLeader starts three members of the library with our settings and store.
func bareLeader(b *testing.B) *hraft.Raft {
	cfg := Config{Multiplier: 1, Logger: testLogger("bare")}
	var conf hraft.Configuration
	var transports []*hraft.NetworkTransport
	for i := range 3 {
		t, err := hraft.NewTCPTransport("127.0.0.1:0", nil, maxPool, 5*time.Second, io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		transports = append(transports, t)
		conf.Servers = append(conf.Servers, hraft.Server{ID: hraft.ServerID(rune('a' + i)), Address: t.LocalAddr()})
	}
	var members []*hraft.Raft
	for i, t := range transports {
		cfg.ID = gpuai.ServerID(conf.Servers[i].ID)
		lib := cfg.library(defaultTuning(1), nil)
		dir, err := store.OpenDir(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		log, err := store.OpenLog(dir)
		if err != nil {
			b.Fatal(err)
		}
		if err := hraft.BootstrapCluster(lib, log, log, hraft.NewInmemSnapshotStore(), t, conf); err != nil {
			b.Fatal(err)
		}
		m, err := hraft.NewRaft(lib, nothing{}, log, log, hraft.NewInmemSnapshotStore(), t)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Shutdown().Error(); log.Close(); dir.Close() })
		members = append(members, m)
	}
	var leader *hraft.Raft
	until(b, "the bare library has a leader", func() bool {
		for _, m := range members {
			if m.State() == hraft.Leader {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}
