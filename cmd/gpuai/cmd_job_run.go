package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/jobfile"
)

// maxJobFile bounds what is read as a job file; jobfile refuses less.
const maxJobFile = 1 << 20

// readSpec reads a job file, "-" for standard input.
func (a *app) readSpec(path string) (*gpuai.JobSpec, error) {
	in, name := a.in, "standard input"
	a.file = path
	if path != "-" {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, usageError{fmt.Errorf("there is no job file %s; gpuai job init %s writes one", path, path)}
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("opening the job file: %w", err)}
		}
		defer f.Close()
		in, name = f, path
	}
	src, err := io.ReadAll(io.LimitReader(in, maxJobFile))
	if err != nil {
		return nil, usageError{fmt.Errorf("reading the job file: %w", err)}
	}
	return jobfile.Parse(name, src)
}

// readOwnSpec is readSpec of a job to submit: one that names no tenant is of the
// environment's or the context's.
func (a *app) readOwnSpec(path string) (*gpuai.JobSpec, error) {
	spec, err := a.readSpec(path)
	if err == nil && spec.Tenant == "" {
		r, err := a.reach()
		if err != nil {
			return nil, err
		}
		spec.Tenant = r.tenant
	}
	return spec, err
}

func newJobRunCmd(a *app) *cobra.Command {
	var r runFlags
	c := &cobra.Command{
		Use: "run FILE", Short: "Submit a job", Args: cobra.ExactArgs(1),
		Long: `Submit the job of a file, "-" for standard input. --dry-run shows where it would
run and what it would cost, as gpuai job plan does, and stores nothing.

Exit codes: 0 accepted (and what --wait asks for), 2 invalid file, 6 nothing
placed within --wait, 7 can never fit, 8 the job failed, 9 no server or leader,
124 timed out. With --attach: the task's own.`,
		Example: `  gpuai job run job.yaml
  gpuai job run job.yaml --dry-run               # where it would run, and its cost
  gpuai job run job.yaml --wait --timeout 1m     # until every task has its lease
  gpuai job run job.yaml --wait=done             # until it has ended
  gpuai job run job.yaml --attach                # follow its first task
  gpuai job init | gpuai job run - -o name`,
	}
	r.wait.flags(c, "running")
	c.Flags().StringVar(&r.key, "key", "", "idempotency key; the same key and file are submitted once (default: a new one)")
	c.Flags().BoolVar(&r.hold, "hold-anyway", false, "keep a job that no registered node can ever take")
	c.Flags().BoolVar(&r.attach, "attach", false, "follow the first task's output and exit with its exit code")
	c.Flags().BoolVar(&r.dryRun, "dry-run", false, "show where the job would run and what it would cost, and store nothing")
	c.RunE = does(func(ctx context.Context, args []string) error { return a.runJob(ctx, args[0], &r) })
	return a.talks(c)
}

type runFlags struct {
	wait   waiting
	key    string
	hold   bool
	attach bool
	dryRun bool
}

func (a *app) runJob(ctx context.Context, path string, r *runFlags) error {
	if err := r.wait.check(condRunning, condDone); err != nil {
		return err
	}
	if r.attach && r.wait.cond != "" {
		return usageError{errors.New("--attach waits for the first task by itself; leave --wait out")}
	}
	if r.dryRun {
		if r.attach || r.hold || r.wait.cond != "" || r.key != "" {
			return usageError{errors.New("--dry-run submits nothing: leave --attach, --wait, --key and --hold-anyway out")}
		}
		return a.planJob(ctx, path)
	}
	spec, err := a.readOwnSpec(path)
	if err != nil {
		return err
	}
	s, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Submitted, error) {
		return c.Submit(ctx, client.SubmitRequest{Spec: spec, Key: r.key, HoldAnyway: r.hold})
	})
	if err != nil {
		return err
	}
	if !r.attach {
		if err := a.showSubmitted(ctx, &s); err != nil {
			return err
		}
	}
	switch {
	case r.attach:
		return a.attach(ctx, &s.Job)
	case r.wait.cond != "":
		_, err = a.waitJob(ctx, s.Job.ID, &r.wait)
		return err
	}
	return nil
}

// showSubmitted prints what became of a submit: the job as data, the reasons of
// what waits as talk.
func (a *app) showSubmitted(ctx context.Context, s *gpuai.Submitted) error {
	v := &view{
		head: []string{"JOB", "NAME", "STATUS", "TASKS", "LEASED"},
		wide: []string{"TYPE", "CLASS", "PRIORITY", "QUEUE", "INDEX"},
	}
	j := &s.Job
	leased := j.Counts.Leased + j.Counts.Running
	queue := ""
	if s.QueuePosition > 0 {
		queue = num(s.QueuePosition)
	}
	v.row(j.ID.String(), j.ID.String(), j.Name, j.Status.String(), num(j.Tasks), num(leased),
		j.Type.String(), j.Class.String(), num(j.Priority), queue, num(s.Index))
	if err := a.show(ctx, v); err != nil {
		return err
	}
	if s.QueuePosition > 0 {
		a.say("position %d in the queue\n", s.QueuePosition)
	}
	a.reasons(s.Reasons)
	return nil
}

func newJobPlanCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "plan FILE", Short: "Show where a job would run now, without submitting it", Args: cobra.ExactArgs(1),
		Long: `Run the submit through the region's own machine on a copy of its state, and show
the outcome and what the job would cost an hour, and in all until its run-time
limit. Nothing is stored. Exit code 7 says that the job can never fit.`,
		Example: `  gpuai job plan job.yaml
  gpuai job plan job.yaml -o json --jq '.leases | length'`,
		RunE: does(func(ctx context.Context, args []string) error {
			return a.planJob(ctx, args[0])
		}),
	})
}

// planJob shows what a submit would come to, and would cost.
func (a *app) planJob(ctx context.Context, path string) error {
	spec, err := a.readOwnSpec(path)
	if err != nil {
		return err
	}
	s, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Submitted, error) {
		return c.Plan(ctx, spec)
	})
	if err != nil {
		return err
	}
	v := &view{head: []string{"TASK", "NODE", "GPUS", "CPU", "MEMORY", "DEVICES"}}
	s.Job.Spec = spec
	for i := range s.Leases {
		l := &s.Leases[i]
		v.row(string(l.Node), taskName(&s.Job, l.TaskRef), string(l.Node), leaseGPUs(l), cpuText(l.CPU), bytesText(l.Memory), deviceList(l.Devices))
	}
	if err := a.show(ctx, v); err != nil {
		return err
	}
	waiting := s.Job.Counts.Pending
	a.say("%d of %s would start now at index %d", s.Job.Tasks-waiting, plural(uint64(s.Job.Tasks), "task"), s.Index)
	if waiting > 0 {
		a.say(", %d would wait at position %d", waiting, s.QueuePosition)
	}
	a.say("\n")
	if c := s.Cost; c != nil {
		a.say("%s\n", plannedCost(c))
	}
	a.reasons(s.Reasons)
	return nil
}

// plannedCost returns a job's cost in a sentence.
func plannedCost(c *gpuai.PlannedCost) string {
	if c.Hourly == 0 {
		return "it costs nothing"
	}
	hourly, held := dollars(c.Hourly), dollars(c.Held)
	if c.Waiting > 0 && c.HourlyLeast < c.Hourly {
		hourly, held = dollars(c.HourlyLeast)+" to "+hourly, dollars(c.HeldLeast)+" to "+held
	}
	s := fmt.Sprintf("it costs %s USD an hour; %s USD are held for a run of %s", hourly, held, short(c.HeldFor))
	if c.Waiting > 0 {
		s += fmt.Sprintf("; %s at most at the highest price of the nodes that could take it", plural(uint64(c.Waiting), "waiting task"))
	}
	return s
}

func newJobValidateCmd(a *app) *cobra.Command {
	return a.prints(&cobra.Command{
		Use: "validate FILE...", Short: "Check job files, without a server", Args: cobra.MinimumNArgs(1),
		Long: `Check job files and name every problem with its line. -o json prints the wire
form, which is what the HTTP API takes, with every default filled in.`,
		Example: `  gpuai job validate job.yaml
  gpuai job validate -o json job.yaml > job.json
  curl -X POST -d @job.json -H 'Content-Type: application/json' http://127.0.0.1:7470/v1/jobs`,
		RunE: does(func(ctx context.Context, args []string) error {
			if err := a.checkFormat(); err != nil {
				return err
			}
			if len(args) > 1 && a.api.output != formatTable && a.api.output != formatWide && a.api.output != formatName {
				return usageError{fmt.Errorf("-o %s shows one file, but there are %d", a.api.output, len(args))}
			}
			v := &view{head: []string{"FILE", "NAME", "TYPE", "CLASS", "GROUPS", "TASKS", "GPUS"}}
			var spec *gpuai.JobSpec
			bad := 0
			for _, path := range args {
				var err error
				if spec, err = a.readSpec(path); err != nil {
					a.say("%v\n", err)
					bad++
					continue
				}
				tasks, gpus := totals(spec)
				v.row(spec.Name, path, spec.Name, spec.Type.String(), spec.Class.String(), num(len(spec.Groups)), num(tasks), gpus)
			}
			if bad > 0 {
				return &exitError{code: exitUsage}
			}
			return a.showObject(ctx, spec, v)
		}),
	})
}

// totals returns a job's tasks, and the GPUs that all of them need.
func totals(s *gpuai.JobSpec) (tasks uint64, gpus string) {
	milli := uint64(0)
	for i := range s.Groups {
		g := &s.Groups[i]
		tasks += uint64(g.Count)
		each := uint64(g.Resources.GPU.Count) * uint64(gpuai.WholeDevice)
		if m := g.Resources.GPU.Share.Milli; m > 0 {
			each = uint64(m)
		}
		milli += each * uint64(g.Count)
	}
	return tasks, cpuText(gpuai.MilliCPU(milli))
}
