package simulate

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A TraceNode is a host of a trace in the openb format.
type TraceNode struct {
	Name   string
	CPU    int64 // milli
	Memory int64 // MiB
	GPUs   int
	Model  string
}

// A TraceJob is a pod of a trace in the openb format: one task.
type TraceJob struct {
	Name     string
	CPU      int64 // milli
	Memory   int64 // MiB
	GPUs     int
	GPUMilli int64  // of each device; below 1000 only with one
	Spec     string // models joined by '|'; "" for any
	Timed    bool   // the row has times
	Created  int64  // s
	Deleted  int64
	Started  int64 // 0: never; the trace's own scheduler
}

// Milli is what the job asks of devices, in thousandths.
func (j *TraceJob) Milli() int64 { return int64(j.GPUs) * j.GPUMilli }

var (
	nodeColumns = []string{"sn", "cpu_milli", "memory_mib", "gpu", "model"}
	jobColumns  = []string{"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"} // and gpu_spec, where it is given
	timeColumns = []string{"creation_time", "deletion_time", "scheduled_time"}
)

// LoadNodes reads a node list. The error names file, line and column.
func LoadNodes(path string) ([]TraceNode, error) {
	var out []TraceNode
	err := eachRow(path, nodeColumns, func(r *row) {
		out = append(out, TraceNode{
			Name: r.text("sn"), CPU: r.number("cpu_milli"), Memory: r.number("memory_mib"),
			GPUs: int(r.number("gpu")), Model: r.text("model"),
		})
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%s has no nodes", path)
	}
	return out, err
}

// LoadJobs reads a pod list. Times are optional here; Timed asks for them.
func LoadJobs(path string) ([]TraceJob, error) {
	var out []TraceJob
	err := eachRow(path, jobColumns, func(r *row) {
		j := TraceJob{
			Name: r.text("name"), CPU: r.number("cpu_milli"), Memory: r.number("memory_mib"),
			GPUs: int(r.number("num_gpu")), GPUMilli: min(r.number("gpu_milli"), 1000), Spec: r.text("gpu_spec"),
		}
		if j.GPUs > 64 {
			r.fail("num_gpu", "must be at most 64")
		}
		if j.GPUMilli < 1000 && j.GPUs > 1 {
			r.fail("gpu_milli", "a share needs num_gpu 1")
		}
		if j.Timed = r.has(timeColumns); j.Timed {
			j.Created, j.Deleted = r.number("creation_time"), r.number("deletion_time")
			if s := r.text("scheduled_time"); s != "" {
				j.Started = r.number("scheduled_time")
			}
		}
		out = append(out, j)
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%s has no jobs", path)
	}
	return out, err
}

// A row is one line of a CSV file, by column name.
type row struct {
	path    string
	line    int
	columns []string
	cells   []string
	err     error
}

func (r *row) has(columns []string) bool {
	return !slices.ContainsFunc(columns, func(c string) bool { return !slices.Contains(r.columns, c) })
}

func (r *row) text(column string) string {
	if i := slices.Index(r.columns, column); i >= 0 && i < len(r.cells) {
		return r.cells[i]
	}
	return ""
}

// number reads a whole number; pandas writes some as "1.0".
func (r *row) number(column string) int64 {
	s := strings.TrimSuffix(r.text(column), ".0")
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 {
		r.fail(column, fmt.Sprintf("must be a whole number, not %q", r.text(column)))
	}
	return v
}

func (r *row) fail(column, why string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s:%d: column %s: %s", r.path, r.line, column, why)
	}
}

func eachRow(path string, need []string, f func(*row)) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening a trace: %w", err)
	}
	defer file.Close()
	return readRows(file, path, need, f)
}

func readRows(in io.Reader, path string, need []string, f func(*row)) error {
	c := csv.NewReader(in)
	head, err := c.Read()
	if err != nil {
		return fmt.Errorf("%s: reading the header: %w", path, err)
	}
	r := row{path: path, columns: head}
	if !r.has(need) {
		return fmt.Errorf("%s:1: the header must name %s", path, strings.Join(need, ","))
	}
	for {
		r.cells, err = c.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		r.line, _ = c.FieldPos(0)
		if f(&r); r.err != nil {
			return r.err
		}
	}
}
