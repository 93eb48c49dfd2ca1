package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/internal/loadgen"
)

const (
	servers = 3
	// taskTime is how long simulated tasks run: long enough that a burst is
	// over before they end, short enough that rows need not wait for room.
	taskTime = 2 * time.Second
	// perProcess is how many agents one process holds.
	perProcess = 2_500
	// calm is for how long a region's own cost is measured.
	calm = 4 * time.Second
	// quietWithin bounds the wait for the tasks of the row before.
	quietWithin = time.Minute
)

// A bed is a region of three servers with its agents.
type bed struct {
	r      *run
	region *loadgen.Region
	addrs  []string // the leader's first
	agents []*loadgen.Agents
	nodes  int
	tap    tap
	api    *client.Client

	empty, full float64 // RSS of all servers, without agents and with them
	idle        float64 // CPU seconds a second of all servers, with agents and without a load
}

// A tap hands leases that reach agents on to the row that is being measured.
type tap struct {
	mu    sync.Mutex // guards below
	rec   *loadgen.Recorder
	jobs  map[gpuai.JobID]int // leases of each
	last  int64               // when the newest was read, by CLOCK_MONOTONIC
	total int
}

func (t *tap) lease(job gpuai.JobID, at int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rec != nil {
		t.rec.Lease(job, at)
	}
	t.jobs[job]++
	t.total++
	t.last = max(t.last, at)
}

// reset forgets what came; rec takes what comes, nil is nobody.
func (t *tap) reset(rec *loadgen.Recorder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec, t.jobs, t.last, t.total = rec, make(map[gpuai.JobID]int), 0, 0
}

func (t *tap) seen() (total int, last int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total, t.last
}

func (t *tap) of(job gpuai.JobID) (leases int, last int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.jobs[job], t.last
}

// newBed starts the servers.
func newBed(ctx context.Context, r *run) (*bed, error) {
	b := &bed{r: r}
	b.tap.reset(nil)
	r.say("starting %d servers", servers)
	var err error
	b.region, err = loadgen.StartRegion(ctx, func(dir string) *exec.Cmd {
		return b.child("bench", "region", "--dir", dir, "--servers", strconv.Itoa(servers))
	})
	if err != nil {
		return nil, err
	}
	if b.addrs, err = loadgen.LeaderFirst(ctx, loadgen.Access{}, b.region.Addrs); err == nil {
		b.api, err = newClient(b.addrs)
	}
	var before loadgen.Usage
	if err == nil {
		before, err = loadgen.ReadUsage(ctx, loadgen.Access{}, b.addrs)
	}
	if err != nil {
		return nil, errors.Join(err, b.stop())
	}
	b.empty = before.RSS * servers
	return b, nil
}

// newClient makes a client that keeps a connection for each call under way.
func newClient(addrs []string) (*client.Client, error) {
	t := &http.Transport{MaxIdleConnsPerHost: 1_024, IdleConnTimeout: time.Minute, DisableCompression: true}
	return client.New(client.Config{Addrs: addrs, HTTP: &http.Client{Transport: t}})
}

func (b *bed) child(args ...string) *exec.Cmd {
	c := exec.Command(b.r.o.bin, args...)
	c.Stderr = os.Stderr
	return c
}

// connect adds agents until there are so many nodes.
func (b *bed) connect(ctx context.Context, nodes, gpus int) error {
	b.r.say("connecting simulated agents %d to %d", b.nodes, nodes-1)
	cfg := loadgen.AgentsConfig{
		FleetConfig: loadgen.FleetConfig{Addrs: b.addrs, From: b.nodes, To: nodes, GPUs: gpus, TaskTime: taskTime},
		PerProcess:  min(perProcess, nodes-b.nodes-1), // never in this process, which measures
		Worker: func(from, to int) *exec.Cmd {
			return b.child("bench", "agents", "--addr", strings.Join(b.addrs, ","), "--from", strconv.Itoa(from), "--to", strconv.Itoa(to),
				"--gpus-per-node", strconv.Itoa(gpus), "--task-time", taskTime.String())
		},
	}
	cfg.OnLease = b.tap.lease
	a, err := loadgen.StartAgents(ctx, cfg)
	if err != nil {
		return err
	}
	b.agents, b.nodes = append(b.agents, a), nodes
	before, err := loadgen.ReadUsage(ctx, loadgen.Access{}, b.addrs)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, calm); err != nil {
		return err
	}
	after, err := loadgen.ReadUsage(ctx, loadgen.Access{}, b.addrs)
	b.idle = (after.CPUSeconds - before.CPUSeconds) / time.Since(began).Seconds()
	b.full = after.RSS * servers
	return err
}

// quiet waits until no task holds a lease and forgets what the row before saw.
func (b *bed) quiet(ctx context.Context, rec *loadgen.Recorder) error {
	ctx, cancel := context.WithTimeoutCause(ctx, quietWithin, errors.New("tasks of the row before have not ended"))
	defer cancel()
	err := nursery.Poll(ctx, "the end of all leases", 200*time.Millisecond, func() (bool, error) {
		n, err := gauge(ctx, b.addrs[0], `gpuai_fsm_objects{kind="lease"`)
		return n == 0, err
	})
	b.tap.reset(rec)
	return err
}

// gauge reads a metric of a server, by how its line begins.
func gauge(ctx context.Context, addr, begins string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		if line := s.Text(); strings.HasPrefix(line, begins) {
			return strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s", addr, begins)
}

// A cost is what all servers used while something ran.
type cost struct{ seconds, cpu float64 }

// spend measures what f costs the servers.
func (b *bed) spend(ctx context.Context, f func() error) (c cost, err error) {
	before, err := loadgen.ReadUsage(ctx, loadgen.Access{}, b.addrs)
	if err != nil {
		return c, err
	}
	began := time.Now()
	if err := f(); err != nil {
		return c, err
	}
	c.seconds = time.Since(began).Seconds()
	after, err := loadgen.ReadUsage(ctx, loadgen.Access{}, b.addrs)
	c.cpu = after.CPUSeconds - before.CPUSeconds
	return c, err
}

// per is CPU milliseconds for each of n, as spent, and without what the region
// costs idle.
func (b *bed) per(c cost, n int) (all, net float64) {
	return 1_000 * c.cpu / float64(n), 1_000 * (c.cpu - b.idle*c.seconds) / float64(n)
}

// stop ends the agents and the servers.
func (b *bed) stop() error {
	var errs []error
	for _, a := range b.agents {
		errs = append(errs, a.Stop())
	}
	return errors.Join(append(errs, b.region.Stop())...)
}

// monotonic returns CLOCK_MONOTONIC in nanoseconds, which agents stamp leases
// with.
func monotonic() int64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return t.Nano()
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
