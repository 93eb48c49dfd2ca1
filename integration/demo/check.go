package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

// check reads the traces of beats and judges what is left to judge.
func (d *demo) check(ctx context.Context) error {
	runs, err := beat.ReadRuns(d.programs.beats())
	if err != nil {
		return err
	}
	if d.report.Runners, err = oneRunner(runs); err != nil {
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

// oneRunner checks that no task ever had two runners: of two of its runs, the
// last beat of the one comes before the first beat of the other, which has the
// greater token.
func oneRunner(runs []beat.Run) (runners, error) {
	byTask := map[taskKey][]beat.Run{}
	out := runners{Runs: len(runs)}
	for _, r := range runs {
		key := taskKey{r.Job + "/" + r.Group, r.Task}
		byTask[key] = append(byTask[key], r)
		out.Beats += r.Beats
	}
	out.Tasks = len(byTask)
	for _, of := range byTask {
		slices.SortFunc(of, func(a, b beat.Run) int { return cmp.Compare(a.First, b.First) })
		for i := 1; i < len(of); i++ {
			if err := apart(&of[i-1], &of[i]); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// apart checks one run against the next of the same task.
func apart(a, b *beat.Run) error {
	at := fmt.Sprintf("task %d of job %s, group %s", a.Task, a.Job, a.Group)
	switch {
	case a.Token == b.Token:
		return fmt.Errorf("%s was started twice under the token %s", at, a.Token)
	case a.Last >= b.First:
		return fmt.Errorf("%s had two runners: token %s beat for %.0f ms after token %s had begun", at, a.Token, float64(a.Last-b.First)/1e6, b.Token)
	case a.Token > b.Token:
		return fmt.Errorf("%s ran under token %s after it had run under the greater %s", at, b.Token, a.Token)
	}
	return nil
}

// latencies measures the way of the probes and the array to their leases.
func (d *demo) latencies(runs []beat.Run) error {
	first := map[gpuai.Token]int64{}
	for _, r := range runs {
		first[r.Token] = r.First
	}
	var granted, started, array []float64
	for _, l := range d.watcher.all(func(*lease) bool { return true }) {
		if called, ok := d.probed[l.task]; ok {
			granted = append(granted, float64(l.granted-called)/1e6)
			started = append(started, float64(first[l.token]-called)/1e6)
		}
		if l.task.job == d.array {
			array = append(array, float64(l.granted-d.submitted)/1e6)
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
	lost := d.watcher.all(func(l *lease) bool {
		return l.cause != gpuai.CauseDone && slices.ContainsFunc(d.onDeadHost, func(on lease) bool { return on.token == l.token })
	})
	out.Tasks = len(lost)
	for _, l := range lost {
		out.LastBeatMS = max(out.LastBeatMS, after(byToken[l.token].Last))
		next, ok := d.nextRun(&l, byToken)
		switch {
		case !ok:
			return out, fmt.Errorf("task %d of job %s ran on %s when its agent died, and never again elsewhere", l.task.task, l.task.job, out.Node)
		case l.task.job == d.gang:
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
func (d *demo) nextRun(l *lease, byToken map[gpuai.Token]beat.Run) (beat.Run, bool) {
	later := d.watcher.all(func(n *lease) bool {
		return n.task == l.task && n.token > l.token && n.node != l.node && byToken[n.token].Beats > 0
	})
	if len(later) == 0 {
		return beat.Run{}, false
	}
	return byToken[later[0].token], true
}
