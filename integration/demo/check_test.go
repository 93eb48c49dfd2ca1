package main

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

func aRun(token gpuai.Token, task uint32, first, last int64) beat.Run {
	return beat.Run{
		Identity: beat.Identity{Token: token, Job: "job", Group: "main", Task: task},
		First:    first, Last: last, Beats: 3,
	}
}

func TestOneRunner(t *testing.T) {
	other := aRun(9, 0, 100, 900)
	other.Group = "second"
	cases := []struct {
		name string
		runs []beat.Run
		err  string
		want runners
	}{
		{"none", nil, "", runners{}},
		{"one after the other", []beat.Run{aRun(7, 0, 500, 900), aRun(5, 0, 100, 499)}, "", runners{Tasks: 1, Runs: 2, Beats: 6}},
		{"different tasks at once", []beat.Run{aRun(7, 0, 100, 900), aRun(8, 1, 100, 900), other}, "", runners{Tasks: 3, Runs: 3, Beats: 9}},
		{"two at once", []beat.Run{aRun(5, 0, 100, 500), aRun(7, 0, 499, 900)}, "had two runners", runners{}},
		{"two at the same instant", []beat.Run{aRun(5, 0, 100, 500), aRun(7, 0, 500, 900)}, "had two runners", runners{}},
		{"one within the other", []beat.Run{aRun(5, 0, 100, 500), aRun(7, 0, 200, 300)}, "had two runners", runners{}},
		{"the third within the first", []beat.Run{aRun(5, 0, 100, 250), aRun(7, 0, 300, 400), aRun(8, 0, 350, 600)}, "had two runners", runners{}},
		{"the old token last", []beat.Run{aRun(7, 0, 100, 200), aRun(5, 0, 300, 400)}, "after it had run under the greater", runners{}},
		{"a token twice", []beat.Run{aRun(5, 0, 100, 200), aRun(5, 0, 300, 400)}, "twice under the token 5", runners{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := oneRunner(c.runs)
			if c.err == "" && (err != nil || got != c.want) {
				t.Errorf("%+v, %v, want %+v", got, err, c.want)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("%v, want %q", err, c.err)
			}
		})
	}
}

// A demo whose gang's rank 1 and array's task 3 ran on a host that died at
// 1 s, and elsewhere later.
func afterDeath() (*demo, []beat.Run) {
	d := &demo{
		watcher: newWatcher(), gang: "gang", array: "array",
		deadHost: &host{id: "host-a"}, hostDiedAt: 1e9,
	}
	add := func(token gpuai.Token, job string, task uint32, node gpuai.NodeID) {
		d.watcher.leases[token] = &lease{token: token, task: taskKey{job, task}, node: node, granted: 1, started: 1}
	}
	add(10, "gang", 1, "host-a")
	add(11, "array", 3, "host-a")
	add(20, "gang", 1, "host-b")
	add(21, "array", 3, "host-c")
	d.onDeadHost = []lease{*d.watcher.leases[10], *d.watcher.leases[11]}
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

	d.watcher.leases[11].cause = gpuai.CauseDone // its end was reported in time
	delete(d.watcher.leases, 21)
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
		{"never again", func(d *demo, _ []beat.Run) { delete(d.watcher.leases, 21) }, "never again elsewhere"},
		{"again on the dead host", func(d *demo, _ []beat.Run) { d.watcher.leases[20].node = "host-a" }, "never again elsewhere"},
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
	d := &demo{watcher: newWatcher(), array: "array", submitted: 1e9, probed: map[taskKey]int64{}}
	var runs []beat.Run
	for i := range gpuai.Token(probes) {
		key := taskKey{i.String(), 0}
		d.probed[key] = 5e9
		d.watcher.leases[i] = &lease{token: i, task: key, granted: 5e9 + int64(i+1)*1e6}
		runs = append(runs, aRun(i, 0, 6e9, 7e9))
	}
	d.watcher.leases[1000] = &lease{token: 1000, task: taskKey{"array", 7}, granted: 3e9}
	if err := d.latencies(runs); err != nil {
		t.Fatal(err)
	}
	if got, want := d.report.Allocation, (latency{N: 75, P50: 38, P99: 75, Max: 75}); got != want {
		t.Errorf("allocation %+v, want %+v", got, want)
	}
	if got := d.report.Start.P50; got != 1000 {
		t.Errorf("start p50 %v, want 1000", got)
	}
	if got := d.report.ArrayWait; got.N != 1 || got.Max != 2000 {
		t.Errorf("array %+v", got)
	}
	delete(d.watcher.leases, 0)
	if d.latencies(runs) == nil {
		t.Error("a probe without a lease was let pass")
	}
}
