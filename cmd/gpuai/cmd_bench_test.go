package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai/internal/loadgen"
)

// benchCmd is this program as "gpuai bench", with a temporary directory of its
// own.
func benchCmd(t *testing.T, args ...string) (cmd *exec.Cmd, dir string, out, talk *bytes.Buffer) {
	dir, out, talk = t.TempDir(), new(bytes.Buffer), new(bytes.Buffer)
	cmd = exec.CommandContext(t.Context(), "gpuai", append([]string{"bench"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr = out, talk
	return cmd, dir, out, talk
}

// nothingLeft waits until there is no file in dir, and no process that has it
// among its arguments.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	left := func() (found []string) {
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), dir) {
				found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
			}
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		return append(found, files...)
	}
	deadline := time.After(30 * time.Second)
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for len(left()) > 0 {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("left behind: %q", left())
		}
	}
}

func TestBenchFlags(t *testing.T) {
	for _, c := range []struct {
		args, want string
	}{
		{"", "--addr"},
		{"--addr 127.0.0.1:1 --local 3", "--addr"},
		{"--context dev --local 3", "--context"},
		{"--context nowhere", "nowhere"},
		{"--insecure", "--insecure"},
		{"--addr 127.0.0.1:1 --insecure", "--insecure"},
		{"--local 2", "--local"},
		{"--local -1", "--local"},
		{"--local 3 --sim-nodes 0", "--sim-nodes"},
		{"--local 3 --sim-nodes 9999999", "--sim-nodes"},
		{"--local 3 --gpus 9", "fits on no node"},
		{"--local 3 --gpus -1", "GPUs"},
		{"--local 3 --gpus-per-node 65", "GPUs"},
		{"--local 3 --rate 0", "rate"},
		{"--local 3 --rate nan", "rate"},
		{"--local 3 --duration 0s", "duration"},
		{"--local 3 --batch 0", "batch"},
		{"--local 3 --batch 1001", "batch"},
		{"--local 3 --rate 10 --duration 1s --batch 11", "not one batch"},
		{"--local 3 --task-time -1s", "task"},
		{"--local 3 --agents-per-process 0", "--agents-per-process"},
		{"--local 3 -o xml", "-o"},
		{"--local 3 --rate x", "--rate"},
		{"--addr ftp://h", "no URL"},
		{"region left", "unknown command"},
		{"left", "unknown command"},
	} {
		var out, talk bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &talk, getenv: os.Getenv, now: time.Now}
		code := a.run(t.Context(), append([]string{"bench"}, strings.Fields(c.args)...))
		if code != exitUsage || !strings.Contains(talk.String(), c.want) || out.Len() > 0 {
			t.Errorf("bench %s: exit %d, %q%q, want one about %q", c.args, code, talk.String(), out.String(), c.want)
		}
	}
}

func TestBenchWithoutServer(t *testing.T) {
	var out, talk bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &out, err: &talk, getenv: os.Getenv, now: time.Now}
	if code := a.run(t.Context(), []string{"bench", "--addr", "127.0.0.1:1"}); code == exitDone || !strings.Contains(talk.String(), "127.0.0.1:1") {
		t.Errorf("exit %d, %q", code, talk.String())
	}
}

// The parts of the hidden commands, without processes.
func TestBenchChildren(t *testing.T) {
	ms := []loadgen.Member{{ID: "x", Data: "/d/x", HTTP: "h:1", Raft: "r:1"}, {ID: "y", Raft: "r:2"}}
	for want, got := range map[string][]string{
		"--peers x=r:1,y=r:2 --bootstrap": serverArgs(ms[0], ms, false),
		"--bootstrap":                     serverArgs(ms[0], ms, true),
		"--join h:1":                      serverArgs(ms[1], ms, true)[2:],
	} {
		if got := strings.Join(got, " "); !strings.HasSuffix(got, " --log-level warn "+want) {
			t.Errorf("a server is started as %q, not %s", got, want)
		}
	}
	if n := agentsPerProcess(); n < 1 || n > mostAgents {
		t.Errorf("a process holds %d agents", n)
	}
	v := benchView(&loadgen.Result{Submitted: 1, LatencyMs: loadgen.Quantile{P50: 1.234}})
	if len(v.rows) != 1 || len(v.rows[0]) != len(v.head) || v.rows[0][3] != "1.23" {
		t.Errorf("the table is %q %q", v.head, v.rows)
	}
}

// keys returns the names of a JSON object, in order, with those within.
func keys(t *testing.T, b []byte) (names []string) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	for k, v := range m {
		names = append(names, k)
		if v[0] == '{' {
			for _, sub := range keys(t, v) {
				names = append(names, k+"."+sub)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Three real servers, real sessions, in this process and in workers.
func TestBenchLocal(t *testing.T) {
	for name, args := range map[string]string{
		"single":  "--rate 300 --insecure",
		"batches": "--rate 600 --batch 30 --agents-per-process 7",
	} {
		t.Run(name, func(t *testing.T) {
			cmd, dir, out, talk := benchCmd(t, append([]string{
				"--local", "3", "--sim-nodes", "20", "--duration", "1s", "--task-time", "50ms", "-o", "json",
			}, strings.Fields(args)...)...)
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v: %s", err, talk)
			}
			var r loadgen.Result
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			if r.Submitted < 300 || r.Placed != r.Submitted {
				t.Errorf("%d of %d placed: %s", r.Placed, r.Submitted, talk)
			}
			if l := r.LatencyMs; l.P50 <= 0 || l.P999 < l.P50 || r.PlacementsPerSecond <= 0 || r.ServerCPUMs <= 0 || r.RSSPerNode <= 0 {
				t.Errorf("got %s", out)
			}
			want := []string{
				"latency_ms", "latency_ms.p50", "latency_ms.p90", "latency_ms.p99", "latency_ms.p999", "placed",
				"placements_per_second", "rss_bytes_per_node", "server_cpu_ms_per_placement", "submitted",
			}
			if got := keys(t, out.Bytes()); !slices.Equal(got, want) {
				t.Errorf("it has %v", got)
			}
			nothingLeft(t, dir)
		})
	}
}

// A signal ends a measurement early. SIGINT and SIGTERM leave it time to print
// what there is.
func TestBenchSignals(t *testing.T) {
	for _, c := range []struct {
		signal syscall.Signal
		prints bool
	}{{syscall.SIGINT, true}, {syscall.SIGTERM, true}, {syscall.SIGKILL, false}} {
		t.Run(c.signal.String(), func(t *testing.T) {
			cmd, dir, out, _ := benchCmd(t, "--local", "3", "--sim-nodes", "10", "--rate", "50", "--duration", "10m",
				"--task-time", "50ms", "--agents-per-process", "5", "-o", "json")
			cmd.Stderr = nil
			talk, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			said := make([]byte, 0, 1<<16)
			for !bytes.Contains(said, []byte("submitted")) { // it is under way
				n, err := talk.Read(said[len(said):cap(said)])
				if said = said[:len(said)+n]; err != nil {
					t.Fatalf("it says %q, %v", said, err)
				}
			}
			cmd.Process.Signal(c.signal)
			io.Copy(io.Discard, talk)
			err = cmd.Wait()
			var r loadgen.Result
			if c.prints {
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 130 {
					t.Errorf("it ends with %v", err)
				}
				if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Placed == 0 || r.ServerCPUMs <= 0 {
					t.Errorf("it prints %s, %v", out, err)
				}
			}
			nothingLeft(t, dir)
		})
	}
}
