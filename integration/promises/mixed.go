package main

import (
	"fmt"
	"math/rand"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/simulate"
)

// A kind is one class of the mixed load. Its jobs are drawn: sizes with equal
// weight, durations even between two.
type kind struct {
	class    gpuai.Class
	part     float64  // of the GPU-time that is offered
	sizes    [][3]int // tasks, GPUs of each, thousandths of each GPU
	from, to gpuai.Duration
}

// kinds are the mixed load: what is long and wide beside what is short.
var kinds = []kind{
	{gpuai.ClassTraining, 0.50, [][3]int{{1, 8, 1000}, {2, 8, 1000}, {4, 8, 1000}, {1, 4, 1000}}, 30 * gpuai.Minute, 2 * gpuai.Hour},
	{gpuai.ClassFinetune, 0.25, [][3]int{{1, 1, 1000}, {1, 2, 1000}, {1, 4, 1000}}, 10 * gpuai.Minute, 40 * gpuai.Minute},
	{gpuai.ClassBatch, 0.20, [][3]int{{1, 1, 1000}, {1, 1, 500}}, 2 * gpuai.Minute, 20 * gpuai.Minute},
	{gpuai.ClassInference, 0.05, [][3]int{{1, 1, 1000}, {1, 1, 250}}, 10 * gpuai.Second, 60 * gpuai.Second},
}

// pool is how many different jobs arrivals are drawn from.
const pool = 20_000

// mixedJobs draws jobs so that each kind has its part of the GPU-time when all
// jobs are as likely.
func mixedJobs(seed int64) []simulate.TraceJob {
	r := rand.New(rand.NewSource(seed))
	var rates []float64
	var sum float64
	for i := range kinds {
		k := &kinds[i]
		var size float64
		for _, s := range k.sizes {
			size += float64(s[0]*s[1]*s[2]) / 1000 / float64(len(k.sizes))
		}
		rates = append(rates, k.part/(size*float64(k.from+k.to)/2))
		sum += rates[i]
	}
	var out []simulate.TraceJob
	for i := range kinds {
		k := &kinds[i]
		for n := range max(1, int(rates[i]/sum*pool)) {
			s := k.sizes[r.Intn(len(k.sizes))]
			out = append(out, simulate.TraceJob{
				Name: fmt.Sprintf("%s-%05d", k.class, n), Tasks: s[0], GPUs: s[1], GPUMilli: int64(s[2]), Class: k.class,
				CPU: int64(4000 * s[1]), Memory: int64(32<<10) * int64(s[1]), Timed: true,
				Run: k.from + gpuai.Duration(r.Int63n(int64(k.to-k.from))),
			})
		}
	}
	return out
}

// mixed measures how long short jobs wait for their devices beside long ones.
func (x *experiment) mixed() error {
	nodes, err := simulate.LoadCluster("64x8:H100")
	if err != nil {
		return err
	}
	ps, err := x.parsePolicies("fifo,bestfit-keep,bestfit,bestfit-save")
	if err != nil {
		return err
	}
	c := simulate.Config{Nodes: nodes, Jobs: mixedJobs(x.o.seed), Seed: x.o.seed, Progress: x.progress}
	c.TimedConfig = drawn(x.orElse(300_000), 0.95)
	c.ClipMin, c.ClipMax = 0, 0
	x.row(true, "policy", "class", "jobs", "wait mean", "p50", "p99", "max", "completion mean", "waiting at end", "preempted", "GPU-hours lost", "decision p50", "p99")
	var all []simulate.Report
	for _, p := range ps {
		x.stage = p.Name
		rs, err := simulate.Run(x.ctx, "time", c, []simulate.Policy{p})
		if err != nil {
			return err
		}
		r := &rs[0]
		for _, k := range slices.Backward(kinds) {
			s, ok := r.Classes[k.class.String()]
			if !ok {
				return fmt.Errorf("no job of class %s arrived: let more arrive with -count", k.class)
			}
			x.row(false, p.Name, k.class.String(), fmt.Sprint(s.Jobs), secs(s.WaitSeconds["mean"]), secs(s.WaitSeconds["p50"]), secs(s.WaitSeconds["p99"]), secs(s.WaitSeconds["max"]),
				secs(s.CompletionSeconds["mean"]), fmt.Sprint(s.Waiting), fmt.Sprint(s.Preempted), fmt.Sprintf("%.1f", s.LostGPUHours), micros(s.SubmitMicros["p50"]), micros(s.SubmitMicros["p99"]))
		}
		fmt.Fprintf(x.out, "| %s | all | %d | %s | %s | %s | %s | %s | %d | %d | %.1f | allocation | %s |\n", p.Name, r.Measured, secs(r.WaitSeconds["mean"]), secs(r.WaitSeconds["p50"]),
			secs(r.WaitSeconds["p99"]), secs(r.WaitSeconds["max"]), secs(r.CompletionSeconds["mean"]), r.Waiting, r.Preempted, r.LostGPUHours, percent(r.Allocation))
		all = append(all, rs...)
	}
	return x.page("mixed", all)
}
