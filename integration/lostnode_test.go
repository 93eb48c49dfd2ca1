package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A command is run beside a task through whichever server is asked, until the
// region's policy denies it; and what a gang printed can be read when its host, with
// all that it had on its disk, is gone.
func TestLogsOutliveTheirNode(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	r := startRegion(t, "--store", "file://"+filepath.Join(dir, "store"))
	for _, m := range r.servers {
		r.levelOf(m, fsm.MaxLevel)
	}
	host := r.startNode("a", 2, r.addrs()...)
	spec := beatJob(t, "gang", dir)
	g := &spec.Groups[0]
	g.Gang, g.Count = true, 2
	g.Task = gpuai.TaskSpec{Script: fmt.Sprintf(`echo "hello of $GPUAI_NODE_RANK"; echo oops >&2; while ! [ -f %s/go ]; do sleep 0.05; done; echo done`, dir)}
	job := r.submit(spec).Job.ID
	r.awaitTask(job, patience, "start", func(x gpuai.Task) bool { return x.Status == gpuai.TaskRunning })
	run := []string{"job", "exec", job.String(), "--rank", "1"}
	for _, m := range r.servers {
		out, _ := r.cli(7, append(run, "--addr", m.http, "--", "sh", "-c", "echo $GPUAI_NODE_RANK; exit 7")...)
		if out != "1\n" {
			t.Errorf("a command through server %s printed %q", m.id, out)
		}
	}
	r.command("operator", "policy", "set", "exec=deny", "--addr", r.leader().http)
	p := start(t, "a denied command", "gpuai", append(run, "--addr", r.leader().http, "--", "true")...)
	if code := p.exit(patience); code == 0 || !strings.Contains(p.err.String(), "its policy says exec=deny") {
		t.Errorf("a command that is denied ended with %d: %s", code, p.err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.awaitTask(job, patience, "end", func(x gpuai.Task) bool { return x.Status == gpuai.TaskSucceeded })
	eventually(t, patience, "uploaded output", func(context.Context) error {
		if left, _ := filepath.Glob(filepath.Join(r.dir, "node-a", "uploads", "*")); len(left) > 0 {
			return errors.New("an attempt is left to be uploaded")
		}
		return nil
	})
	host.killHost()
	logs := []string{"job", "logs", job.String(), "--addr", r.servers[0].http}
	for _, c := range []struct {
		args     []string
		out, err string
	}{
		{[]string{"--rank", "1", "--attempt", "1"}, "hello of 1\ndone\n", "oops\n"},
		{[]string{"--rank", "0", "--stream", "stdout", "--tail", "1"}, "done\n", ""},
		{[]string{"--rank", "0", "--stream", "stdout", "--since", "1h"}, "hello of 0\ndone\n", ""},
		{[]string{"--rank", "0", "--since", "0s"}, "", ""},
		{[]string{"--rank", "0", "-f"}, "hello of 0\ndone\n", "oops\n"},
	} {
		if out, stderr := r.cli(0, append(logs, c.args...)...); out != c.out || !strings.Contains(stderr, c.err) { // which has both
			t.Errorf("logs %v printed %q, and to stderr %q", c.args, out, stderr)
		}
	}
	out, _ := r.cli(0, append(logs, "-o", "json")...)
	for _, want := range []string{`"rank":0`, `"rank":1`, `"line":"hello of 1"`, `"time":"` + time.Now().UTC().Format("2006-")} {
		if !strings.Contains(out, want) || strings.Count(out, "\n") != 6 {
			t.Errorf("%q, and 6 lines, are expected of\n%s", want, out)
		}
	}
}
