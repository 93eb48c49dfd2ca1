package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/doctor"
)

const probeBinary = "gpuai-probe"

// newAgentDoctorCmd returns the command that says what a node can run.
func newAgentDoctorCmd(a *app) *cobra.Command {
	cfg := defaultAgentConfig()
	cfg.Log.Level = "error"
	var probe bool
	var patience time.Duration
	c := &cobra.Command{
		Use: "doctor", Short: "Say what this host's agent can run, what not, and what to do", Args: cobra.NoArgs,
		Long: `Look at this host as its agent would, and say what the node can run, what not, why,
and what to do about it: drivers, CDI, the OCI runtime, control groups, user
namespaces, clock, disk, ports and the way to the servers. Give it the flags of
"gpuai agent run": all of them are known, and those that name what is looked at
count. docs/doctor.md has the codes of the checks, which do not change.

An agent that runs on the same data directory goes on undisturbed.

With --probe a program tries to get out of a sandbox such as tasks have, under a
watchdog of its own: some 70 attempts, each with what a closed sandbox gives and
what was got.

A check that fails is what doctor is for: the exit code is 0. It is 1 when a probe
is open, or when a sandbox could not be tried.`,
		Example: `  gpuai agent doctor
  gpuai agent doctor --data /var/lib/gpuai/agent --driver auto --servers https://10.0.0.1:7470 --probe
  gpuai agent doctor -o json --jq '.checks[] | select(.status == "fail") | .code + ": " + .fix'
  gpuai agent doctor --probe --jq '.probes[] | select(.open) | .name'`,
	}
	cfg.flags(c)
	f := c.Flags()
	f.Lookup("id").Usage = "name of the node, as it will be"
	f.Lookup("data").Usage = "data directory"
	f.Lookup("data").DefValue = agentData
	f.BoolVar(&probe, "probe", false, "try to get out of a sandbox")
	f.DurationVar(&patience, "timeout", 10*time.Second, "how long to wait for each server, and for each driver")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if err := a.checkFormat(); err != nil {
			return err
		}
		if patience <= 0 {
			return usageError{errors.New("--timeout must be above 0")}
		}
		dc := cfg.examined(patience)
		dc.Logger = a.logger(cfg.Log)
		return a.doctor(ctx, dc, probe)
	})
	return a.prints(c)
}

// What doctor takes for granted where a flag is not given.
const (
	agentData = "/var/lib/gpuai/agent"
	agentID   = "this-node"
)

// examined is what doctor looks at. What is wrong with the flags is a finding.
func (c *agentConfig) examined(patience time.Duration) *doctor.Config {
	seen := *c
	if seen.Data == "" {
		seen.Data = agentData
	}
	if seen.ID == "" {
		seen.ID = agentID
	}
	ac, err := seen.resolve()
	var unusable error
	if ac.Identity == nil {
		ac.Identity, unusable = agent.OpenIdentity(seen.Data)
	}
	return &doctor.Config{Agent: ac, Wrong: err, Unusable: unusable, Metrics: seen.MetricsHTTP, Patience: patience}
}

// doctor looks, tries, and prints what it found.
func (a *app) doctor(ctx context.Context, c *doctor.Config, probe bool) error {
	r := doctor.Run(ctx, c)
	if err := ctx.Err(); err != nil {
		return err
	}
	var failed error
	if probe {
		r.Probes, failed = probeHost(ctx, &c.Agent)
	}
	if r.Probes == nil {
		r.Probes = []doctor.ProbeResult{}
	}
	if err := a.showObject(ctx, r, doctorView(r, a.api.output == formatWide)); err != nil {
		return err
	}
	return verdict(r, failed)
}

// verdict is nil unless a probe is open or not all were tried.
func verdict(r *doctor.Report, failed error) error {
	if open := r.Open(); len(open) > 0 {
		return &exitError{
			code: exitOther, text: fmt.Sprintf("%s of %d got out of the sandbox", plural(uint64(len(open)), "probe"), len(r.Probes)),
			next: "see docs/isolation.md; run no tasks of others on this host until they are closed",
		}
	}
	if failed != nil {
		return &exitError{code: exitOther, text: "the probes: " + failed.Error(), next: "see the checks that fail, and docs/doctor.md"}
	}
	return nil
}

func probeHost(ctx context.Context, c *agent.Config) ([]doctor.ProbeResult, error) {
	if c.Sandbox == nil {
		return nil, errors.New("--oci-runtime none has no sandbox to try")
	}
	return doctor.Probe(ctx, &doctor.ProbeConfig{
		Watchdog: c.Watchdog, Probe: beside(probeBinary), Runtime: c.Sandbox.Runtime, AcceptFlaw: c.Sandbox.AcceptFlaw, DataDir: c.DataDir,
	})
}

// doctorView shows the checks, then what to do, then the probes: of those all
// with -o wide, else those that are open.
func doctorView(r *doctor.Report, wide bool) *view {
	v := &view{}
	checks := [][]string{{"STATUS", "CODE", "DETAIL"}}
	todo := [][]string{{"CODE", "FIX", "EFFECT"}}
	for _, c := range r.Checks {
		v.names = append(v.names, c.Code)
		checks = append(checks, []string{string(c.Status), c.Code, c.Detail})
		if c.Status != doctor.OK {
			todo = append(todo, []string{c.Code, c.Fix, c.Effect})
		}
	}
	probes := [][]string{{"PROBE", "CONTROL", "EXPECTED", "GOT"}}
	for _, p := range r.Probes {
		if wide || p.Open {
			probes = append(probes, []string{p.Name, p.Control, p.Expected, p.Got})
		}
	}
	v.text = func(w io.Writer) error {
		for i, table := range [][][]string{checks, todo, probes} {
			if i > 0 && len(table) == 1 {
				continue
			}
			if i > 0 {
				fmt.Fprintln(w)
			}
			if err := columns(w, table); err != nil {
				return err
			}
		}
		if n := len(r.Probes); n > 0 {
			fmt.Fprintf(w, "\n%s, %d open\n", plural(uint64(n), "probe"), len(r.Open()))
		}
		return nil
	}
	return v
}
