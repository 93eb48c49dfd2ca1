package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// planFlags are what a plan supposes.
type planFlags struct {
	submit, drain, undrain, lose, add, set []string
	policy                                 string
}

func newPlanCmd(a *app) *cobra.Command {
	var p planFlags
	c := &cobra.Command{
		Use: "plan", Short: "Show what would follow from several things at once", Args: cobra.NoArgs,
		Long: `Suppose several things at once and show what would follow: where new jobs would
run or why they would wait, which tasks of other jobs would start, move, wait or
end, and the capacity before and after. The region's own machine applies the
commands to a copy of its state; nothing is stored.

All flags may be given several times and together. They are taken in the order
policy, add, undrain, drain, lose, submit. What is revoked is taken to be ended by
its agent at once, so that what follows is shown too. --lose has a node fall
silent for good: its leases expire.

Exit code 7 says that one of the jobs can never fit.`,
		Example: `  gpuai plan --submit job.yaml --submit other.yaml
  gpuai plan --drain gpu-c11                      # what a maintenance would move
  gpuai plan --lose gpu-c11 --lose gpu-c12        # what a rack's loss would cost
  gpuai plan --add 10:gpu-c11 --submit big.yaml   # ten more nodes like gpu-c11
  gpuai plan --set priority_batch=90 --submit job.yaml
  gpuai plan --drain gpu-c11 -o json --jq '.changes[] | [.name, .change, .to]'`,
	}
	f := c.Flags()
	f.StringArrayVar(&p.submit, "submit", nil, "job file to submit, - for standard input")
	f.StringSliceVar(&p.drain, "drain", nil, "node to drain")
	f.StringSliceVar(&p.undrain, "undrain", nil, "drained node to take back into use")
	f.StringSliceVar(&p.lose, "lose", nil, "node to lose")
	f.StringSliceVar(&p.add, "add", nil, "nodes to add, as COUNT:LIKE, such as 10:gpu-c11")
	f.StringVar(&p.policy, "policy", "", "JSON file with settings of the policy, all of them or some")
	f.StringArrayVar(&p.set, "set", nil, "one setting of the policy, NAME=VALUE, as in operator policy set")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		req, err := a.planRequest(&p)
		if err != nil {
			return err
		}
		plan, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Plan, error) { return c.Suppose(ctx, req) })
		if err != nil {
			return err
		}
		v := &view{text: func(w io.Writer) error { return planText(w, &plan, req) }}
		for i := range plan.Changes {
			v.names = append(v.names, plan.Changes[i].Job.String())
		}
		if err := a.show(ctx, v); err != nil {
			return err
		}
		for i := range plan.Jobs {
			j := &plan.Jobs[i]
			if len(j.Reasons) > 0 {
				a.say("%s:\n", j.Job.Name)
				a.reasons(j.Reasons)
			}
		}
		for i := range plan.Jobs {
			if plan.Jobs[i].Code == gpuai.Unschedulable {
				return &exitError{code: exitNeverFits}
			}
		}
		return nil
	})
	return a.talks(c)
}

// planRequest reads the files and flags of a plan.
func (a *app) planRequest(p *planFlags) (*client.PlanRequest, error) {
	r := &client.PlanRequest{Drain: nodeIDs(p.drain), Undrain: nodeIDs(p.undrain), Lose: nodeIDs(p.lose)}
	for _, path := range p.submit {
		spec, err := a.readOwnSpec(path)
		if err != nil {
			return nil, err
		}
		r.Submit = append(r.Submit, spec)
	}
	for _, s := range p.add {
		count, like, ok := strings.Cut(s, ":")
		n, err := strconv.ParseUint(count, 10, 32)
		if !ok || err != nil || n == 0 || like == "" {
			return nil, usageError{fmt.Errorf("--add %s: give COUNT:LIKE, such as 10:gpu-c11, where LIKE is a registered node", s)}
		}
		r.Add = append(r.Add, gpuai.PlanNodes{Count: uint32(n), Like: gpuai.NodeID(like)})
	}
	var err error
	if r.Policy, err = a.planPolicy(p.policy, p.set); err != nil {
		return nil, err
	}
	if r.Policy == nil && len(r.Add)+len(r.Undrain)+len(r.Submit)+len(r.Drain)+len(r.Lose) == 0 {
		return nil, usageError{errors.New("give at least one of --submit, --drain, --undrain, --lose, --add, --policy and --set")}
	}
	return r, nil
}

func nodeIDs(names []string) (ids []gpuai.NodeID) {
	for _, n := range names {
		ids = append(ids, gpuai.NodeID(n))
	}
	return ids
}

// planPolicy returns the settings of a file and of flags, which win; nil for
// none.
func (a *app) planPolicy(file string, set []string) (map[string]any, error) {
	var out map[string]any
	if file != "" {
		src, err := a.readAll(file)
		if err != nil {
			return nil, err
		}
		if out, err = policySettings(src); err != nil {
			return nil, usageError{fmt.Errorf("%s is no policy: %w", file, err)}
		}
	}
	for _, s := range set {
		one, err := policySetting(s)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string]any{}
		}
		maps.Copy(out, one)
	}
	return out, nil
}

// policySettings reads a policy or some of its settings, or the answer of
// "policy get -o json".
func policySettings(src []byte) (map[string]any, error) {
	var out map[string]any
	if err := json.Unmarshal(src, &out); err != nil {
		return nil, err
	}
	if inner, ok := out["policy"].(map[string]any); ok {
		return inner, nil
	}
	if len(out) == 0 {
		return nil, errors.New("it has no settings")
	}
	return out, nil
}

// policySetting reads NAME=VALUE. A span of time may be given as "15s" under
// its name without "_ms".
func policySetting(s string) (map[string]any, error) {
	name, text, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return nil, usageError{fmt.Errorf("%q is not of the form NAME=VALUE", s)}
	}
	_, known, err := policyFields(gpuai.DefaultPolicy())
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	if _, span := known[name+"_ms"]; span {
		d, err := gpuai.ParseDuration(text)
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", s, err)}
		}
		return map[string]any{name + "_ms": int64(d)}, nil
	}
	v := jsontext.Value(text)
	isFlag := v.Kind() == 't' || v.Kind() == 'f'
	switch kind := known[name].Kind(); {
	case kind == '0' && (v.Kind() != '0' || !v.IsValid()):
		return nil, usageError{fmt.Errorf("%s: the value must be a number", s)}
	case (kind == 't' || kind == 'f') && (!isFlag || !v.IsValid()):
		return nil, usageError{fmt.Errorf("%s: the value must be true or false", s)}
	case v.IsValid() && v.Kind() != 'n':
		return map[string]any{name: v}, nil
	}
	return map[string]any{name: text}, nil
}

// planText prints a plan for people.
func planText(w io.Writer, p *gpuai.Plan, req *client.PlanRequest) error {
	fmt.Fprintf(w, "index %d\n", p.Index)
	if len(p.Jobs) > 0 {
		rows := [][]string{{"JOB", "VERDICT", "TASKS", "NOW", "LATER", "QUEUE", "START", "NODES"}}
		for i := range p.Jobs {
			rows = append(rows, plannedRow(&p.Jobs[i], req.Submit[i]))
		}
		fmt.Fprintln(w)
		if err := columns(w, rows); err != nil {
			return err
		}
	}
	for i := range p.Jobs {
		if c := p.Jobs[i].Cost; c != nil && c.Hourly > 0 {
			fmt.Fprintf(w, "\n%s costs %s USD an hour for what starts; %s USD are held for it\n", p.Jobs[i].Job.Name, dollars(c.Hourly), dollars(c.Held))
		}
	}
	b, c := &p.Before, &p.After
	used := func(c *gpuai.Capacity) string { return cpuText(gpuai.MilliCPU(c.GPUMilliUsed)) }
	fmt.Fprintln(w)
	if err := columns(w, [][]string{
		{"CAPACITY", "BEFORE", "AFTER"},
		{"nodes that take leases", num(b.NodesOpen), num(c.NodesOpen)},
		{"GPUs of them", num(b.GPUs), num(c.GPUs)},
		{"free GPUs", num(b.FreeGPUs), num(c.FreeGPUs)},
		{"GPUs leased", used(b), used(c)},
		{"tasks waiting", num(b.TasksPending), num(c.TasksPending)},
		{"GPUs they ask for", num(b.QueueGPUs), num(c.QueueGPUs)},
	}); err != nil {
		return err
	}
	return blastText(w, p)
}

func plannedRow(j *gpuai.PlannedJob, spec *gpuai.JobSpec) []string {
	var nodes []string
	for i := range j.Leases {
		if n := string(j.Leases[i].Node); len(nodes) == 0 || nodes[len(nodes)-1] != n {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) > 4 {
		nodes = append(nodes[:3:3], fmt.Sprintf("and %d more", len(nodes)-3))
	}
	tasks, _ := totals(spec)
	queue := ""
	if j.QueuePosition > 0 {
		queue = num(j.QueuePosition)
	}
	start := ""
	if j.Estimate != nil {
		start = estimateText(j.Estimate)
	}
	return []string{spec.Name, j.Code.String(), num(tasks), num(j.Now), num(j.Later), queue, start, strings.Join(nodes, ", ")}
}

// blastText prints what happens to other jobs.
func blastText(w io.Writer, p *gpuai.Plan) error {
	b := &p.Blast
	if b.Jobs == 0 {
		_, err := fmt.Fprint(w, "\nno other job is touched\n")
		return err
	}
	fmt.Fprintf(w, "\n%s touched: starts %d, moves %d, waits %d, ends %d; %s revoked", plural(uint64(b.Jobs), "other job"), b.Starts, b.Moves, b.Waits, b.Ends, plural(uint64(b.GPUs), "GPU"))
	for i, r := range b.Revoked {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(w, "%s%v %d", sep, r.Cause, r.Tasks)
	}
	fmt.Fprint(w, "\n\n")
	rows := [][]string{{"JOB", "TASK", "CHANGE", "CAUSE", "FROM", "TO", "GPUS"}}
	for i := range p.Changes {
		c := &p.Changes[i]
		rows = append(rows, []string{c.Name, num(c.Group) + "[" + num(c.Task) + "]", c.Change.String(), c.Cause.String(), string(c.From), string(c.To), num(c.GPUs)})
	}
	if err := columns(w, rows); err != nil {
		return err
	}
	if all := b.Starts + b.Moves + b.Waits + b.Ends; int(all) > len(p.Changes) {
		fmt.Fprintf(w, "and %d more\n", int(all)-len(p.Changes))
	}
	if p.Unfinished {
		fmt.Fprintln(w, "more follows than the bounds of a plan show")
	}
	return nil
}

// estimateText returns an estimate in a few words, with how far past ones were
// off.
func estimateText(e *gpuai.StartEstimate) string {
	if !e.Known {
		return "unknown: " + e.Why
	}
	s := "in ~" + short(e.In)
	if e.Calibration == nil {
		return s + " (estimate, no history yet)"
	}
	return fmt.Sprintf("%s (estimate; the last %d were off by %s in the median)", s, e.Calibration.Starts, short(e.Calibration.Error))
}
