package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newJobExplainCmd(a *app) *cobra.Command {
	var index uint64
	c := &cobra.Command{
		Use: "explain JOB", Short: "Say why a job waits or runs where it does, and what would help", Args: cobra.ExactArgs(1),
		Long: `Say why a job's tasks wait: each rule with the nodes that fail it, the nodes that
would fail only that rule, the queue ahead, and what would help. What helps has
been tried on a copy of the region's state. Of tasks that have a place it says why
that one. Counts are those of one index of the region's log; --index asks for a
past one, as long as the server keeps the log from there.

When it starts is an estimate: the region run forward, each task up to its
run-time limit. How far such estimates were off stands beside it.`,
		Example: `  gpuai job explain sft-bot
  gpuai job explain sft-bot --index 48377     # as it was then
  gpuai job explain sft-bot --jq '.groups[].rules[] | select(.alone > 0) | .name'`,
	}
	c.Flags().Uint64Var(&index, "index", 0, "explain the state after this index of the log; 0 for now")
	c.RunE = does(func(ctx context.Context, args []string) error {
		e, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Explanation, error) {
			return c.Explain(ctx, args[0], index)
		})
		if err != nil {
			return err
		}
		return a.show(ctx, &view{
			names: []string{e.Job.String()},
			text:  func(w io.Writer) error { return explainText(w, &e) },
		})
	})
	return a.talks(c)
}

// explainText prints an explanation for people.
func explainText(w io.Writer, e *gpuai.Explanation) error {
	fmt.Fprintf(w, "%v", e.Status)
	if e.PendingFor > 0 {
		fmt.Fprintf(w, " %s", short(e.PendingFor))
	}
	if e.Position > 0 {
		fmt.Fprintf(w, "   position %d of %d   %s ahead in %s", e.Position, e.QueueLen, plural(uint64(e.AheadGPUs), "GPU"), plural(uint64(e.AheadJobs), "job"))
	}
	fmt.Fprintf(w, "   index %d\n", e.Index)
	used := map[gpuai.ReasonCode]bool{}
	for i := range e.Groups {
		if err := groupText(w, e, &e.Groups[i], used); err != nil {
			return err
		}
	}
	for _, r := range e.Reasons {
		if used[r.Code] {
			continue
		}
		fmt.Fprintf(w, "%v: %s\n", r.Code, printable(r.Message))
		if r.Fix != "" {
			fmt.Fprintf(w, "        helps: %s\n", printable(r.Fix))
		}
	}
	if f := e.Share; f != nil {
		fmt.Fprintf(w, "share   tenant %s, weight %d: due %s%%, had %s%% of the usage (%s GPU-hours); place %d of %s that wait\n", f.Tenant, f.Weight,
			tenths(f.DuePermille), tenths(f.SharePermille), thousandths(f.UsageMilliHours), f.Place, plural(uint64(f.Tenants), "tenant"))
	}
	for i := range e.Ahead {
		p := &e.Ahead[i]
		fmt.Fprintf(w, "ahead   %d. %s: %s, %s\n", p.Position, printable(p.Name), plural(uint64(p.GPUs), "GPU"), printable(p.Why))
	}
	if e.Estimate != nil {
		fmt.Fprintf(w, "starts  %s\n", printable(estimateText(e.Estimate)))
	}
	if err := helpsText(w, e.Helps); err != nil {
		return err
	}
	if e.Status.Final() { // what waits has told it as a reason
		if err := endsText(w, &gpuai.Job{}, e.Tasks); err != nil {
			return err
		}
	}
	return placesText(w, e.Places)
}

// tenths writes thousandths as a percentage.
func tenths(permille uint32) string { return fmt.Sprintf("%d.%d", permille/10, permille%10) }

// placesText prints why tasks are where they are.
func placesText(w io.Writer, ps []gpuai.PlacedWhy) error {
	for i := range ps {
		p := &ps[i]
		fmt.Fprintf(w, "task %d[%d] on %s, granted at index %d", p.Group, p.Task, p.Node, p.Index)
		if p.Nodes > 0 {
			fmt.Fprintf(w, " after %s: %d of %s would have taken it", short(p.Waited), p.Fits, plural(uint64(p.Nodes), "node"))
		}
		fmt.Fprintln(w)
		for _, s := range p.Steps {
			fmt.Fprintf(w, "        %-12s %-40s %s left\n", s.Rule, printable(s.Value), plural(uint64(s.Nodes), "node"))
		}
		if p.Note != "" {
			if _, err := fmt.Fprintf(w, "        %s\n", printable(p.Note)); err != nil {
				return err
			}
		}
	}
	return nil
}

// groupText prints what a group needs and the rules that stand in its way.
func groupText(w io.Writer, e *gpuai.Explanation, g *gpuai.GroupWhy, used map[gpuai.ReasonCode]bool) error {
	if len(e.Groups) > 1 {
		fmt.Fprintf(w, "group %s\n", printable(g.Group))
	}
	fmt.Fprintf(w, "needs  %s: %s\n", plural(uint64(g.Pending), "task"), needsText(g.Needs))
	width := 10
	for _, r := range g.Rules {
		width = max(width, len(r.Name))
	}
	fmt.Fprintf(w, "%-11s fail this rule%s   would fail only this rule\n", plural(uint64(g.Nodes), "node"), strings.Repeat(" ", max(0, width-8)))
	for _, r := range g.Rules {
		note := ""
		if m := reasonOf(e.Reasons, r.Code); m != "" && !used[r.Code] {
			note, used[r.Code] = fmt.Sprintf("   %v: %s", r.Code, printable(m)), true
		}
		if _, err := fmt.Fprintf(w, "            %-*s %5d  %7d%s\n", width, printable(r.Name), r.Nodes, r.Alone, note); err != nil {
			return err
		}
	}
	if g.Feasible > 0 {
		fmt.Fprintf(w, "            %s would take a task now\n", plural(uint64(g.Feasible), "node"))
	}
	return nil
}

func reasonOf(rs []gpuai.Reason, c gpuai.ReasonCode) string {
	for _, r := range rs {
		if r.Code == c {
			return r.Message
		}
	}
	return ""
}

func helpsText(w io.Writer, hs []gpuai.Helpful) error {
	lead := "helps:  "
	for _, h := range hs {
		if _, err := fmt.Fprintf(w, "%s%-20s -> %s\n", lead, printable(h.Change), printable(h.Effect)); err != nil {
			return err
		}
		lead = "        "
	}
	return nil
}
