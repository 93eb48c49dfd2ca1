package loadgen

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A LoadConfig says what to submit.
type LoadConfig struct {
	// Addrs are the servers, by URL. Submits go to the first one that answers.
	Addrs    []string
	Access   Access  // as whom jobs are submitted
	Rate     float64 // jobs a second, above 0
	Duration time.Duration
	GPUs     int // of each job's one task
	// Labels, where set, are those of the nodes that may be given the jobs: in a region
	// with other nodes too, those of the fleet.
	Labels map[string]string
	Batch  int // jobs of one request; 1 is a request of its own for each job
	// Settle is for how long, after the last submit, no lease may arrive
	// before those that are due are given up.
	Settle time.Duration
	// Progress is called about once a second; nil is none.
	Progress func(submitted, placed int)
}

// Bounds of what is under way. A server lets 512 submits in at once and answers
// more with 429: beyond it nothing but the client's back-off would be measured.
const (
	maxSingles = 256
	maxBatched = 16_000 // jobs
)

const (
	callTimeout = 30 * time.Second
	// lingering is for how long answers are awaited once Run's context ended.
	lingering = 2 * time.Second
	// queueTime ends the jobs of a bench that is gone.
	queueTime = 10 * gpuai.Minute
)

// Validate says which value makes no sense.
func (cfg *LoadConfig) Validate() error {
	switch {
	case !(cfg.Rate > 0 && cfg.Rate <= 1e6):
		return fmt.Errorf("the rate must be above 0 and at most 1000000 jobs a second, not %v", cfg.Rate)
	case cfg.Duration <= 0 || cfg.Duration > time.Hour:
		return fmt.Errorf("the duration must be above 0 and at most 1h, not %v", cfg.Duration)
	case cfg.Batch < 1 || cfg.Batch > gpuai.MaxBatchJobs:
		return fmt.Errorf("a batch has 1 to %d jobs, not %d", gpuai.MaxBatchJobs, cfg.Batch)
	case cfg.GPUs < 0 || cfg.GPUs > gpuai.MaxGPUs:
		return fmt.Errorf("a job asks for 0 to %d GPUs, not %d", gpuai.MaxGPUs, cfg.GPUs)
	case cfg.jobs() < 1:
		return fmt.Errorf("%v jobs a second for %v are not one batch of %d", cfg.Rate, cfg.Duration, cfg.Batch)
	}
	return nil
}

// requests is how many requests the load has.
func (cfg *LoadConfig) requests() int {
	return int(cfg.Rate * cfg.Duration.Seconds() / float64(cfg.Batch))
}

func (cfg *LoadConfig) jobs() int { return cfg.requests() * cfg.Batch }

// Run submits at the rate for the duration, whatever the answers, and then
// waits for the leases that are still due. What it records is in rec, also when
// ctx ends early; its error is then nil too.
func Run(ctx context.Context, cfg LoadConfig, rec *Recorder) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	c, err := cfg.Access.client(newTransport(), cfg.Addrs)
	if err != nil {
		return err
	}
	stop := tell(ctx, &cfg, rec)
	defer stop()
	cfg.submitAll(ctx, c, rec)
	cfg.settle(ctx, rec)
	return nil
}

// newTransport returns one that keeps a connection for each submit under way: the
// default would dial anew for nearly every one.
func newTransport() *http.Transport {
	return &http.Transport{MaxIdleConnsPerHost: maxSingles, IdleConnTimeout: time.Minute, DisableCompression: true}
}

// tell calls Progress once a second until it is stopped.
func tell(ctx context.Context, cfg *LoadConfig, rec *Recorder) (stop func()) {
	if cfg.Progress == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				called, _, placed := rec.counts()
				cfg.Progress(called, placed)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// submitAll calls every submit when it is due, or as soon after as the bound on
// what is under way allows, and waits for the answers.
func (cfg *LoadConfig) submitAll(ctx context.Context, c *client.Client, rec *Recorder) {
	calls, cancel := lasting(ctx, lingering)
	defer cancel()
	under := maxSingles
	if cfg.Batch > 1 {
		under = max(1, maxBatched/cfg.Batch)
	}
	slots := make(chan struct{}, under)
	gap := float64(time.Second) * float64(cfg.Batch) / cfg.Rate
	spec := cfg.spec()
	var wg sync.WaitGroup
	defer wg.Wait()
	start, began := time.Now(), monotonic()
	for i := range cfg.requests() {
		offset := time.Duration(float64(i) * gap)
		if sleepUntil(ctx, start.Add(offset)) != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		due := began + int64(offset)
		rec.call(cfg.Batch, due)
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(calls, callTimeout)
			defer cancel()
			jobs, err := cfg.submit(ctx, c, &spec)
			rec.accepted(jobs, due)
			if err != nil {
				rec.failed(cfg.Batch-len(jobs), err)
			}
		})
	}
}

// lasting returns a context that ends d after ctx does.
func lasting(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	forget := context.AfterFunc(ctx, func() { time.AfterFunc(d, cancel) })
	return longer, func() { forget(); cancel() }
}

// spec is the job that is submitted again and again. It ends by itself in a
// region whose bench is gone: it is not placed twice, and does not wait for long.
func (cfg *LoadConfig) spec() gpuai.JobSpec {
	spec := gpuai.JobSpec{
		Name: "bench", Tenant: cfg.Access.Tenant, Limits: gpuai.Limits{QueueTime: queueTime},
		Groups: []gpuai.Group{{
			Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: uint32(cfg.GPUs)}},
			Restart:   gpuai.Restart{On: []gpuai.RestartCause{}},
			Task:      gpuai.TaskSpec{Command: []string{"true"}},
		}},
	}
	for _, k := range slices.Sorted(maps.Keys(cfg.Labels)) {
		spec.Groups[0].Constraints = append(spec.Groups[0].Constraints, gpuai.Constraint{Attribute: "label." + k, Op: gpuai.Equal, Values: []string{cfg.Labels[k]}})
	}
	return spec
}

// submit makes one request. It returns the jobs that were accepted, and why the
// first other one was not.
func (cfg *LoadConfig) submit(ctx context.Context, c *client.Client, spec *gpuai.JobSpec) ([]gpuai.JobID, error) {
	if cfg.Batch == 1 {
		s, err := c.Submit(ctx, client.SubmitRequest{Spec: spec})
		if err != nil {
			return nil, err
		}
		return []gpuai.JobID{s.Job.ID}, nil
	}
	specs := make([]gpuai.JobSpec, cfg.Batch)
	for i := range specs {
		specs[i] = *spec
	}
	results, err := c.SubmitBatch(ctx, specs, "")
	if err != nil {
		return nil, err
	}
	if len(results) != cfg.Batch {
		return nil, fmt.Errorf("a batch of %d jobs was answered with %d results", cfg.Batch, len(results))
	}
	jobs := make([]gpuai.JobID, 0, len(results))
	for i := range results {
		if r := &results[i]; r.Code == gpuai.OK {
			jobs = append(jobs, r.Job)
		} else if err == nil {
			err = gpuai.NewError(r.Code, r.Detail)
		}
	}
	return jobs, err
}

// settle waits until every job has its lease, or none has arrived for Settle.
func (cfg *LoadConfig) settle(ctx context.Context, rec *Recorder) {
	before, since := -1, time.Now()
	for time.Since(since) < cfg.Settle {
		called, refused, placed := rec.counts()
		if placed >= called-refused {
			return
		}
		if placed != before {
			before, since = placed, time.Now()
		}
		if sleepUntil(ctx, time.Now().Add(10*time.Millisecond)) != nil {
			return
		}
	}
}

func sleepUntil(ctx context.Context, t time.Time) error {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// LeaderFirst returns the servers' URLs with the leader's first: that is the
// way of a client that has found it, and saves the hop of a forwarded request.
func LeaderFirst(ctx context.Context, acc Access, addrs []string) ([]string, error) {
	var out []string
	var problems []error
	for _, a := range addrs {
		c, err := acc.client(&http.Transport{DisableKeepAlives: true}, []string{a})
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, callTimeout/3)
		st, err := c.Raft(ctx)
		cancel()
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("asking %s for its leader: %w", a, err))
		case st.Leader == st.Server:
			out = append([]string{c.Addrs()[0]}, out...)
		default:
			out = append(out, c.Addrs()[0])
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no server among %q", strings.Join(addrs, ","))
	}
	return out, nil
}
