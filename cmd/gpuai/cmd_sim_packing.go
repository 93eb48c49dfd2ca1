package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai/internal/simulate"
)

// simPacking are the flags of sim run that are about packing.
type simPacking struct {
	demand string
	learn  bool
	audit  bool
}

func (f *simPacking) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.demand, "demand", "", "file of jobs that efw and fgd are told to expect; the jobs themselves if it is not given")
	c.Flags().BoolVar(&f.learn, "learn", false, "tell efw and fgd of no demand: they learn it from what arrives (mode fill runs efw both ways)")
	c.Flags().BoolVar(&f.audit, "audit", false, "modes fill and churn: replay the log of the run and judge each decision")
}

// complete completes a run's configuration, and its policies: where nothing is
// said of the demand, mode fill has a row with the demand learnt beside that
// with it known.
func (f *simPacking) complete(c *simulate.Config, ps []simulate.Policy, mode string) ([]simulate.Policy, error) {
	c.Audit = f.audit
	switch {
	case f.learn && f.demand != "":
		return nil, usageError{errors.New("--learn and --demand exclude each other: a demand is learnt or told")}
	case f.audit && mode == "time":
		return nil, usageError{errors.New("--audit is for the modes fill and churn")}
	}
	if f.demand != "" {
		jobs, err := simulate.LoadJobs(f.demand)
		if err != nil {
			return nil, usageError{err}
		}
		c.Demand = jobs
	}
	var out []simulate.Policy
	add := func(p simulate.Policy) {
		if !slices.ContainsFunc(out, func(q simulate.Policy) bool { return q.Name == p.Name }) {
			out = append(out, p)
		}
	}
	for _, p := range ps {
		if f.learn {
			p = p.Learning()
		}
		add(p)
		if mode == "fill" && p.Name == "efw" && f.demand == "" {
			add(p.Learning())
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
