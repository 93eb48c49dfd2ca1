// Command scale measures how a region of three servers keeps track of many
// nodes: beats, a leader killed with -9, single deaths, a thousand tasks that
// lose their nodes, a node that flaps, a bad device, and 30 % of the nodes gone
// at once. It fails when a promise of the liveness rules does not hold.
//
// The servers are real processes (gpuai server run, files with fsync, TCP). Of
// the nodes as many as this machine carries are real sessions: agents over
// WebSocket from several generator processes and loopback addresses. The others
// are injected at the folding step: this program sends their registrations and
// beats to the leader as another server's lane and collector do, one message per
// server and window, by the same protocol on the Raft port. What is not done for
// those is the agent's own half and the server's session. The report says how
// many there were of each.
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
const limit = 15 * time.Minute

// names of the scenarios, in the order in which they run.
var names = []string{"steady", "kill", "deaths", "gone"}

func main() {
	if text := os.Getenv(envGenerator); text != "" {
		os.Exit(generatorMain(text, os.Stdin, os.Stdout, os.Stderr))
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := start(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	os.Exit(code)
}

// options are the command line's.
type options struct {
	bin        string // directory of gpuai
	output     string // "text" or "json"
	nodes      int    // real and injected
	real       int    // of them with sessions
	generators int    // processes of them
	only       string // scenarios, comma-separated
	steady     time.Duration
	short      bool // small times, for a test
	multiplier int  // of Raft's timeouts
	insecure   bool // without authentication, over plain HTTP
	keep       bool
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := new(options)
	f := flag.NewFlagSet("scale", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, `Measure how a region of three servers keeps track of many nodes. The region has
authentication, as an operator's has: all is over TLS, and every agent with a real
session has joined with a token of its own; --insecure measures one without.

  make build && go run ./integration/scale --nodes 100000
  go run ./integration/scale --nodes 10000 --real 2000 --only deaths -o json

`)
		f.PrintDefaults()
	}
	f.StringVar(&o.bin, "bin", "bin", "directory of the binaries that make build makes")
	f.StringVar(&o.output, "o", "text", "format of the report: text or json")
	f.IntVar(&o.nodes, "nodes", 10_000, "nodes in all")
	f.IntVar(&o.real, "real", 0, "nodes that are agents with real sessions, 16 at least; 0 is all up to 15000; the others are injected at the folding step")
	f.IntVar(&o.generators, "generators", 10, "processes that hold the real sessions")
	f.StringVar(&o.only, "only", "", "scenarios to run, of "+strings.Join(names, ",")+"; empty is all")
	f.DurationVar(&o.steady, "steady", 20*time.Second, "how long the steady state is measured")
	f.BoolVar(&o.short, "short", false, "the shortest lease times that a policy allows, and no flapping node: for tests")
	f.IntVar(&o.multiplier, "raft-multiplier", 1, "the servers' flag of that name: all processes share this machine's processors, so a busy one may need 3")
	f.BoolVar(&o.insecure, "insecure", false, "a region without authentication, over plain HTTP: for figures to be compared with those of earlier versions")
	f.BoolVar(&o.keep, "keep", false, "keep the directory with all logs also on success")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag: see --help", f.Arg(0))
	}
	return o, o.validate()
}

// Bounds of a run. A server takes the sessions of two when one is killed, and
// has 20,000 descriptors.
const (
	minNodes    = 100
	maxNodes    = 200_000
	minReal     = 2*canaries + 8
	maxReal     = 36_000
	defaultReal = 15_000
)

func (o *options) validate() (err error) {
	if o.real == 0 {
		o.real = min(o.nodes-scaleInjected(o.nodes), defaultReal)
	}
	switch {
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("-o is text or json, not %q", o.output)
	case o.nodes < minNodes || o.nodes > maxNodes:
		return fmt.Errorf("--nodes is %d to %d, not %d", minNodes, maxNodes, o.nodes)
	case o.real < minReal || o.real > maxReal || o.real > o.nodes-scaleInjected(o.nodes):
		return fmt.Errorf("--real is %d to %d, and at most %d of %d nodes, not %d", minReal, maxReal, o.nodes-scaleInjected(o.nodes), o.nodes, o.real)
	case o.generators < 1 || o.generators > 64:
		return fmt.Errorf("--generators is 1 to 64, not %d", o.generators)
	case o.multiplier < 1 || o.multiplier > 10:
		return fmt.Errorf("--raft-multiplier is 1 to 10, not %d", o.multiplier)
	case o.steady < time.Second:
		return fmt.Errorf("--steady is at least 1s, not %v", o.steady)
	}
	for _, s := range o.scenarios() {
		if !slices.Contains(names, s) {
			return fmt.Errorf("--only knows no scenario %q, only %s", s, strings.Join(names, ", "))
		}
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(o.bin, "gpuai")); err != nil {
		return fmt.Errorf("there is no gpuai in %s: run make build first, or say where it is with --bin", o.bin)
	}
	return nil
}

func (o *options) scenarios() []string {
	if o.only == "" {
		return names
	}
	return strings.Split(o.only, ",")
}

// start runs everything and returns the exit code. The report goes to stdout,
// also when a promise did not hold; progress goes to stderr.
func start(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "scale:", err)
		return 2
	}
	rep, err := measure(ctx, o, stderr)
	if rep != nil {
		if err := rep.write(stdout, o.output); err != nil {
			fmt.Fprintln(stderr, "scale:", err)
			return 1
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "scale:", err)
		return 1
	}
	if len(rep.Broken) > 0 {
		return 1
	}
	return 0
}

// measure runs the scenarios and leaves no process behind. With an error the
// report has what was measured before it.
func measure(ctx context.Context, o *options, stderr io.Writer) (*report, error) {
	dir, err := os.MkdirTemp("", "gpuai-scale-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not done within %v", limit))
	defer cancel()
	b := newBench(o, dir, stderr)
	err = errors.Join(b.run(ctx), b.stop())
	if err != nil || o.keep || len(b.report.Broken) > 0 {
		b.say("the servers' logs are in %s", dir)
		return &b.report, err
	}
	return &b.report, os.RemoveAll(dir)
}
