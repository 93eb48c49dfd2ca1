package simulate

import (
	"context"
	"math"
	"strconv"
)

// A Report is what a simulation found.
type Report struct {
	Mode   string  `json:"mode"`
	Seed   int64   `json:"seed"`
	Policy string  `json:"policy"`
	Load   float64 `json:"load,omitempty"` // asked for, in mode time
	Nodes  int     `json:"nodes"`
	GPUs   int     `json:"gpus"`
	Jobs   int     `json:"jobs"`
	Placed int     `json:"placed"`
	// Allocation is allocated / all devices: at the end of a fill, averaged
	// over time in mode time.
	Allocation float64 `json:"gpu_allocation_ratio"`
	// AllocAt is the mean allocation, in percent, over the arrivals at which
	// the load that had arrived rounded to 95, 100 and 130 % of all devices.
	AllocAt map[string]float64 `json:"alloc_at,omitempty"`
	// FirstReject is the load, in percent, at the first job with a GPU that
	// did not fit; 0 when all did.
	FirstReject float64            `json:"first_reject_load,omitempty"`
	WaitSeconds map[string]float64 `json:"wait_s,omitempty"` // p50, p90, p99, max
	// Decisions is submits and ends per second of the machine's own time.
	Decisions float64 `json:"decisions_per_second"`
	Digest    string  `json:"digest"`
	*TimedReport
	// Curve is the mean allocation at each percent of load that had arrived,
	// in percent, of mode fill.
	Curve []CurvePoint `json:"curve,omitempty"`
	PackingReport
}

// A Config says what to simulate.
type Config struct {
	Nodes   []TraceNode
	Jobs    []TraceJob
	Inflate float64 // Fill: the load that arrives, as a part of all devices
	TimedConfig
	Seed   int64
	Policy Policy // the zero one is that of a new region
	PackingConfig
	// Progress is called now and then with the part that is done; nil is none.
	Progress func(done, of int)
}

var allocPoints = []int{95, 100, 130}

// Fill offers each arrival once, in order; one that does not fit is dropped,
// and nothing leaves.
func Fill(ctx context.Context, c Config) (Report, error) {
	a := NewArrivals(c.Nodes, c.Jobs, c.Inflate, c.Seed)
	w := newWorld(c.Policy)
	w.keep, c.Policy.keeps = c.Audit, true // what is placed stays
	nodes := sortedNodes(c.Nodes)
	if err := w.setPolicy(&c); err != nil {
		return Report{}, err
	}
	if err := w.register(nodes, a.order()); err != nil {
		return Report{}, err
	}
	r := Report{Mode: "fill", Seed: c.Seed, Policy: c.Policy.Name, Nodes: len(nodes), Jobs: len(a.Jobs), AllocAt: map[string]float64{}}
	total := totalMilli(nodes)
	r.GPUs = int(total / 1000)
	sums, counts := map[int]float64{}, map[int]int{}
	var arrived, allocated int64
	w.spent = 0
	for i := range a.Jobs {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		j := &a.Jobs[i]
		id, leased, err := w.submit(j)
		if err != nil {
			return r, err
		}
		arrived += j.Milli()
		load := 100 * float64(arrived) / float64(total)
		if leased {
			r.Placed++
			allocated += j.Milli()
		} else {
			if j.GPUs > 0 && r.FirstReject == 0 {
				r.FirstReject = load
			}
			r.reject(j)
			if err := w.drop(id); err != nil {
				return r, err
			}
		}
		at := int(math.Round(load))
		sums[at] += 100 * float64(allocated) / float64(total)
		counts[at]++
		c.progress(i+1, len(a.Jobs))
	}
	for _, p := range allocPoints {
		if counts[p] > 0 {
			r.AllocAt[strconv.Itoa(p)] = sums[p] / float64(counts[p])
		}
	}
	r.Curve = curveOf(sums, counts)
	r.Allocation = float64(allocated) / float64(total)
	return r, w.finish(&c, &r, len(a.Jobs))
}

// progressEvery is how many arrivals lie between two calls of Progress.
const progressEvery = 500

func (c *Config) progress(done, of int) {
	if c.Progress != nil && (done%progressEvery == 0 || done == of) {
		c.Progress(done, of)
	}
}

func totalMilli(nodes []TraceNode) int64 {
	var t int64
	for i := range nodes {
		t += int64(nodes[i].GPUs) * 1000
	}
	return t
}
