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

func newJobCheckpointsCmd(a *app) *cobra.Command {
	var page client.Page
	c := &cobra.Command{
		Use: "checkpoints JOB", Short: "List what a job's tasks have published", Args: cobra.ExactArgs(1),
		Long: `List the checkpoints of a job that are kept: by task, the newest first, which is
what the task goes on from when it runs again. JOB is an ID, the start of one, or
a name (the newest job of it). They are kept until the job leaves the region's
memory. Times are region time.`,
		Example: `  gpuai job checkpoints sft-bot
  gpuai job checkpoints sft-bot -o wide
  gpuai job checkpoints sft-bot --jq '.checkpoints[0].step'`,
	}
	paging(c, &page)
	c.RunE = does(func(ctx context.Context, args []string) error {
		var job gpuai.Job
		var list []gpuai.PublishedCheckpoint
		_, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (_ struct{}, err error) {
			ref, err := a.describe(ctx, c, args[0], &job)
			if err != nil {
				return struct{}{}, err
			}
			list, page.Cursor, err = c.Checkpoints(ctx, ref, page)
			return struct{}{}, err
		})
		if err != nil {
			return err
		}
		v := &view{head: []string{"TASK", "SEQ", "STEP", "SIZE", "TIME", "LEASE"}, wide: []string{"DIGEST", "KEY"}, more: page.Cursor}
		for i := range list {
			p := &list[i]
			step := ""
			if p.Step != 0 {
				step = num(p.Step)
			}
			v.row(p.Key, taskName(&job, p.TaskRef), num(p.Seq), step, bytesText(p.Bytes), gpuai.Duration(p.PublishedAt).String(),
				p.Lease.String(), p.Digest.String(), p.Key)
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

// checkpointsText prints the newest checkpoint of each task that has one.
func (a *app) checkpointsText(w io.Writer, j *gpuai.Job, tasks []gpuai.Task) error {
	var parts []string
	for i := range tasks {
		p := tasks[i].Checkpoint
		if p == nil {
			continue
		}
		step := ""
		if p.Step != 0 {
			step = ", step " + num(p.Step)
		}
		parts = append(parts, fmt.Sprintf("%s has %d%s, %s", taskName(j, p.TaskRef), p.Seq, step, bytesText(p.Bytes)))
		if len(parts) == 4 {
			parts = append(parts, "…")
			break
		}
	}
	if len(parts) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "checkpoints  %s\n", printable(strings.Join(parts, "; ")))
	return err
}
