package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// Pools of nodes, by their label "pool".
const (
	poolCanary = "canary" // agents of two processes, one of which dies
	poolReal   = "real"   // agents with sessions
	poolInject = "inject"
	poolLost   = "lost" // injected: half of them fall silent
	poolFlap   = "flap" // one that comes and goes
	poolDevice = "device"

	canaries = 4 // of each of two processes
)

// A bench is one run.
type bench struct {
	o      *options
	out    io.Writer // of progress
	began  time.Time
	report report

	*starter
	*region
	policy     gpuai.Policy
	injector   *injector
	canary     [2]*generator
	generators []*generator
	samples    *sampler
	cancel     context.CancelFunc
	wg         sync.WaitGroup
	back       []string // names of the background's jobs

	mu     sync.Mutex // guards below
	leases map[string]int64
}

func newBench(o *options, dir string, out io.Writer) *bench {
	b := &bench{o: o, out: out, began: time.Now(), starter: newStarter(dir), leases: make(map[string]int64)}
	b.policy = gpuai.DefaultPolicy()
	b.policy.FlapLimit, b.policy.FlapBackoff = 1, 10*gpuai.Second
	if o.short {
		b.policy.TTLBatch, b.policy.Grace = gpuai.MinLeaseTTL, 2*gpuai.Second
		b.policy.BeatEvery, b.policy.SuspectAfter = gpuai.Second, 4*gpuai.Second
		b.policy.BreakerWindow = 4 * gpuai.Second
	}
	b.report = report{Nodes: o.nodes, Real: o.real, Injected: o.nodes - o.real, Processors: runtime.NumCPU(), TLS: !o.insecure, Multiplier: b.o.multiplier, Load: loadAverage()}
	return b
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "%6.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// expect notes a promise that does not hold. Promises in time are the report's:
// a busy machine breaks them.
func (b *bench) expect(ok bool, format string, args ...any) {
	if ok {
		return
	}
	s := fmt.Sprintf(format, args...)
	b.say("DOES NOT HOLD: %s", s)
	b.report.Broken = append(b.report.Broken, s)
}

// end is after how long a silence ends a lease.
func (b *bench) end() time.Duration {
	return time.Duration(b.policy.TTLBatch+b.policy.Grace) * time.Millisecond
}

// lostTasks is how many tasks lose their nodes: as many as stay well below the
// breaker's threshold.
func lostTasks(nodes int) int {
	return min(1_000, nodeGPUs*max(30, nodes*3/100), nodes/2/nodeGPUs*nodeGPUs)
}

// scaleInjected is how many nodes are injected at least.
func scaleInjected(nodes int) int { return 2*lostTasks(nodes)/nodeGPUs + 2 }

// run starts everything and runs the scenarios.
func (b *bench) run(ctx context.Context) (err error) {
	ctx, b.cancel = context.WithCancel(ctx)
	b.say("starting %d servers", servers)
	if b.region, err = startRegion(ctx, b.starter, b.o); err != nil {
		return err
	}
	b.injector = newInjector(b.region)
	b.wg.Go(func() { b.follow(ctx) })
	if err := b.fill(ctx); err != nil {
		return err
	}
	b.samples = newSampler(b)
	b.wg.Go(func() { b.samples.run(ctx) })
	all := map[string]func(context.Context) error{"steady": b.steady, "kill": b.kill, "deaths": b.deaths, "gone": b.gone}
	for _, name := range b.o.scenarios() {
		b.say("scenario %s", name)
		if err := all[name](ctx); err != nil {
			return fmt.Errorf("scenario %s: %w", name, err)
		}
	}
	b.report.Seconds = round(time.Since(b.began).Seconds())
	return nil
}

// stop ends all that runs.
func (b *bench) stop() error {
	if b.cancel != nil {
		b.cancel()
	}
	b.starter.stop()
	b.wg.Wait()
	return nil
}

// fill registers all nodes and gives half of them a lease.
func (b *bench) fill(ctx context.Context) error {
	if err := poll(ctx, "a leader", func() (bool, error) { return b.lead.Load() != nil, nil }); err != nil {
		return err
	}
	if err := b.region.api.SetPolicy(ctx, b.policy); err != nil {
		return err
	}
	every := time.Duration(b.policy.BeatEvery) * time.Millisecond
	lost := 2 * lostTasks(b.o.nodes) / nodeGPUs
	b.injector.add(poolLost, lost, every)
	b.injector.add(poolFlap, 1, every)
	b.injector.add(poolDevice, 1, every)
	b.injector.add(poolInject, b.report.Injected-lost-2, every)
	b.say("registering %d injected nodes", b.report.Injected)
	if err := b.injector.register(ctx); err != nil {
		return err
	}
	b.wg.Go(func() { b.injector.run(ctx) })
	if err := b.startAgents(ctx); err != nil {
		return err
	}
	return b.lend(ctx)
}

// startAgents connects the real sessions.
func (b *bench) startAgents(ctx context.Context) (err error) {
	began := time.Now()
	b.say("connecting %d agents with real sessions, of %d processes", b.o.real, b.o.generators+2)
	cfg := generatorConfig{Addrs: b.urls(), Label: poolCanary}
	if b.access != nil {
		cfg.CA, cfg.token = b.access.CA, b.access.Operator
	}
	for i := range b.canary {
		cfg.From, cfg.To = i*canaries, (i+1)*canaries
		if b.canary[i], err = startGenerator(b.starter, cfg, b.leased); err != nil {
			return err
		}
	}
	cfg.Label = poolReal
	rest := b.o.real - 2*canaries
	for i := range b.o.generators {
		cfg.From, cfg.To = 2*canaries+i*rest/b.o.generators, 2*canaries+(i+1)*rest/b.o.generators
		if cfg.From == cfg.To {
			continue
		}
		g, err := startGenerator(b.starter, cfg, b.leased)
		if err != nil {
			return err
		}
		b.generators = append(b.generators, g)
	}
	var g errgroup.Group
	for _, x := range b.sessions() {
		g.Go(func() error { return x.await(ctx) })
	}
	err = g.Wait()
	b.report.ConnectSeconds = round(time.Since(began).Seconds())
	return err
}

// sessions are all generators that run.
func (b *bench) sessions() (out []*generator) {
	for _, g := range append(b.canary[:], b.generators...) {
		if g.proc.alive() {
			out = append(out, g)
		}
	}
	return out
}

// leased notes the first time that a lease of a job reached an agent.
func (b *bench) leased(job string, at int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases[job] = max(b.leases[job], at)
}

func (b *bench) leasedAt(job string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leases[job]
}

// A load is tasks for the nodes of a pool.
type load struct {
	name, pool  string
	tasks, gpus int
}

// submit submits a job and waits until all its tasks have a lease.
func (b *bench) submit(ctx context.Context, l load) (gpuai.Job, error) {
	spec := gpuai.JobSpec{Name: l.name, Groups: []gpuai.Group{{
		Count:       uint32(l.tasks),
		Constraints: []gpuai.Constraint{{Attribute: "label.pool", Op: gpuai.Equal, Values: []string{l.pool}}},
		Resources:   gpuai.Resources{GPU: gpuai.GPURequest{Count: uint32(l.gpus)}},
		// Nothing waits between the end of a lease and the next: what is
		// measured is the region.
		Restart: gpuai.Restart{Attempts: 100, Backoff: 1},
		Task:    gpuai.TaskSpec{Command: []string{"true"}},
	}}}
	out, err := b.region.api.Submit(ctx, client.SubmitRequest{Spec: &spec})
	if err != nil {
		return out.Job, fmt.Errorf("submitting %s: %w", l.name, err)
	}
	return out.Job, poll(ctx, "leases of job "+l.name, func() (bool, error) {
		j, err := b.region.api.Job(ctx, l.name)
		return err == nil && j.Counts.Pending == 0, err
	})
}

// lend gives half of the nodes a lease: those could be declared dead. In the
// short form all get one: of its few nodes that go at once, more than the
// breaker's least number must have something to lose, or it closes again.
func (b *bench) lend(ctx context.Context) error {
	share := 2
	if b.o.short {
		share = 1
	}
	for _, l := range []load{
		{"bg-real", poolReal, (b.o.real - 2*canaries) / share, nodeGPUs},
		{"bg-inject", poolInject, len(b.injector.of(poolInject)) / share, nodeGPUs},
	} {
		if l.tasks == 0 {
			continue
		}
		if _, err := b.submit(ctx, l); err != nil {
			return err
		}
		b.back = append(b.back, l.name)
		b.report.Leases += l.tasks
	}
	b.say("%d nodes hold a lease", b.report.Leases)
	_, err := b.settled(ctx, clock(unix.CLOCK_BOOTTIME))
	return err
}

// settled waits until every node's beat that was sent after a moment is
// answered, and returns how long after the moment that was.
func (b *bench) settled(ctx context.Context, since int64) (time.Duration, error) {
	err := poll(ctx, "an answered beat of every node", func() (bool, error) {
		oldest := b.injector.oldest()
		for _, g := range b.sessions() {
			oldest = min(oldest, g.counts().Oldest)
		}
		return oldest >= since, nil
	})
	return time.Duration(clock(unix.CLOCK_BOOTTIME) - since), err
}

// restarts counts the background's tasks that lost a lease.
func (b *bench) restarts(ctx context.Context) (n int, err error) {
	for _, name := range b.back {
		j, err := b.region.api.Job(ctx, name)
		if err != nil {
			return 0, err
		}
		n += int(j.Restarts)
	}
	return n, nil
}

// unchanged checks that no lease of the background was lost beyond before.
func (b *bench) unchanged(ctx context.Context, before int, when string) error {
	n, err := b.restarts(ctx)
	b.expect(err != nil || n == before, "%d leases of live nodes were ended %s", n-before, when)
	return err
}

// states returns how many nodes are in a state.
func (b *bench) states(ctx context.Context) (map[string]float64, error) {
	var errs []error
	for _, m := range b.alive() {
		v, err := b.scrape(ctx, m)
		if err == nil {
			return v, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func round(x float64) float64 { return math.Round(x*100) / 100 }
