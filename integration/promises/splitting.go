package main

import (
	"fmt"
	"strings"

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
	policy := "bestfit"
	if !strings.Contains(x.o.policies, ",") {
		policy = x.o.policies
	}
	ps, err := simulate.ParsePolicies(policy)
	if err != nil {
		return err
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
		}
	}
	return nil
}

func (x *experiment) splitRow(load float64, k int, name string, base map[string]float64, r *simulate.Report) {
	t, gang := r.Classes["training"], fmt.Sprint(k)
	if k == 1 {
		name, gang = "–", "1 (as it was)"
	}
	change := func(q string) string {
		return fmt.Sprintf("%+.1f %%", 100*(t.CompletionSeconds[q]/base[q]-1))
	}
	x.row(false, fmt.Sprintf("%.2f", load), name, gang, fmt.Sprintf("%.3f", r.Offered), percent(r.Allocation),
		secs(t.CompletionSeconds["mean"]), change("mean"), secs(t.CompletionSeconds["p50"]), change("p50"), secs(t.CompletionSeconds["p99"]),
		secs(t.WaitSeconds["mean"]), secs(r.Classes["batch"].WaitSeconds["mean"]))
}
