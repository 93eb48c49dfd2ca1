package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/simulate"
)

func newSimCmd(a *app) *cobra.Command {
	return group("sim", "Run a trace through the production scheduler", newSimRunCmd(a))
}

// Bounds of durations in runs whose arrivals are drawn, as in the published
// churn experiments with the openb trace.
const drawnClip = "60s,6518s"

// timedCount is how many jobs are drawn in mode time: on openb, so many that the
// warm-up is longer than the longest job.
const timedCount = 150_000

// simFlags are the flags of sim run.
type simFlags struct {
	nodes, jobs string
	format      string
	skip        bool
	mode        string
	policy      string
	inflate     float64
	load        float64
	arrivals    string
	count       int
	clip        string
	warmUp      float64
	seed        int64
	report      string
	quiet       bool
	packing     simPacking

	loadGiven, clipGiven, warmUpGiven bool
	policies                          []simulate.Policy
	clipMin, clipMax                  gpuai.Duration
}

// validate says which flags make no sense.
func (f *simFlags) validate() (err error) {
	if f.policies, err = simulate.ParsePolicies(f.policy); err != nil {
		return usageError{fmt.Errorf("--policy: %w", err)}
	}
	if f.clipMin, f.clipMax, err = parseClip(f.clip); err != nil {
		return usageError{err}
	}
	switch {
	case f.jobs == "":
		return usageError{errors.New("--jobs names the trace: a file, or the data directory of a stopped server")}
	case !simulate.IsMode(f.mode):
		return usageError{fmt.Errorf("--mode is one of %s, not %q", strings.Join(simulate.ModeNames(), ", "), f.mode)}
	case !slices.Contains(simulate.Formats, simulate.Format(f.format)):
		return usageError{fmt.Errorf("--format is one of %v, not %q", simulate.Formats, f.format)}
	case !slices.Contains([]string{"auto", simulate.ArrivalsTrace, simulate.ArrivalsPoisson}, f.arrivals):
		return usageError{fmt.Errorf("--arrivals is auto, trace or poisson, not %q", f.arrivals)}
	case !(f.inflate > 0 && f.inflate <= 100):
		return usageError{fmt.Errorf("--inflate must be above 0 and at most 100, not %v", f.inflate)}
	case !(f.load > 0 && f.load <= 100):
		return usageError{fmt.Errorf("--load must be above 0 and at most 100, not %v", f.load)}
	case f.count < 0 || f.count > 10_000_000:
		return usageError{fmt.Errorf("--count must be from 1 to 10000000, or 0 for the mode's own, not %d", f.count)}
	case !(f.warmUp >= 0 && f.warmUp < 1):
		return usageError{fmt.Errorf("--warmup must be at least 0 and below 1, not %v", f.warmUp)}
	}
	return nil
}

// parseClip reads "MIN,MAX", or "none".
func parseClip(s string) (least, most gpuai.Duration, err error) {
	if s == "none" {
		return 0, 0, nil
	}
	a, b, ok := strings.Cut(s, ",")
	if ok {
		least, err = gpuai.ParseDuration(a)
	}
	if ok && err == nil {
		most, err = gpuai.ParseDuration(b)
	}
	if !ok || err != nil || most < 1 || least > most {
		return 0, 0, fmt.Errorf("--clip is two durations such as %s, the shorter first, or none, not %q", drawnClip, s)
	}
	return least, most, nil
}

// config completes a run's configuration for a trace: what was not said
// depends on whether its jobs are replayed or drawn.
func (f *simFlags) config(t *simulate.Trace, nodes []simulate.TraceNode) simulate.Config {
	c := simulate.Config{
		Nodes: nodes, Jobs: t.Jobs, Inflate: f.inflate, Seed: f.seed,
		TimedConfig: simulate.TimedConfig{Arrivals: f.arrivals, Count: f.count},
	}
	if c.Arrivals == "auto" {
		if c.Arrivals = simulate.ArrivalsTrace; t.Format == simulate.FormatOpenb {
			c.Arrivals = simulate.ArrivalsPoisson
		}
	}
	drawn := c.Arrivals == simulate.ArrivalsPoisson || f.mode == "churn"
	if c.Count == 0 && f.mode == "time" {
		c.Count = timedCount
	}
	if drawn || f.loadGiven {
		c.Load = f.load
	}
	if drawn || f.clipGiven {
		c.ClipMin, c.ClipMax = f.clipMin, f.clipMax
	}
	if drawn || f.warmUpGiven {
		c.WarmUp = f.warmUp
	}
	return c
}

const simLong = `Run a trace through the machine that servers run: the same commands, the same
Apply. Only the clock and the ends of tasks are made up. One seed gives one digest.

Traces (--jobs; --format, which is found out unless it is given; .gz is unpacked):
  openb   CSV: name,cpu_milli,memory_mib,num_gpu,gpu_milli[,gpu_spec] and, for mode
          time, creation_time,deletion_time,scheduled_time
  philly  CSV: timestamp,duration,num_gpus[,name][,class]
  swf     Standard Workload Format (Parallel Workloads Archive); a processor is a GPU
  region  the data directory of a stopped server: its own recorded log, and nodes
  export  what "gpuai operator export" wrote

Nodes (--nodes): a CSV file of sn,cpu_milli,memory_mib,gpu,model, or a description
COUNTxGPUS[:MODEL[:CORES[:GIB]]],... such as 100x8:H100.

Mode fill offers a load that only grows, drawn from the jobs by the seed, and drops
what does not fit. Mode time lets jobs arrive, wait, run and end. With --arrivals
poisson (the default for openb) jobs are drawn from the trace with replacement, at
the rate at which those that arrive in the measured window need --load times the
device time of all devices in it; with trace (the default for all others) each job
comes once in its own rhythm, sped up or slowed down only if --load is given.

Several policies run one after the other on the same arrivals. -o json prints one
object for one policy, and an array for several.`

func newSimRunCmd(a *app) *cobra.Command {
	var f simFlags
	c := &cobra.Command{
		Use:   "run --nodes FILE|DESCRIPTION --jobs TRACE",
		Short: "Simulate a trace: how well it is packed, or how long its jobs wait",
		Long:  simLong,
		Example: `  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode fill --inflate 1.3 --seed 42
  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode time --load 0.95 --policy fifo,bestfit --report waits.html
  gpuai sim run --nodes nodes.csv --jobs pods.csv --mode churn --load 1.0 --policy bestfit,efw --audit
  gpuai sim run --nodes 100x8:H100 --jobs philly.csv --mode time --load 1.1 -o json
  gpuai sim run --nodes 64x4:V100 --jobs log.swf.gz --mode time --skip
  gpuai sim run --jobs /var/lib/gpuai --mode time --policy fifo,bestfit   # a stopped server's own log`,
		Args: cobra.NoArgs,
	}
	c.RunE = does(func(ctx context.Context, _ []string) error {
		f.loadGiven, f.clipGiven, f.warmUpGiven = c.Flags().Changed("load"), c.Flags().Changed("clip"), c.Flags().Changed("warmup")
		return a.simulate(ctx, &f)
	})
	c.Flags().StringVar(&f.nodes, "nodes", "", "nodes: a CSV file, or a description such as 100x8:H100 (not needed for a region's own log)")
	c.Flags().StringVar(&f.jobs, "jobs", "", "trace: a file, or the data directory of a stopped server (required)")
	c.Flags().StringVar(&f.format, "format", "auto", "format of the trace: auto, openb, philly, swf, region or export")
	c.Flags().BoolVar(&f.skip, "skip", false, "leave out lines that make no sense and jobs that could never run, and say how many; without it the first ends the run")
	c.Flags().StringVar(&f.mode, "mode", "fill", strings.Join(simulate.ModeNames(), ", "))
	c.Flags().StringVar(&f.policy, "policy", "bestfit", "policies, comma-separated: "+strings.Join(simulate.PolicyNames(), ", "))
	c.Flags().Float64Var(&f.inflate, "inflate", 1.3, "mode fill: load that arrives, as a part of all devices")
	c.Flags().Float64Var(&f.load, "load", 0.95, "modes time and churn: load offered in the measured window, as a part of all devices")
	c.Flags().StringVar(&f.arrivals, "arrivals", "auto", "mode time: poisson draws jobs with replacement, trace replays each once; auto is poisson for openb, else trace")
	c.Flags().IntVar(&f.count, "count", 0, "modes time (poisson) and churn: how many jobs arrive; 0 is 150000, in mode churn 60000")
	c.Flags().StringVar(&f.clip, "clip", drawnClip, "mode time: least and greatest duration of a job, or none (by default only poisson clips)")
	c.Flags().Float64Var(&f.warmUp, "warmup", 1.0/3, "mode time: part of the arrivals before the measured window (by default 0 with trace)")
	c.Flags().Int64Var(&f.seed, "seed", 42, "seed of what is drawn")
	f.packing.flags(c)
	c.Flags().StringVar(&f.report, "report", "", "write a report with plots to this HTML file, which needs nothing else")
	c.Flags().BoolVar(&f.quiet, "quiet", false, "no progress on standard error")
	return a.prints(c)
}

func (a *app) simulate(ctx context.Context, f *simFlags) error {
	if err := f.validate(); err != nil {
		return err
	}
	if err := a.checkFormat(); err != nil {
		return err
	}
	p := a.newProgress(f.quiet)
	trace, nodes, err := f.read(ctx, p)
	if err != nil {
		return usageError{err}
	}
	for _, n := range trace.Notes {
		a.say("%s: %s\n", f.jobs, n)
	}
	cfg := f.config(&trace, nodes)
	if f.policies, err = f.packing.complete(&cfg, f.policies, f.mode); err != nil {
		return err
	}
	var out []simulate.Report
	for i := range f.policies {
		cfg.Progress = p.of(f.policies[i].Name+": ", "jobs")
		rs, err := simulate.Run(ctx, f.mode, cfg, f.policies[i:i+1])
		p.end()
		if err != nil {
			return fmt.Errorf("simulating %s: %w", f.jobs, err)
		}
		out = append(out, rs...)
	}
	if t := out[0].TimedReport; t != nil && t.ClipMax > 0 && t.WarmUp > 0 && t.WindowFrom*1000 < float64(t.ClipMax) {
		a.say("the warm-up of %.0f s is shorter than the longest job: what is measured begins before the load is whole; let more jobs arrive with --count\n", t.WindowFrom)
	}
	if f.report != "" {
		page := simulate.Page{Title: f.jobs, Command: "gpuai " + strings.Join(os.Args[1:], " "), Notes: trace.Notes, Runs: out}
		if err := page.WriteFile(f.report); err != nil {
			return err
		}
		a.say("report: %s\n", f.report)
	}
	v := packingView(out)
	if f.mode == "time" {
		v = simView(out)
	}
	if len(out) == 1 {
		return a.showObject(ctx, out[0], v)
	}
	return a.showObject(ctx, out, v)
}

// read reads the trace and the nodes, and checks the one against the other.
func (f *simFlags) read(ctx context.Context, p *workProgress) (t simulate.Trace, nodes []simulate.TraceNode, err error) {
	if f.nodes != "" {
		if nodes, err = simulate.LoadCluster(f.nodes); err != nil {
			return t, nil, err
		}
	}
	t, err = simulate.LoadTrace(ctx, f.jobs, simulate.LoadConfig{
		Format: simulate.Format(f.format), Skip: f.skip, GPUsPerNode: simulate.LargestNode(nodes),
		Progress: p.of("replaying the log: ", "entries"),
	})
	p.end()
	if err != nil {
		return t, nil, err
	}
	if nodes == nil {
		nodes = t.Nodes
	}
	if len(nodes) == 0 {
		return t, nil, fmt.Errorf("a trace of format %s tells of no nodes: name them with --nodes, by a CSV file or as 100x8:H100", t.Format)
	}
	return t, nodes, t.Fit(nodes, f.skip)
}

// simView is reports of mode time as a table, one row each.
func simView(rs []simulate.Report) *view {
	v := &view{
		head: []string{"MODE", "POLICY", "NODES", "GPUS", "JOBS", "PLACED", "ALLOCATION", "OFFERED", "WAIT MEAN", "P50", "P99", "MAX", "WAITING", "QUEUE", "FRAGMENTED", "DECISIONS/S"},
		wide: []string{"SEED", "DIGEST"},
	}
	for i := range rs {
		r := &rs[i]
		v.row(r.Digest, r.Mode, r.Policy, num(r.Nodes), num(r.GPUs), num(r.Jobs), num(r.Placed), fmt.Sprintf("%.2f%%", 100*r.Allocation),
			fmt.Sprintf("%.3f", r.Offered), figure(r.WaitSeconds, "mean", "s"), figure(r.WaitSeconds, "p50", "s"), figure(r.WaitSeconds, "p99", "s"),
			figure(r.WaitSeconds, "max", "s"), num(r.Waiting), fmt.Sprintf("%.1f", r.QueueMean), fmt.Sprintf("%.1f%%", 100*r.FragmentationMean),
			fmt.Sprintf("%.0f", r.Decisions), fmt.Sprint(r.Seed), r.Digest)
	}
	return v
}

func figure(m map[string]float64, k, unit string) string {
	if x, ok := m[k]; ok {
		return fmt.Sprintf("%.2f%s", x, unit)
	}
	return ""
}
