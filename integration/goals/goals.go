package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// A goal is one row: what is wanted, and what measures it.
type goal struct {
	name string
	text string
	bed  bedKind
	do   func(ctx context.Context, b *bed, x *row) error
}

// A bedKind says on what a row is measured. Rows of one kind share it.
type bedKind int

const (
	bedNone    bedKind = iota
	bedSmall           // 1,000 nodes with agents
	bedIdle            // … and 1,000 agents more that get nothing to do
	bedNodes           // 5,000 nodes with agents
	bedLarge           // 10,000 nodes with agents
	bedPlanned         // 100,000 nodes without
)

// goals are all rows, in the order in which they are measured.
func goals() []goal {
	return []goal{
		{"proposer", "from the proposer ≥ 100,000 jobs/s committed and placed, p99 ≤ 10 ms", bedNone, proposer},
		{"cpu-small", "one request a job ≤ 1.7 CPU-ms a placement over all servers, at 1,000 nodes", bedSmall, perPlacement},
		{"watchers", "1,000 idle watching agents cost ≤ 1.2 ×", bedIdle, watchers},
		{"rss", "≤ 30 KB RSS a connected node, without TLS", bedNodes, memory},
		{"lone", "a lone job p50 ≤ 9 ms, p99 ≤ 18 ms to the agent's session", bedNodes, lone},
		{"hundred", "100 jobs/s: p99 ≤ 32 ms to the agent's session", bedNodes, hundred},
		{"requests", "≥ 1,100 requests/s of one job each", bedNodes, requests},
		{"batch", "≥ 40,000 jobs/s by jobs:batch", bedNodes, batches},
		{"cpu-nodes", "one request a job ≤ 1.7 CPU-ms a placement over all servers, at 5,000 nodes", bedNodes, perPlacement},
		{"tasks-10000", "a job of 10,000 tasks ≤ 1.4 s", bedNodes, tenThousand},
		{"refuse", "refusing an unplaceable job ≤ 0.5 CPU-ms", bedNodes, refuse},
		{"cpu-large", "one request a job ≤ 1.7 CPU-ms a placement over all servers, at 10,000 nodes", bedLarge, perPlacement},
		{"plan", "plan at 100,000 nodes ≤ 50 ms", bedPlanned, plan},
	}
}

// A run measures the rows that were asked for.
type run struct {
	o      *options
	talk   io.Writer // of progress
	began  time.Time
	report report
	small  float64 // CPU-ms a placement at 1,000 nodes, for the row watchers
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.talk, "%6.1f s  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

// wanted returns the chosen rows of some kinds. The row watchers compares with
// the row before it.
func (r *run) wanted(kinds ...bedKind) (out []goal) {
	for _, g := range goals() {
		chosen := len(r.o.only) == 0 || slices.Contains(r.o.only, g.name) || g.name == "cpu-small" && slices.Contains(r.o.only, "watchers")
		if chosen && slices.Contains(kinds, g.bed) {
			out = append(out, g)
		}
	}
	return out
}

// all measures kind after kind. A row that fails does not keep the others from
// being measured.
func (r *run) all(ctx context.Context) error {
	return errors.Join(
		r.measure(ctx, nil, bedNone),
		r.region(ctx, stage{bedSmall, smallNodes, r.o.gpus}, stage{bedIdle, 2 * smallNodes, 0}),
		r.region(ctx, stage{bedNodes, r.o.nodes, r.o.gpus}, stage{bedLarge, r.o.large, r.o.gpus}),
		r.planned(ctx),
	)
}

// A stage is a size that a region grows to, and the GPUs of the nodes that come.
type stage struct {
	kind        bedKind
	nodes, gpus int
}

// region starts a region and measures at one size after the other.
func (r *run) region(ctx context.Context, stages ...stage) (err error) {
	for len(stages) > 0 && len(r.wanted(stages[len(stages)-1].kind)) == 0 {
		stages = stages[:len(stages)-1]
	}
	if len(stages) == 0 {
		return nil
	}
	b, err := newBed(ctx, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	for _, s := range stages {
		if s.nodes > b.nodes {
			if err := b.connect(ctx, s.nodes, s.gpus); err != nil {
				return err
			}
		}
		if err := r.measure(ctx, b, s.kind); err != nil {
			return err
		}
	}
	return nil
}

// planned measures what needs many nodes and no agents.
func (r *run) planned(ctx context.Context) (err error) {
	if len(r.wanted(bedPlanned)) == 0 {
		return nil
	}
	b, err := newBed(ctx, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.register(ctx, r.o.planned, r.o.gpus); err != nil {
		return err
	}
	return r.measure(ctx, b, bedPlanned)
}

// measure measures the rows of a kind.
func (r *run) measure(ctx context.Context, b *bed, kind bedKind) error {
	var errs []error
	for _, g := range r.wanted(kind) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.say("row %s: %s", g.name, g.text)
		x := row{Name: g.name, Goal: g.text, Values: make(map[string]float64)}
		var err error
		if b == nil {
			b = &bed{r: r}
		}
		if err = g.do(ctx, b, &x); err != nil {
			x.Error, x.Met = err.Error(), false
			errs = append(errs, fmt.Errorf("row %s: %w", g.name, err))
		}
		x.Load = loadAverage()
		r.say("row %s: %s", g.name, x.Measured)
		r.report.Rows = append(r.report.Rows, x)
	}
	return errors.Join(errs...)
}
