package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newJobHistoryCmd(a *app) *cobra.Command {
	var page client.Page
	c := &cobra.Command{
		Use: "history JOB", Short: "Show what happened to a job", Args: cobra.ExactArgs(1),
		Long: `Show a job and its events from the first on, whether it still runs, has ended, or
has left the region's memory for the history archive. JOB is an ID, the start of
one, or a name (the newest job of it). Times are region time.`,
		Example: `  gpuai job history sft-bot
  gpuai job history sft-bot --filter 'kind == "lease_ended"'
  gpuai job history 01J9ZK4T -o json --limit 1000`,
	}
	paging(c, &page)
	c.RunE = does(func(ctx context.Context, args []string) error {
		var job gpuai.Job
		var events []gpuai.Event
		v := &view{}
		_, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (_ struct{}, err error) {
			ref, err := a.describe(ctx, c, args[0], &job)
			if err != nil {
				return struct{}{}, err
			}
			events, v.more, err = c.JobEvents(ctx, ref, page)
			return struct{}{}, err
		})
		if err != nil {
			return err
		}
		for i := range events {
			v.names = append(v.names, fmt.Sprintf("%d.%d", events[i].Index, events[i].Ordinal))
		}
		v.text = func(w io.Writer) error { return a.historyText(w, &job, events, v.more) }
		return a.show(ctx, v)
	})
	return a.talks(c)
}

// historyText prints a job's head and its events.
func (a *app) historyText(w io.Writer, j *gpuai.Job, events []gpuai.Event, more string) error {
	if err := a.jobHead(w, j); err != nil {
		return err
	}
	rows := [][]string{{"INDEX", "TIME", "EVENT", "TASK", "NODE", "LEASE", "DETAIL"}}
	for i := range events {
		e := &events[i]
		task, lease := "", ""
		if e.Lease != 0 {
			lease = e.Lease.String()
		}
		if e.Lease != 0 || e.Kind == gpuai.TaskRequeued {
			task = taskName(j, gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task})
		}
		rows = append(rows, []string{
			num(e.Index), gpuai.Duration(e.At).String(), e.Kind.String(), task, string(e.Node), lease, eventDetail(e),
		})
	}
	if err := columns(w, rows); err != nil {
		return err
	}
	if more != "" {
		a.say("there are more: --cursor %s\n", more)
	}
	return nil
}

// eventDetail says how something ended.
func eventDetail(e *gpuai.Event) string {
	var parts []string
	if e.Kind == gpuai.JobEnded {
		parts = append(parts, e.JobStatus.String())
	}
	if e.Cause != gpuai.CauseNone {
		parts = append(parts, e.Cause.String())
	}
	if e.Kind == gpuai.LeaseEndedEvent && e.ExitCode != 0 {
		parts = append(parts, "exit "+num(e.ExitCode))
	}
	if e.Checkpoint != 0 {
		parts = append(parts, "checkpoint "+num(e.Checkpoint))
	}
	return strings.Join(parts, ", ")
}

// describe reads the job that is shown beside what is asked of it, unless only
// that is printed. It returns the job's ID then, and else the reference as it is.
func (a *app) describe(ctx context.Context, c *client.Client, ref string, job *gpuai.Job) (string, error) {
	if a.objects() {
		return ref, nil
	}
	j, err := c.Job(ctx, ref)
	*job = j
	return j.ID.String(), err // a name might stand for another job by now
}
