// Command chaos puts regions of real servers and agents through kills, stops,
// power cuts, full disks, damaged files, partitions, wrong clocks and lost
// hosts, and checks what the region promises: nothing that was acknowledged is
// lost, no task has two runners, all replicas hold the same state. It prints
// what it did and found, as text or JSON, and writes a page for people.
//
// Everything is real but the devices: the binaries of make build, TCP, files
// with fsync, processes. Power cuts, full disks, partitions and time namespaces
// need root on Linux; without it they are reported as skipped. docs/chaos.md
// says what each fault is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/integration/oracle"
)

func main() {
	if os.Getenv(oracle.EnvTask) == oracle.TaskBeat {
		os.Exit(oracle.TaskMain(os.Stdout, os.Stderr))
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := start(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	os.Exit(code)
}

const usage = `usage: chaos [--profile short|full|long] [--insecure] [--only CASE,...] [--seed N] [-o text|json] [--report FILE]

Puts regions of real servers and agents through faults and checks that nothing
acknowledged is lost and no task has two runners. The regions have authentication, as
operators' have: everything is over TLS, servers and nodes have joined with tokens, and
their certificates are good for 30 s only, so that they are renewed while faults last;
--insecure takes regions without. Exit codes: 0 all held,
1 a loss, a double runner or a failed expectation, 2 bad usage, 130 interrupted.

  chaos --profile full --report chaos.html
  chaos --only 2,partition --seed 7 -o json
  chaos --insecure --only 1

`

// options are the command line's.
type options struct {
	bin     string
	profile string
	only    string
	seed    uint64
	output  string
	report  string
	keep    bool
	// insecure has regions be without authentication, over plain HTTP.
	insecure bool
}

// A run is all that one call of the program plays.
type run struct {
	options *options
	profile profile
	seed    uint64
	dir     string
	began   time.Time
	report  *report

	mu    sync.Mutex // guards below
	out   io.Writer  // progress
	taken map[int]bool
}

func parseOptions(args []string, stderr io.Writer) (*options, []*scenario, error) {
	o := new(options)
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
		fmt.Fprintf(stderr, "\nscenarios: %s\n", names())
	}
	f.StringVar(&o.profile, "profile", "short", "how often each fault is injected: short (about 90 s), full (at most 10 minutes), long (about an hour)")
	f.StringVar(&o.only, "only", "", "comma-separated scenarios or cases to play, such as 2,partition; all when empty")
	f.Uint64Var(&o.seed, "seed", 0, "seed of all choices; 0 takes a new one and prints it")
	f.StringVar(&o.output, "o", "text", "format of the report on stdout: text or json")
	f.StringVar(&o.report, "report", "", "file for a page, .html or .md; the JSON is written beside it")
	f.StringVar(&o.bin, "bin", "bin", "directory of the binaries that make build makes")
	f.BoolVar(&o.insecure, "insecure", false, "regions without authentication, over plain HTTP: for times to be compared with those of earlier versions")
	f.BoolVar(&o.keep, "keep", false, "keep the run's directory with all logs also on success")
	if err := f.Parse(args); err != nil {
		return nil, nil, err
	}
	if f.NArg() > 0 {
		return nil, nil, fmt.Errorf("chaos takes no arguments, and was given %q", f.Args())
	}
	if !slices.Contains([]string{"text", "json"}, o.output) {
		return nil, nil, fmt.Errorf("-o is text or json, not %q", o.output)
	}
	if ext := filepath.Ext(o.report); o.report != "" && ext != ".html" && ext != ".md" {
		return nil, nil, fmt.Errorf("--report names a file that ends in .html or .md, not %q", o.report)
	}
	list, err := chosen(o.only)
	if err != nil {
		return nil, nil, err
	}
	return o, list, o.findPrograms()
}

// findPrograms looks for the binaries under test.
func (o *options) findPrograms() (err error) {
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	for _, name := range []string{"gpuai", "gpuai-watchdog", "gpuai-driver-sim"} {
		if _, err := os.Stat(filepath.Join(o.bin, name)); err != nil {
			return fmt.Errorf("there is no %s in %s: run make build first, or say where it is with --bin", name, o.bin)
		}
	}
	return nil
}

// start plays what the arguments say and returns the exit code.
func start(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, list, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var p profile
	if err == nil {
		p, err = profileNamed(o.profile)
	}
	if err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 2
	}
	r := &run{options: o, profile: p, seed: o.seed, began: time.Now(), out: stderr, taken: map[int]bool{}}
	if r.seed == 0 {
		r.seed = rand.Uint64()>>1 | 1
	}
	if err := r.open(); err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 1
	}
	r.playAll(ctx, list)
	return r.finish(ctx, stdout, stderr)
}

// open clears what an earlier run left behind, and makes this run's directory.
func (r *run) open() (err error) {
	if err := clearLeftovers(r.say); err != nil {
		return fmt.Errorf("clearing what an earlier run has left: %w", err)
	}
	if r.dir, err = newRunDir(); err != nil {
		return err
	}
	r.report = &report{
		Date: r.began.UTC().Format(time.RFC3339), Profile: r.profile.name, Seed: r.seed,
		Version: gpuai.Version, Machine: thisMachine(),
	}
	r.say("chaos", "profile %s, seed %d, in %s", r.profile.name, r.seed, r.dir)
	return nil
}

// playAll plays the scenarios one after the other, and those that mostly wait
// beside them.
func (r *run) playAll(ctx context.Context, list []*scenario) {
	results := make([][]*row, len(list))
	play := func(i int) {
		if ctx.Err() == nil {
			r.say(list[i].name, "begins: %s", list[i].what)
			results[i] = r.play(ctx, list[i])
		}
	}
	var lanes sync.WaitGroup
	for i, sc := range list {
		if sc.patient {
			lanes.Go(func() { play(i) })
		}
	}
	for i, sc := range list {
		if !sc.patient {
			play(i)
		}
	}
	lanes.Wait()
	for _, rows := range results {
		r.report.Rows = append(r.report.Rows, rows...)
	}
}

// finish clears everything away, writes the reports and returns the exit code.
func (r *run) finish(ctx context.Context, stdout, stderr io.Writer) int {
	r.report.Seconds = time.Since(r.began).Seconds()
	if err := clearRun(r.dir); err != nil {
		fmt.Fprintln(stderr, "chaos: cleaning up:", err)
		return 1
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "chaos: interrupted; everything that was started is gone, and there is no report")
		_ = os.RemoveAll(r.dir) // the next run removes it too
		return 128 + int(syscall.SIGINT)
	}
	r.report.settle()
	errs := []error{r.report.write(stdout, r.options.output)}
	if r.options.report != "" {
		errs = append(errs, r.report.save(r.options.report))
	}
	if r.report.ok() && !r.options.keep {
		errs = append(errs, os.RemoveAll(r.dir))
	} else {
		fmt.Fprintf(stderr, "chaos: the logs are in %s, until the next run\n", r.dir)
	}
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 1
	}
	if !r.report.ok() {
		fmt.Fprintln(stderr, r.report.summary())
		return 1
	}
	return 0
}

// say prints a line of progress.
func (r *run) say(who, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "%6.1f s  %-10s %s\n", time.Since(r.began).Seconds(), who, fmt.Sprintf(format, args...))
}

// program returns the path of a binary under test.
func (r *run) program(name string) string { return filepath.Join(r.options.bin, name) }

// ports returns the first of n successive free ports that no other region of
// this run has.
func (r *run) ports(n int) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
search:
	for range 100 {
		first, err := nursery.FreePorts(n)
		if err != nil {
			return 0, err
		}
		for p := first; p < first+n; p++ {
			if r.taken[p] {
				continue search
			}
		}
		for p := first; p < first+n; p++ {
			r.taken[p] = true
		}
		return first, nil
	}
	return 0, errors.New("found no free ports that are not in use by this run")
}
