// Command agentbench measures what an agent adds to the life of a task in a
// sandbox, with the real programs of make build on this machine: one server, one
// agent with eight simulated devices.
//
//   - From the call of submit to the first line that the task writes, with the image
//     cached, beside the same program under a bare "runc run" with runc's own
//     default specification, run in turns with it.
//   - From the last line of a task that was told to stop to the event that its lease
//     has ended, which frees its devices.
//   - The memory of the idle agent.
//   - From kill -9 of the driver's process until a new one is up.
//
// It needs root and runc, and takes about half a minute. Its times begin at the
// client: the region's part is in them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/gpuai/gpuai/integration/nursery"
)

// limit bounds the whole.
const limit = 3 * time.Minute

type options struct {
	bin, output string
	n           int // starts of each kind
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := start(ctx, os.Args[1:])
	cancel()
	os.Exit(code)
}

func start(ctx context.Context, args []string) int {
	o := &options{}
	f := flag.NewFlagSet("agentbench", flag.ContinueOnError)
	f.StringVar(&o.bin, "bin", "bin", "directory of the binaries that make build makes")
	f.StringVar(&o.output, "o", "text", "format of the report: text or json")
	f.IntVar(&o.n, "n", 30, "starts of each kind")
	if err := f.Parse(args); err != nil {
		return 2
	}
	rows, err := run(ctx, o)
	if err == nil {
		err = write(os.Stdout, o.output, rows)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agentbench:", err)
		return 1
	}
	for i := range rows {
		if !rows[i].Met {
			return 1
		}
	}
	return 0
}

// run measures everything.
func run(ctx context.Context, o *options) (rows []row, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("sandboxes are made by root: run this as root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, errors.New("there is no runc to measure: apt install runc")
	}
	dir, err := os.MkdirTemp("", "gpuai-agentbench-")
	if err != nil {
		return nil, err
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not done within %v", limit))
	defer cancel()
	n, err := nursery.New(filepath.Join(dir, "logs"), fail)
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, n.Clear())
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			err = fmt.Errorf("%w; the logs are in %s", err, dir)
		}
	}()
	b := &bench{options: o, dir: dir, nursery: n}
	for _, step := range []func(context.Context) error{b.build, b.open, b.idle, b.starts, b.stops, b.crashes} {
		if err := step(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, err
		}
	}
	return b.rows, nil
}

// A row is one figure beside its goal.
type row struct {
	Name     string  `json:"name"`
	Goal     string  `json:"goal"`
	Measured string  `json:"measured"`
	Value    float64 `json:"value"` // what is compared
	Met      bool    `json:"met"`
}

func write(w io.Writer, format string, rows []row) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "what\tgoal\tmeasured\tmet")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%v\n", r.Name, r.Goal, r.Measured, r.Met)
	}
	return t.Flush()
}
