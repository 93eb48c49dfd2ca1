package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newQueueCmd(a *app) *cobra.Command {
	return group("queue", "Look at what waits", newQueueListCmd(a), newQueuePendingCmd(a))
}

func newQueueListCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "Sum up the queue by what jobs need", Args: cobra.NoArgs,
		Example: `  gpuai queue list
  gpuai queue list --jq .oldest_age_ms`,
		RunE: does(func(ctx context.Context, _ []string) error {
			q, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.QueueStatus, error) {
				return c.Queue(ctx)
			})
			if err != nil {
				return err
			}
			v := &view{head: []string{"PRIORITY", "JOBS", "TASKS", "GANG", "REASON", "OLDEST", "NEEDS"}}
			for i := range q.Shapes {
				s := &q.Shapes[i]
				gang := ""
				if s.Gang > 0 {
					gang = num(s.Gang)
				}
				v.row(s.Oldest.String(), num(s.Priority), num(s.Jobs), num(s.Tasks), gang, s.Reason.String(), s.Oldest.String(), needsText(s.Needs))
			}
			table := *v
			v.text = func(w io.Writer) error {
				if err := columns(w, [][]string{{"jobs", num(q.Jobs)}, {"tasks", num(q.Tasks)}, {"gpus", num(q.GPUs)}, {"oldest", short(q.OldestAge)}}); err != nil || len(table.rows) == 0 {
					return err
				}
				if _, err := io.WriteString(w, "\n"); err != nil {
					return err
				}
				return table.write(w, false)
			}
			return a.show(ctx, v)
		}),
	})
}

func newQueuePendingCmd(a *app) *cobra.Command {
	var q client.Page
	c := &cobra.Command{
		Use: "pending", Short: "List the waiting jobs in the order of the queue", Args: cobra.NoArgs,
		Example: `  gpuai queue pending --limit 10`,
	}
	paging(c, &q)
	c.RunE = does(func(ctx context.Context, _ []string) error {
		v := &view{
			head: []string{"POSITION", "JOB", "NAME", "PRIORITY", "PENDING", "GPUS", "WAITING"},
			wide: []string{"TENANT"},
		}
		entries, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.QueueEntry, error) {
			page, next, err := c.Pending(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for _, e := range entries {
			v.row(e.Job.String(), num(e.Position), e.Job.String(), e.Name, num(e.Priority), num(e.Pending), num(e.GPUs), short(e.Waiting), string(e.Tenant))
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}
