// Command promises runs the experiments behind what GPUAI promises, and prints
// what they measure: one table each, in Markdown, and where there are plots an
// HTML file. docs/promises.md says what each one claims, how it measures, and
// what it cannot say.
//
//	go run ./integration/promises utilisation|splitting|mixed|growth [flags]
//
// Each runs for minutes on two cores. Scheduling is the machine's that servers
// run; what is made up is said by the simulator.
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
	"strings"
	"syscall"
	"time"

	"github.com/gpuai/gpuai/internal/simulate"
)

// options are the command line's.
type options struct {
	openb    string // folder of the openb trace
	out      string // folder for reports
	policies string
	count    int
	seed     int64
	quiet    bool
	only     string // of splitting: model or real
}

// An experiment measures one promise.
type experiment struct {
	ctx   context.Context
	o     *options
	out   io.Writer
	told  time.Time
	stage string
}

var experiments = map[string]func(*experiment) error{
	"utilisation": (*experiment).utilisation,
	"splitting":   (*experiment).splitting,
	"mixed":       (*experiment).mixed,
	"growth":      (*experiment).growth,
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "promises:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var name string
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	f := flag.NewFlagSet("promises "+name, flag.ContinueOnError)
	o := new(options)
	f.StringVar(&o.openb, "openb", os.Getenv("GPUAI_OPENB"), "folder of the openb trace (default $GPUAI_OPENB; docs/simulator.md says where it is published)")
	f.StringVar(&o.out, "out", "bin", "folder for the reports")
	f.StringVar(&o.policies, "policy", "", "policies, comma-separated, of "+strings.Join(simulate.PolicyNames(), ", ")+" (default the experiment's own)")
	f.IntVar(&o.count, "count", 0, "jobs that arrive in a run, or placements; 0 is the experiment's own number")
	f.Int64Var(&o.seed, "seed", 42, "seed of what is drawn")
	f.BoolVar(&o.quiet, "quiet", false, "no progress on standard error")
	f.StringVar(&o.only, "only", "", "of splitting: model, or real")
	if err := f.Parse(args); err != nil {
		return err
	}
	do := experiments[name]
	if do == nil || f.NArg() > 0 {
		return errors.New("usage: promises utilisation|splitting|mixed|growth [flags]; -h after the name lists them")
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	begun := time.Now()
	x := &experiment{ctx: ctx, o: o, out: out, told: begun}
	if err := do(x); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(out, "\n%s; %s; took %s; seed %d\n", begun.UTC().Format("2006-01-02"), machine(), time.Since(begun).Round(time.Second), o.seed)
	return nil
}

// trace reads a file of the openb trace and its nodes.
func (x *experiment) trace(jobs string) (simulate.Config, error) {
	var c simulate.Config
	if x.o.openb == "" {
		return c, errors.New("this experiment replays the openb trace: name its folder with -openb or GPUAI_OPENB; docs/simulator.md says where it is published")
	}
	var err error
	if c.Nodes, err = simulate.LoadNodes(filepath.Join(x.o.openb, "openb_node_list_gpu_node.csv")); err != nil {
		return c, err
	}
	t, err := simulate.LoadTrace(x.ctx, filepath.Join(x.o.openb, jobs), simulate.LoadConfig{GPUsPerNode: simulate.LargestNode(c.Nodes)})
	if err != nil {
		return c, err
	}
	if err := t.Fit(c.Nodes, false); err != nil {
		return c, err
	}
	c.Jobs, c.Seed, c.Progress = t.Jobs, x.o.seed, x.progress
	return c, nil
}

// progress tells how far a run has come, now and then.
func (x *experiment) progress(done, of int) {
	if x.o.quiet || time.Since(x.told) < 5*time.Second {
		return
	}
	x.told = time.Now()
	fmt.Fprintf(os.Stderr, "%s: %d of %d\n", x.stage, done, of)
}

// parsePolicies reads those that were asked for, or else the experiment's own.
func (x *experiment) parsePolicies(own string) ([]simulate.Policy, error) {
	if x.o.policies != "" {
		own = x.o.policies
	}
	return simulate.ParsePolicies(own)
}

// orElse returns the count that was asked for, or the experiment's own.
func (x *experiment) orElse(own int) int {
	if x.o.count > 0 {
		return x.o.count
	}
	return own
}

// row prints a row of a table; the first is its head.
func (x *experiment) row(first bool, cells ...string) {
	fmt.Fprintf(x.out, "| %s |\n", strings.Join(cells, " | "))
	if first {
		fmt.Fprintf(x.out, "|%s\n", strings.Repeat("---|", len(cells)))
	}
}

// page writes a report with plots.
func (x *experiment) page(name string, runs []simulate.Report) error {
	p := simulate.Page{Title: name, Command: "make promise-" + strings.SplitN(name, "-", 2)[0], Runs: runs}
	path := filepath.Join(x.o.out, "promise-"+name+".html")
	if err := p.WriteFile(path); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "report: %s\n", path)
	return nil
}
