package main

import (
	"fmt"
	"io"

	"github.com/gpuai/gpuai"
)

// endsShown is how many tasks' ends are printed: those of one job tend to be
// alike.
const endsShown = 10

// endsText prints how tasks last ended, of those whose agents said something.
func endsText(w io.Writer, j *gpuai.Job, tasks []gpuai.Task) error {
	var ended []*gpuai.Task
	for i := range tasks {
		if tasks[i].LastEnd != nil {
			ended = append(ended, &tasks[i])
		}
	}
	for _, t := range ended[:min(len(ended), endsShown)] {
		if _, err := fmt.Fprintln(w, taskName(j, t.TaskRef)+" ended on "+endText(t.LastEnd)); err != nil {
			return err
		}
	}
	if more := len(ended) - endsShown; more > 0 {
		_, err := fmt.Fprintf(w, "and %s more: see -o json\n", plural(uint64(more), "task"))
		return err
	}
	return nil
}

// endText returns an end in a line: "gpu-c11 (failed, ImagePull, exit code 1): …".
func endText(e *gpuai.TaskEnd) string {
	s := printable(string(e.Node)) + " (" + e.Cause.String()
	if e.Code != gpuai.EndOther {
		s += ", " + e.Code.String()
	}
	if e.ExitCode != 0 {
		s += ", exit code " + num(e.ExitCode)
	}
	return s + "): " + printable(e.Reason)
}
