package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"text/tabwriter"
)

const usage = `usage: peers [--nodes N,...] [--lone N] [--burst N] [--only NAME,...] [-o text|json]

Measures Slurm (default and tuned) and a region of three servers with the same
loads, one after the other. Slurm is installed by
  apt-get install --no-install-recommends slurmctld slurm-client munge
and bin/gpuai built by make build.

  go run ./integration/peers
  go run ./integration/peers --nodes 1000 --burst 500 --only slurm,gpuai -o json
`

type options struct {
	nodes       []int
	lone, burst int
	only, bin   string
	output      string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(2)
	}
	rows, err := o.run(ctx)
	if werr := write(os.Stdout, o.output, rows); err == nil {
		err = werr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	var o options
	var nodes string
	f := flag.NewFlagSet("peers", flag.ContinueOnError)
	f.Usage = func() { fmt.Fprint(os.Stderr, usage); f.PrintDefaults() }
	f.StringVar(&nodes, "nodes", "1000,5000", "sizes of the clusters, of 8 GPUs a node")
	f.IntVar(&o.lone, "lone", 20, "jobs that are submitted one after the other")
	f.IntVar(&o.burst, "burst", 1000, "jobs that are submitted at once")
	f.StringVar(&o.only, "only", "slurm,slurm-tuned,gpuai", "which schedulers")
	f.StringVar(&o.bin, "gpuai", "bin/gpuai", "this project's command")
	f.StringVar(&o.output, "o", "text", "how the result is written: text or json")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	for _, s := range strings.Split(nodes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 20_000 {
			return nil, fmt.Errorf("--nodes is a list of numbers from 1 to 20000, not %q", s)
		}
		o.nodes = append(o.nodes, n)
	}
	switch {
	case o.lone < 1 || o.burst < 1 || o.burst > 8*o.nodes[0]:
		return nil, fmt.Errorf("--lone and --burst are at least 1, and a burst has room on %d nodes of 8 GPUs", o.nodes[0])
	case o.output != "text" && o.output != "json":
		return nil, fmt.Errorf("-o is text or json, not %q", o.output)
	}
	return &o, nil
}

// A row is what one scheduler did under one load.
type row struct {
	Scheduler string  `json:"scheduler"`
	Nodes     int     `json:"nodes"`
	Load      string  `json:"load"`
	Jobs      int     `json:"jobs"`
	P50       float64 `json:"latency_ms_p50"`
	P99       float64 `json:"latency_ms_p99"`
	Rate      float64 `json:"placements_per_second"`
	CPU       float64 `json:"server_cpu_ms_per_placement"`
}

func (o *options) run(ctx context.Context) (rows []row, err error) {
	for _, n := range o.nodes {
		for _, name := range strings.Split(o.only, ",") {
			var some []row
			switch name {
			case "slurm":
				some, err = o.slurm(ctx, n, false)
			case "slurm-tuned":
				some, err = o.slurm(ctx, n, true)
			case "gpuai":
				some, err = o.gpuai(ctx, n)
			default:
				err = fmt.Errorf("--only has slurm, slurm-tuned and gpuai, not %q", name)
			}
			rows = append(rows, some...)
			if err != nil {
				return rows, err
			}
		}
	}
	return rows, nil
}

func write(w io.Writer, format string, rows []row) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODES\tSCHEDULER\tLOAD\tJOBS\tP50 MS\tP99 MS\tPLACED/S\tCPU MS/JOB")
	for _, r := range rows {
		fmt.Fprintf(t, "%d\t%s\t%s\t%d\t%.1f\t%.1f\t%.0f\t%.2f\n", r.Nodes, r.Scheduler, r.Load, r.Jobs, r.P50, r.P99, r.Rate, r.CPU)
	}
	return t.Flush()
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
