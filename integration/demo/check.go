package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/oracle"
)

// check reads the traces of beats and judges what is left to judge.
func (d *demo) check(ctx context.Context) error {
	runs, err := beat.ReadRuns(d.programs.beats())
	if err != nil {
		return err
	}
	outputs, err := d.outputs()
	if err != nil {
		return err
	}
	runs = append(runs, outputs...)
	if d.report.Runners, err = oracle.OneRunner(runs); err != nil {
		return err
	}
	if want := gangSize + arraySize + probes; d.report.Runners.Tasks != want {
		return fmt.Errorf("%d tasks left beats, and %d ran", d.report.Runners.Tasks, want)
	}
	if err := d.latencies(runs); err != nil {
		return err
	}
	if d.report.AgentDeath, err = d.agentDeath(runs); err != nil {
		return err
	}
	unbroken, err := d.train(ctx)
	if err != nil {
		return err
	}
	d.report.Training, err = d.training.summary(unbroken)
	return err
}

// latencies measures the way of the probes and the array to their leases.
func (d *demo) latencies(runs []beat.Run) error {
	first := map[gpuai.Token]int64{}
	for _, r := range runs {
		first[r.Token] = r.First
	}
	var granted, started, array []float64
	for _, l := range d.watcher.All(func(*oracle.Lease) bool { return true }) {
		if called, ok := d.probed[l.Task]; ok {
			granted = append(granted, float64(l.Granted-called)/1e6)
			started = append(started, float64(first[l.Token]-called)/1e6)
		}
		if l.Task.Job == d.array {
			array = append(array, float64(l.Granted-d.submitted)/1e6)
		}
	}
	if len(granted) != probes {
		return fmt.Errorf("%d leases were granted to %d jobs of one task that nothing befell", len(granted), probes)
	}
	d.report.Allocation, d.report.Start, d.report.ArrayWait = quantiles(granted), quantiles(started), quantiles(array)
	return nil
}

// agentDeath tells what became of the tasks that ran on the dead agent's host.
func (d *demo) agentDeath(runs []beat.Run) (agentDeath, error) {
	out := agentDeath{Node: d.deadHost.id}
	byToken := map[gpuai.Token]beat.Run{}
	for _, r := range runs {
		byToken[r.Token] = r
	}
	after := func(at int64) float64 { return float64(at-d.hostDiedAt) / 1e6 }
	var array []float64
	// What ended well just then was reported in time, and is not lost.
	lost := d.watcher.All(func(l *oracle.Lease) bool {
		return l.Cause != gpuai.CauseDone && slices.ContainsFunc(d.onDeadHost, func(on oracle.Lease) bool { return on.Token == l.Token })
	})
	out.Tasks = len(lost)
	for _, l := range lost {
		out.LastBeatMS = max(out.LastBeatMS, after(byToken[l.Token].Last))
		next, ok := d.nextRun(&l, byToken)
		switch {
		case !ok:
			return out, fmt.Errorf("task %d of job %s ran on %s when its agent died, and never again elsewhere", l.Task.Task, l.Task.Job, out.Node)
		case l.Task.Job == d.gang:
			out.GangElsewhereMS = max(out.GangElsewhereMS, after(next.First))
		default:
			array = append(array, after(next.First))
		}
	}
	out.ArrayElsewhere = quantiles(array)
	if limit := float64(leaseTTL); out.LastBeatMS >= limit {
		return out, fmt.Errorf("a task of the dead agent beat for %.0f ms after its death, beyond its lease's %.0f ms: the watchdog did not fence it", out.LastBeatMS, limit)
	}
	if out.LastBeatMS < 1000 {
		return out, fmt.Errorf("the tasks of the dead agent beat for %.0f ms only after its death: they were to run on below its watchdog", out.LastBeatMS)
	}
	return out, nil
}

// nextRun finds the first run of a lease's task after it, on another host.
func (d *demo) nextRun(l *oracle.Lease, byToken map[gpuai.Token]beat.Run) (beat.Run, bool) {
	later := d.watcher.All(func(n *oracle.Lease) bool {
		return n.Task == l.Task && n.Token > l.Token && n.Node != l.Node && byToken[n.Token].Beats > 0
	})
	if len(later) == 0 {
		return beat.Run{}, false
	}
	return byToken[later[0].Token], true
}
