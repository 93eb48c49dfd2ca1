package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
)

// Conditions of --wait.
const (
	condRunning = "running" // every task has, or had, a lease
	condDone    = "done"    // the job has ended
)

// A waiting is what --wait and --timeout say.
type waiting struct {
	cond    string
	timeout time.Duration
	anyEnd  bool // every end of the job is what was wanted
}

func (w *waiting) flags(c *cobra.Command, bare string) {
	c.Flags().StringVar(&w.cond, "wait", "", "wait until "+condRunning+" or "+condDone+"; --wait alone is --wait="+bare)
	c.Flags().Lookup("wait").NoOptDefVal = bare
	c.Flags().DurationVar(&w.timeout, "timeout", 0, "wait no longer than this; 0 is for ever")
}

func (w *waiting) check(conds ...string) error {
	switch {
	case w.cond == "" && w.timeout != 0:
		return usageError{errors.New("--timeout is for --wait; one API call is bounded by --request-timeout")}
	case w.timeout < 0:
		return usageError{fmt.Errorf("--timeout must not be negative, not %v", w.timeout)}
	case w.cond != "" && !slices.Contains(conds, w.cond):
		return usageError{fmt.Errorf("--wait is one of %s, not %q", strings.Join(conds, ", "), w.cond)}
	}
	return nil
}

// pollEvery is the time between two looks at a job that is waited for.
const pollEvery = 250 * time.Millisecond

// waitJob waits for a job as w says, telling its progress on standard error.
func (a *app) waitJob(ctx context.Context, id gpuai.JobID, w *waiting) (*gpuai.Job, error) {
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if w.timeout > 0 {
		bounded, cancel = context.WithTimeout(ctx, w.timeout)
	}
	defer cancel()
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	p := progress{app: a}
	j := gpuai.Job{ID: id}
	for {
		err := a.call(bounded, func(ctx context.Context) error {
			now, err := c.Job(ctx, id.String())
			if err == nil {
				j = now
			}
			return err
		})
		if err == nil {
			p.tell(&j, a.startOf(bounded, c, &j, &p))
		}
		switch {
		case err == nil && j.Status.Final() && w.anyEnd:
			return &j, nil
		case err == nil && j.Status.Final():
			return &j, ended(&j)
		case err == nil && w.cond == condRunning && j.Counts.Pending == 0:
			return &j, nil
		case bounded.Err() != nil && ctx.Err() == nil:
			return &j, w.late(&j)
		case err != nil && !away(err):
			return nil, err
		}
		if err := pause(bounded, pollEvery); err != nil && ctx.Err() != nil {
			return nil, err
		}
	}
}

// away reports whether the servers may come back.
func away(err error) bool {
	var api *gpuai.Error
	return errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &api) && (api.Code == gpuai.NoLeader || api.Code == gpuai.RateLimited)
}

// ended turns a job's end into the command's.
func ended(j *gpuai.Job) error {
	switch {
	case j.Status == gpuai.JobFailed:
		return &exitError{code: exitJobFailed, text: "the job failed: " + countsText(j) + because(j), next: "gpuai job logs " + j.ID.String() + ", gpuai job status " + j.ID.String()}
	case j.Status == gpuai.JobStopped:
		return &exitError{code: exitJobFailed, text: "the job was stopped: " + j.Reason}
	}
	return nil
}

// because says why a job ended, where it is known.
func because(j *gpuai.Job) string {
	if j.Reason == "" {
		return ""
	}
	return "; " + j.Reason
}

func (w *waiting) late(j *gpuai.Job) error {
	n := j.Counts
	explain := "gpuai job explain " + j.ID.String() + " says why it waits; it stays queued"
	switch {
	case j.StartedAt == 0 && n.Pending == j.Tasks:
		return &exitError{code: exitNothingPlaced, text: "nothing was placed within " + w.timeout.String(), next: explain}
	case w.cond == condRunning:
		return &exitError{code: exitTimedOut, text: fmt.Sprintf("%d of %d tasks were placed within %v", j.Tasks-n.Pending, j.Tasks, w.timeout), next: explain}
	}
	return &exitError{code: exitTimedOut, text: "not done within " + w.timeout.String() + ": " + countsText(j), next: "the job goes on; gpuai job stop " + j.ID.String() + " stops it"}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// A progress tells changes of a job on standard error.
type progress struct {
	app    *app
	said   string
	looked time.Time // at how far tasks' starts are
	start  string
}

// tell says how a job is, and how far the start of one of its tasks is.
func (p *progress) tell(j *gpuai.Job, start string) {
	line := fmt.Sprintf("%s: %v, %s\n", j.Name, j.Status, countsText(j))
	if start != "" {
		line = fmt.Sprintf("%s: %v, %s; %s\n", j.Name, j.Status, countsText(j), start)
	}
	if line != p.said {
		p.app.say("%s", line)
		p.said = line
	}
}

// attach waits for the first task of a job, copies its output, and ends with
// the task's exit code.
func (a *app) attach(ctx context.Context, j *gpuai.Job) error {
	a.say("job %s\n", j.ID)
	c, err := a.connect()
	if err != nil {
		return err
	}
	t, err := a.followTask(ctx, c, j.ID.String(), &logFlags{follow: true, tail: -1})
	if err != nil || t.Status == gpuai.TaskSucceeded {
		return err
	}
	code := int(t.ExitCode)
	if code <= 0 || code > 255 {
		code = exitJobFailed
	}
	return &exitError{code: code, text: "the task " + t.Status.String() + " with exit code " + num(t.ExitCode)}
}
