package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/internal/loadgen"
)

// job is what rows submit: one task of so many GPUs, which ends for good when
// its agent says so.
func job(gpus, tasks int) gpuai.JobSpec {
	return gpuai.JobSpec{
		Name: "goals", Limits: gpuai.Limits{QueueTime: 10 * gpuai.Minute},
		Groups: []gpuai.Group{{
			Count:     uint32(tasks),
			Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: uint32(gpus)}},
			Restart:   gpuai.Restart{On: []gpuai.RestartCause{}},
			Task:      gpuai.TaskSpec{Command: []string{"true"}},
		}},
	}
}

// offer submits jobs one by one at a rate, whatever the answers, and returns
// their latencies to the agents' sessions and what they cost.
func (b *bed) offer(ctx context.Context, rate float64, d time.Duration) (loadgen.Result, cost, error) {
	rec := loadgen.NewRecorder()
	if err := b.quiet(ctx, rec); err != nil {
		return loadgen.Result{}, cost{}, err
	}
	cfg := loadgen.LoadConfig{Addrs: b.addrs, Rate: rate, Duration: d, GPUs: 1, Batch: 1, Settle: 5 * time.Second}
	c, err := b.spend(ctx, func() error { return loadgen.Run(ctx, cfg, rec) })
	res := rec.Result()
	if err == nil && res.Placed < res.Submitted {
		err = fmt.Errorf("%d of %d jobs were placed: %w", res.Placed, res.Submitted, errors.Join(res.Why, ctx.Err()))
	}
	return res, c, err
}

// latency fills a row in with the latencies of jobs that are offered.
func (b *bed) latency(ctx context.Context, x *row, rate float64, d time.Duration) error {
	res, c, err := b.offer(ctx, rate, d)
	all, _ := b.per(c, max(1, res.Placed))
	x.Values["p50_ms"], x.Values["p99_ms"], x.Values["jobs"], x.Values["cpu_ms"] = res.LatencyMs.P50, res.LatencyMs.P99, float64(res.Placed), all
	x.Measured = fmt.Sprintf("p50 %.1f ms, p99 %.1f ms (%d jobs)", res.LatencyMs.P50, res.LatencyMs.P99, res.Placed)
	x.How = fmt.Sprintf("%v jobs/s of one GPU for %v, a request each, on %d nodes of simulated agents that beat; from when the submit is called until its lease has been read from its agent's session; tasks end after %v",
		rate, d, b.nodes, taskTime)
	return err
}

func lone(ctx context.Context, b *bed, x *row) error {
	err := b.latency(ctx, x, 10, 20*time.Second)
	x.Met = x.Values["p50_ms"] <= 9 && x.Values["p99_ms"] <= 18
	return err
}

func hundred(ctx context.Context, b *bed, x *row) error {
	err := b.latency(ctx, x, 100, 12*time.Second)
	x.Met = x.Values["p99_ms"] <= 32
	return err
}

// perPlacement measures CPU time with one request a job, beats and reports of
// ended tasks included.
func perPlacement(ctx context.Context, b *bed, x *row) error {
	const rate, d, rounds = 1_000, 3 * time.Second, 3
	var alls, nets, p99s []float64
	for range rounds {
		res, c, err := b.offer(ctx, rate, d)
		if err != nil {
			return err
		}
		all, net := b.per(c, res.Placed)
		alls, nets, p99s = append(alls, all), append(nets, net), append(p99s, res.LatencyMs.P99)
	}
	slices.Sort(alls)
	slices.Sort(nets)
	slices.Sort(p99s)
	all, net := alls[rounds/2], nets[rounds/2]
	x.Values["cpu_ms"], x.Values["cpu_ms_without_idle"], x.Values["idle_cpu_s_per_s"] = all, net, b.idle
	x.Values["nodes"], x.Values["p99_ms"] = float64(b.nodes), p99s[rounds/2]
	if b.r.small == 0 && b.nodes == smallNodes {
		b.r.small = all
	}
	x.Measured = fmt.Sprintf("%.2f CPU-ms, of which %.2f without the beats of %d nodes", all, net, b.nodes)
	x.How = fmt.Sprintf("%d jobs/s of one GPU for %v, a request each, the median of %d times; CPU time of the three servers by their own metrics from the first submit to the last lease, beats and the reports of tasks that end after %v included, for each placement; without: less what the region used in %v without a load",
		rate, d, rounds, taskTime, calm)
	x.Met = all <= 1.7
	return nil
}

// watchers measures the same again, beside agents that hold sessions and beat
// but have no GPU.
func watchers(ctx context.Context, b *bed, x *row) error {
	base := b.r.small
	if base == 0 {
		return errors.New("the row cpu-small was not measured")
	}
	err := perPlacement(ctx, b, x)
	all := x.Values["cpu_ms"]
	x.Values["ratio"], x.Values["cpu_ms_without_watchers"] = all/base, base
	x.Measured = fmt.Sprintf("%.2f × (%.2f CPU-ms a placement, %.2f without them)", all/base, all, base)
	x.How = "the load of cpu-small once more, in the same region, beside 1,000 agents more that hold sessions and beat but have no GPU, so that nothing is ever for them; CPU time a placement against that of cpu-small"
	x.Met = err == nil && all <= 1.2*base
	return err
}

func memory(_ context.Context, b *bed, x *row) error {
	a := (b.full - b.empty) / float64(b.nodes)
	x.Values["rss_bytes"], x.Values["rss_servers_bytes"] = a, b.full
	x.Measured = fmt.Sprintf("%.1f KB", a/1_000)
	x.How = fmt.Sprintf("resident memory of the three servers together, %v after %d agents connected, less that before any did, for each agent: its session at one server and its node's records at three", calm, b.nodes)
	x.Met = a <= 30_000
	return nil
}

// closed calls f from so many callers, one call after the other each, until d
// is over or f says that there is no more. It returns how many calls were
// answered, and the seconds from the first call to the last answer.
func closed(callers int, d time.Duration, f func(n int64) (more bool, err error)) (answered int64, seconds float64, err error) {
	var next, done atomic.Int64
	var first atomic.Pointer[error]
	began := time.Now()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for time.Since(began) < d && first.Load() == nil {
				more, err := f(next.Add(1) - 1)
				if err != nil {
					first.CompareAndSwap(nil, &err)
				}
				if err != nil || !more {
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if e := first.Load(); e != nil {
		err = *e
	}
	return done.Load(), time.Since(began).Seconds(), err
}

func requests(ctx context.Context, b *bed, x *row) error {
	const callers, d = 64, 6 * time.Second
	if err := b.quiet(ctx, nil); err != nil {
		return err
	}
	spec := job(1, 1)
	var n int64
	var took float64
	c, err := b.spend(ctx, func() (err error) {
		n, took, err = closed(callers, d, func(int64) (bool, error) {
			_, err := b.api.Submit(ctx, client.SubmitRequest{Spec: &spec})
			return true, err
		})
		return err
	})
	all, _ := b.per(c, int(max(1, n)))
	x.Values["requests_per_second"], x.Values["cpu_ms"] = float64(n)/took, all
	x.Measured = fmt.Sprintf("%.0f/s (%.2f CPU-ms of the servers each)", float64(n)/took, all)
	x.How = fmt.Sprintf("%d callers that wait for each answer (201 with its lease, or 202) before they submit again, for %v; answers a second", callers, d)
	x.Met = err == nil && float64(n)/took >= 1_100
	return err
}

// batches fills most of an empty region by requests of many jobs.
func batches(ctx context.Context, b *bed, x *row) error {
	const callers, size = 8, 500
	if err := b.quiet(ctx, nil); err != nil {
		return err
	}
	jobs := make([]gpuai.JobSpec, size)
	for i := range jobs {
		jobs[i] = job(1, 1)
	}
	body, err := json.Marshal(gpuai.BatchRequest{Jobs: jobs})
	if err != nil {
		return err
	}
	total := int64(b.nodes*b.r.o.gpus) * 9 / 10 / size
	var leased atomic.Int64
	var n int64
	var took float64
	began := monotonic()
	c, err := b.spend(ctx, func() (err error) {
		n, took, err = closed(callers, time.Minute, func(i int64) (bool, error) {
			if i >= total {
				return false, nil
			}
			results, err := b.api.SubmitEncoded(ctx, body, "")
			for j := range results {
				leased.Add(int64(results[j].Leased))
			}
			return true, err
		})
		return err
	})
	if err != nil {
		return err
	}
	reached, err := b.allLeases(ctx, int(n*size))
	rate, all := float64(n*size)/took, 1_000*c.cpu/float64(max(1, n*size))
	x.Values["jobs_per_second"], x.Values["leased"], x.Values["cpu_ms"] = rate, float64(leased.Load()), all
	x.Values["to_the_last_session_s"], x.Values["jobs"] = float64(reached-began)/1e9, float64(n*size)
	x.Measured = fmt.Sprintf("%.0f/s (%d jobs; %.3f CPU-ms of the servers each; the last lease at its agent after %.2f s)", rate, n*size, all, float64(reached-began)/1e9)
	x.How = fmt.Sprintf("%d callers, %d jobs of one GPU a request, until nine tenths of the GPUs of the empty region are lent; jobs answered, committed and placed, by the seconds from the first call to the last answer; the requests' JSON is made beforehand; the agents take their leases meanwhile", callers, size)
	x.Met = err == nil && rate >= 40_000 && leased.Load() == n*size
	return err
}

// allLeases waits until so many leases have reached agents, and returns when the
// last did.
func (b *bed) allLeases(ctx context.Context, n int) (last int64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, quietWithin, errors.New("not all leases have reached their agents"))
	defer cancel()
	err = nursery.Poll(ctx, "all leases", 20*time.Millisecond, func() (bool, error) {
		total, at := b.tap.seen()
		last = at
		return total >= n, nil
	})
	return last, err
}

func tenThousand(ctx context.Context, b *bed, x *row) error {
	const rounds = 3
	tasks := min(10_000, b.nodes*b.r.o.gpus)
	var answers, ends []float64
	for range rounds {
		if err := b.quiet(ctx, nil); err != nil {
			return err
		}
		spec := job(1, tasks)
		began := monotonic()
		sub, err := b.api.Submit(ctx, client.SubmitRequest{Spec: &spec})
		if err != nil {
			return err
		}
		answers = append(answers, float64(monotonic()-began)/1e9)
		last, err := b.allLeases(ctx, tasks)
		if n, _ := b.tap.of(sub.Job.ID); err != nil || n != tasks {
			return fmt.Errorf("%d of %d tasks have reached their agents: %w", n, tasks, err)
		}
		ends = append(ends, float64(last-began)/1e9)
	}
	slices.Sort(answers)
	slices.Sort(ends)
	x.Values["to_the_last_session_s"], x.Values["answer_s"], x.Values["worst_s"] = ends[rounds/2], answers[rounds/2], ends[rounds-1]
	x.Measured = fmt.Sprintf("%.2f s to the last session, %.2f s to the answer (median of %d; the worst %.2f s)", ends[rounds/2], answers[rounds/2], rounds, ends[rounds-1])
	x.How = fmt.Sprintf("one job of %d tasks of one GPU each onto an empty region; from the submit until the last of its leases has been read from its agent's session", tasks)
	x.Met = ends[rounds/2] <= 1.4
	return nil
}

func refuse(ctx context.Context, b *bed, x *row) error {
	const callers, d = 64, 4 * time.Second
	if err := b.quiet(ctx, nil); err != nil {
		return err
	}
	spec := job(b.r.o.gpus+1, 1)
	var n int64
	c, err := b.spend(ctx, func() (err error) {
		n, _, err = closed(callers, d, func(int64) (bool, error) {
			_, err := b.api.Submit(ctx, client.SubmitRequest{Spec: &spec})
			if errors.Is(err, &gpuai.Error{Code: gpuai.Unschedulable}) {
				return true, nil
			}
			return false, fmt.Errorf("a job of %d GPUs was answered %v", spec.Groups[0].Resources.GPU.Count, err)
		})
		return err
	})
	all, net := b.per(c, int(max(1, n)))
	x.Values["cpu_ms"], x.Values["cpu_ms_without_idle"], x.Values["refusals"] = all, net, float64(n)
	x.Measured = fmt.Sprintf("%.2f CPU-ms, of which %.2f without the beats of %d nodes (%d refused)", all, net, b.nodes, n)
	x.How = fmt.Sprintf("a job of more GPUs than any node has, submitted by %d callers for %v, each answered 422 with its reasons; CPU time of the three servers for each", callers, d)
	x.Met = err == nil && n > 0 && all <= 0.5
	return err
}
