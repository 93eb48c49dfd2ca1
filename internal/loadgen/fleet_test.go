package loadgen

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func TestFleetConfigValidate(t *testing.T) {
	good := FleetConfig{Addrs: []string{"http://127.0.0.1:1"}, To: 1, GPUs: 8}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*FleetConfig){
		func(c *FleetConfig) { c.Addrs = nil },
		func(c *FleetConfig) { c.To = 0 },
		func(c *FleetConfig) { c.From = -1 },
		func(c *FleetConfig) { c.From, c.To = 5, 5 },
		func(c *FleetConfig) { c.To = MaxAgents + 1 },
		func(c *FleetConfig) { c.GPUs = -1 },
		func(c *FleetConfig) { c.GPUs = gpuai.MaxGPUs + 1 },
		func(c *FleetConfig) { c.TaskTime = -1 },
		func(c *FleetConfig) { c.Connecting = -1 },
		func(c *FleetConfig) { c.AckWithin = -1 },
	} {
		cfg := good
		change(&cfg)
		if cfg.Validate() == nil {
			t.Errorf("%+v passes", cfg)
		}
		if _, err := StartFleet(t.Context(), cfg); err == nil {
			t.Errorf("%+v starts", cfg)
		}
	}
}

func TestIsLoopback(t *testing.T) {
	for addr, want := range map[string]bool{
		"http://127.0.0.1:7470": true, "http://127.9.9.9:1": true, "http://10.0.0.1:7470": false,
		"http://localhost:7470": false, "http://[::1]:7470": false, "::": false,
	} {
		if got := isLoopback(addr); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

func TestParseLease(t *testing.T) {
	var b bytes.Buffer
	w := lineWriter{w: bufio.NewWriter(&b)}
	w.lease(job(300), 1<<62)
	w.lease(job(0), 0)
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(b.String(), "\n")
	if id, at, err := parseLease(lines[0]); id != job(300) || at != 1<<62 || err != nil {
		t.Errorf("got %v %v %v", id, at, err)
	}
	for _, bad := range []string{"", "ready", lines[0] + "x", job(1).String(), job(1).String() + " ", "x 5", "lost 5"} {
		if _, _, err := parseLease(bad); err == nil {
			t.Errorf("%q is a lease", bad)
		}
	}
}

func TestAgentsSpread(t *testing.T) {
	f := &Fleet{cfg: FleetConfig{Addrs: []string{"http://127.0.0.1:1"}, From: 9_999, To: 30_001}}
	cs, err := f.clients()
	if err != nil || len(cs) != 4 {
		t.Errorf("20,002 agents have %d addresses, %v", len(cs), err)
	}
	if a := (&agent{fleet: f, id: "x"}); len(a.hello().Node.Devices) != 0 || a.hello().Node.CPU != 16_000 {
		t.Errorf("a host without GPUs is %+v", a.hello().Node)
	}
}

func TestFleetWithoutServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := StartFleet(ctx, FleetConfig{Addrs: []string{"http://127.0.0.1:1"}, To: 3, GPUs: 1})
	if err == nil {
		t.Fatal("a fleet without a server starts")
	}
}

func loadOf(addrs []string, jobs int, batch int) LoadConfig {
	return LoadConfig{
		Addrs: addrs, Rate: float64(jobs), Duration: time.Second, GPUs: 1, Batch: batch, Settle: 20 * time.Second,
	}
}

// The whole, on three servers in processes: agents here and agents in workers,
// single submits and batches, and a second bench on the same nodes.
func TestMeasureRegion(t *testing.T) {
	addrs := startRegion(t)
	addrs, err := LeaderFirst(t.Context(), Access{}, addrs)
	if err != nil {
		t.Fatal(err)
	}
	worker := func(from, to int) *exec.Cmd {
		return self("agents", strings.Join(addrs, ","), strconv.Itoa(from), strconv.Itoa(to))
	}
	for _, c := range []struct {
		name                string
		perProcess, workers int
		jobs, batch         int
	}{
		{"here", 100, 0, 300, 1},
		{"in workers", 7, 3, 300, 1},
		{"in batches", 100, 0, 600, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := NewRecorder()
			agents, err := StartAgents(t.Context(), AgentsConfig{
				FleetConfig: FleetConfig{Addrs: addrs, To: 20, GPUs: 8, TaskTime: 20 * time.Millisecond, OnLease: rec.Lease},
				PerProcess:  c.perProcess, Worker: worker,
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(agents.workers) != c.workers {
				t.Errorf("there are %d workers", len(agents.workers))
			}
			before, err := ReadUsage(t.Context(), Access{}, addrs)
			if err != nil {
				t.Fatal(err)
			}
			if err := Run(t.Context(), loadOf(addrs, c.jobs, c.batch), rec); err != nil {
				t.Fatal(err)
			}
			allEnd(t, addrs)
			if agents.Lost() != 0 {
				t.Errorf("%d sessions broke", agents.Lost())
			}
			if err := agents.Stop(); err != nil {
				t.Error(err)
			}
			after, err := ReadUsage(t.Context(), Access{}, addrs)
			if err != nil {
				t.Fatal(err)
			}
			r := rec.Result()
			r.Spend(before, after, 20)
			if r.Submitted != c.jobs || r.Placed != c.jobs || r.Refused != 0 {
				t.Errorf("%d of %d placed, %d refused: %v", r.Placed, r.Submitted, r.Refused, r.Why)
			}
			l := r.LatencyMs
			if l.P50 <= 0 || l.P90 < l.P50 || l.P99 < l.P90 || l.P999 < l.P99 || r.PlacementsPerSecond <= 0 || r.ServerCPUMs <= 0 || r.RSSPerNode <= 0 {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// allEnd waits until every job has succeeded: the agents reported each end.
func allEnd(t *testing.T, addrs []string) {
	t.Helper()
	c, err := client.New(client.Config{Addrs: addrs})
	if err != nil {
		t.Fatal(err)
	}
	running := gpuai.JobRunning
	eventually(t, "end of all jobs", func() bool {
		page, _, err := c.Jobs(t.Context(), client.JobQuery{Status: &running, Page: client.Page{Limit: 1}})
		if err != nil {
			t.Fatal(err)
		}
		return len(page) == 0
	})
}

// A wire passes connections on to a server until it is cut.
type wire struct {
	net.Listener
	deaf  atomic.Bool // what the server says is lost
	mu    sync.Mutex  // guards below
	conns []net.Conn
}

// back passes on what the server says, while the wire is not deaf.
func (w *wire) back(near, far net.Conn) {
	buf := make([]byte, 4<<10)
	for {
		n, err := far.Read(buf)
		if err == nil && !w.deaf.Load() {
			_, err = near.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// newWire returns a wire to a server, and its URL.
func newWire(t *testing.T, to string) (*wire, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l}
	t.Cleanup(func() { l.Close(); w.cut() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
			if err != nil {
				near.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, near, far)
			w.mu.Unlock()
			go w.back(near, far)
			go io.Copy(far, near)
		}
	}()
	return w, "http://" + l.Addr().String()
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

// Sessions break: the agents come back, keep their leases and get new ones.
func TestAgentsComeBack(t *testing.T) {
	addrs := startRegion(t)
	w, url := newWire(t, addrs[0])
	var rec atomic.Pointer[Recorder]
	rec.Store(NewRecorder())
	f, err := StartFleet(t.Context(), FleetConfig{
		Addrs: []string{url}, To: 6, GPUs: 8, OnLease: func(j gpuai.JobID, at int64) { rec.Load().Lease(j, at) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Stop()
	for round := range 2 {
		r := NewRecorder()
		rec.Store(r)
		if err := Run(t.Context(), loadOf(addrs, 20, 1), r); err != nil {
			t.Fatal(err)
		}
		if got := r.Result(); got.Placed != 20 || len(r.leases) != 20 {
			t.Errorf("round %d: %d of 20 placed, %d leases seen: %v", round, got.Placed, len(r.leases), got.Why)
		}
		if round == 0 {
			w.cut()
			eventually(t, "lost session of each", func() bool { return f.Lost() == 6 })
		}
	}
}

// An agent whose beats are not answered goes to another server.
func TestAgentsThatHearNothingGoElsewhere(t *testing.T) {
	addrs := startRegion(t)
	w, url := newWire(t, addrs[0])
	var welcomes, acks atomic.Int64
	f, err := StartFleet(t.Context(), FleetConfig{
		Addrs: []string{url, addrs[1]}, To: 1, GPUs: 1, AckWithin: 500 * time.Millisecond, Labels: map[string]string{"pool": "a"},
		OnWelcome: func(int) { welcomes.Add(1) }, OnAck: func(int, int64) { acks.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Stop()
	w.deaf.Store(true)
	eventually(t, "agent at another server", func() bool { return welcomes.Load() == 2 && f.Lost() == 1 })
	before := acks.Load()
	eventually(t, "answered beat", func() bool { return acks.Load() > before })
}

func TestWorkersThatFail(t *testing.T) {
	cfg := func(role string) AgentsConfig {
		return AgentsConfig{
			FleetConfig: FleetConfig{Addrs: []string{"http://127.0.0.1:1"}, To: 2, GPUs: 1, OnLease: func(gpuai.JobID, int64) {}},
			PerProcess:  1, Worker: func(_, _ int) *exec.Cmd { return silent(self(role)) },
		}
	}
	if _, err := StartAgents(t.Context(), cfg("fail")); err == nil || !strings.Contains(err.Error(), "worker of the agents") {
		t.Errorf("the error is %v", err)
	}
	a, err := StartAgents(t.Context(), cfg("babbler"))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range a.workers {
		w.cmd.Process.Signal(syscall.SIGTERM)
		<-w.done
	}
	if err := a.Stop(); err == nil || !strings.Contains(err.Error(), "this is no lease") {
		t.Errorf("the error is %v", err)
	}
	c := cfg("x")
	c.PerProcess = 0
	if _, err := StartAgents(t.Context(), c); err == nil {
		t.Error("a process holds no agents")
	}
	c.PerProcess, c.Worker = 1, func(_, _ int) *exec.Cmd { return exec.Command("/no/such/program") }
	if _, err := StartAgents(t.Context(), c); err == nil {
		t.Error("a program that is not there runs")
	}
}

// silent hides what a process says that is meant to fail.
func silent(c *exec.Cmd) *exec.Cmd {
	c.Stderr = nil
	return c
}

// A worker ends when its input does, and when nobody reads what it writes.
// A bench that runs again finds nodes that hold leases of the one before.
func TestWorkersWhoseNodesHoldLeases(t *testing.T) {
	var got atomic.Int64
	cfg := AgentsConfig{PerProcess: 1, Worker: func(_, _ int) *exec.Cmd { return self("laden") }}
	cfg.FleetConfig = FleetConfig{Addrs: []string{"http://127.0.0.1:1"}, To: 2, OnLease: func(_ gpuai.JobID, at int64) { got.Add(at) }}
	a, err := StartAgents(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Stop(); err != nil {
		t.Error(err)
	}
	if got.Load() != 14 {
		t.Errorf("the leases of two workers came as %d", got.Load())
	}
}

func TestServeFleetEnds(t *testing.T) {
	cfg := FleetConfig{Addrs: startRegion(t), To: 2, GPUs: 1}
	in, hold := io.Pipe()
	out, said := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- ServeFleet(t.Context(), cfg, in, said) }()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("it says %q, %v", line, err)
	}
	hold.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	in, hold = io.Pipe()
	defer hold.Close()
	out.Close()
	if err := ServeFleet(t.Context(), cfg, in, said); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("with nobody to read it ends with %v", err)
	}
}
