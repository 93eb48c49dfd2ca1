package main

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/oracle"
)

func aRun(token gpuai.Token, task uint32, first, last int64) beat.Run {
	return beat.Run{
		Identity: beat.Identity{Token: token, Job: "job", Group: "main", Task: task},
		First:    first, Last: last, Beats: 3,
	}
}

// A demo whose gang's rank 1 and array's task 3 ran on a host that died at
// 1 s, and elsewhere later.
func afterDeath() (*demo, []beat.Run) {
	d := &demo{
		watcher: oracle.NewWatcher(), gang: "gang", array: "array",
		deadHost: &host{id: "host-a"}, hostDiedAt: 1e9,
	}
	add := func(token gpuai.Token, job string, task uint32, node gpuai.NodeID) {
		d.watcher.Leases[token] = &oracle.Lease{Token: token, Task: oracle.TaskKey{Job: job, Task: task}, Node: node, Granted: 1, Started: 1}
	}
	add(10, "gang", 1, "host-a")
	add(11, "array", 3, "host-a")
	add(20, "gang", 1, "host-b")
	add(21, "array", 3, "host-c")
	d.onDeadHost = []oracle.Lease{*d.watcher.Leases[10], *d.watcher.Leases[11]}
	return d, []beat.Run{
		aRun(10, 1, 0, 10e9), aRun(11, 3, 0, 2e9), aRun(20, 1, 22e9, 30e9), aRun(21, 3, 23e9, 24e9),
	}
}

func TestAgentDeath(t *testing.T) {
	d, runs := afterDeath()
	got, err := d.agentDeath(runs)
	want := agentDeath{
		Node: "host-a", Tasks: 2, LastBeatMS: 9000, GangElsewhereMS: 21000,
		ArrayElsewhere: latency{N: 1, P50: 22000, P99: 22000, Max: 22000},
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}

	d.watcher.Leases[11].Cause = gpuai.CauseDone // its end was reported in time
	delete(d.watcher.Leases, 21)
	if got, err := d.agentDeath(runs); err != nil || got.Tasks != 1 {
		t.Errorf("%+v, %v, want one lost task", got, err)
	}
}

func TestAgentDeathFindsBrokenClaims(t *testing.T) {
	cases := []struct {
		name  string
		spoil func(*demo, []beat.Run)
		err   string
	}{
		{"never again", func(d *demo, _ []beat.Run) { delete(d.watcher.Leases, 21) }, "never again elsewhere"},
		{"again on the dead host", func(d *demo, _ []beat.Run) { d.watcher.Leases[20].Node = "host-a" }, "never again elsewhere"},
		{"leased elsewhere without a beat", func(_ *demo, r []beat.Run) { r[2].Beats = 0 }, "never again elsewhere"},
		{"not fenced", func(_ *demo, r []beat.Run) { r[0].Last = 17e9 }, "did not fence"},
		{"died with the agent", func(_ *demo, r []beat.Run) { r[0].Last, r[1].Last = 11e8, 11e8 }, "were to run on"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d, runs := afterDeath()
			c.spoil(d, runs)
			if _, err := d.agentDeath(runs); err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}

func TestLatencies(t *testing.T) {
	d := &demo{watcher: oracle.NewWatcher(), array: "array", submitted: 1e9, probed: map[oracle.TaskKey]int64{}}
	var runs []beat.Run
	for i := range gpuai.Token(probes) {
		key := oracle.TaskKey{Job: i.String(), Task: 0}
		d.probed[key] = 5e9
		d.watcher.Leases[i] = &oracle.Lease{Token: i, Task: key, Granted: 5e9 + int64(i+1)*1e6}
		runs = append(runs, aRun(i, 0, 6e9, 7e9))
	}
	d.watcher.Leases[1000] = &oracle.Lease{Token: 1000, Task: oracle.TaskKey{Job: "array", Task: 7}, Granted: 3e9}
	if err := d.latencies(runs); err != nil {
		t.Fatal(err)
	}
	if got, want := d.report.Allocation, (latency{N: 40, P50: 20, P99: 40, Max: 40}); got != want {
		t.Errorf("allocation %+v, want %+v", got, want)
	}
	if got := d.report.Start.P50; got != 1000 {
		t.Errorf("start p50 %v, want 1000", got)
	}
	if got := d.report.ArrayWait; got.N != 1 || got.Max != 2000 {
		t.Errorf("array %+v", got)
	}
	delete(d.watcher.Leases, 0)
	if d.latencies(runs) == nil {
		t.Error("a probe without a lease was let pass")
	}
}
