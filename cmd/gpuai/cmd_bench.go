package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai/internal/loadgen"
)

// benchFlags are the flags of bench, and what its child processes are told.
type benchFlags struct {
	local      int  // servers to start
	insecure   bool // without authentication
	nodes      int
	nodeGPUs   int
	rate       float64
	duration   time.Duration
	gpus       int
	batch      int
	taskTime   time.Duration
	perProcess int // agents of one process
}

// Bounds of the process that measures: descriptors that it needs beside those of
// agents, and how long servers have to say what they used.
const (
	otherFiles   = 1_024
	mostAgents   = 10_000
	usageTimeout = 5 * time.Second
)

// agentsPerProcess is how many sessions one process may hold.
func agentsPerProcess() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur > otherFiles+mostAgents {
		return mostAgents
	}
	return max(1, int(l.Cur)-otherFiles)
}

func newBenchCmd(a *app) *cobra.Command {
	var f benchFlags
	c := &cobra.Command{
		Use:   "bench [--local N]",
		Short: "Measure how fast a region places jobs",
		Long: `Measure how fast a region places jobs, from outside: simulated agents hold real
sessions with its servers and run nothing, and jobs are submitted at a fixed rate
whether or not the ones before were answered.

latency_ms is from when a submit is called, which is when it is due, until its
lease has been read from the agent's session. placements_per_second is placed /
(first submit to last lease). The CPU time is that of all servers while the load
ran, beats and reports of tasks that end included.

--local starts servers of its own and removes them. They form a region with
authentication as "gpuai server run --bootstrap" does: all is over TLS 1.3, every
simulated agent has joined with a token of its own, and jobs are submitted with a
token. --insecure measures a region without, over plain HTTP.

Without --local the region of the context in use is measured, or that of --context or
--addr; it takes an operator's token. The jobs are bound to the simulated nodes, which
have the label bench=simulated and stay registered: use a region that is there for tests.`,
		Example: `  gpuai bench --local 3 --sim-nodes 1000 --rate 2000 --duration 10s
  gpuai bench --local 3 --sim-nodes 1000 --rate 20000 --batch 500 -o json
  gpuai bench --local 3 --insecure
  gpuai bench --context dev --sim-nodes 100 --rate 200`,
		Args: cobra.NoArgs,
		RunE: does(func(ctx context.Context, _ []string) error { return a.bench(ctx, &f) }),
	}
	fl := c.Flags()
	fl.StringVar(&a.api.addr, "addr", "", "servers of the region to measure, comma-separated (default $GPUAI_ADDR, else the context's)")
	fl.StringVar(&a.api.context, "context", "", "region to measure, of gpuai context list (default $GPUAI_CONTEXT, else the current one)")
	fl.IntVar(&f.local, "local", 0, "start a region of this many servers first: 1, 3 or 5")
	fl.BoolVar(&f.insecure, "insecure", false, "with --local: a region without authentication, over plain HTTP")
	fl.Float64Var(&f.rate, "rate", 1000, "jobs a second to submit")
	fl.DurationVar(&f.duration, "duration", 10*time.Second, "for how long to submit")
	fl.IntVar(&f.gpus, "gpus", 1, "GPUs of each job")
	fl.IntVar(&f.batch, "batch", 1, "jobs of one request")
	fl.IntVar(&f.nodes, "sim-nodes", 1000, "simulated nodes")
	f.agentFlags(c)
	fl.IntVar(&f.perProcess, "agents-per-process", agentsPerProcess(), "simulated nodes of one process; more are spread over several")
	c.AddCommand(newBenchAgentsCmd(a), newBenchRegionCmd(a))
	return a.prints(c)
}

// agentFlags are those of bench that also its workers take.
func (f *benchFlags) agentFlags(c *cobra.Command) {
	c.Flags().IntVar(&f.nodeGPUs, "gpus-per-node", 8, "GPUs of each simulated node")
	c.Flags().DurationVar(&f.taskTime, "task-time", time.Second, "how long a simulated task runs; 0 is for ever")
}

func (f *benchFlags) fleet(on *benched, from, to int) loadgen.FleetConfig {
	return loadgen.FleetConfig{Addrs: on.addrs, Access: on.access, Labels: on.labels, From: from, To: to, GPUs: f.nodeGPUs, TaskTime: f.taskTime}
}

func (f *benchFlags) load(on *benched) loadgen.LoadConfig {
	return loadgen.LoadConfig{
		Addrs: on.addrs, Access: on.access, Labels: on.labels, Rate: f.rate, Duration: f.duration, GPUs: f.gpus, Batch: f.batch,
		Settle: 5*time.Second + min(f.taskTime, time.Minute),
	}
}

// validate says which flags make no sense.
func (f *benchFlags) validate(named bool) error {
	on := &benched{addrs: []string{defaultAddr}}
	load, fleet := f.load(on), f.fleet(on, 0, f.nodes)
	switch {
	case named && f.local != 0:
		return usageError{errors.New("--addr and --context name a region to measure, --local 3 starts one: give one of them")}
	case f.insecure && f.local == 0:
		return usageError{errors.New("--insecure is for a region that --local starts: one that is there has authentication, or not")}
	case f.local != 0 && f.local != 1 && f.local != 3 && f.local != 5:
		return usageError{fmt.Errorf("--local is 1, 3 or 5 servers, not %d", f.local)}
	case f.nodes < 1 || f.nodes > loadgen.MaxAgents:
		return usageError{fmt.Errorf("--sim-nodes is 1 to %d, not %d", loadgen.MaxAgents, f.nodes)}
	case f.gpus > f.nodeGPUs:
		return usageError{fmt.Errorf("a job of %d GPUs fits on no node of %d: see --gpus and --gpus-per-node", f.gpus, f.nodeGPUs)}
	case f.perProcess < 1:
		return usageError{fmt.Errorf("--agents-per-process must be at least 1, not %d", f.perProcess)}
	}
	for _, err := range []error{load.Validate(), fleet.Validate()} {
		if err != nil {
			return usageError{err}
		}
	}
	return nil
}

// bench runs the whole measurement. A signal ends it early, and what there is
// then is printed.
func (a *app) bench(ctx context.Context, f *benchFlags) (err error) {
	if err := f.validate(a.api.addr != "" || a.api.context != ""); err != nil {
		return err
	}
	if err := a.checkFormat(); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("looking for this program: %w", err)
	}
	on, err := a.benchServers(ctx, f, exe)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.stop()) }()
	r, err := a.measure(ctx, f, on)
	if r == nil {
		return err
	}
	if r.Refused > 0 {
		a.say("%d of %d jobs were not accepted; the first: %v\n", r.Refused, r.Submitted, r.Why)
	}
	err = errors.Join(err, a.showObject(context.WithoutCancel(ctx), r, benchView(r)), ctx.Err())
	if err == nil && r.Placed == 0 {
		err = fmt.Errorf("none of %d jobs was placed within the measurement", r.Submitted)
	}
	return err
}

// measure connects the agents, runs the load and sums up. An error may come with
// a result: of what was measured before.
func (a *app) measure(ctx context.Context, f *benchFlags, on *benched) (*loadgen.Result, error) {
	rec := loadgen.NewRecorder()
	agents, err := a.benchAgents(ctx, f, on, rec)
	if err != nil {
		return nil, err
	}
	before, err := loadgen.ReadUsage(ctx, on.access, on.addrs)
	if err != nil {
		return nil, errors.Join(err, agents.Stop())
	}
	load := f.load(on)
	if held := f.rate * f.taskTime.Seconds() * float64(f.gpus); held > float64(f.nodes*f.nodeGPUs) ||
		f.taskTime == 0 && f.rate*f.duration.Seconds()*float64(f.gpus) > float64(f.nodes*f.nodeGPUs) {
		a.say("the load is more than the GPUs of the simulated nodes can take: jobs will wait for others\n")
	}
	began := a.now()
	load.Progress = func(submitted, placed int) {
		a.say("\r%4.0f s: %d submitted, %d placed", a.now().Sub(began).Seconds(), submitted, placed)
	}
	err = loadgen.Run(ctx, load, rec)
	r := rec.Result()
	a.say("\r%4.0f s: %d submitted, %d placed\n", a.now().Sub(began).Seconds(), r.Submitted, r.Placed)
	usage, cancel := context.WithTimeout(context.WithoutCancel(ctx), usageTimeout)
	defer cancel()
	after, errUsage := loadgen.ReadUsage(usage, on.access, on.addrs)
	if errUsage == nil {
		r.Spend(before, after, f.nodes)
	}
	if n := agents.Lost(); n > 0 {
		a.say("%s broke and were opened again\n", plural(uint64(n), "session"))
	}
	return &r, errors.Join(err, errUsage, agents.Stop())
}

// benchAgents connects the agents. They outlast ctx: leases arrive until the
// last submit was answered.
func (a *app) benchAgents(ctx context.Context, f *benchFlags, on *benched, rec *loadgen.Recorder) (*loadgen.Agents, error) {
	a.say("connecting %s\n", plural(uint64(f.nodes), "simulated agent"))
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	forget := context.AfterFunc(ctx, cancel)
	cfg := loadgen.AgentsConfig{
		FleetConfig: f.fleet(on, 0, f.nodes), PerProcess: f.perProcess,
		Worker: func(from, to int) *exec.Cmd {
			return on.worker("--from", strconv.Itoa(from), "--to", strconv.Itoa(to),
				"--gpus-per-node", strconv.Itoa(f.nodeGPUs), "--task-time", f.taskTime.String())
		},
	}
	cfg.OnLease = rec.Lease
	agents, err := loadgen.StartAgents(lasting, cfg)
	if !forget() && err == nil {
		return nil, errors.Join(ctx.Err(), agents.Stop())
	}
	if err != nil {
		cancel()
	}
	return agents, err
}

// benchView is a result as a table of one row.
func benchView(r *loadgen.Result) *view {
	v := &view{head: []string{"SUBMITTED", "PLACED", "PLACED/S", "P50 MS", "P90 MS", "P99 MS", "P99.9 MS", "CPU MS/PLACED", "RSS/NODE"}}
	ms := func(x float64) string { return strconv.FormatFloat(x, 'f', 2, 64) }
	v.row("bench", num(r.Submitted), num(r.Placed), ms(r.PlacementsPerSecond), ms(r.LatencyMs.P50), ms(r.LatencyMs.P90),
		ms(r.LatencyMs.P99), ms(r.LatencyMs.P999), ms(r.ServerCPUMs), num(int(r.RSSPerNode)))
	return v
}
