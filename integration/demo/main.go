// Command demo starts a region of three servers and three agents on this host,
// runs a gang and an array on it, kills the leader and an agent with -9, and
// checks what the region promises: both jobs succeed, no task had two runners,
// and the three servers hold the same state. It prints what it measured.
//
// The region has authentication: its servers and agents join with tokens, all
// connections are over TLS, and who has no right to something is refused it.
//
// Everything is real but the devices: the binaries of make build, TCP, files
// with fsync, processes. The devices are simulated, of two vendors. As root the
// jobs run in OCI sandboxes, in an image made of their programs, and runc is
// installed where it is missing; else they run as plain processes. It takes about
// a minute, and leaves nothing behind but, when a claim does not hold, its logs.
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
	"syscall"
	"time"
)

// limit bounds the whole demo.
const limit = 175 * time.Second

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := start(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	os.Exit(code)
}

// options are the command line's.
type options struct {
	bin    string // directory of the binaries of make build
	output string // "text" or "json"
	keep   bool   // keep the directory also on success
	// sandbox says whether the jobs run in sandboxes: "auto", "oci" or "none".
	sandbox string
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := new(options)
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.bin, "bin", "bin", "directory of the binaries that make build makes")
	f.StringVar(&o.output, "o", "text", "format of the report: text or json")
	f.BoolVar(&o.keep, "keep", false, "keep the demo's directory with all logs")
	f.StringVar(&o.sandbox, "sandbox", sandboxAuto, "run the jobs in OCI sandboxes: auto (as root), oci or none")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if !slices.Contains([]string{sandboxAuto, sandboxOCI, sandboxNone}, o.sandbox) {
		return nil, fmt.Errorf("-sandbox is %s, %s or %s, not %q", sandboxAuto, sandboxOCI, sandboxNone, o.sandbox)
	}
	if o.output != "text" && o.output != "json" || f.NArg() > 0 {
		return nil, errors.New("usage: demo [-bin DIR] [-o text|json] [-sandbox auto|oci|none] [-keep]")
	}
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return nil, err
	}
	for _, name := range []string{"gpuai", "gpuai-watchdog", "gpuai-mesh", "gpuai-driver-sim"} {
		if _, err := os.Stat(filepath.Join(o.bin, name)); err != nil {
			return nil, fmt.Errorf("there is no %s in %s: run make build first, or say where it is with -bin", name, o.bin)
		}
	}
	return o, nil
}

// start runs the demo and returns the exit code. The report goes to stdout,
// progress to stderr.
func start(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return 2
	}
	dir, err := os.MkdirTemp("", "gpuai-demo-")
	if err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return 1
	}
	bounded, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not done within %v", limit))
	defer cancel()
	d := newDemo(o, dir, stderr)
	if err := d.run(bounded); err != nil {
		return failed(d, err, ctx.Err() != nil)
	}
	if o.keep {
		d.say("everything is kept in %s", dir)
	} else if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintf(stderr, "demo: remove the demo's directory: %v\n", err)
		return 1
	}
	if err := d.report.write(stdout, o.output); err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return 1
	}
	return 0
}

// failed says why the demo ended early, and returns the exit code. The logs are
// kept unless the demo was only interrupted.
func failed(d *demo, err error, interrupted bool) int {
	fmt.Fprintf(d.out, "demo: %v\n", err)
	if !interrupted {
		fmt.Fprintf(d.out, "demo: the logs are in %s\n", filepath.Join(d.dir, "logs"))
		return 1
	}
	if err := os.RemoveAll(d.dir); err != nil {
		fmt.Fprintf(d.out, "demo: remove the demo's directory: %v\n", err)
	}
	return 128 + int(syscall.SIGINT)
}
