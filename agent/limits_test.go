package agent

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// What a task is told says the limit, the rank and what to do; what ended for
// another reason is told nothing of limits.
func TestLimitsAreWorded(t *testing.T) {
	gang := &gpuai.GangInfo{Rank: 3, Size: 4}
	for _, c := range []struct {
		task watchdog.Task
		gang *gpuai.GangInfo
		oci  bool
		want string
	}{
		{watchdog.Task{Code: 137, Limit: watchdog.LimitMemory}, gang, false, "memory: rank 3 used its 4 GiB; ask for more resources.memory"},
		{watchdog.Task{Code: 1, Limit: watchdog.LimitMemory}, nil, true, "memory: task 7 used its 4 GiB, of which /work and /tmp are part"},
		{watchdog.Task{Code: 4, Limit: watchdog.LimitProcesses}, gang, true, "processes: rank 3 reached the limit of 4096 processes and threads; start fewer"},
		{watchdog.Task{Code: 0, Limit: watchdog.LimitMemory}, nil, true, ""},
		{watchdog.Task{Code: 143, By: watchdog.ByStop, Limit: watchdog.LimitMemory}, nil, false, ""},
		{watchdog.Task{Code: 1}, nil, false, ""},
	} {
		w := &worker{lease: gpuai.Lease{TaskRef: gpuai.TaskRef{Task: 7}, Memory: 4 << 30}, assign: gpuai.Assignment{Gang: c.gang}}
		if c.oci {
			w.assign.Task.Runtime = gpuai.RuntimeOCI
		}
		if got := w.limited(&c.task); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%+v: %q, want %q", c.task, got, c.want)
		}
	}
}

// What a user runs into, for real: the reason says which limit or which image, on
// which task, and what to do.
func TestInputsThatEndATaskAreSaid(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	sandboxes := boxed(t, dir)
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/none/") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "http://")
	load := func(what string) func(*gpuai.Assignment) {
		return func(a *gpuai.Assignment) {
			inImage(image)(a)
			a.Task.Command, a.Task.Cwd = []string{"gpuai-probe", what}, "/work"
		}
	}
	room, full := newFixture(t), newFixture(t)
	for f, free := range map[*fixture]gpuai.Bytes{room: 0, full: 1 << 60} { // no disk has so much
		f.run(func(c *Config) {
			sandboxes(c)
			c.Sandbox.Images.LocalRegistry, c.Sandbox.Images.KeepFree = true, int64(free)
		})
	}
	cases := []struct {
		name  string
		on    *fixture
		task  func(*gpuai.Assignment)
		state gpuai.ReportState
		want  []string
	}{
		{"no such image", room, inImage(host + "/none/app:v1"), gpuai.ReportFailed, []string{"image " + host + "/none/app:v1: ", "has no such image or tag: check its name"}},
		{"wrong credentials", room, inImage(host + "/team/app:v1"), gpuai.ReportFailed, []string{"denies it (401)", "credentials are missing or wrong", "--registry-credentials FILE"}},
		{"disk full while unpacking", full, inImage(image), gpuai.ReportLost, []string{"the image cache is full", "free some, or to give the agent another directory"}},
		{"memory", room, load("memory"), gpuai.ReportFailed, []string{"memory: task 3 used its 64 MiB", "ask for more resources.memory"}},
		{"processes", room, load("forks"), gpuai.ReportFailed, []string{"processes: task 3 reached the limit of 4096", "start fewer at a time"}},
		{"scratch", room, load("disk"), gpuai.ReportFailed, []string{"scratch: task 3 filled /work of 32 MiB", "ask for resources.scratch"}},
	}
	leases := make([]gpuai.Token, len(cases))
	for i, c := range cases { // beside one another
		leases[i] = c.on.grant(testNode, func(a *gpuai.Assignment) {
			c.task(a)
			a.Lease.Task = 3
			if c.name == "processes" {
				a.Lease.CPU, a.Lease.Memory = 2000, 1<<30
			}
		})
	}
	for i, c := range cases {
		r := c.on.last(leases[i])
		for _, want := range append(c.want, "task 3") {
			if r.State != c.state || !strings.Contains(r.Reason, want) {
				t.Errorf("%s: reported %+v, without %q", c.name, r, want)
			}
		}
	}
}
