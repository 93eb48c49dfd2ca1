package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/simulate"
)

// simPacking are the flags of sim run that are about packing.
type simPacking struct {
	policy string
	demand string
	learn  bool
	audit  bool
	count  int
}

func (f *simPacking) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.policy, "policy", "bestfit", "packing policies, separated by commas: bestfit, efw, fgd")
	c.Flags().StringVar(&f.demand, "demand", "", "file of jobs that efw and fgd are told to expect; the jobs themselves if it is not given")
	c.Flags().BoolVar(&f.learn, "learn", false, "tell efw and fgd of no demand: they learn it from what arrives (mode fill runs efw both ways)")
	c.Flags().BoolVar(&f.audit, "audit", false, "replay the log of the run and judge each decision")
	c.Flags().IntVar(&f.count, "arrivals", 60_000, "mode churn: how many jobs arrive, the first third to warm up")
}

// runs returns the configurations to run, one for each row.
func (f *simPacking) runs(base simulate.Config, mode string) ([]simulate.Config, error) {
	base.Learn, base.Audit, base.Count = f.learn, f.audit, f.count
	if f.learn && f.demand != "" {
		return nil, usageError{fmt.Errorf("--learn and --demand exclude each other: a demand is learnt or told")}
	}
	if f.count < 3 || f.count > 10_000_000 {
		return nil, usageError{fmt.Errorf("--arrivals must be from 3 to 10000000, not %d", f.count)}
	}
	if f.demand != "" {
		jobs, err := simulate.LoadJobs(f.demand)
		if err != nil {
			return nil, usageError{err}
		}
		base.Demand = jobs
	}
	var out []simulate.Config
	for name := range strings.SplitSeq(f.policy, ",") {
		c := base
		if err := c.Packing.UnmarshalText([]byte(strings.TrimSpace(name))); err != nil {
			return nil, usageError{fmt.Errorf("--policy: %w", err)}
		}
		out = append(out, c)
		if mode == "fill" && c.Packing == gpuai.PackingEFW && !f.learn && f.demand == "" {
			c.Learn = true // the row with demand learnt, beside the one with demand known
			out = append(out, c)
		}
	}
	return out, nil
}

// packingView is reports of modes that drop what does not fit, one row each.
func packingView(rs []simulate.Report) *view {
	v := &view{head: []string{"MODE", "POLICY", "NODES", "GPUS", "JOBS", "PLACED", "ALLOCATION"}, wide: []string{"SEED", "REJECTED", "AUDIT", "DIGEST"}}
	churn := len(rs) > 0 && rs[0].Churn != nil
	if churn {
		v.head = append(v.head, "LOAD", "OFFERED", "REJECTED GPU-TIME", "REJECTED JOBS")
	} else {
		v.head = append(v.head, "ALLOC@95", "@100", "@130", "FIRST REJECT")
	}
	v.head = append(v.head, "US/DECISION")
	for i := range rs {
		r := &rs[i]
		cells := []string{r.Mode, r.Policy, num(r.Nodes), num(r.GPUs), num(r.Jobs), num(r.Placed), fmt.Sprintf("%.2f%%", 100*r.Allocation)}
		if churn {
			cells = append(cells, fmt.Sprint(r.Load), fmt.Sprintf("%.3f", r.Churn.Offered),
				fmt.Sprintf("%.2f%%", r.Churn.RejectedTime), fmt.Sprintf("%.2f%%", r.Churn.RejectedJobs))
		} else {
			for _, at := range []string{"95", "100", "130"} {
				cells = append(cells, shareAt(r.AllocAt, at))
			}
			cells = append(cells, fmt.Sprintf("%.2f%%", r.FirstReject))
		}
		cells = append(cells, fmt.Sprintf("%.1f", r.DecisionMicros), fmt.Sprint(r.Seed), rejections(r.Rejected), audited(r.Audit), r.Digest)
		v.row(r.Digest, cells...)
	}
	return v
}

func shareAt(m map[string]float64, at string) string {
	if x, ok := m[at]; ok {
		return fmt.Sprintf("%.2f%%", x)
	}
	return ""
}

// rejections lists counts by what was asked for.
func rejections(m map[string]int) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s:%d", k, m[k]))
	}
	return strings.Join(out, " ")
}

func audited(a *simulate.AuditReport) string {
	if a == nil {
		return ""
	}
	return fmt.Sprintf("%d entries, %d grants, %d waits: right", a.Entries, a.Grants, a.Waits)
}
