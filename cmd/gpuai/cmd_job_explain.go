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
	return a.talks(&cobra.Command{
		Use: "explain JOB", Short: "Say why a job waits, and what would help", Args: cobra.ExactArgs(1),
		Long: `Say why a job's tasks wait: each rule with the nodes that fail it, the nodes that
would fail only that rule, the queue ahead, and what would help. Counts are
those of one index of the region's log.`,
		Example: `  gpuai job explain sft-bot
  gpuai job explain sft-bot --jq '.groups[].rules[] | select(.alone > 0) | .name'`,
		RunE: does(func(ctx context.Context, args []string) error {
			e, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Explanation, error) {
				return c.Explain(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return a.show(ctx, &view{
				names: []string{e.Job.String()},
				text:  func(w io.Writer) error { return explainText(w, &e) },
			})
		}),
	})
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
	return helpsText(w, e.Helps)
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
