// Command securebench measures what authentication costs a server: one real
// "gpuai server" process of make build, and all load from this process, so that
// what is read of the server is of the server alone.
//
//   - Joins: nodes that get their first certificate, each with a token of its own.
//   - Handshakes alone, with both certificates verified and nothing asked.
//   - Sessions: from dialling to the welcome, of agents that beat from then on.
//   - The server's memory for each connected node.
//   - Renewals of all certificates at once, which is far denser than agents do it, and
//     spread as given, and what a submit takes beside them and without them.
//
// CPU is the server's, by its own metrics. On a machine that is shared, wall times
// are of the moment and CPU times hold.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"
)

type options struct {
	program, output string
	profiles        string // directory; "" writes none
	nodes, callers  int
	rate            int           // submits a second
	spread          time.Duration // of the renewals of all nodes
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := start(ctx, os.Args[1:])
	cancel()
	os.Exit(code)
}

func start(ctx context.Context, args []string) int {
	o := &options{}
	f := flag.NewFlagSet("securebench", flag.ContinueOnError)
	f.StringVar(&o.program, "gpuai", "bin/gpuai", "the program that make build makes")
	f.StringVar(&o.output, "o", "text", "format of the report: text or json")
	f.StringVar(&o.profiles, "profiles", "", "directory for the server's profiles: heap while all nodes are connected, CPU while they renew")
	f.IntVar(&o.nodes, "nodes", 5_000, "nodes")
	f.IntVar(&o.callers, "callers", 64, "how many join, connect or renew at once")
	f.IntVar(&o.rate, "rate", 50, "submits a second, from when each is due")
	f.DurationVar(&o.spread, "spread", time.Minute, "over how long the second renewal of all nodes is spread")
	if err := f.Parse(args); err != nil {
		return 2
	}
	if o.nodes < 1 || o.nodes > 15_000 || o.callers < 1 || o.callers > 1_024 || o.rate < 1 || o.rate > 1_000 || o.spread <= 0 {
		fmt.Fprintln(os.Stderr, "securebench: --nodes is 1 to 15000, --callers 1 to 1024, --rate 1 to 1000, --spread positive")
		return 2
	}
	rows, err := run(ctx, o)
	if err == nil {
		err = write(os.Stdout, o.output, rows)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "securebench:", err)
		return 1
	}
	return 0
}

// A row is one figure of the report.
type row struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func write(w io.Writer, format string, rows []row) error {
	if format == "json" {
		return json.NewEncoder(w).Encode(rows)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%.4g\t%s\n", r.What, r.Value, r.Unit)
	}
	return t.Flush()
}
