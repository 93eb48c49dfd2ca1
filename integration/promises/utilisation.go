package main

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/simulate"
)

// drawn is how jobs arrive in the experiments: Poisson, durations as in the
// published churn experiments with the openb trace, the first third not
// measured.
func drawn(count int, load float64) simulate.TimedConfig {
	return simulate.TimedConfig{
		Arrivals: simulate.ArrivalsPoisson, Count: count, Load: load,
		ClipMin: 60 * gpuai.Second, ClipMax: 6518 * gpuai.Second, WarmUp: 1.0 / 3,
	}
}

// utilisation measures allocation and waits of the openb trace at two loads
// under every policy.
func (x *experiment) utilisation() error {
	c, err := x.trace("openb_pod_list_default.csv")
	if err != nil {
		return err
	}
	ps, err := x.parsePolicies("fifo,bestfit,efw,efw-learnt,fgd")
	if err != nil {
		return err
	}
	x.row(true, "load", "policy", "allocation", "wait mean", "p50", "p99", "max", "waiting at end", "queue mean", "fragmentation", "decision p50", "p99")
	for _, load := range []float64{0.95, 1.1} {
		c.TimedConfig = drawn(x.orElse(150_000), load)
		var all []simulate.Report
		for _, p := range ps {
			x.stage = fmt.Sprintf("load %v, %s", load, p.Name)
			rs, err := simulate.Run(x.ctx, "time", c, []simulate.Policy{p})
			if err != nil {
				return err
			}
			r := &rs[0]
			x.row(false, fmt.Sprintf("%.3f", r.Offered), p.Name, percent(r.Allocation), secs(r.WaitSeconds["mean"]), secs(r.WaitSeconds["p50"]),
				secs(r.WaitSeconds["p99"]), secs(r.WaitSeconds["max"]), fmt.Sprintf("%d of %d", r.Waiting, r.Measured), fmt.Sprintf("%.1f", r.QueueMean),
				percent(r.FragmentationMean), micros(r.SubmitMicros["p50"]), micros(r.SubmitMicros["p99"]))
			all = append(all, rs...)
		}
		if err := x.page(fmt.Sprintf("utilisation-%v", load), all); err != nil {
			return err
		}
	}
	return nil
}

func percent(v float64) string { return fmt.Sprintf("%.2f %%", 100*v) }
func secs(v float64) string    { return fmt.Sprintf("%.1f s", v) }
func micros(v float64) string  { return fmt.Sprintf("%.1f µs", v) }
