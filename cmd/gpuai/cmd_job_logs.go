package main

import (
	"context"
	"errors"
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
	logRetry = 500 * gpuai.Millisecond
)

func newJobLogsCmd(a *app) *cobra.Command {
	f := logFlags{tail: -1}
	c := &cobra.Command{
		Use: "logs JOB", Short: "Print what a task wrote", Args: cobra.ExactArgs(1),
		Long: `Print what a task of a job wrote: its standard output to standard output, its
standard error to standard error. Without flags the first task of the first
group. Its latest run is shown; --lease names another, while its node keeps it.`,
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
		return a.copyLogs(ctx, args[0], &f)
	})
	return a.talks(c)
}

// copyLogs copies the streams that f asks for.
func (a *app) copyLogs(ctx context.Context, job string, f *logFlags) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	q := client.LogQuery{Job: job, Group: f.group, Task: f.task, Limit: logChunk}
	if f.tail >= 0 {
		q.Offset = -f.tail
	}
	if f.lease != "" {
		n, err := strconv.ParseUint(f.lease, 10, 64)
		if err != nil {
			return usageError{fmt.Errorf("--lease is a decimal number, not %q", f.lease)}
		}
		q.Lease = gpuai.Token(n)
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

// A logCopy copies one stream of one task.
type logCopy struct {
	app    *app
	client *client.Client
	query  client.LogQuery
	follow bool
	to     io.Writer
	began  bool // the offset is one that the agent said
}

func (l *logCopy) run(ctx context.Context) error {
	for {
		chunk, err := l.next(ctx)
		switch {
		case err != nil && l.follow && retriable(err) && ctx.Err() == nil:
			if err := pause(ctx, duration(logRetry)); err != nil {
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
		l.query.Offset, l.began = chunk.Offset+int64(len(chunk.Data)), true
		if chunk.EOF || !l.follow && len(chunk.Data) == 0 {
			return nil
		}
	}
}

// next asks for what follows. When following, the agent may hold its answer.
func (l *logCopy) next(ctx context.Context) (chunk gpuai.LogChunk, err error) {
	q := l.query
	if l.follow {
		q.Wait = logWait
	}
	bounded, cancel := context.WithTimeout(ctx, l.app.api.timeout+duration(q.Wait))
	defer cancel()
	chunk, err = l.client.Logs(bounded, q)
	if l.query.Offset < 0 && err == nil && len(chunk.Data) == 0 && !chunk.EOF {
		chunk.Offset = max(chunk.Offset, 0)
	}
	return chunk, err
}

// retriable reports whether output that is followed may come yet: the task has
// no lease yet, or its node or the servers are away.
func retriable(err error) bool {
	var api *gpuai.Error
	return away(err) || errors.As(err, &api) && (api.Code == gpuai.PreconditionFailed || api.Code == gpuai.Conflict)
}
