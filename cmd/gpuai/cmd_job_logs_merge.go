package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

const (
	// maxMerged and maxFollowed bound the tasks that are read at once: of each
	// stream of each a part is held, or asked for all the time.
	maxMerged, maxFollowed = 512, 64
	// mergeChunk is asked for at once when many are read.
	mergeChunk = 32 << 10
	mergeAsks  = 16 // questions at once
)

// A logMerge prints the output of several tasks line by line.
type logMerge struct {
	app    *app
	client *client.Client
	flags  *logFlags
	job    gpuai.Job
	tasks  []gpuai.Task
	// attempts are the numbers of the attempts under the leases, where they are
	// known and asked for.
	attempts map[gpuai.Token]uint32
	width    int             // of the labels
	colours  map[string]bool // of the streams

	mu     sync.Mutex // guards below, and printing
	failed map[string]error
}

// newLogMerge finds the tasks that f asks for.
func (a *app) newLogMerge(ctx context.Context, c *client.Client, ref string, f *logFlags) (*logMerge, error) {
	m := &logMerge{app: a, client: c, flags: f, failed: map[string]error{}, colours: map[string]bool{
		"stdout": colours(a.out, a.getenv), "stderr": colours(a.err, a.getenv),
	}}
	err := a.call(ctx, func(ctx context.Context) (err error) {
		m.job, err = c.Job(ctx, ref)
		return err
	})
	if err != nil {
		return nil, err
	}
	if m.tasks, err = a.tasksOf(ctx, c, &m.job); err != nil {
		return nil, err
	}
	m.tasks = slices.DeleteFunc(m.tasks, func(t gpuai.Task) bool {
		return f.lease != "" && t.Lease.String() != f.lease || !f.anyOf && t.Group != f.group ||
			len(f.ranks) > 0 && !slices.Contains(f.ranks, uint(t.Task))
	})
	if len(m.tasks) == 0 {
		return nil, f.none(ref)
	}
	most := maxMerged
	if f.follow {
		most = maxFollowed
	}
	if len(m.tasks) > most {
		return nil, usageError{fmt.Errorf("job %s has %d tasks and at most %d are read at once: choose some with --rank and --group", ref, len(m.tasks), most)}
	}
	for i := range m.tasks {
		m.width = max(m.width, len(m.label(&m.tasks[i])))
	}
	if a.api.output == formatJSON {
		m.attempts = a.attemptsOf(ctx, c, &m.job)
	}
	return m, nil
}

// none says that a job has no task that f asks for.
func (f *logFlags) none(ref string) error {
	var what []string
	for _, r := range f.ranks {
		what = append(what, num(uint64(r)))
	}
	text := "job " + ref + " has no task " + strings.Join(what, ", ") + " in group " + num(f.group)
	if len(what) == 0 {
		text = "job " + ref + " has no group " + num(f.group)
	}
	return &exitError{code: exitNotFound, text: text, next: "gpuai job status " + ref + " -o wide"}
}

// tasksOf returns the tasks of a job. In the archive those are missing that
// never had a lease.
func (a *app) tasksOf(ctx context.Context, c *client.Client, j *gpuai.Job) (all []gpuai.Task, err error) {
	page := client.Page{Limit: 1000}
	for more := true; more && err == nil; more = page.Cursor != "" {
		err = a.call(ctx, func(ctx context.Context) error {
			tasks, next, err := c.Tasks(ctx, j.ID.String(), page)
			all, page.Cursor = append(all, tasks...), next
			return err
		})
	}
	return all, err
}

// attemptsOf numbers a job's leases by task. Without the history there are no
// numbers.
func (a *app) attemptsOf(ctx context.Context, c *client.Client, j *gpuai.Job) map[gpuai.Token]uint32 {
	numbers, last := map[gpuai.Token]uint32{}, map[gpuai.TaskRef]uint32{}
	page := client.Page{Limit: 1000, Filter: `kind == "lease_granted"`}
	for more := true; more; more = page.Cursor != "" {
		err := a.call(ctx, func(ctx context.Context) error {
			events, next, err := c.JobEvents(ctx, j.ID.String(), page)
			for i := range events {
				t := gpuai.TaskRef{Job: j.ID, Group: events[i].Group, Task: events[i].Task}
				last[t]++
				numbers[events[i].Lease] = last[t]
			}
			page.Cursor = next
			return err
		})
		if err != nil {
			return nil
		}
	}
	return numbers
}

// label names a task before its lines.
func (m *logMerge) label(t *gpuai.Task) string {
	n := strconv.FormatUint(uint64(t.Task), 10)
	spec := m.job.Spec
	switch {
	case spec == nil || int(t.Group) >= len(spec.Groups):
		return num(t.Group) + "/" + n
	case len(spec.Groups) > 1:
		return spec.Groups[t.Group].Name + "/" + n
	case spec.Groups[t.Group].Gang:
		return "rank " + n
	}
	return "task " + n
}

// run prints what there is, or follows.
func (m *logMerge) run(ctx context.Context) error {
	var err error
	if m.flags.follow {
		err = m.followAll(ctx)
	} else {
		err = m.merge(ctx)
	}
	if err != nil || len(m.failed) == 0 {
		return err
	}
	var labels []string
	var first error
	for label, err := range m.failed {
		labels = append(labels, label)
		first = cmp.Or(first, err)
	}
	slices.Sort(labels)
	if len(labels) == len(m.tasks) && len(labels) == 1 {
		return first
	}
	for _, label := range labels {
		m.app.say("%s cannot be read: %v\n", label, m.failed[label])
	}
	return &exitError{code: exitOther, text: fmt.Sprintf("%d of %d tasks cannot be read", len(labels), len(m.tasks))}
}

// streams are those that are asked for.
func (m *logMerge) streams() []string {
	if m.flags.stream != "" {
		return []string{m.flags.stream}
	}
	return []string{"stdout", "stderr"}
}

// source is a stream of a task's attempt.
func (m *logMerge) source(t *gpuai.Task, stream string) *logSource {
	f := m.flags
	s := &logSource{m: m, task: *t, label: m.label(t), query: client.LogQuery{
		Job: m.job.ID.String(), Group: t.Group, Task: t.Task, Stream: stream, Limit: logChunk,
		Since: f.from, Tail: max(f.tail, 0), Times: true, Attempt: f.attempt,
	}}
	if s.attempt = f.attempt; f.attempt == 0 {
		s.query.Lease, s.attempt = t.Lease, m.attempts[t.Lease]
	}
	if !f.follow && len(m.tasks) > maxFollowed {
		s.query.Limit = mergeChunk
	}
	return s
}

// merge prints what there is in the order of time. What has no time goes with
// what is before it.
func (m *logMerge) merge(ctx context.Context) error {
	var sources []*logSource
	for i := range m.tasks {
		t := &m.tasks[i]
		if t.Lease == 0 {
			continue // it has not started
		}
		for _, stream := range m.streams() {
			sources = append(sources, m.source(t, stream))
		}
	}
	if len(sources) == 0 {
		return &exitError{code: exitNotFound, text: "no task of the job has started yet, so there is no output", next: "gpuai job explain " + m.job.ID.String()}
	}
	var asks errgroup.Group
	asks.SetLimit(mergeAsks)
	for _, s := range sources {
		asks.Go(func() error {
			s.fill(ctx)
			return nil
		})
	}
	_ = asks.Wait() // each keeps its error
	for ctx.Err() == nil {
		var next *logSource
		for _, s := range sources {
			if s.fill(ctx); len(s.lines) > 0 && (next == nil || s.lines[0].at < next.lines[0].at) {
				next = s
			}
		}
		if next == nil {
			break
		}
		if err := m.print(next, next.lines[0]); err != nil {
			return err
		}
		next.lines = next.lines[1:]
	}
	for _, s := range sources {
		if s.err != nil {
			m.fail(s.label, &s.task, s.err)
		}
	}
	return ctx.Err()
}

func (m *logMerge) fail(label string, t *gpuai.Task, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.Node != "" {
		label += " (node " + string(t.Node) + ")"
	}
	m.failed[label] = err
}

// followAll prints what comes, until all tasks have ended.
func (m *logMerge) followAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range m.tasks {
		t := m.tasks[i]
		g.Go(func() error { return m.followOne(ctx, t) })
	}
	return g.Wait()
}

// followOne prints what a task writes until it has ended, whatever happens to
// its runs.
func (m *logMerge) followOne(ctx context.Context, t gpuai.Task) error {
	var copied gpuai.Token
	flags := logFlags{group: t.Group, task: t.Task}
	for {
		switch {
		case t.Lease != copied:
			if copied != 0 && m.attempts != nil {
				m.again(ctx)
			}
			if err := m.followRun(ctx, &t, copied == 0); err != nil {
				return err
			}
			copied = t.Lease
		case t.Status >= gpuai.TaskSucceeded:
			return nil
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
		now, err := m.app.findTask(ctx, m.client, m.job.ID.String(), &flags)
		if err != nil && !away(err) {
			return err
		}
		if err == nil {
			t = now
		}
	}
}

// again learns the numbers of new attempts.
func (m *logMerge) again(ctx context.Context) {
	if fresh := m.app.attemptsOf(ctx, m.client, &m.job); fresh != nil {
		m.mu.Lock()
		m.attempts = fresh
		m.mu.Unlock()
	}
}

// followRun prints one run of a task, from where the flags say if it is the first.
func (m *logMerge) followRun(ctx context.Context, t *gpuai.Task, first bool) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, stream := range m.streams() {
		m.mu.Lock()
		s := m.source(t, stream)
		m.mu.Unlock()
		if !first {
			s.query.Since, s.query.Tail = 0, 0
		}
		g.Go(func() error { return s.follow(ctx) })
	}
	return g.Wait()
}

// A logLine is a line that a task wrote, without its end; at is 0 when it is
// not known when.
type logLine struct {
	at   gpuai.WallTime
	text []byte
}

// maxLogLine bounds a line: what is longer is cut in pieces.
const maxLogLine = 64 << 10

// A logSource is one stream of one attempt, in lines.
type logSource struct {
	m       *logMerge
	task    gpuai.Task
	label   string
	attempt uint32
	query   client.LogQuery // for what comes next
	lines   []logLine
	part    []byte // of a line
	partAt  gpuai.WallTime
	done    bool
	err     error
}

// fill gets lines when there are none left.
func (s *logSource) fill(ctx context.Context) {
	for len(s.lines) == 0 && !s.done {
		chunk, err := s.m.app.askLogs(ctx, s.m.client, s.query)
		if err == nil && chunk.Error != "" {
			err = errors.New(chunk.Error)
		}
		if s.err = err; err != nil {
			s.end()
			return
		}
		if s.take(&chunk); chunk.EOF || len(chunk.Data) == 0 {
			s.end()
		}
	}
}

// follow prints lines as they come.
func (s *logSource) follow(ctx context.Context) error {
	s.query.Wait = logWait
	for !s.done {
		chunk, err := s.m.app.askLogs(ctx, s.m.client, s.query)
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil && away(err):
			if err := pause(ctx, pollEvery); err != nil {
				return err
			}
			continue
		case err != nil:
			s.m.fail(s.label, &s.task, err)
			return nil // the others go on
		}
		if s.take(&chunk); chunk.EOF {
			s.end()
		}
		for _, l := range s.lines {
			if err := s.m.print(s, l); err != nil {
				return err
			}
		}
		s.lines = s.lines[:0]
	}
	return nil
}

// take cuts a chunk into lines.
func (s *logSource) take(c *gpuai.LogChunk) {
	if c.Offset != s.query.Offset {
		s.cut() // something is missing between the two
	}
	s.query.Offset, s.query.Since, s.query.Tail = c.Offset+int64(len(c.Data)), 0, 0
	at, times := c.Offset, c.Times
	for line := range strings.Lines(string(c.Data)) {
		for len(times) > 1 && times[1].Offset <= at {
			times = times[1:]
		}
		if len(s.part) == 0 && len(times) > 0 && times[0].Offset <= at {
			s.partAt = times[0].At
		}
		at += int64(len(line))
		text, whole := strings.CutSuffix(line, "\n")
		for s.part = append(s.part, text...); len(s.part) > maxLogLine; s.part = s.part[maxLogLine:] {
			s.lines = append(s.lines, logLine{s.partAt, slices.Clone(s.part[:maxLogLine])})
		}
		if whole {
			s.lines = append(s.lines, logLine{s.partAt, s.part})
			s.part = nil
		}
	}
}

// cut ends a line that has no end.
func (s *logSource) cut() {
	if len(s.part) > 0 {
		s.lines, s.part = append(s.lines, logLine{s.partAt, s.part}), nil
	}
}

func (s *logSource) end() {
	s.cut()
	s.done = true
}

// A logRecord is a line in JSON.
type logRecord struct {
	Group   string `json:"group"`
	Rank    uint32 `json:"rank"`
	Attempt uint32 `json:"attempt,omitzero"`
	Time    string `json:"time,omitzero"`
	Stream  string `json:"stream"`
	Line    string `json:"line"`
}

// print prints a line behind its label, or as an object.
func (m *logMerge) print(s *logSource, l logLine) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.app.api.output == formatJSON {
		r := logRecord{Group: num(s.task.Group), Rank: s.task.Task, Attempt: s.attempt, Stream: s.query.Stream, Line: strings.ToValidUTF8(string(l.text), "\uFFFD")}
		if m.job.Spec != nil && int(s.task.Group) < len(m.job.Spec.Groups) {
			r.Group = m.job.Spec.Groups[s.task.Group].Name
		}
		if l.at > 0 {
			r.Time = time.UnixMilli(int64(l.at)).UTC().Format("2006-01-02T15:04:05.000Z07:00")
		}
		b, err := json.Marshal(&r)
		if err != nil {
			return fmt.Errorf("writing a line as JSON: %w", err)
		}
		_, err = fmt.Fprintf(m.app.out, "%s\n", b)
		return err
	}
	to := m.app.out
	if s.query.Stream == "stderr" {
		to = m.app.err
	}
	label := fmt.Sprintf("%-*s |", m.width, s.label)
	if m.colours[s.query.Stream] {
		label = "\x1b[" + palette[int(s.task.Task)%len(palette)] + "m" + label + "\x1b[0m"
	}
	if _, err := fmt.Fprintf(to, "%s %s\n", label, l.text); err != nil {
		return fmt.Errorf("writing the tasks' output: %w", err)
	}
	return nil
}

// palette are the colours of labels, by rank: those that are read on a dark
// terminal and on a light one.
var palette = [...]string{"36", "33", "32", "35", "34", "31"}

// colours reports whether w shows them and nobody has asked for none.
func colours(w io.Writer, getenv func(string) string) bool {
	return getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && isTerminal(w)
}

// isTerminal reports whether a reader or writer is a terminal.
func isTerminal(x any) bool {
	f, ok := x.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
