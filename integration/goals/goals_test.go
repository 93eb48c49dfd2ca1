package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/loadgen"
)

func TestParseOptions(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "gpuai")
	if err := os.WriteFile(bin, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	o, err := parseOptions([]string{"--gpuai", bin, "--only", "lone,plan"}, io.Discard)
	if err != nil || !slices.Equal(o.only, []string{"lone", "plan"}) {
		t.Fatalf("%+v, %v", o, err)
	}
	for _, args := range []string{
		"--only none", "-o xml", "--nodes 1", "--large 100", "--large 40000", "--plan-nodes 1", "--gpus-per-node 65",
		"--callers 0", "--proposed 1", "--gpuai " + bin + "-not", "word",
	} {
		if _, err := parseOptions(append([]string{"--gpuai", bin}, strings.Fields(args)...), io.Discard); err == nil {
			t.Errorf("%s: taken", args)
		}
	}
}

func TestEveryRowHasItsBed(t *testing.T) {
	r := &run{o: &options{}}
	all := r.wanted(bedNone, bedSmall, bedIdle, bedNodes, bedLarge, bedPlanned)
	if len(all) != len(goals()) {
		t.Errorf("%d of %d rows are measured", len(all), len(goals()))
	}
	r.o.only = []string{"watchers"}
	if got := r.wanted(bedSmall, bedIdle, bedNodes); len(got) != 2 || got[0].name != "cpu-small" {
		t.Errorf("for watchers %d rows are measured", len(got))
	}
}

func TestTapCountsLeasesOfAJob(t *testing.T) {
	var tap tap
	rec := loadgen.NewRecorder()
	tap.reset(rec)
	a, b := gpuai.JobID{1}, gpuai.JobID{2}
	tap.lease(a, 10)
	tap.lease(b, 30)
	tap.lease(a, 20)
	if n, last := tap.of(a); n != 2 || last != 30 {
		t.Errorf("job a: %d leases, last at %d", n, last)
	}
	if n, last := tap.seen(); n != 3 || last != 30 {
		t.Errorf("%d leases, last at %d", n, last)
	}
	tap.reset(nil)
	if n, _ := tap.seen(); n != 0 {
		t.Errorf("%d leases after a reset", n)
	}
}

func TestClosedStops(t *testing.T) {
	var calls atomic.Int64
	n, _, err := closed(4, time.Minute, func(i int64) (bool, error) {
		calls.Add(1)
		return i < 100, nil
	})
	if err != nil || n != 100 || calls.Load() != 104 {
		t.Errorf("%d answers of %d calls, %v", n, calls.Load(), err)
	}
	broken := errors.New("broken")
	if _, _, err := closed(4, time.Minute, func(int64) (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestFiguresOfTheBenchmark(t *testing.T) {
	out := "BenchmarkCommit3/placements-2  \t  400000\t        20.14 cpu-µs\t     93571 commands/s\t         5.213 p50-ms\t        12.09 p99-ms\nPASS\n"
	got := map[string]string{}
	for _, m := range figure.FindAllSubmatch([]byte(out), -1) {
		got[string(m[2])] = string(m[1])
	}
	if len(got) != 4 || got["commands/s"] != "93571" || got["p99-ms"] != "12.09" || got["cpu-µs"] != "20.14" {
		t.Errorf("%v", got)
	}
}

func TestReport(t *testing.T) {
	r := report{Rows: []row{
		{Name: "lone", Goal: "fast", Measured: "slow", How: "by a clock"},
		{Name: "plan", Goal: "g", Met: true, Measured: "m"},
		{Name: "rss", Goal: "g", Error: "no server"},
	}}
	var text, raw strings.Builder
	if err := errors.Join(r.write(&text, "text"), r.write(&raw, "json")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NO", "yes", "not measured: no server", "lone: by a clock"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	var again report
	if err := json.Unmarshal([]byte(raw.String()), &again); err != nil || len(again.Rows) != 3 || again.Rows[0].Measured != "slow" {
		t.Errorf("%+v, %v", again, err)
	}
}
