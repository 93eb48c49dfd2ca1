// Command sim runs the region in a seeded simulation: the real machine, the
// real liveness and the real decisions of agents and sessions, on one goroutine
// and in simulated time, with faults, and with checkers that see only what can
// be seen from outside. DESIGN.md says what is real and what is a model.
//
//	sim --seed 42                 one seed, with all that happened
//	sim --first 1 --seeds 100000  many seeds; the last line is a summary
//	sim --variant no-watchdog --seeds 100
//
// It ends with status 1 when a seed breaks a promise, and says how to run that
// seed again.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

func main() { os.Exit(start(os.Args[1:], os.Stdout, os.Stderr)) }

// options are the command line's.
type options struct {
	seed     uint64
	replay   bool
	first    uint64
	seeds    uint64
	budget   time.Duration
	atLeast  uint64
	parallel int
	nodes    int
	variant  variant
	profile  variant
	keepOn   bool
	output   string
}

func parse(args []string, stderr io.Writer) (options, error) {
	o := options{}
	f := flag.NewFlagSet("sim", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Uint64Var(&o.seed, "seed", 0, "run this seed alone and print everything that happens")
	f.Uint64Var(&o.first, "first", 1, "the first of several seeds")
	f.Uint64Var(&o.seeds, "seeds", 1_000, "how many seeds")
	f.DurationVar(&o.budget, "budget", 0, "begin no seed after this time, as in 240s; 0 is no bound")
	f.Uint64Var(&o.atLeast, "at-least", 0, "how many seeds to run whatever the budget says")
	f.IntVar(&o.parallel, "parallel", runtime.NumCPU(), "how many simulations run side by side")
	f.IntVar(&o.nodes, "nodes", 0, "nodes of each run, 1 to 2000; 0 is what the seed says, mostly few")
	f.BoolVar(&o.keepOn, "keep-on", false, "go on after a seed that breaks a promise")
	f.StringVar(&o.output, "o", "text", "how the summary is written: text or json")
	name := f.String("variant", "", "run a protocol that lacks a rule, which must be caught:\n"+strings.Join(variantNames[1:], ", "))
	bias := f.String("profile", "", "run the real protocol with the faults that show this variant")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	f.Visit(func(x *flag.Flag) { o.replay = o.replay || x.Name == "seed" })
	var known bool
	if o.variant, known = variantNamed(*name); !known {
		return o, fmt.Errorf("there is no variant %q; there are: %s", *name, strings.Join(variantNames[1:], ", "))
	}
	if o.profile, known = variantNamed(*bias); !known {
		return o, fmt.Errorf("there is no profile %q: it is the name of a variant", *bias)
	}
	switch {
	case o.variant != sound && o.profile != sound:
		return o, errors.New("--variant brings its profile with it: leave --profile away")
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q: see sim --help", f.Arg(0))
	case o.output != "text" && o.output != "json":
		return o, fmt.Errorf("-o is %q and must be text or json", o.output)
	case o.nodes < 0 || o.nodes > maxNodes:
		return o, fmt.Errorf("--nodes is %d and must be 0 to %d", o.nodes, maxNodes)
	case o.seeds == 0 || o.parallel < 1:
		return o, errors.New("--seeds and --parallel must be at least 1")
	}
	return o, nil
}

func (o *options) plan(seed uint64) plan {
	return plan{seed: seed, bias: max(o.variant, o.profile), weak: o.variant, nodes: o.nodes}
}

// start runs the command and returns its exit status.
func start(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "sim:", err)
		return 2
	case o.replay:
		return replay(&o, stdout)
	}
	b := newBatch(&o)
	b.progress = stderr
	s := b.run()
	for i := range s.Failed {
		fmt.Fprint(stderr, explain(&s.Failed[i], o.plan(s.Failed[i].Seed)))
	}
	if err := s.write(stdout, o.output); err != nil {
		fmt.Fprintln(stderr, "sim: write the summary:", err)
		return 2
	}
	if len(s.Failed) > 0 {
		return 1
	}
	return 0
}

// replay runs one seed and prints everything.
func replay(o *options, stdout io.Writer) int {
	tr := &tracer{print: func(line string) { fmt.Fprintln(stdout, line) }}
	r := simulate(o.plan(o.seed), tr)
	fmt.Fprintf(stdout, "seed %d: %d nodes, %d events in %.1f simulated seconds, %d task runs, %d acknowledged jobs, %d violations\n",
		r.Seed, r.Nodes, r.Events, r.SimulatedS, r.Runs, r.Acked, len(r.Violations))
	for _, v := range r.Violations {
		fmt.Fprintf(stdout, "violation of %s: %s\n", v.Check, v.Text)
	}
	if len(r.Violations) > 0 {
		return 1
	}
	return 0
}
