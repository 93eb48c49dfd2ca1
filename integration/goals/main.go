// Command goals measures how fast a region is against its goals, and prints one
// table: the goal, what was measured, and whether it is met.
//
// Servers are real processes of bin/gpuai (files with fsync, TCP, HTTP), three
// of them, on this machine. Agents are simulated: they hold real sessions over
// WebSocket, beat every four seconds and report their tasks' ends, but run
// nothing. Where a row has no agents either, it says so. All of it, the load's
// callers too, shares this machine's processors.
//
//	make build && go run ./integration/goals
//	go run ./integration/goals --only lone,batch -o json
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// limit bounds a whole run.
const limit = 20 * time.Minute

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := start(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	os.Exit(code)
}

// options are the command line's.
type options struct {
	bin      string // of gpuai
	output   string // "text" or "json"
	only     []string
	nodes    int // of the region that most rows are measured on
	large    int // of the largest with agents
	planned  int // of the one without
	gpus     int // of a node
	callers  int // of the proposer
	proposed int // jobs
	source   string
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := new(options)
	var only string
	f := flag.NewFlagSet("goals", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, `Measure how fast a region of three servers is, against its goals.

  make build && go run ./integration/goals
  go run ./integration/goals --only lone,batch -o json

Rows:
`)
		for _, g := range goals() {
			fmt.Fprintf(stderr, "  %-12s %s\n", g.name, g.text)
		}
		fmt.Fprintln(stderr)
		f.PrintDefaults()
	}
	f.StringVar(&o.bin, "gpuai", "bin/gpuai", "this project's command, which make build makes")
	f.StringVar(&o.output, "o", "text", "format of the result: text or json")
	f.StringVar(&only, "only", "", "rows to measure, comma-separated; empty is all")
	f.IntVar(&o.nodes, "nodes", 5_000, "simulated nodes of most rows; the goals are for 5000")
	f.IntVar(&o.large, "large", 10_000, "simulated nodes of the row cpu-large; the goal is for 10000")
	f.IntVar(&o.planned, "plan-nodes", 100_000, "registered nodes, without agents, of the row plan; the goal is for 100000")
	f.IntVar(&o.gpus, "gpus-per-node", 8, "GPUs of a node; the goals are for 8")
	f.IntVar(&o.callers, "callers", 512, "callers that wait for their answers, of the row proposer")
	f.IntVar(&o.proposed, "proposed", 400_000, "jobs of the row proposer")
	f.StringVar(&o.source, "source", ".", "the repository, for the row proposer, which is a benchmark of package raft")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag: see --help", f.Arg(0))
	}
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	return o, o.validate()
}

const (
	smallNodes = 1_000
	mostNodes  = 36_000 // three servers of 20,000 descriptors
	mostPlan   = 200_000
)

func (o *options) validate() (err error) {
	names := make([]string, 0, len(goals()))
	for _, g := range goals() {
		names = append(names, g.name)
	}
	for _, s := range o.only {
		if !slices.Contains(names, s) {
			return fmt.Errorf("--only knows no row %q, only %s", s, strings.Join(names, ", "))
		}
	}
	switch {
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("-o is text or json, not %q", o.output)
	case o.nodes < 10 || o.large < o.nodes || o.large > mostNodes:
		return fmt.Errorf("--nodes is at least 10, and --large from there to %d, not %d and %d", mostNodes, o.nodes, o.large)
	case o.planned < 10 || o.planned > mostPlan:
		return fmt.Errorf("--plan-nodes is 10 to %d, not %d", mostPlan, o.planned)
	case o.gpus < 1 || o.gpus > 64:
		return fmt.Errorf("--gpus-per-node is 1 to 64, not %d", o.gpus)
	case o.callers < 1 || o.callers > 65_536 || o.proposed < 1_000 || o.proposed > 10_000_000:
		return fmt.Errorf("--callers is 1 to 65536, --proposed 1000 to 10000000, not %d and %d", o.callers, o.proposed)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if _, err := os.Stat(o.bin); err != nil {
		return fmt.Errorf("there is no %s: run make build first, or name it by --gpuai", o.bin)
	}
	return nil
}

// start measures and returns the exit code: 1 when a row could not be measured.
// A goal that is missed is a result.
func start(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "goals:", err)
		return 2
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not done within %v", limit))
	defer cancel()
	r := &run{o: o, talk: stderr, began: time.Now()}
	r.report.begin(o)
	err = r.all(ctx)
	if werr := r.report.write(stdout, o.output); err == nil {
		err = werr
	}
	if err != nil {
		fmt.Fprintln(stderr, "goals:", err)
		return 1
	}
	return 0
}
