package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// logFlags say which output is wanted.
type logFlags struct {
	group  uint16
	task   uint32
	lease  string
	stream string // "" for both
	follow bool
	tail   int64 // bytes from the end; negative: from the start
}

const (
	logChunk = 256 << 10         // bytes asked for at once
	logWait  = 10 * gpuai.Second // held by the agent when there is nothing new
)

func newJobLogsCmd(a *app) *cobra.Command {
	f := logFlags{tail: -1}
	c := &cobra.Command{
		Use: "logs JOB", Short: "Print what a task wrote", Args: cobra.ExactArgs(1),
		Long: `Print what a task of a job wrote: its standard output to standard output, its
standard error to standard error. Without flags the first task of the first
group. Its latest run is shown; --lease names another, while its node keeps it.
With -f it waits for the task to start, and goes on when it is placed again.`,
		Example: `  gpuai job logs sft-bot
  gpuai job logs sft-bot -f
  gpuai job logs embed-corpus --task 17 --stream stderr --tail 2000`,
	}
	c.Flags().Uint16Var(&f.group, "group", 0, "number of the group, from 0")
	c.Flags().Uint32Var(&f.task, "task", 0, "number of the task in its group, from 0")
	c.Flags().StringVar(&f.lease, "lease", "", "the run under this lease")
	c.Flags().StringVar(&f.stream, "stream", "", "only stdout or stderr")
	c.Flags().Int64Var(&f.tail, "tail", -1, "only the last so many bytes; -1 for all")
	c.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on until the task has ended")
	c.RunE = does(func(ctx context.Context, args []string) error {
		if f.stream != "" && f.stream != "stdout" && f.stream != "stderr" {
			return usageError{fmt.Errorf("--stream is stdout or stderr, not %q", f.stream)}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		if f.follow && f.lease == "" {
			_, err := a.followTask(ctx, c, args[0], &f)
			return err
		}
		return a.copyLogs(ctx, c, args[0], &f)
	})
	return a.talks(c)
}

// copyLogs copies the streams of one run that f asks for.
func (a *app) copyLogs(ctx context.Context, c *client.Client, job string, f *logFlags) error {
	q := client.LogQuery{Job: job, Group: f.group, Task: f.task, Limit: logChunk}
	if f.lease != "" {
		n, err := strconv.ParseUint(f.lease, 10, 64)
		if err != nil {
			return usageError{fmt.Errorf("--lease is a decimal number, not %q", f.lease)}
		}
		q.Lease = gpuai.Token(n)
	}
	if f.tail >= 0 {
		q.Offset = -f.tail
	}
	if f.tail == 0 && !f.follow {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	for name, to := range map[string]io.Writer{"stdout": a.out, "stderr": a.err} {
		if f.stream == "" || f.stream == name {
			l := logCopy{app: a, client: c, query: q, follow: f.follow, to: to}
			l.query.Stream = name
			g.Go(func() error { return l.run(ctx) })
		}
	}
	return g.Wait()
}

// A logCopy copies one stream of one run.
type logCopy struct {
	app    *app
	client *client.Client
	query  client.LogQuery
	follow bool
	to     io.Writer
}

func (l *logCopy) run(ctx context.Context) error {
	for {
		chunk, err := l.next(ctx)
		switch {
		case err != nil && l.follow && away(err) && ctx.Err() == nil:
			if err := pause(ctx, pollEvery); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case chunk.Error != "" && len(chunk.Data) == 0:
			return &exitError{code: exitNotFound, text: "the task's output: " + chunk.Error}
		}
		if _, err := l.to.Write(chunk.Data); err != nil {
			return fmt.Errorf("writing the task's output: %w", err)
		}
		l.query.Offset = chunk.Offset + int64(len(chunk.Data))
		if chunk.EOF || !l.follow && len(chunk.Data) == 0 {
			return nil
		}
	}
}

// next asks for what follows. When following, the agent may hold its answer.
func (l *logCopy) next(ctx context.Context) (gpuai.LogChunk, error) {
	q := l.query
	if l.follow {
		q.Wait = logWait
	}
	bounded, cancel := context.WithTimeout(ctx, l.app.api.timeout+duration(q.Wait))
	defer cancel()
	return l.client.Logs(bounded, q)
}

// followTask copies a task's output from its start until it has ended, whatever
// happens to its runs, and returns it as it ended.
func (a *app) followTask(ctx context.Context, c *client.Client, job string, f *logFlags) (gpuai.Task, error) {
	var copied gpuai.Token
	for {
		t, err := a.findTask(ctx, c, job, f)
		switch {
		case err != nil && !away(err):
			return t, err
		case err == nil && t.Lease != copied:
			if copied != 0 {
				a.say("the task was placed again, on %s\n", t.Node)
			}
			run := *f
			run.lease = t.Lease.String()
			if err := a.copyLogs(ctx, c, job, &run); err != nil {
				return t, err
			}
			copied, f.tail = t.Lease, -1
			continue
		case err == nil && t.Status >= gpuai.TaskSucceeded:
			return t, nil
		}
		if err := pause(ctx, pollEvery); err != nil {
			return t, err
		}
	}
}

// findTask returns the task that f names.
func (a *app) findTask(ctx context.Context, c *client.Client, job string, f *logFlags) (t gpuai.Task, err error) {
	page := client.Page{Limit: 1, Filter: fmt.Sprintf("group == %d and task == %d", f.group, f.task)}
	err = a.call(ctx, func(ctx context.Context) error {
		for {
			tasks, next, err := c.Tasks(ctx, job, page)
			switch {
			case err != nil:
				return err
			case len(tasks) > 0:
				t = tasks[0]
				return nil
			case next == "":
				return gpuai.NewError(gpuai.NotFound, fmt.Sprintf("job %s has no task %d in group %d", job, f.task, f.group))
			}
			page.Cursor = next
		}
	})
	return t, err
}
