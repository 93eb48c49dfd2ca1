package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/nursery"
	"github.com/gpuai/gpuai/integration/oracle"
)

// A demo is one run of it.
type demo struct {
	options  *options
	dir      string
	out      io.Writer // progress
	began    time.Time
	told     time.Time // of the last progress
	programs programs
	region   *region
	watcher  *oracle.Watcher
	report   report

	probed          map[oracle.TaskKey]int64 // CLOCK_BOOTTIME of the submit call, by probe
	gang, array     string                   // job IDs
	submitted       int64                    // CLOCK_BOOTTIME of the array's submit call
	deadServer      *member
	deadHost        *host
	term            uint64         // of the leader after it
	hostDiedAt      int64          // CLOCK_BOOTTIME
	onDeadHost      []oracle.Lease // what ran there then
	training        *trainingLog
	gangBeforeDeath []oracle.Lease
}

func newDemo(o *options, dir string, out io.Writer) *demo {
	return &demo{
		options: o, dir: dir, out: out, began: time.Now(), programs: programs{dir: dir},
		watcher: oracle.NewWatcher(), probed: map[oracle.TaskKey]int64{}, training: newTrainingLog(),
	}
}

// say prints a line of progress.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.1f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// run plays the demo and checks its claims. Whatever the end, no process is
// left when it returns.
func (d *demo) run(ctx context.Context) (err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	n, err := nursery.New(filepath.Join(d.dir, "logs"), fail)
	if err != nil {
		return err
	}
	defer func() {
		if left := n.Clear(); left != nil && err == nil {
			err = left
		}
	}()
	if err := d.build(ctx); err != nil {
		return err
	}
	if err := d.sandbox(ctx); err != nil {
		return err
	}
	if d.region, err = newRegion(n, d.dir, d.options.bin); err != nil {
		return err
	}
	steps := []func(context.Context) error{
		d.start, d.policy, d.watch(fail), d.probe, d.submit, d.killLeader, d.doors, d.killAgent,
		d.finishJobs, d.digests, d.shutDown, d.check,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
	}
	d.report.Seconds = time.Since(d.began).Seconds()
	return nil
}

// build compiles the programs of the tasks.
func (d *demo) build(ctx context.Context) error {
	if err := os.MkdirAll(d.programs.beats(), 0o755); err != nil {
		return fmt.Errorf("make a directory for beats: %w", err)
	}
	d.say("building the tasks' programs")
	c := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(d.programs.root(), "bin")+"/",
		"github.com/gpuai/gpuai/examples/dataparallel", "github.com/gpuai/gpuai/examples/arraytask")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build the tasks' programs: %w: %s", err, out)
	}
	return nil
}

func (d *demo) start(ctx context.Context) error {
	d.say("starting %d servers and %d agents with %d simulated GPUs each", servers, len(d.region.hosts), gpusPerHost)
	if err := d.region.start(ctx); err != nil {
		return err
	}
	d.say("every connection is over TLS 1.3: servers and agents joined with tokens, the jobs are those of tenant %s", tenant)
	var err error
	d.report.Runtime, err = d.runtime(ctx)
	return err
}

// policy sets short leases, so that the demo need not wait for a minute.
func (d *demo) policy(ctx context.Context) error {
	p, err := d.region.api.Policy(ctx)
	if err != nil {
		return fmt.Errorf("read the policy: %w", err)
	}
	p.TTLInference, p.TTLTraining, p.TTLFinetune, p.TTLBatch = leaseTTL, leaseTTL, leaseTTL, leaseTTL
	if err := d.region.api.SetPolicy(ctx, p); err != nil {
		return fmt.Errorf("set the policy: %w", err)
	}
	d.say("leases live for %s", leaseTTL)
	return nil
}

// watch starts to follow the events.
func (d *demo) watch(fail func(error)) func(context.Context) error {
	return func(ctx context.Context) error {
		q, err := d.region.api.Queue(ctx)
		if err != nil {
			return fmt.Errorf("read the queue: %w", err)
		}
		go func() {
			if err := d.watcher.Follow(ctx, d.region.api, q.Index); ctx.Err() == nil {
				fail(fmt.Errorf("the stream of events ended: %w", err))
			}
		}()
		return nil
	}
}

// probe submits small jobs at a steady pace, to measure the way of a job.
func (d *demo) probe(ctx context.Context) error {
	d.say("submitting %d jobs of one task, to measure the time to their leases", probes)
	spec := d.programs.probe()
	pace := time.NewTicker(125 * time.Millisecond) // the start of a sandbox takes a core for as long
	defer pace.Stop()
	for range probes {
		called := beat.Boottime()
		s, err := d.region.user.Submit(ctx, client.SubmitRequest{Spec: spec})
		if err != nil {
			return fmt.Errorf("submit a probe: %w", err)
		}
		d.probed[oracle.TaskKey{Job: s.Job.ID.String(), Task: 0}] = called
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-pace.C:
		}
	}
	return nursery.Poll(ctx, "the probes to end", 50*time.Millisecond, func() (bool, error) {
		ended := d.watcher.All(func(l *oracle.Lease) bool { return l.Ended != 0 && d.probed[l.Task] != 0 })
		return len(ended) >= probes, nil
	})
}

// submit submits the two jobs, and waits until the training has a checkpoint.
func (d *demo) submit(ctx context.Context) error {
	g, err := d.region.user.Submit(ctx, client.SubmitRequest{Spec: d.programs.gang()})
	if err != nil {
		return fmt.Errorf("submit the gang: %w", err)
	}
	d.submitted = beat.Boottime()
	a, err := d.region.user.Submit(ctx, client.SubmitRequest{Spec: d.programs.array(arraySize, "2s")})
	if err != nil {
		return fmt.Errorf("submit the array: %w", err)
	}
	d.gang, d.array = g.Job.ID.String(), a.Job.ID.String()
	d.say("submitted a gang of %d (%d leases at once) and an array of %d (%d leases at once)", gangSize, len(g.Leases), arraySize, len(a.Leases))
	return d.waitStep(ctx, 30)
}

// waitStep waits until the training has printed a step, and has a checkpoint.
func (d *demo) waitStep(ctx context.Context, step int) error {
	what := fmt.Sprintf("the training to reach step %d", step)
	return nursery.Poll(ctx, what, 200*time.Millisecond, func() (bool, error) {
		d.readTraining(ctx)
		published, _, err := d.region.api.Checkpoints(ctx, d.gang, client.Page{})
		return len(published) > 0 && d.training.step() >= step, err
	})
}

// logLimit is more than rank 0 prints, with its beats.
const logLimit = 1 << 20

// readTraining reads what rank 0 has printed. Its agent may be dead just now.
func (d *demo) readTraining(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	for _, l := range d.watcher.Live(d.gang) {
		if l.Task.Task > 0 {
			continue
		}
		c, err := d.region.api.Logs(bounded, client.LogQuery{Job: d.gang, Lease: l.Token, Limit: logLimit})
		if err == nil {
			d.training.take(l.Token, string(c.Data))
		}
	}
}

// finishJobs waits until both jobs have ended well.
func (d *demo) finishJobs(ctx context.Context) error {
	for _, id := range []string{d.gang, d.array} {
		err := nursery.Poll(ctx, "job "+id+" to end", 200*time.Millisecond, func() (bool, error) {
			d.readTraining(ctx)
			job, err := d.region.api.Job(ctx, id)
			if err != nil || !job.Status.Final() {
				d.progress(ctx)
				return false, err
			}
			if job.Status != gpuai.JobSucceeded {
				return false, fmt.Errorf("job %s %s: %s", job.Name, job.Status, job.Reason)
			}
			d.say("job %s has succeeded, restarts: %d", job.Name, job.Restarts)
			d.report.restarted(id == d.gang, job.Restarts)
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	return d.readLastTraining(ctx)
}

// progress tells how far the jobs are, now and then.
func (d *demo) progress(ctx context.Context) {
	if time.Since(d.told) < 3*time.Second {
		return
	}
	d.told = time.Now()
	a, errA := d.region.api.Job(ctx, d.array)
	g, errG := d.region.api.Job(ctx, d.gang)
	if errA != nil || errG != nil {
		return // the next try will tell
	}
	d.say("array: %d of %d succeeded, %d running, %d waiting; training: %s, step %d",
		a.Counts.Succeeded, a.Tasks, a.Counts.Running+a.Counts.Leased, a.Counts.Pending, g.Status, d.training.step())
}

// shutDown ends all processes, so that no trace grows any more.
func (d *demo) shutDown(context.Context) error {
	d.say("stopping everything")
	for _, h := range d.region.hosts {
		if err := h.proc.Signal(os.Interrupt); err != nil {
			return err
		}
	}
	for _, h := range d.region.hosts {
		select {
		case <-h.proc.Done:
		case <-time.After(10 * time.Second):
			return fmt.Errorf("the agent of %s did not end within 10 s after SIGINT", h.id)
		}
	}
	for _, m := range d.region.servers {
		if err := m.proc.Signal(os.Interrupt); err != nil {
			return err
		}
	}
	return d.region.nursery.Clear()
}
