package main

import (
	"errors"
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/simulate"
)

// A curve is how many images a second a model trains on so many GPUs.
type curve struct {
	name   string
	images map[int]float64 // by GPUs
}

// curves are published: TensorFlow, "Benchmarks", Details for NVIDIA DGX-1
// (Tesla P100), training with real data, May 2017,
// https://www.tensorflow.org/performance/benchmarks (tensorflow/docs,
// site/en/r1/guide/performance/benchmarks.md). ResNet-50 with batches of 64 a
// GPU scales well; VGG16 with batches of 32, which has five times the weights,
// scales worst of all that are listed with eight GPUs.
var curves = []curve{
	{"ResNet-50", map[int]float64{1: 218, 2: 425, 4: 853, 8: 1630}},
	{"VGG16", map[int]float64{1: 144, 2: 253, 4: 457, 8: 690}},
}

// speedUp is how much faster a job of n GPUs trains on k × n; false where
// nothing was published.
func (c *curve) speedUp(n, k int) (float64, bool) {
	a, b := c.images[n], c.images[n*k]
	return b / a, a > 0 && b > 0
}

// split makes a training job a gang of k times its tasks.
func (c *curve) split(k int) func(*simulate.TraceJob) {
	return func(j *simulate.TraceJob) {
		if j.Class != gpuai.ClassTraining {
			return
		}
		if s, ok := c.speedUp(j.GPUs, k); ok {
			j.Tasks = k
			j.Run = gpuai.Duration(float64(j.Run) / s)
		}
	}
}

// elastic makes a training job an elastic gang of one to at most k times its
// devices, which is as fast as the devices that it has at the time.
func (c *curve) elastic(k int) func(*simulate.TraceJob) {
	return func(j *simulate.TraceJob) {
		if j.Class != gpuai.ClassTraining {
			return
		}
		for n := k; n > 1; n /= 2 {
			if _, ok := c.speedUp(j.GPUs, n); ok {
				gpus := j.GPUs
				j.Tasks, j.Least = n, 1
				j.Speed = func(tasks int) float64 { return c.between(gpus, tasks) }
				return
			}
		}
	}
}

// between is speedUp for any number of tasks: evenly between two that were
// published.
func (c *curve) between(gpus, n int) float64 {
	lo := 1
	for 2*lo <= n {
		lo *= 2
	}
	a, _ := c.speedUp(gpus, lo)
	b, ok := c.speedUp(gpus, 2*lo)
	if n == lo || !ok {
		return a
	}
	return a + (b-a)*float64(n-lo)/float64(lo)
}

// markTraining gives jobs on whole devices the class training, and all others
// the class batch.
func markTraining(jobs []simulate.TraceJob) {
	for i := range jobs {
		jobs[i].Class = gpuai.ClassBatch
		if jobs[i].GPUs > 0 && jobs[i].GPUMilli == 1000 {
			jobs[i].Class = gpuai.ClassTraining
		}
	}
}

// splitting measures by how much training ends earlier on more devices: by the
// trace and a published speed-up, and for real on this machine.
func (x *experiment) splitting() error {
	if x.o.only != "real" {
		if err := x.splitTrace(); err != nil {
			return err
		}
	}
	if x.o.only == "model" {
		return nil
	}
	fmt.Fprintln(x.out)
	return x.trainForReal()
}

// splitTrace runs the trace's training jobs as they are, and as gangs.
func (x *experiment) splitTrace() error {
	c, err := x.trace("openb_pod_list_default.csv")
	if err != nil {
		return err
	}
	markTraining(c.Jobs)
	ps, err := x.parsePolicies("bestfit-keep") // what splitting gains, and not what a priority gains
	if err != nil {
		return err
	}
	if len(ps) != 1 {
		return errors.New("splitting is measured under one policy: name one with -policy")
	}
	x.row(true, "load as it was", "speed-up of", "gang", "offered", "allocation", "training: completion mean", "change", "p50", "change", "p99", "wait mean", "others: wait mean")
	for _, load := range []float64{0.5, 0.7, 0.85, 0.95} {
		var base map[string]float64
		for i := range curves {
			for _, k := range []int{1, 2, 4, 8} {
				if k == 1 && i > 0 {
					continue // as it was, whatever the curve
				}
				c.TimedConfig = drawn(int(float64(x.orElse(130_000))*load), load) // as long at each load
				c.Alter = curves[i].split(k)
				x.stage = fmt.Sprintf("load %v, %s, gangs of %d", load, curves[i].name, k)
				rs, err := simulate.Run(x.ctx, "time", c, ps)
				if err != nil {
					return err
				}
				if k == 1 {
					base = rs[0].Classes["training"].CompletionSeconds
				}
				x.splitRow(load, k, curves[i].name, base, &rs[0])
			}
			c.Alter = curves[i].elastic(8)
			x.stage = fmt.Sprintf("load %v, %s, elastic gangs", load, curves[i].name)
			rs, err := simulate.Run(x.ctx, "time", c, ps)
			if err != nil {
				return err
			}
			x.splitRow(load, 0, curves[i].name, base, &rs[0])
		}
	}
	return nil
}

func (x *experiment) splitRow(load float64, k int, name string, base map[string]float64, r *simulate.Report) {
	t, gang := r.Classes["training"], fmt.Sprint(k)
	switch k {
	case 0:
		gang = "1 to 8, elastic"
	case 1:
		name, gang = "–", "1 (as it was)"
	}
	change := func(q string) string {
		return fmt.Sprintf("%+.1f %%", 100*(t.CompletionSeconds[q]/base[q]-1))
	}
	x.row(false, fmt.Sprintf("%.2f", load), name, gang, fmt.Sprintf("%.3f", r.Offered), percent(r.Allocation),
		secs(t.CompletionSeconds["mean"]), change("mean"), secs(t.CompletionSeconds["p50"]), change("p50"), secs(t.CompletionSeconds["p99"]),
		secs(t.WaitSeconds["mean"]), secs(r.Classes["batch"].WaitSeconds["mean"]))
}
