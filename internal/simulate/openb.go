package simulate

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A TraceNode is a host of a trace.
type TraceNode struct {
	Name   string
	CPU    int64 // milli
	Memory int64 // MiB
	GPUs   int
	Model  string
	// Whole is the node as its region knows it; nil in all other traces.
	Whole *gpuai.NodeSpec
}

// A TraceJob is a job of a trace: one task, or a gang of equal tasks.
type TraceJob struct {
	Name     string
	Line     int   // in its file; 0: it has none
	CPU      int64 // milli, of each task
	Memory   int64 // MiB, of each task
	GPUs     int   // of each task
	GPUMilli int64 // of each device; below 1000 only with one
	Tasks    int   // above 1: a gang of so many
	// Least makes the gang an elastic one of at least so many tasks; 0 does not.
	// Speed is how fast it is then with n tasks, where Run is its time at 1.
	Least  int
	Speed  func(tasks int) float64
	Class  gpuai.Class
	Spec   string // models joined by '|'; "" for any
	Timed  bool   // the row has times: Arrive and Run mean something
	Arrive gpuai.Instant
	Run    gpuai.Duration
	// Whole is the job as it was submitted to a region, and Runs how long each
	// of its tasks ran, group by group; nil in all other traces.
	Whole *gpuai.JobSpec
	Runs  [][]gpuai.Duration
}

// Milli is what the job asks of devices, in thousandths.
func (j *TraceJob) Milli() int64 {
	if j.Whole == nil {
		return int64(max(1, j.Tasks)) * int64(j.GPUs) * j.GPUMilli
	}
	var sum int64
	for i := range j.Whole.Groups {
		sum += int64(j.Whole.Groups[i].Count) * taskMilli(&j.Whole.Groups[i])
	}
	return sum
}

// taskMilli is what a task of a group asks of devices.
func taskMilli(g *gpuai.Group) int64 {
	r := &g.Resources.GPU
	if r.Share.Milli != 0 {
		return int64(r.Share.Milli)
	}
	return int64(r.Count) * 1000
}

// milliOf is what a task of a group asks of devices.
func (j *TraceJob) milliOf(group uint16) int64 {
	if j.Whole != nil && int(group) < len(j.Whole.Groups) {
		return taskMilli(&j.Whole.Groups[group])
	}
	return int64(j.GPUs) * j.GPUMilli
}

// work is the device time that the job needs, in milli-GPU × ms.
func (j *TraceJob) work() float64 {
	switch {
	case j.Least > 0: // at its least; with more tasks it needs as much as its speed costs
		return float64(j.Least) * float64(j.milliOf(0)) * float64(j.Run) / j.Speed(j.Least)
	case j.Whole == nil:
		return float64(j.Milli()) * float64(j.Run)
	}
	var sum float64
	for i := range j.Runs {
		for _, d := range j.Runs[i] {
			sum += float64(taskMilli(&j.Whole.Groups[i])) * float64(d)
		}
	}
	return sum
}

// runOf returns how long a task runs.
func (j *TraceJob) runOf(group uint16, task uint32) gpuai.Duration {
	if int(group) < len(j.Runs) && int(task) < len(j.Runs[group]) {
		return j.Runs[group][task]
	}
	return j.Run
}

var (
	nodeColumns = []string{"sn", "cpu_milli", "memory_mib", "gpu", "model"}
	jobColumns  = []string{"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"} // and gpu_spec, where it is given
	timeColumns = []string{"creation_time", "deletion_time", "scheduled_time"}
)

// LoadNodes reads a node list. The error names file, line and column.
func LoadNodes(path string) ([]TraceNode, error) {
	in, err := openTrace(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return readNodes(in, path)
}

func readNodes(in io.Reader, path string) ([]TraceNode, error) {
	var out []TraceNode
	lines := map[string]int{} // by name
	err := readRows(in, path, nodeColumns, nil, func(r *row) {
		n := TraceNode{
			Name: r.text("sn"), CPU: r.number("cpu_milli"), Memory: r.number("memory_mib"),
			GPUs: r.count("gpu", gpuai.MaxGPUs), Model: r.text("model"),
		}
		id := strings.ToLower(n.Name)
		switch err := n.check(); {
		case !gpuai.ValidName(id):
			r.fail("sn", fmt.Sprintf("must be a name of 1 to %d letters, digits and '-', not %q", gpuai.MaxNameLen, n.Name))
		case lines[id] > 0:
			r.fail("sn", fmt.Sprintf("%s is also the node of line %d", n.Name, lines[id]))
		case err != nil:
			r.fail("", err.Error())
		case len(out) >= fsm.MaxNodes:
			r.fail("", fmt.Sprintf("a cluster may have %d nodes", fsm.MaxNodes))
		}
		lines[id] = r.line
		out = append(out, n)
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%s has no nodes", path)
	}
	return out, err
}

// LoadJobs reads a pod list. Times are optional here; Timed asks for them.
func LoadJobs(path string) ([]TraceJob, error) {
	t, err := LoadTrace(context.Background(), path, LoadConfig{Format: FormatOpenb})
	return t.Jobs, err
}

// openbJob reads a pod.
func openbJob(r *row) TraceJob {
	j := TraceJob{
		Name: r.text("name"), CPU: r.number("cpu_milli"), Memory: r.number("memory_mib"),
		GPUs: r.count("num_gpu", gpuai.MaxGPUs), GPUMilli: min(r.number("gpu_milli"), 1000), Spec: r.text("gpu_spec"),
	}
	switch {
	case j.CPU >= int64(gpuai.MaxCPU):
		r.fail("cpu_milli", fmt.Sprintf("must be below %d, not %d", gpuai.MaxCPU, j.CPU))
	case j.Memory >= int64(gpuai.MaxMemory>>20):
		r.fail("memory_mib", fmt.Sprintf("must be below %d, not %d", gpuai.MaxMemory>>20, j.Memory))
	case j.GPUMilli < 1000 && j.GPUs > 1:
		r.fail("gpu_milli", "a share needs num_gpu 1")
	case j.GPUMilli == 0 && j.GPUs == 1:
		r.fail("gpu_milli", "must be above 0 for a job with num_gpu 1")
	case len(j.Name) > gpuai.MaxTextLen:
		r.fail("name", fmt.Sprintf("must have at most %d characters", gpuai.MaxTextLen))
	}
	if j.Timed = r.has(timeColumns); j.Timed {
		created, deleted, started := r.second("creation_time"), r.second("deletion_time"), int64(0)
		if r.text("scheduled_time") != "" {
			started = r.second("scheduled_time")
		}
		if started == 0 {
			started = created // the trace's own scheduler never placed it
		}
		j.Arrive = gpuai.Instant(created * 1000)
		j.Run = min(gpuai.MaxDuration, gpuai.Duration(max(0, deleted-started))*gpuai.Second)
	}
	return j
}

// second reads a time in whole seconds.
func (r *row) second(column string) int64 {
	v := r.number(column)
	if v > maxSeconds {
		r.fail(column, fmt.Sprintf("must be at most %d, not %d", int64(maxSeconds), v))
		return 0
	}
	return v
}

// A row is one line of a CSV file, by column name.
type row struct {
	path    string
	line    int
	columns []string
	cells   []string
	err     error
	fatal   bool // err may not be passed over
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

// fail says what is wrong with a column, or with the whole row.
func (r *row) fail(column, why string) {
	if r.err != nil {
		return
	}
	if column != "" {
		column = "column " + column + ": "
	}
	r.err = fmt.Errorf("%s:%d: %s%s", r.path, r.line, column, why)
}

// readRows calls f with each row of a CSV file that has the columns. It ends
// with the first error that k does not pass over.
func readRows(in io.Reader, path string, need []string, k *skipper, f func(*row)) error {
	c := csv.NewReader(in)
	head, err := c.Read()
	if err != nil {
		return fmt.Errorf("%s:1: reading the header: %w", path, err)
	}
	r := row{path: path, columns: head}
	if !r.has(need) {
		return fmt.Errorf("%s:1: the header must name %s", path, strings.Join(need, ","))
	}
	c.ReuseRecord = true
	for {
		r.cells, err = c.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var bad *csv.ParseError
		if r.err = nil; errors.As(err, &bad) {
			r.err = fmt.Errorf("%s:%d: %w", path, bad.Line, bad.Err)
		} else if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		} else {
			r.line, _ = c.FieldPos(0)
			f(&r)
		}
		if r.err != nil && (r.fatal || !k.skips(r.err)) {
			return r.err
		}
	}
}
