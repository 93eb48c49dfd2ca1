package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// logFlags say which output is wanted.
type logFlags struct {
	group   uint16
	task    uint32
	ranks   []uint // with --group; none is all
	anyOf   bool   // of all groups
	attempt uint32
	lease   string
	stream  string // "" for both
	follow  bool
	tail    int64  // lines from the end; negative: all
	since   string // as given
	from    gpuai.WallTime
}

const (
	logChunk = 256 << 10         // bytes asked for at once
	logWait  = 10 * gpuai.Second // held by the agent when there is nothing new
)

func newJobLogsCmd(a *app) *cobra.Command {
	f := logFlags{tail: -1}
	var task uint
	c := &cobra.Command{
		Use: "logs JOB", Short: "Print what a job's tasks wrote", Args: cobra.ExactArgs(1),
		Long: `Print what the tasks of a job wrote: their standard output to standard output,
their standard error to standard error. Of one task it comes as it is. That of
several comes line by line, in the order of their nodes' clocks, each line
behind its rank (or group and index), in colours on a terminal unless NO_COLOR
is set. With -o json each line is an object {group, rank, attempt, time, stream,
line}.

Each attempt of a task keeps its own output on its node, bounded by the agent's
--log-size and --log-space, and when it has ended in the region's store, if there
is one: the latest is shown, --attempt or --lease name another. With -f it waits for the tasks to start, and goes on when one is placed
again. When some tasks cannot be read the others are printed, what is wrong is
said at the end, and the exit code is 1.`,
		Example: `  gpuai job logs sft-bot
  gpuai job logs sft-bot -f --since 10m
  gpuai job logs pretrain --rank 0,3 --tail 100
  gpuai job logs pretrain --rank 2 --attempt 1 --stream stderr
  gpuai job logs pretrain -o json | jq -r 'select(.stream == "stderr") | .line'`,
	}
	c.Flags().Uint16Var(&f.group, "group", 0, "number of the group, from 0 (default: all groups)")
	c.Flags().UintSliceVar(&f.ranks, "rank", nil, "rank of a gang's task, or number of a task in its group, from 0; several with commas (default: all)")
	c.Flags().UintVar(&task, "task", 0, "the same as one --rank")
	c.Flags().Uint32Var(&f.attempt, "attempt", 0, "the attempt of this number, from 1 (default: the latest)")
	c.Flags().StringVar(&f.lease, "lease", "", "the attempt under this lease")
	c.Flags().StringVar(&f.stream, "stream", "", "only stdout or stderr")
	c.Flags().Int64Var(&f.tail, "tail", -1, "only the last so many lines of each stream of each task; -1 for all")
	c.Flags().StringVar(&f.since, "since", "", "only what was written since: a duration such as 10m, or a time such as 2026-11-28T14:00:00Z")
	c.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on until the tasks have ended")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("task") {
			f.ranks = append(f.ranks, task)
		}
		f.anyOf = !cmd.Flags().Changed("group")
		return does(func(ctx context.Context, args []string) error { return a.logs(ctx, args[0], &f) })(cmd, args)
	}
	return a.talks(c)
}

// check reads what needs reading, and says what is wrong.
func (f *logFlags) check(now time.Time, lines bool) error {
	var err error
	switch {
	case f.stream != "" && f.stream != "stdout" && f.stream != "stderr":
		err = fmt.Errorf("--stream is stdout or stderr, not %q", f.stream)
	case f.lease != "" && (f.attempt > 0 || len(f.ranks) > 0):
		err = errors.New("--lease names one attempt of one task: leave --attempt, --rank and --task out")
	case f.lease != "" && lines:
		err = errors.New("with -o json name the attempt by --rank and --attempt, not by --lease")
	case f.follow && f.attempt > 0:
		err = errors.New("--follow goes on with the latest attempt: leave --attempt out")
	case f.since != "":
		f.from, err = sinceTime(f.since, now)
	}
	if err != nil {
		return usageError{err}
	}
	if f.tail == 0 && f.from == 0 { // what is to come
		f.from, f.tail = gpuai.WallTime(now.UnixMilli()), -1
	}
	return nil
}

// sinceTime reads a duration before now, or a time.
func sinceTime(s string, now time.Time) (gpuai.WallTime, error) {
	if d, err := gpuai.ParseDuration(s); err == nil {
		return gpuai.WallTime(now.UnixMilli() - int64(d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil && t.UnixMilli() > 0 {
			return gpuai.WallTime(t.UnixMilli()), nil
		}
	}
	return 0, fmt.Errorf("--since is a duration such as 10m, or a time such as 2026-11-28T14:00:00Z, not %q", s)
}

// logs prints what f asks for: the output of one task as it is, that of several
// in lines.
func (a *app) logs(ctx context.Context, job string, f *logFlags) error {
	if err := f.check(a.now(), a.api.output == formatJSON); err != nil {
		return err
	}
	if err := a.checkFormat(); err != nil {
		return err
	}
	if a.api.jq != "" || a.api.output != formatTable && a.api.output != formatJSON {
		return usageError{errors.New("output is printed as it is, or in lines with -o json")}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	if f.lease != "" && a.api.output != formatJSON {
		return a.copyLogs(ctx, c, job, f)
	}
	m, err := a.newLogMerge(ctx, c, job, f)
	switch {
	case err != nil:
		return err
	case len(m.tasks) > 1 || a.api.output == formatJSON:
		return m.run(ctx)
	}
	f.group, f.task = m.tasks[0].Group, m.tasks[0].Task
	if f.follow {
		_, err := a.followTask(ctx, c, m.job.ID.String(), f)
		return err
	}
	return a.copyLogs(ctx, c, m.job.ID.String(), f)
}

// query is what f asks of a task's output first.
func (f *logFlags) query(job string) (client.LogQuery, error) {
	q := client.LogQuery{Job: job, Group: f.group, Task: f.task, Limit: logChunk, Attempt: f.attempt, Since: f.from, Tail: max(f.tail, 0)}
	if f.lease != "" {
		n, err := strconv.ParseUint(f.lease, 10, 64)
		if err != nil {
			return q, usageError{fmt.Errorf("--lease is a decimal number, not %q", f.lease)}
		}
		q.Lease = gpuai.Token(n)
	}
	return q, nil
}

// copyLogs copies the streams of one run that f asks for.
func (a *app) copyLogs(ctx context.Context, c *client.Client, job string, f *logFlags) error {
	q, err := f.query(job)
	if err != nil {
		return err
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
		l.query.Offset, l.query.Since, l.query.Tail = chunk.Offset+int64(len(chunk.Data)), 0, 0
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
	return l.app.askLogs(ctx, l.client, q)
}

func (a *app) askLogs(ctx context.Context, c *client.Client, q client.LogQuery) (gpuai.LogChunk, error) {
	bounded, cancel := context.WithTimeout(ctx, a.api.timeout+duration(q.Wait))
	defer cancel()
	return c.Logs(bounded, q)
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
			copied, f.tail, f.from = t.Lease, -1, 0
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
