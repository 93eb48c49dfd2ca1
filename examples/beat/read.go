package beat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A Beat is one line of a trace.
type Beat struct {
	Identity
	At int64 // CLOCK_BOOTTIME in nanoseconds
}

// A Run is the trace of one runner.
type Run struct {
	Identity
	File        string
	First, Last int64 // CLOCK_BOOTTIME of the first and the last beat, in nanoseconds
	Beats       int
}

// ReadRuns reads all traces of a directory. A last line that was cut off is
// left out; any other malformed line, and a trace that changes its identity or
// whose time goes back, is an error. Traces without a whole line are left out.
func ReadRuns(dir string) ([]Run, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("list the traces: %w", err)
	}
	runs := make([]Run, 0, len(files))
	for _, file := range files {
		r, err := readRun(file)
		if err != nil {
			return nil, err
		}
		if r.Beats > 0 {
			runs = append(runs, r)
		}
	}
	return runs, nil
}

func readRun(file string) (Run, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Run{}, fmt.Errorf("read a trace: %w", err)
	}
	return read(file, data, "")
}

// ReadOutput reads the trace among the lines that a program wrote which beats to
// its standard output. name is where they were found. A Run without beats is of
// one that wrote none.
func ReadOutput(name string, output []byte) (Run, error) { return read(name, output, prefix) }

// read reads the lines that begin with lead.
func read(file string, data []byte, lead string) (Run, error) {
	whole := data[:bytes.LastIndexByte(data, '\n')+1]
	r := Run{File: file}
	for line := range strings.Lines(string(whole)) {
		line, ours := strings.CutPrefix(line, lead)
		if !ours {
			continue
		}
		b, err := Parse(strings.TrimSuffix(line, "\n"))
		if err == nil {
			err = r.add(b)
		}
		if err != nil {
			return Run{}, fmt.Errorf("%s, line %d: %w", file, r.Beats+1, err)
		}
	}
	return r, nil
}

// add takes the next beat of the trace in.
func (r *Run) add(b Beat) error {
	switch {
	case r.Beats == 0:
		r.Identity, r.First = b.Identity, b.At
	case b.Identity != r.Identity:
		return errors.New("the beat of another runner in one trace")
	case b.At < r.Last:
		return fmt.Errorf("a beat at %d after one at %d", b.At, r.Last)
	}
	r.Last = b.At
	r.Beats++
	return nil
}

// Parse reads one line, without its end.
func Parse(line string) (Beat, error) {
	f := strings.Split(line, " ")
	if len(f) != 5 || !plain(f[1]) || !plain(f[2]) {
		return Beat{}, fmt.Errorf("%q is no beat: want token, job, group, task and time", line)
	}
	b := Beat{Identity: Identity{Job: f[1], Group: f[2]}}
	task, errTask := strconv.ParseUint(f[3], 10, 32)
	at, errAt := strconv.ParseInt(f[4], 10, 64)
	if err := errors.Join(b.Token.UnmarshalText([]byte(f[0])), errTask, errAt); err != nil {
		return Beat{}, fmt.Errorf("%q is no beat: %w", line, err)
	}
	b.Task, b.At = uint32(task), at
	return b, nil
}
