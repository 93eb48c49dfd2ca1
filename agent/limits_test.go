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

// An image that cannot be had ends its task with what is wrong and what to do.
func TestImageFaultsAreSaid(t *testing.T) {
	dir := t.TempDir()
	image := archiveImage(t, dir)
	sandboxes := boxed(t, dir)
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer registry.Close()
	f := newFixture(t)
	f.run(func(c *Config) {
		sandboxes(c)
		c.Sandbox.Images.KeepFree, c.Sandbox.Images.LocalRegistry = 1<<60, true // no disk has so much
	})
	for name, test := range map[string]struct {
		image string
		state gpuai.ReportState
		want  []string
	}{
		"disk full while unpacking": {image, gpuai.ReportLost, []string{"task 0: ", "the image cache is full", "free some, or to give the agent another directory"}},
		"wrong credentials":         {strings.TrimPrefix(registry.URL, "http://") + "/team/app:v1", gpuai.ReportFailed, []string{"task 0: image 127.0.0.1:", "denies it (401)", "credentials are missing or wrong"}},
	} {
		r := f.last(f.grant(testNode, inImage(test.image)))
		for _, want := range test.want {
			if r.State != test.state || !strings.Contains(r.Reason, want) {
				t.Errorf("%s: reported %+v, without %q", name, r, want)
			}
		}
	}
}
