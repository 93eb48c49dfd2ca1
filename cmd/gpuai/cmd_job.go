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

func newJobCmd(a *app) *cobra.Command {
	return group("job", "Submit and watch jobs",
		newJobRunCmd(a), newJobValidateCmd(a), newJobPlanCmd(a), newJobExplainCmd(a), newJobListCmd(a),
		newJobStatusCmd(a), newJobHistoryCmd(a), newJobCheckpointsCmd(a), newJobLogsCmd(a), newJobExecCmd(a), newJobStopCmd(a), newJobInitCmd(a))
}

// paging adds the flags of a list.
func paging(c *cobra.Command, p *client.Page) {
	c.Flags().IntVar(&p.Limit, "limit", 100, "entries at most, up to 1000")
	c.Flags().StringVar(&p.Cursor, "cursor", "", "go on where a list ended")
	c.Flags().StringVar(&p.Filter, "filter", "", "only entries for which this holds, such as 'status == \"running\"'")
}

func newJobListCmd(a *app) *cobra.Command {
	var q client.JobQuery
	var status string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List jobs, the newest first", Args: cobra.NoArgs,
		Example: `  gpuai job list
  gpuai job list --status pending -o wide
  gpuai job list --archived --status failed
  gpuai job list -o name | xargs -n1 gpuai job stop`,
	}
	paging(c, &q.Page)
	c.Flags().StringVar(&status, "status", "", "only pending, running, succeeded, failed or stopped")
	c.Flags().BoolVar(&q.Archived, "archived", false, "go on with jobs that have left the region's memory")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if status != "" {
			q.Status = new(gpuai.JobStatus)
			if err := q.Status.UnmarshalText([]byte(status)); err != nil {
				return usageError{fmt.Errorf("--status: %w", err)}
			}
		}
		v := &view{
			head: []string{"JOB", "NAME", "STATUS", "TASKS", "PENDING", "RUNNING", "DONE", "FAILED", "AGE"},
			wide: []string{"TYPE", "CLASS", "PRIORITY", "RESTARTS", "TENANT", "REGION", "REASON"},
		}
		jobs, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.Job, error) {
			page, next, err := c.Jobs(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for i := range jobs {
			v.row(jobs[i].ID.String(), a.jobRow(&jobs[i])...)
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func (a *app) jobRow(j *gpuai.Job) []string {
	n := j.Counts
	return []string{
		j.ID.String(), j.Name, j.Status.String(), num(j.Tasks), num(n.Pending), num(n.Leased + n.Running),
		num(n.Succeeded), num(n.Failed + n.Lost + n.Stopped), a.age(j.SubmitTime),
		j.Type.String(), j.Class.String(), num(j.Priority), num(j.Restarts), string(j.Tenant), string(j.Region), j.Reason,
	}
}

func newJobStatusCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "status JOB", Short: "Show a job and its tasks", Args: cobra.ExactArgs(1),
		Long: "Show a job and its first 100 tasks. JOB is an ID, the start of one, or a name (the newest job of it).",
		Example: `  gpuai job status sft-bot
  gpuai job status 01J9Z -o json
  gpuai job status sft-bot --jq .job.status`,
		RunE: does(func(ctx context.Context, args []string) error {
			var tasks []gpuai.Task
			var raw []byte
			var est *gpuai.StartEstimate
			var starts []string
			j, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (j gpuai.Job, err error) {
				j, est, err = c.JobAndStart(ctx, args[0])
				if raw = a.rec.last(); err != nil || a.objects() {
					return j, err
				}
				tasks, _, err = c.Tasks(ctx, j.ID.String(), client.Page{Limit: 100})
				starts = startsOf(ctx, c, &j, tasks)
				return j, err
			})
			if err != nil {
				return err
			}
			return a.showRaw(ctx, func() []byte { return raw }, &view{
				names: []string{j.ID.String()},
				text: func(w io.Writer) error {
					if err := a.jobText(w, &j, tasks); err != nil {
						return err
					}
					for _, s := range starts {
						fmt.Fprintln(w, printable(s))
					}
					if est == nil {
						return nil
					}
					_, err := fmt.Fprintf(w, "starts  %s\n", printable(estimateText(est)))
					return err
				},
			})
		}),
	})
}

// jobHead prints a job in three lines.
func (a *app) jobHead(w io.Writer, j *gpuai.Job) error {
	fmt.Fprintf(w, "%s  %s  %v", printable(j.Name), j.ID, j.Status)
	if j.Reason != "" {
		fmt.Fprintf(w, "  (%s)", printable(j.Reason))
	}
	if j.Archived {
		fmt.Fprint(w, "  [archived]")
	}
	for _, g := range j.Images {
		fmt.Fprintf(w, "\nimage of %s  %s", printable(groupName(j, g.Group)), g.Digest)
	}
	_, err := fmt.Fprintf(w, "\n%s\ntype %v  class %v  priority %d  restarts %d  tenant %s  region %s  submitted %s ago\n\n",
		countsText(j), j.Type, j.Class, j.Priority, j.Restarts, j.Tenant, j.Region, a.age(j.SubmitTime))
	return err
}

// jobText prints a job's head and its tasks.
func (a *app) jobText(w io.Writer, j *gpuai.Job, tasks []gpuai.Task) error {
	if err := a.jobHead(w, j); err != nil {
		return err
	}
	rows := [][]string{{"TASK", "STATUS", "NODE", "LEASE", "EXIT", "RESTARTS"}}
	for _, t := range tasks {
		lease, exit := "", ""
		if t.Lease != 0 {
			lease = t.Lease.String()
		}
		if t.Status >= gpuai.TaskSucceeded || t.ExitCode != 0 {
			exit = num(t.ExitCode)
		}
		rows = append(rows, []string{taskName(j, t.TaskRef), t.Status.String(), string(t.Node), lease, exit, num(t.Attempts)})
	}
	if err := columns(w, rows); err != nil {
		return err
	}
	if err := endsText(w, j, tasks); err != nil {
		return err
	}
	if err := a.checkpointsText(w, j, tasks); err != nil {
		return err
	}
	if int(j.Tasks) > len(tasks) {
		a.say("and %s more\n", plural(uint64(int(j.Tasks)-len(tasks)), "task"))
	}
	return nil
}

// countsText says how many tasks are in which state, leaving zeros out.
func countsText(j *gpuai.Job) string {
	n := j.Counts
	var parts []string
	for _, p := range [...]struct {
		n    uint32
		what string
	}{
		{n.Pending, "pending"}, {n.Leased, "leased"}, {n.Running, "running"}, {n.Succeeded, "succeeded"},
		{n.Failed, "failed"}, {n.Lost, "lost"}, {n.Stopped, "stopped"},
	} {
		if p.n > 0 {
			parts = append(parts, num(p.n)+" "+p.what)
		}
	}
	return plural(uint64(j.Tasks), "task") + ": " + strings.Join(parts, ", ")
}

// taskName returns "worker[3]"; the group's number stands in for its name when
// the spec is not at hand.
func taskName(j *gpuai.Job, t gpuai.TaskRef) string {
	return groupName(j, t.Group) + "[" + num(t.Task) + "]"
}

func groupName(j *gpuai.Job, group uint16) string {
	if j.Spec != nil && int(group) < len(j.Spec.Groups) {
		return j.Spec.Groups[group].Name
	}
	return num(group)
}

func newJobStopCmd(a *app) *cobra.Command {
	wait := waiting{anyEnd: true}
	var key string
	c := &cobra.Command{
		Use: "stop JOB...", Short: "Stop jobs", Args: cobra.MinimumNArgs(1),
		Long: "Stop jobs: pending tasks end at once, running ones are sent SIGTERM and after their grace SIGKILL.",
		Example: `  gpuai job stop sft-bot
  gpuai job stop sft-bot --wait=done --timeout 1m`,
	}
	wait.flags(c, "done")
	c.Flags().StringVar(&key, "key", "", "idempotency key; the same key and job are stopped once")
	c.RunE = does(func(ctx context.Context, args []string) error {
		if err := wait.check(condDone); err != nil {
			return err
		}
		if key != "" && len(args) > 1 {
			return usageError{fmt.Errorf("--key names one request, but there are %d jobs", len(args))}
		}
		v := &view{head: []string{"JOB", "NAME", "STATUS"}}
		for _, ref := range args {
			j, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Job, error) {
				return c.StopJob(ctx, ref, key)
			})
			if err == nil && wait.cond != "" {
				err = a.waitInto(ctx, &j, &wait)
			}
			if err == nil {
				v.row(j.ID.String(), j.ID.String(), j.Name, j.Status.String())
				err = a.showEach(ctx, v)
			}
			if err != nil {
				return err
			}
		}
		return a.showAll(ctx, v)
	})
	return a.talks(c)
}

// waitInto waits for a job, which it updates.
func (a *app) waitInto(ctx context.Context, j *gpuai.Job, wait *waiting) error {
	now, err := a.waitJob(ctx, j.ID, wait)
	if err == nil {
		*j = *now
	}
	return err
}
