package simulate

import (
	"context"
	"math"
	"testing"

	"github.com/gpuai/gpuai"
)

// oneNode is a node of four devices, and a run that replays jobs as they come.
func oneNode(jobs []TraceJob, policy string) Config {
	ps, err := ParsePolicies(policy)
	if err != nil {
		panic(err)
	}
	return Config{
		Nodes: []TraceNode{{Name: "n", CPU: 64_000, Memory: 1 << 20, GPUs: 4, Model: "H100"}}, Jobs: jobs, Policy: ps[0],
		TimedConfig: TimedConfig{Arrivals: ArrivalsTrace},
	}
}

func traced(name string, class gpuai.Class, gpus int, arrive gpuai.Instant, run gpuai.Duration) TraceJob {
	return TraceJob{
		Name: name, Class: class, CPU: 1000, Memory: 1024, GPUs: gpus, GPUMilli: 1000, Timed: true, Arrive: arrive, Run: run,
	}
}

// A job of higher priority takes room from one that is no longer protected; what
// that had done is lost, and it runs anew.
func TestTimedPreempts(t *testing.T) {
	hour := gpuai.Instant(gpuai.Hour)
	jobs := []TraceJob{
		traced("long", gpuai.ClassBatch, 4, 0, 2*gpuai.Hour),
		traced("short", gpuai.ClassTraining, 4, hour, 10*gpuai.Minute),
		traced("last", gpuai.ClassBatch, 1, 10*hour, gpuai.Minute),
	}
	for policy, want := range map[string]struct {
		preempted       int
		lost            float64
		shortAt, longAt float64
	}{
		"bestfit":      {1, 4 * (3600.0 + 1) / 3600, 1, 3600 + 1 + 600 + 7200},
		"bestfit-save": {1, 0, 1, 7200 + 600},
		"bestfit-keep": {0, 0, 3600, 7200},
	} {
		r, err := Timed(context.Background(), oneNode(jobs, policy))
		if err != nil {
			t.Fatal(err)
		}
		if r.Preempted != want.preempted || math.Abs(r.LostGPUHours-want.lost) > 1e-6 {
			t.Errorf("%s: %d preempted, %v GPU-hours lost; want %d and %v", policy, r.Preempted, r.LostGPUHours, want.preempted, want.lost)
		}
		if at := r.Classes["training"].WaitSeconds["max"]; math.Abs(at-want.shortAt) > 0.01 {
			t.Errorf("%s: the short job waits %v s, want %v", policy, at, want.shortAt)
		}
		if at := r.Classes["batch"].CompletionSeconds["max"]; math.Abs(at-want.longAt) > 0.01 {
			t.Errorf("%s: the long job takes %v s, want %v", policy, at, want.longAt)
		}
	}
}

// An elastic job grows into what is idle, gives it up to what is worth more, and
// is done when its tasks together have done its work.
func TestTimedElastic(t *testing.T) {
	j := traced("elastic", gpuai.ClassBatch, 1, 0, 60*gpuai.Minute)
	j.Tasks, j.Least, j.Speed = 4, 1, func(n int) float64 { return float64(n) }
	jobs := []TraceJob{
		j,
		traced("taker", gpuai.ClassTraining, 2, gpuai.Instant(10*gpuai.Minute), 5*gpuai.Minute),
		traced("last", gpuai.ClassTraining, 1, gpuai.Instant(10*gpuai.Hour), gpuai.Minute),
	}
	r, err := Timed(context.Background(), oneNode(jobs, "bestfit"))
	if err != nil {
		t.Fatal(err)
	}
	// Ten minutes and a second at four, five minutes at two, the rest at four.
	left := 3600.0 - 4*601 - 2*300
	want := 601 + 300 + left/4
	if got := r.Classes["batch"].CompletionSeconds["max"]; math.Abs(got-want) > 0.1 {
		t.Errorf("the job takes %v s, want %v", got, want)
	}
	if r.Preempted != 2 || r.LostGPUHours != 0 {
		t.Errorf("%d preempted, %v GPU-hours lost: its two tasks give room up and lose nothing", r.Preempted, r.LostGPUHours)
	}
}
