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
	packing     simPacking
}

// validate says which flags make no sense.
func (f *simFlags) validate() error {
	switch {
	case f.nodes == "" || f.jobs == "":
		return usageError{fmt.Errorf("--nodes and --jobs name the two files of the trace")}
	case f.mode != "fill" && f.mode != "time" && f.mode != "churn":
		return usageError{fmt.Errorf("--mode is fill, churn or time, not %q", f.mode)}
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
Mode churn draws jobs with replacement, as a Poisson process at --load, with
durations clipped to 60 s to 6,518 s; what does not fit is dropped.

Several --policy are run on the same arrivals. In mode fill, efw has two rows:
told the demand of the jobs, and learning it from what arrives.

The nodes' header names sn,cpu_milli,memory_mib,gpu,model; the jobs' names
name,cpu_milli,memory_mib,num_gpu,gpu_milli and, for mode time,
creation_time,deletion_time,scheduled_time. One seed gives one digest.`,
		Example: `  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode fill --inflate 1.3 --seed 42
  gpuai sim run --nodes nodes.csv --jobs pods.csv --policy bestfit,fgd,efw -o wide
  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode churn --load 1.0 --policy bestfit,efw --audit
  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode time --load 0.95 -o json`,
		Args: cobra.NoArgs,
		RunE: does(func(ctx context.Context, _ []string) error { return a.simulate(ctx, &f) }),
	}
	c.Flags().StringVar(&f.nodes, "nodes", "", "CSV file of the nodes")
	c.Flags().StringVar(&f.jobs, "jobs", "", "CSV file of the jobs")
	c.Flags().StringVar(&f.mode, "mode", "fill", "fill, churn or time")
	c.Flags().Float64Var(&f.inflate, "inflate", 1.3, "mode fill: load that arrives, as a part of all devices")
	c.Flags().Float64Var(&f.load, "load", 0.95, "modes time and churn: mean load offered, as a part of all devices")
	c.Flags().Int64Var(&f.seed, "seed", 42, "modes fill and churn: seed of the arrivals")
	f.packing.flags(c)
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
	run := map[string]func(context.Context, simulate.Config) (simulate.Report, error){
		"fill": simulate.Fill, "time": simulate.Timed, "churn": simulate.Churn,
	}[f.mode]
	configs, err := f.packing.runs(cfg, f.mode)
	if err != nil {
		return err
	}
	var rs []simulate.Report
	for _, c := range configs {
		r, err := run(ctx, c)
		a.say("\n")
		if err != nil {
			return fmt.Errorf("simulating %s: %w", f.jobs, err)
		}
		rs = append(rs, r)
	}
	v := packingView(rs)
	if f.mode == "time" {
		v = simView(rs)
	}
	if len(rs) == 1 {
		return a.showObject(ctx, rs[0], v)
	}
	return a.showObject(ctx, rs, v)
}

// simView is reports of mode time as a table, one row each.
func simView(rs []simulate.Report) *view {
	v := &view{
		head: []string{"MODE", "POLICY", "NODES", "GPUS", "JOBS", "PLACED", "ALLOCATION", "WAIT P50", "P99", "DECISIONS/S"},
		wide: []string{"SEED", "DIGEST"},
	}
	seconds := func(m map[string]float64, k string) string {
		if x, ok := m[k]; ok {
			return fmt.Sprintf("%.2fs", x)
		}
		return ""
	}
	for i := range rs {
		r := &rs[i]
		v.row(r.Digest, r.Mode, r.Policy, num(r.Nodes), num(r.GPUs), num(r.Jobs), num(r.Placed),
			fmt.Sprintf("%.2f%%", 100*r.Allocation), seconds(r.WaitSeconds, "p50"), seconds(r.WaitSeconds, "p99"),
			fmt.Sprintf("%.0f", r.Decisions), fmt.Sprint(r.Seed), r.Digest)
	}
	return v
}
