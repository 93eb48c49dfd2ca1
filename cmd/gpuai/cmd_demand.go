package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/simulate"
)

func newDemandGetCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "get", Short: "Show what the packing policy expects", Args: cobra.NoArgs,
		Long: `Show what the packing policy expects: the kinds of tasks that it has counted or
was told of, and which part of the frozen demand each is. Tasks are placed by the
frozen demand. What is learnt is frozen at 128, 256, ... 4096 groups and at each
multiple of 8192; a kind without a weight is not in it yet.`,
		Example: `  gpuai operator demand get
  gpuai operator demand get -o json --jq .demand > demand.json`,
		RunE: does(func(ctx context.Context, _ []string) error {
			d, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.DemandStatus, error) { return c.Demand(ctx) })
			if err != nil {
				return err
			}
			return a.show(ctx, demandView(&d))
		}),
	})
}

func demandView(d *gpuai.DemandStatus) *view {
	v := &view{head: []string{"TASKS", "WEIGHT", "NEEDS", "CONSTRAINTS"}}
	for i := range d.Classes {
		c := &d.Classes[i]
		weight := ""
		if c.WeightPPM > 0 {
			weight = fmt.Sprintf("%.2f%%", float64(c.WeightPPM)/1e4)
		}
		needs := needsText(c.Resources)
		v.row(needs, num(c.Tasks), weight, needs, constraintsText(c.Constraints))
	}
	v.text = func(w io.Writer) error {
		if err := columns(w, demandRows(d)); err != nil || len(d.Classes) == 0 {
			return err
		}
		fmt.Fprintln(w)
		return v.write(w, false)
	}
	return v
}

// demandRows says how what is expected came to be.
func demandRows(d *gpuai.DemandStatus) [][]string {
	packing, source, frozen := d.Packing.String(), "learnt", "never"
	if d.Active != d.Packing {
		packing += ", by " + d.Active.String() + " until something is frozen and the index is built"
	}
	switch {
	case d.Packing == gpuai.PackingBestFit:
		source = "bestfit expects nothing"
	case d.Fixed:
		source = "told, and fixed"
	case d.Groups == 0 && len(d.Classes) > 0:
		source = "told, and learnt on from there"
	case d.Groups == 0:
		source = "nothing is expected yet"
	}
	if d.Epoch > 0 {
		frozen = plural(uint64(d.Epoch), "time")
	}
	if d.NextFreeze > 0 {
		frozen += fmt.Sprintf(", the next at %d groups", d.NextFreeze)
	}
	return [][]string{
		{"packing", packing}, {"demand", source}, {"groups counted", num(d.Groups)}, {"frozen", frozen}, {"kinds of tasks", num(len(d.Classes))},
	}
}

// constraintsText returns constraints as a job file's reader would say them.
func constraintsText(cs []gpuai.Constraint) string {
	var out []string
	for i := range cs {
		out = append(out, cs[i].Attribute+" "+cs[i].Op.String()+" "+strings.Join(cs[i].Values, "|"))
	}
	return strings.Join(out, ", ")
}

// A demandFlags says which demand to tell.
type demandFlags struct {
	file, trace string
	gpus        int
	fixed       bool
}

func newDemandSetCmd(a *app) *cobra.Command {
	var f demandFlags
	c := &cobra.Command{
		Use: "set (--file FILE | --from-trace FILE)", Short: "Tell the packing policy what to expect", Args: cobra.NoArgs,
		Long: `Tell the packing policy what to expect, in place of what it has learnt. The policy
must be efw. --file takes a demand as JSON, such as that of "demand get -o json":

  {"classes": [
    {"resources": {"gpu": {"count": 8}, "cpu_milli": 64000}, "tasks": 3},
    {"resources": {"gpu": {"count": 1}}, "tasks": 40,
     "constraints": [{"attribute": "gpu.model", "op": "in", "values": ["H100", "H200"]}]}
  ]}

--from-trace counts the tasks of a trace in any format of "gpuai sim run", or of
what "gpuai operator export" wrote. Up to 1024 kinds are told, the most frequent.

What is submitted from then on is learnt beside it, unless it is --fixed.`,
		Example: `  gpuai operator demand set --file demand.json
  gpuai operator demand set --from-trace pods.csv --fixed
  gpuai operator export --out region.jsonl && gpuai operator demand set --from-trace region.jsonl`,
	}
	c.Flags().StringVar(&f.file, "file", "", "demand as JSON, - for standard input")
	c.Flags().StringVar(&f.trace, "from-trace", "", "trace, or data directory of a stopped server, whose tasks are counted")
	c.Flags().IntVar(&f.gpus, "gpus-per-node", 8, "with a trace that knows only a number of GPUs: those of the largest node")
	c.Flags().BoolVar(&f.fixed, "fixed", false, "learn nothing from what is submitted")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if (f.file == "") == (f.trace == "") {
			return usageError{errors.New("give one of --file and --from-trace")}
		}
		d, err := a.readDemand(ctx, &f)
		if err != nil {
			return err
		}
		d.Fixed = d.Fixed || f.fixed
		d.Defaults()
		if wrong := d.Validate(); len(wrong) > 0 {
			return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the demand would be invalid", Fields: wrong}
		}
		return a.setDemand(ctx, d)
	})
	return a.talks(c)
}

func newDemandForgetCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "forget", Short: "Have the packing policy expect nothing, and learn anew", Args: cobra.NoArgs,
		Long: `Have the packing policy forget what it was told and has learnt. Tasks are placed
by best fit until it has learnt from 128 groups.`,
		Example: `  gpuai operator demand forget`,
		RunE: does(func(ctx context.Context, _ []string) error {
			return a.setDemand(ctx, gpuai.Demand{Classes: []gpuai.DemandClass{}})
		}),
	})
}

func (a *app) setDemand(ctx context.Context, d gpuai.Demand) error {
	st, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.DemandStatus, error) { return c.SetDemand(ctx, d) })
	if err != nil {
		return err
	}
	return a.show(ctx, demandView(&st))
}

// readDemand reads the demand of a file or a trace.
func (a *app) readDemand(ctx context.Context, f *demandFlags) (d gpuai.Demand, err error) {
	if f.trace != "" {
		p := a.newProgress(false)
		t, err := simulate.LoadTrace(ctx, f.trace, simulate.LoadConfig{GPUsPerNode: f.gpus, Progress: p.of("replaying: ", "entries")})
		p.end()
		if err != nil {
			return d, usageError{err}
		}
		d.Classes = simulate.DemandOf(t.Jobs)
		return d, nil
	}
	src, err := a.readAll(f.file)
	if err != nil {
		return d, err
	}
	// The answer of "demand get -o json" has the demand inside an object, with its
	// state and weights.
	var told struct {
		Demand *gpuai.DemandStatus `json:"demand"`
		Index  uint64              `json:"index"`
	}
	var st gpuai.DemandStatus
	strict := json.RejectUnknownMembers(true)
	if json.Unmarshal(src, &told, strict) == nil && told.Demand != nil {
		st = *told.Demand
	} else if err := json.Unmarshal(src, &st, strict); err != nil {
		return d, usageError{fmt.Errorf("%s is no demand: %w", f.file, err)}
	}
	d.Fixed = st.Fixed
	for i := range st.Classes {
		d.Classes = append(d.Classes, st.Classes[i].DemandClass)
	}
	if len(d.Classes) == 0 {
		return d, usageError{fmt.Errorf("%s has no classes: 'gpuai operator demand forget' expects nothing", f.file)}
	}
	return d, nil
}
