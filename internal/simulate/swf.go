package simulate

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// Fields of a line of the Standard Workload Format, from 0. A value of -1 says
// that it is unknown.
const (
	swfJob       = 0
	swfSubmit    = 1  // s from the log's start
	swfRunTime   = 3  // s
	swfAllocated = 4  // processors
	swfRequested = 7  // processors
	swfMemory    = 9  // KB a processor, as asked for
	swfStatus    = 10 // 5: cancelled
	swfFields    = 18
)

// isSWF reports whether a line is a job of the Standard Workload Format.
func isSWF(line string) bool {
	f := strings.Fields(line)
	if len(f) != swfFields {
		return false
	}
	for _, s := range f {
		if _, err := strconv.ParseFloat(s, 64); err != nil {
			return false
		}
	}
	return true
}

// readSWF reads the jobs of a log of the Parallel Workloads Archive. One
// processor is one device. Jobs that never ran, because they were cancelled or
// have no size or run time, are left out and counted.
func (t *Trace) readSWF(in io.Reader, c *LoadConfig, k *skipper) error {
	s := bufio.NewScanner(in)
	s.Buffer(nil, maxLine)
	never := 0
	r := row{path: t.Path}
	for s.Scan() {
		r.line++
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == ';' {
			continue
		}
		r.cells, r.err = strings.Fields(line), nil
		j, ran := swfJobOf(&r, c.GPUsPerNode)
		if r.err == nil && !ran {
			never++
			continue
		}
		if t.add(&r, j); r.err != nil && (r.fatal || !k.skips(r.err)) {
			return r.err
		}
	}
	if never > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d jobs were left out: they were cancelled before they ran, or have no size or run time", never))
	}
	if err := s.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("%s:%d: the line is longer than %d bytes", t.Path, r.line+1, maxLine)
	} else if err != nil {
		return fmt.Errorf("%s:%d: %w", t.Path, r.line+1, err)
	}
	return nil
}

// swfJobOf reads a line; false for a job that never ran.
func swfJobOf(r *row, perNode int) (j TraceJob, ran bool) {
	if len(r.cells) != swfFields {
		r.fail("", fmt.Sprintf("has %d fields, and a line of the Standard Workload Format has %d", len(r.cells), swfFields))
		return j, false
	}
	n := r.swf(swfAllocated, "allocated processors")
	if n <= 0 {
		n = r.swf(swfRequested, "requested processors")
	}
	run, submit := r.swf(swfRunTime, "run time"), r.swf(swfSubmit, "submit time")
	memory := r.swf(swfMemory, "requested memory")
	r.swf(swfStatus, "status")
	if r.err != nil || n <= 0 || run <= 0 {
		return j, false
	}
	if submit < 0 {
		r.fail("submit time", "is unknown")
	}
	if n > gpuai.MaxGangTasks {
		r.fail("processors", fmt.Sprintf("must be at most %d, not %v", gpuai.MaxGangTasks, n))
	}
	if run*1000 > float64(gpuai.MaxDuration) {
		r.fail("run time", fmt.Sprintf("must be at most %s, not %v s", gpuai.MaxDuration, run))
	}
	if r.err != nil {
		return j, false
	}
	j = TraceJob{
		Name: "job-" + r.cells[swfJob], GPUMilli: 1000, Timed: true,
		Arrive: gpuai.Instant(submit * 1000), Run: gpuai.Duration(run * 1000),
	}
	j.Tasks, j.GPUs = split(int(n), perNode)
	if memory > 0 {
		j.Memory = int64(memory) >> 10 * int64(j.GPUs)
	}
	return j, true
}

// swf reads a field. Most are whole; some logs write fractions of seconds.
func (r *row) swf(field int, name string) float64 {
	v, err := strconv.ParseFloat(r.cells[field], 64)
	if err != nil || !(v >= -1 && v <= maxSeconds) {
		r.fail(name, fmt.Sprintf("(field %d) must be a number from 0 to %d, or -1, not %q", field+1, int64(maxSeconds), r.cells[field]))
	}
	return v
}
