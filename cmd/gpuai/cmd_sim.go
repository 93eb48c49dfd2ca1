package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai/internal/simulate"
)

func newSimCmd(a *app) *cobra.Command {
	return group("sim", "Run a trace through the production scheduler", newSimRunCmd(a))
}

// simFlags are the flags of sim run.
type simFlags struct {
	nodes, jobs string
	mode        string
	inflate     float64
	load        float64
	seed        int64
}

// validate says which flags make no sense.
func (f *simFlags) validate() error {
	switch {
	case f.nodes == "" || f.jobs == "":
		return usageError{fmt.Errorf("--nodes and --jobs name the two files of the trace")}
	case f.mode != "fill" && f.mode != "time":
		return usageError{fmt.Errorf("--mode is fill or time, not %q", f.mode)}
	case f.inflate <= 0 || f.inflate > 100:
		return usageError{fmt.Errorf("--inflate must be above 0 and at most 100, not %v", f.inflate)}
	case f.load <= 0 || f.load > 100:
		return usageError{fmt.Errorf("--load must be above 0 and at most 100, not %v", f.load)}
	}
	return nil
}

func newSimRunCmd(a *app) *cobra.Command {
	var f simFlags
	c := &cobra.Command{
		Use:   "run --nodes FILE --jobs FILE",
		Short: "Simulate a trace: how well it is packed, or how long its jobs wait",
		Long: `Run a trace in the openb CSV format through the machine that servers run.

Mode fill offers a load that only grows, drawn from the jobs by the seed, and
drops what does not fit. Mode time replays the jobs' own arrivals and durations,
with the gaps between arrivals scaled so that the mean offered load is --load.

The nodes' header names sn,cpu_milli,memory_mib,gpu,model; the jobs' names
name,cpu_milli,memory_mib,num_gpu,gpu_milli and, for mode time,
creation_time,deletion_time,scheduled_time. One seed gives one digest.`,
		Example: `  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode fill --inflate 1.3 --seed 42
  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode time --load 0.95 -o json`,
		Args: cobra.NoArgs,
		RunE: does(func(ctx context.Context, _ []string) error { return a.simulate(ctx, &f) }),
	}
	c.Flags().StringVar(&f.nodes, "nodes", "", "CSV file of the nodes")
	c.Flags().StringVar(&f.jobs, "jobs", "", "CSV file of the jobs")
	c.Flags().StringVar(&f.mode, "mode", "fill", "fill or time")
	c.Flags().Float64Var(&f.inflate, "inflate", 1.3, "mode fill: load that arrives, as a part of all devices")
	c.Flags().Float64Var(&f.load, "load", 0.95, "mode time: mean load offered, as a part of all devices")
	c.Flags().Int64Var(&f.seed, "seed", 42, "mode fill: seed of the arrivals")
	return a.prints(c)
}

func (a *app) simulate(ctx context.Context, f *simFlags) error {
	if err := f.validate(); err != nil {
		return err
	}
	if err := a.checkFormat(); err != nil {
		return err
	}
	nodes, err := simulate.LoadNodes(f.nodes)
	if err != nil {
		return usageError{err}
	}
	jobs, err := simulate.LoadJobs(f.jobs)
	if err != nil {
		return usageError{err}
	}
	cfg := simulate.Config{
		Nodes: nodes, Jobs: jobs, Inflate: f.inflate, Load: f.load, Seed: f.seed,
		Progress: func(done, of int) { a.say("\r%d of %d jobs", done, of) },
	}
	run := simulate.Fill
	if f.mode == "time" {
		run = simulate.Timed
	}
	r, err := run(ctx, cfg)
	a.say("\n")
	if err != nil {
		return fmt.Errorf("simulating %s: %w", f.jobs, err)
	}
	return a.showObject(ctx, r, simView(&r))
}

// simView is a report as a table of one row.
func simView(r *simulate.Report) *view {
	v := &view{
		head: []string{"MODE", "POLICY", "NODES", "GPUS", "JOBS", "PLACED", "ALLOCATION", "ALLOC@95", "@100", "@130", "FIRST REJECT", "WAIT P50", "P99", "DECISIONS/S"},
		wide: []string{"SEED", "DIGEST"},
	}
	percent := func(m map[string]float64, k, unit string) string {
		if x, ok := m[k]; ok {
			return fmt.Sprintf("%.2f%s", x, unit)
		}
		return ""
	}
	first := ""
	if r.FirstReject > 0 {
		first = fmt.Sprintf("%.2f%%", r.FirstReject)
	}
	v.row(r.Digest, r.Mode, r.Policy, num(r.Nodes), num(r.GPUs), num(r.Jobs), num(r.Placed),
		fmt.Sprintf("%.2f%%", 100*r.Allocation), percent(r.AllocAt, "95", "%"), percent(r.AllocAt, "100", "%"),
		percent(r.AllocAt, "130", "%"), first, percent(r.WaitSeconds, "p50", "s"), percent(r.WaitSeconds, "p99", "s"),
		fmt.Sprintf("%.0f", r.Decisions), fmt.Sprint(r.Seed), r.Digest)
	return v
}
