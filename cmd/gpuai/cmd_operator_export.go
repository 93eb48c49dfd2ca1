package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
)

// formatJSONL is the only form of an export: one JSON object a line.
const formatJSONL = "jsonl"

// exportProgress is how often an export says how far it has come.
const exportProgress = 2 * time.Second

// An exportPlan is what is asked of an export.
type exportPlan struct {
	format string
	out    string // file; "" is standard output
	since  uint64
	resume bool // go on where out ends
}

func newExportCmd(a *app) *cobra.Command {
	var p exportPlan
	c := &cobra.Command{
		Use: "export", Short: "Export history and state as lines of JSON", Args: cobra.NoArgs,
		Long: `Export all jobs, tasks, leases and events that the region knows: first its history
archive in the order of the log, then what is still in memory. Each line is one
JSON object with "kind" (begin, event, job, task, lease, end), "index", and one
member of the kind's name; "archived" marks what is history and will not change.

A whole export ends with a line of kind "end"; its index is what --since of the
next one takes. An export into a file that broke off goes on with --resume.`,
		Example: `  gpuai operator export --out region.jsonl
  gpuai operator export --out region.jsonl --resume
  gpuai operator export --since 48377 | jq -c 'select(.kind == "job") | .job'`,
	}
	f := c.Flags()
	f.StringVar(&p.format, "format", formatJSONL, "form of the export; jsonl is the only one")
	f.Uint64Var(&p.since, "since", 0, "only history after this index")
	f.StringVar(&p.out, "out", "", "write to this file, which must not exist, and not to standard output")
	f.BoolVar(&p.resume, "resume", false, "go on where the file of --out ends")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if err := p.check(); err != nil {
			return err
		}
		return a.export(ctx, &p)
	})
	return a.reaches(c)
}

func (p *exportPlan) check() error {
	switch {
	case p.format != formatJSONL:
		return usageError{fmt.Errorf("--format is %s, not %q", formatJSONL, p.format)}
	case p.resume && p.out == "":
		return usageError{errors.New("--resume goes on with a file: name it with --out")}
	case p.resume && p.since > 0:
		return usageError{errors.New("--resume finds out where to go on: leave --since out")}
	}
	return nil
}

// export writes an export to the plan's file, or to standard output.
func (a *app) export(ctx context.Context, p *exportPlan) (err error) {
	a.api.output = formatJSON // there is no other
	c, err := a.connect()
	if err != nil {
		return err
	}
	x := exporting{a: a, since: p.since, resumed: p.resume}
	out := a.out
	if p.out != "" {
		f, err := x.open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		defer func() {
			if syncErr := f.Sync(); err == nil {
				err = syncErr
			}
		}()
		out = f
	}
	w := bufio.NewWriterSize(out, 1<<16)
	x.w = w
	err = c.Export(ctx, x.since, x.line)
	if flushErr := w.Flush(); err == nil {
		err = flushErr
	}
	if err != nil && p.out != "" {
		return fmt.Errorf("%w; %s holds what came: go on with --resume", err, p.out)
	}
	if err == nil {
		a.say("%s\nwhole up to index %d: go on later with --since %d\n", x.counts(), x.index, x.index)
	}
	return err
}

// An exporting is an export under way.
type exporting struct {
	a       *app
	w       io.Writer
	since   uint64
	resumed bool
	index   uint64
	n       map[gpuai.ExportKind]uint64
	told    time.Time
}

// open opens the plan's file. One that is resumed is cut behind its history,
// whose last index may be there in part and comes again.
func (x *exporting) open(p *exportPlan) (*os.File, error) {
	if !p.resume {
		f, err := os.OpenFile(p.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return nil, usageError{fmt.Errorf("%s exists: go on with it by --resume, or name another file", p.out)}
		}
		return f, err
	}
	f, err := os.OpenFile(p.out, os.O_RDWR, 0)
	if err != nil {
		return nil, usageError{err}
	}
	end, since, err := exportEnd(f)
	if err == nil {
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("resuming the export in %s: %w", p.out, err)
	}
	if x.since = since; end == 0 {
		x.resumed = false // there was not even a first line
	}
	return f, nil
}

// exportHead begins every export.
var exportHead = []byte(`{"kind":"begin"`)

// exportEnd returns where the history in an export ends, and the index after
// which to go on. State behind it is read anew.
func exportEnd(src io.Reader) (end int64, since uint64, err error) {
	r := bufio.NewReaderSize(src, 1<<16)
	at, last := int64(0), uint64(0)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return 0, 0, err
		}
		if at == 0 && len(line) > 0 && !bytes.HasPrefix(line, exportHead) {
			return 0, 0, usageError{errors.New("the file is no export: its first line is not of kind begin")}
		}
		var l gpuai.ExportLine
		if err == nil {
			err = json.Unmarshal(line, &l)
		}
		if _, peek := r.Peek(1); err != nil && peek == io.EOF { // a part of a line, or none: the last index may not be whole
			return end, max(since, last) - min(1, last), nil
		}
		if err != nil {
			return 0, 0, usageError{fmt.Errorf("byte %d begins no line of an export: %w", at, err)}
		}
		switch {
		case l.Kind == gpuai.ExportBegin:
			since, end = l.Index, at+int64(len(line))
		case !l.Archived: // of the state: what comes before it is whole
			return at, max(since, last), nil
		case l.Index > last:
			last, end = l.Index, at
		}
		at += int64(len(line))
	}
}

// line writes one line.
func (x *exporting) line(raw []byte, l *gpuai.ExportLine) error {
	if x.n == nil {
		x.n, x.told = map[gpuai.ExportKind]uint64{}, time.Now()
	}
	x.n[l.Kind]++
	x.index = max(x.index, l.Index)
	if l.Kind == gpuai.ExportBegin {
		x.warn(l)
		if x.resumed { // the file has its first line
			return nil
		}
	}
	if _, err := fmt.Fprintf(x.w, "%s\n", raw); err != nil {
		return err
	}
	if time.Since(x.told) >= exportProgress {
		x.told = time.Now()
		x.a.say("%s, at index %d\n", x.counts(), x.index)
	}
	return nil
}

// warn says what the export cannot have.
func (x *exporting) warn(l *gpuai.ExportLine) {
	if l.Dropped > x.since {
		x.a.say("history up to index %d is not whole: the oldest made way for newer (server run --archive-max)\n", l.Dropped)
	}
	for _, r := range l.Missing {
		if r.To > x.since {
			x.a.say("the history of indexes %d to %d is missing: no server that answers has it\n", r.From, r.To)
		}
	}
}

func (x *exporting) counts() string {
	return fmt.Sprintf("%s, %s, %s, %s",
		plural(x.n[gpuai.ExportJob], "job"), plural(x.n[gpuai.ExportTask], "task"),
		plural(x.n[gpuai.ExportLease], "lease"), plural(x.n[gpuai.ExportEvent], "event"))
}
