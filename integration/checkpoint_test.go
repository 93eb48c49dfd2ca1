package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// killHost kills a node's agent, its watchdog and its tasks: all that a host has
// of GPUAI, and what it has on its disk.
func (n *node) killHost() {
	n.r.t.Helper()
	dir := filepath.Join(n.r.dir, "node-"+n.id)
	wd, err := watchdog.Dial(dir)
	if err != nil {
		n.r.t.Fatal(err)
	}
	n.kill()
	tasks, err := wd.List()
	for _, task := range tasks {
		err = errors.Join(err, wd.Kill(task.Lease, gpuai.Second))
	}
	if err = errors.Join(err, os.RemoveAll(filepath.Join(dir, "tasks"))); err != nil {
		n.r.t.Fatal(err)
	}
}

// A training whose host is lost goes on elsewhere from the checkpoint that it
// published last, and ends as one that was never broken off. All are real
// processes; nothing but the checkpoint store is shared by the hosts.
func TestTrainingGoesOnFromItsPublishedCheckpoint(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	r := startRegion(t, "--checkpoint-store", "file://"+filepath.Join(dir, "store"), "--retain", "1s")
	for _, m := range r.servers {
		r.levelOf(m, fsm.MaxLevel)
	}
	r.shortLeases()
	first := r.startNode("a", 2, r.addrs()...)
	spec := beatJob(t, "training", dir)
	g := &spec.Groups[0]
	g.Gang, g.Count = true, 2
	command := []string{program("dataparallel"), "-steps", "400", "-samples", "256", "-report-every", "1000", "-pace"}
	g.Task = gpuai.TaskSpec{Command: append(command, "20ms")}
	job := r.submit(spec).Job.ID
	published := func() (list []gpuai.PublishedCheckpoint) {
		t.Helper()
		eventually(t, patience, "published checkpoint", func(ctx context.Context) (err error) {
			if list, _, err = r.client().Checkpoints(ctx, job.String(), client.Page{Limit: 100}); err == nil && len(list) == 0 {
				err = errors.New("there is none")
			}
			return err
		})
		return list
	}
	published()
	r.startNode("b", 2, r.addrs()...)
	first.killHost()
	before := published()[0] // nobody publishes until the task runs again
	out := r.awaitOutput(job, "resumed from the checkpoint of step ")
	if want := fmt.Sprintf("resumed from the checkpoint of step %d\n", before.Step); before.Task != 0 || before.Step == 0 || !strings.Contains(out, want) {
		t.Errorf("%+v is the newest checkpoint, and the next attempt printed %q", before, out)
	}
	_, got, _ := strings.Cut(r.awaitOutput(job, "done: "), "done: ")
	if want := unbroken(t, command[1:len(command)-1]); strings.TrimSpace(got) != want {
		t.Errorf("it ended with %s, one that was not broken off with %s", got, want)
	}
	eventually(t, patience, "empty store of a retired job", func(context.Context) error {
		if left, _ := filepath.Glob(filepath.Join(dir, "store", "checkpoints", job.String(), "*", "*", "*", "*")); len(left) > 0 {
			return fmt.Errorf("%d blobs are left", len(left))
		}
		return nil
	})
}

// unbroken runs the training of two ranks without GPUAI.
func unbroken(t *testing.T, flags []string) string {
	t.Helper()
	_, port, _ := strings.Cut(freeAddr(t), ":")
	outs := make([]strings.Builder, 2)
	ends := make(chan error, 2)
	for rank := range outs {
		c := exec.CommandContext(t.Context(), program("dataparallel"), flags...)
		c.Env = append(os.Environ(), gpuai.EnvNodeRank+"="+strconv.Itoa(rank), gpuai.EnvNodes+"=2",
			gpuai.EnvMasterAddr+"=127.0.0.1", gpuai.EnvMasterPort+"="+port)
		c.Stdout, c.Stderr = &outs[rank], &outs[rank]
		go func() { ends <- c.Run() }()
	}
	if err := errors.Join(<-ends, <-ends); err != nil {
		t.Fatal(err, outs[0].String(), outs[1].String())
	}
	_, done, _ := strings.Cut(outs[0].String(), "done: ")
	return strings.TrimSpace(done)
}
