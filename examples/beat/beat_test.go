package beat_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/examples/beat"
)

const job = "01JD0000000000000000000000"

func env(token, task string) map[string]string {
	return map[string]string{
		gpuai.EnvToken: token, gpuai.EnvJob: job,
		gpuai.EnvTaskGroup: "main", gpuai.EnvTaskIndex: task,
	}
}

func lookup(m map[string]string) func(string) string {
	return func(k string) string { return m[k] }
}

func TestWriterLeavesItsTrace(t *testing.T) {
	dir := t.TempDir()
	vars := env("6553600", "7")
	vars[beat.EnvDir] = dir
	before := beat.Boottime()
	w, err := beat.StartFromEnv(lookup(vars))
	if err != nil {
		t.Fatal(err)
	}
	if r := only(t, dir); r.Beats < 1 {
		t.Fatalf("no beat when Start returned: %+v", r)
	}
	for deadline := time.Now().Add(10 * time.Second); only(t, dir).Beats < 4; {
		if time.Now().After(deadline) {
			t.Fatal("no fourth beat within 10 s")
		}
	}
	if err := w.Stop(); err != nil {
		t.Fatal(err)
	}
	r := only(t, dir)
	want := beat.Identity{Token: 6553600, Job: job, Group: "main", Task: 7}
	if r.Identity != want {
		t.Errorf("identity %+v, want %+v", r.Identity, want)
	}
	if r.First < before || r.Last > beat.Boottime() || r.Last-r.First < 3*int64(beat.Every)/2 {
		t.Errorf("beats from %d to %d, between %d and now", r.First, r.Last, before)
	}
	if err := w.Stop(); err != nil || only(t, dir) != r {
		t.Errorf("a second Stop: %v, %+v", err, only(t, dir))
	}
}

func only(t *testing.T, dir string) beat.Run {
	t.Helper()
	runs, err := beat.ReadRuns(dir)
	if err != nil || len(runs) != 1 {
		t.Fatalf("%d runs, %v", len(runs), err)
	}
	return runs[0]
}

func TestStart(t *testing.T) {
	cases := []struct {
		name   string
		change map[string]string
		err    string // "" = the nil Writer
	}{
		{"no directory", nil, ""},
		{"missing directory", map[string]string{beat.EnvDir: "/nonexistent/beats"}, "no such file"},
		{"no token", map[string]string{beat.EnvDir: "/tmp", gpuai.EnvToken: ""}, gpuai.EnvToken},
		{"no task", map[string]string{beat.EnvDir: "/tmp", gpuai.EnvTaskIndex: "-1"}, gpuai.EnvTaskIndex},
		{"no group", map[string]string{beat.EnvDir: "/tmp", gpuai.EnvTaskGroup: ""}, gpuai.EnvTaskGroup},
		{"job with a space", map[string]string{beat.EnvDir: "/tmp", gpuai.EnvJob: "a b"}, gpuai.EnvJob},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			vars := env("1", "0")
			for k, v := range c.change {
				vars[k] = v
			}
			w, err := beat.StartFromEnv(lookup(vars))
			if c.err == "" {
				if w != nil || err != nil || w.Stop() != nil {
					t.Fatalf("%v, %v", w, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%v, want an error with %q", err, c.err)
			}
		})
	}
}

func TestReadRuns(t *testing.T) {
	line := func(token, at string) string { return token + " " + job + " main 3 " + at + "\n" }
	cases := []struct {
		name, content string
		beats         int
		err           string
	}{
		{"whole lines", line("5", "100") + line("5", "150"), 2, ""},
		{"cut off in the last line", line("5", "100") + "5 01J", 1, ""},
		{"nothing", "", 0, ""},
		{"only a cut line", "5 01J", 0, ""},
		{"garbage", "hello\n" + line("5", "100"), 0, "is no beat"},
		{"bad time", line("5", "x"), 0, "is no beat"},
		{"two tokens", line("5", "100") + line("6", "150"), 0, "another runner"},
		{"time goes back", line("5", "150") + line("5", "100"), 0, "line 2"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "x.beats"), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			runs, err := beat.ReadRuns(dir)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want an error with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := len(runs); (n == 1) != (c.beats > 0) || n == 1 && runs[0].Beats != c.beats {
				t.Fatalf("%+v, want %d beats", runs, c.beats)
			}
		})
	}
}

func TestReadOutput(t *testing.T) {
	out := "hello\nbeat 5 " + job + " main 3 100\nelement 3\nbeat 5 " + job + " main 3 150\nbeat 5 01J"
	r, err := beat.ReadOutput("x", []byte(out))
	if err != nil || r.Beats != 2 || r.First != 100 || r.Last != 150 || r.Token != 5 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := beat.ReadOutput("x", []byte("hello\n")); err != nil || r.Beats != 0 {
		t.Errorf("of none: %+v, %v", r, err)
	}
	if _, err := beat.ReadOutput("x", []byte("beat of a drum\n")); err == nil {
		t.Error("what is no beat is one")
	}
}
