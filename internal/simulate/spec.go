package simulate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// spec returns the job that is submitted for a trace's.
func spec(j *TraceJob) *gpuai.JobSpec {
	if j.Whole != nil {
		return j.Whole
	}
	s := &gpuai.JobSpec{Name: "pod", Class: j.Class, Groups: []gpuai.Group{{
		Resources: gpuai.Resources{
			CPU: max(1, gpuai.MilliCPU(j.CPU)), Memory: max(1, gpuai.Bytes(j.Memory)<<20),
			GPU: gpuai.GPURequest{Count: uint32(j.GPUs)},
		},
		Task: gpuai.TaskSpec{Command: []string{"simulated"}},
	}}}
	if j.Tasks > 1 {
		s.Groups[0].Count, s.Groups[0].Gang = uint32(j.Tasks), true
		s.Groups[0].MinCount = uint32(j.Least)
	}
	g := &s.Groups[0].Resources.GPU
	if j.GPUs == 1 && j.GPUMilli < 1000 {
		g.Share.Milli = gpuai.Milli(j.GPUMilli)
	}
	if j.GPUs > 0 && j.Spec != "" {
		// "A|B" is any of them alike, so it is a constraint and no order of
		// alternatives.
		s.Groups[0].Constraints = []gpuai.Constraint{{
			Attribute: "gpu.model", Op: gpuai.In, Values: strings.Split(j.Spec, "|"),
		}}
	}
	s.Defaults()
	return s
}

// place says which job it is.
func (j *TraceJob) place() string {
	if j.Line > 0 {
		return fmt.Sprintf("line %d: job %s", j.Line, j.Name)
	}
	return "job " + j.Name
}

// Fit checks the jobs against the nodes that they are to run on: each names
// only models that there are, and the machine says that the nodes, empty, could
// run it. The error names file and line; with skip, jobs that fail are left
// out and noted.
func (t *Trace) Fit(nodes []TraceNode, skip bool) error {
	w := newWorld(Policy{})
	if err := w.register(nodes, sequence(len(nodes))); err != nil {
		return err
	}
	models := modelsOf(nodes)
	seen := map[string]error{}
	kept := t.Jobs[:0:0]
	k := &skipper{on: skip, t: t}
	for i := range t.Jobs {
		j := &t.Jobs[i]
		err := j.checkModels(models)
		if err == nil {
			err = w.couldRun(j, seen)
		}
		switch {
		case err == nil:
			kept = append(kept, *j)
		case !k.skips(err):
			return fmt.Errorf("%s: %w", t.at(j), err)
		}
	}
	t.Jobs = kept
	if k.lines > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d jobs were left out, the first because %v", k.lines, k.first))
	}
	if len(kept) == 0 {
		return fmt.Errorf("%s has no jobs that these nodes could run%s", t.Path, notesText(t.Notes))
	}
	return nil
}

// at says where a job is.
func (t *Trace) at(j *TraceJob) string {
	if j.Line > 0 {
		return fmt.Sprintf("%s:%d: job %s", t.Path, j.Line, j.Name)
	}
	return fmt.Sprintf("%s: job %s", t.Path, j.Name)
}

func modelsOf(nodes []TraceNode) []string {
	var out []string
	for i := range nodes {
		if n := &nodes[i]; n.GPUs > 0 && !slices.Contains(out, n.Model) {
			out = append(out, n.Model)
		}
	}
	slices.Sort(out)
	return out
}

// checkModels says which model that the job names no node has.
func (j *TraceJob) checkModels(models []string) error {
	if j.Spec == "" || j.GPUs == 0 {
		return nil
	}
	for m := range strings.SplitSeq(j.Spec, "|") {
		if !slices.Contains(models, m) {
			return fmt.Errorf("gpu_spec names model %q, and no node has it: the nodes have %s", m, strings.Join(models, ", "))
		}
	}
	return nil
}

// couldRun asks the machine whether its nodes, empty, could run a job. Equal
// jobs are asked for once.
func (w *world) couldRun(j *TraceJob, seen map[string]error) error {
	key := fmt.Sprint(j.CPU, j.Memory, j.GPUs, j.GPUMilli, j.Tasks, j.Spec)
	if j.Whole != nil {
		key = j.Name
	}
	if err, ok := seen[key]; ok {
		return err
	}
	s := spec(j)
	var err error
	if bad := s.Validate(); len(bad) > 0 {
		err = fmt.Errorf("no region would take it: %s %s", bad[0].Pointer, bad[0].Detail)
	} else {
		id := w.nextID()
		w.jobs++
		res, applyErr := w.apply(&fsm.SubmitJob{ID: id, Spec: s})
		switch {
		case applyErr != nil:
			err = applyErr
		case res.Code == gpuai.Unschedulable:
			err = fmt.Errorf("these nodes could never run it, even empty: it needs %s; give more or larger nodes, or leave such jobs out with --skip", j.needs())
		case res.Code == gpuai.InvalidSpec:
			err = fmt.Errorf("the machine refuses it: %s", res.Detail)
		}
	}
	seen[key] = err
	return err
}

// needs says what the job asks for.
func (j *TraceJob) needs() string {
	if j.Whole != nil {
		return fmt.Sprintf("%d milli-GPU in %d groups", j.Milli(), len(j.Whole.Groups))
	}
	each := fmt.Sprintf("%d GPUs of %d ‰, %d milli-CPU and %d MiB", j.GPUs, j.GPUMilli, j.CPU, j.Memory)
	if j.Spec != "" {
		each += " of " + j.Spec
	}
	if j.Tasks > 1 {
		return fmt.Sprintf("%d tasks at once, each with %s", j.Tasks, each)
	}
	return each
}

func sequence(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func sortedNodes(nodes []TraceNode) []TraceNode {
	out := slices.Clone(nodes)
	slices.SortFunc(out, func(a, b TraceNode) int { return strings.Compare(a.Name, b.Name) })
	return out
}
