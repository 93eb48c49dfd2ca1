package main

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

const (
	// startsShown is how many tasks' nodes are asked how far a start is, and
	// startPatience how long each may take: it is an aside.
	startsShown   = 8
	startPatience = time.Second
	// startEvery is the time between two such looks while a job is waited for.
	startEvery = time.Second
)

// startsOf returns how far the starts of a job's leased tasks are, one line each;
// those of whom nothing is to be learned are left out.
func startsOf(ctx context.Context, c *client.Client, j *gpuai.Job, tasks []gpuai.Task) (lines []string) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	var asking errgroup.Group
	said := make([]string, 0, startsShown)
	for i := range tasks {
		t := &tasks[i]
		if t.Status != gpuai.TaskLeased || len(said) == startsShown {
			continue
		}
		said = append(said, "")
		n := len(said) - 1
		asking.Go(func() error {
			chunk, err := c.Logs(ctx, client.LogQuery{
				Job: j.ID.String(), Group: t.Group, Task: t.Task, Lease: t.Lease, Stream: gpuai.StreamProgress,
			})
			if err == nil && len(chunk.Data) > 0 {
				said[n] = taskName(j, t.TaskRef) + " on " + string(t.Node) + " is " + string(chunk.Data)
			}
			return nil
		})
	}
	_ = asking.Wait() // none fails
	for _, s := range said {
		if s != "" {
			lines = append(lines, s)
		}
	}
	return lines
}

// startOf returns how far the start of one of a job's tasks is, as of the last
// look at it; "" when none is being started.
func (a *app) startOf(ctx context.Context, c *client.Client, j *gpuai.Job, p *progress) string {
	if j.Counts.Leased == 0 {
		p.start = ""
		return ""
	}
	if time.Since(p.looked) < startEvery {
		return p.start
	}
	p.looked, p.start = time.Now(), ""
	tasks, _, err := c.Tasks(ctx, j.ID.String(), client.Page{Limit: 100})
	if err != nil {
		return "" // the next look at the job says it, too
	}
	if lines := startsOf(ctx, c, j, tasks); len(lines) > 0 {
		p.start = lines[0]
	}
	return p.start
}
