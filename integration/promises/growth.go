package main

import (
	"fmt"

	"github.com/gpuai/gpuai/internal/simulate"
)

// growth measures placements at three sizes of a cluster.
func (x *experiment) growth() error {
	ps, err := simulate.ParsePolicies(x.o.policies)
	if err != nil {
		return err
	}
	x.row(true, "policy", "nodes", "GPUs", "leases held", "placements/s", "CPU-ms per placement", "submit p50", "p99", "heap")
	for _, p := range ps {
		if p.Name == "fifo" {
			continue // it differs by when jobs are handed in, and here each one is at once
		}
		for _, nodes := range []int{1_000, 10_000, 100_000} {
			r, err := simulate.Growth(x.ctx, nodes, x.orElse(100_000), p)
			if err != nil {
				return err
			}
			x.row(false, p.Name, fmt.Sprint(nodes), fmt.Sprint(r.GPUs), fmt.Sprint(r.Leases), fmt.Sprintf("%.0f", r.PerSecond),
				fmt.Sprintf("%.4f", r.CPUMillis), micros(r.SubmitMicros["p50"]), micros(r.SubmitMicros["p99"]), fmt.Sprintf("%.0f MiB", r.HeapMiB))
		}
	}
	return nil
}
