package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// bins has the programs under test.
var bins string

func TestMain(m *testing.M) {
	if text := os.Getenv(envGenerator); text != "" {
		os.Exit(generatorMain(text, os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gpuai-scale-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bins = dir
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./cmd/gpuai")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the program under test: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// TestCase26And27And28Short runs the short form of all scenarios: a leader killed
// with real sessions at it, single deaths, 30 % of the nodes gone.
func TestCase26And27And28Short(t *testing.T) {
	if testing.Short() {
		t.Skip("three servers and some hundred sessions for three quarters of a minute")
	}
	var out, progress bytes.Buffer
	code := start(t.Context(), []string{"--bin", bins, "--nodes", "300", "--generators", "10", "--steady", "1s", "--short", "-o", "json"}, &out, &progress)
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("exit code %d: %v\n%s", code, err, progress.String())
	}
	t.Logf("%s\n%s", progress.String(), out.String())
	if code != 0 || len(r.Broken) > 0 {
		t.Fatalf("exit code %d, promises that do not hold: %q", code, r.Broken)
	}
	if !r.TLS {
		t.Error("the region is not one with authentication")
	}
	if r.Steady == nil || r.Kill == nil || r.Death == nil || r.Replace == nil || r.Device == nil || r.Gone == nil {
		t.Fatal("a scenario is missing in the report")
	}
	if r.Kill.LeasesEnded != 0 || r.Replace.Tasks < 100 || r.Gone.Real+r.Gone.Injected < r.Nodes/4 || r.Steady.RealAcks.N == 0 || r.Steady.InjectedAcks.N == 0 {
		t.Errorf("the report is not what was asked for: %+v %+v %+v", *r.Kill, *r.Replace, *r.Gone)
	}
	var table bytes.Buffer
	if err := r.write(&table, "text"); err != nil || !strings.Contains(table.String(), "injected at the folding step") {
		t.Errorf("the table does not say what was injected: %v\n%s", err, table.String())
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--nodes 10", "--nodes is 100 to"},
		{"--nodes 1000 --real 5000", "--real is"},
		{"--generators 0", "--generators is 1 to 64"},
		{"--steady 1ms", "--steady is at least"},
		{"--only kill,sleep", `no scenario "sleep"`},
		{"-o yaml", "text or json"},
		{"--bin /nonexistent", "make build"},
		{"more", "no flag"},
	} {
		var stderr bytes.Buffer
		if code := start(t.Context(), append([]string{"--bin", bins}, strings.Fields(tt.args)...), &stderr, &stderr); code != 2 || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("scale %s: exit code %d: %s", tt.args, code, stderr.String())
		}
	}
}

func TestSpectrum(t *testing.T) {
	var s spectrum
	for i := range 100 {
		s.add(time.Duration(i+1) * time.Millisecond)
	}
	for q, want := range map[float64]float64{0.5: 50, 0.99: 99} {
		if got := s.at(q); got < want || got > want*spectrumStep+0.1 {
			t.Errorf("quantile %v is %v, want %v or a little more", q, got, want)
		}
	}
	b, err := json.Marshal(&s)
	var again spectrum
	if err != nil || json.Unmarshal(b, &again) != nil || again.count() != 100 {
		t.Errorf("%s: %d, %v", b, again.count(), err)
	}
	if got := between(&again, &s); got.N != 0 || got.P50 > spectrumStep {
		t.Errorf("between equal counts: %+v", got)
	}
}

func TestLostTasksStayBelowTheBreaker(t *testing.T) {
	p := gpuai.DefaultPolicy()
	for _, n := range []int{100, 300, 1_000, 10_000, 100_000} {
		silent := (lostTasks(n)+nodeGPUs-1)/nodeGPUs + canaries + 1 // beside a death and a node that flaps
		if limit := max(int(p.BreakerMin), n*int(p.BreakerPPM)/1_000_000); silent > limit || lostTasks(n) < 48 {
			t.Errorf("%d nodes: %d tasks, %d silent nodes of %d", n, lostTasks(n), silent, limit)
		}
	}
	if got := lostTasks(100_000); got != 1_000 {
		t.Errorf("%d tasks", got)
	}
}
