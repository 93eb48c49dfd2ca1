package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

const savingJob = `name: low
type: batch
array: {size: %d}
groups:
  - resources: {gpu: {count: 1}, cpu: 0.1, memory: 64MiB}
    task:
      checkpoint: {signal: SIGUSR1, grace: 1m}
      script: |
        trap 'echo "$GPUAI_FENCING_TOKEN" > %[2]s/saved-$GPUAI_ARRAY_INDEX; exit 0' USR1
        if [ -e %[2]s/saved-$GPUAI_ARRAY_INDEX ]; then echo resumed; exit 0; fi
        touch %[2]s/up-$GPUAI_ARRAY_INDEX
        while [ ! -e %[2]s/go ]; do sleep 0.05; done
`

const urgentJob = `name: urgent
type: batch
priority: 90
groups:
  - resources: {gpu: {count: 1}, cpu: 0.1, memory: 64MiB}
    task: {script: "while [ ! -e %s/go ]; do sleep 0.05; done"}
`

// TestPreemptedTaskSavesAndResumes has an urgent job take the room of one of many
// tasks, all real processes: the one saves its work when it is told to, exits with
// 0, is not taken for done, and goes on from there when the urgent job has ended.
func TestPreemptedTaskSavesAndResumes(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := &dev{t: t, addr: freeAddr(t), data: filepath.Join(dir, "data")}
	d.start()
	d.run("operator", "policy", "set", "preemption_protect=0s")
	nodes, _, err := d.client.Nodes(t.Context(), client.Page{})
	if err != nil || len(nodes) != 4 {
		t.Fatalf("there are %d hosts, %v", len(nodes), err)
	}
	for i := range nodes[1:] {
		d.run("node", "drain", string(nodes[1+i].ID))
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	there := func(pattern string, want int) {
		t.Helper()
		eventually(t, patience, pattern, func(context.Context) error {
			if got, _ := filepath.Glob(filepath.Join(dir, pattern)); len(got) != want {
				return fmt.Errorf("there are %v, want %d", got, want)
			}
			return nil
		})
	}
	d.run("run", file("low.yaml", fmt.Sprintf(savingJob, nodes[0].FreeGPUs, dir)), "--wait=running", "--timeout", "30s")
	there("up-*", int(nodes[0].FreeGPUs))
	d.run("run", file("urgent.yaml", fmt.Sprintf(urgentJob, dir)), "--wait=running", "--timeout", "30s")
	there("saved-*", 1)
	low, err := d.client.Job(t.Context(), "low")
	if err != nil || low.Counts.Succeeded != 0 || low.Counts.Pending != 1 || low.Restarts != 0 {
		t.Fatalf("%+v, %v", low, err)
	}
	leases, _, err := d.client.Leases(t.Context(), client.LeaseQuery{Job: low.ID.String()})
	urgent, err2 := d.client.Job(t.Context(), "urgent")
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	taken := 0
	for _, l := range leases {
		if l.State == gpuai.LeaseEnded && l.Cause == gpuai.CausePreempted && l.PreemptedBy == urgent.ID {
			taken++
		}
	}
	if taken != 1 {
		t.Errorf("%d leases say that they were preempted by %s: %+v", taken, urgent.ID, leases)
	}
	file("go", "")
	eventually(t, patience, "end of both jobs", func(ctx context.Context) error {
		j, err := d.client.Job(ctx, "low")
		if err == nil && j.Status != gpuai.JobSucceeded {
			err = fmt.Errorf("low is %s: %+v", j.Status, j.Counts)
		}
		return err
	})
	saved, _ := filepath.Glob(filepath.Join(dir, "saved-*"))
	index := saved[0][len(saved[0])-1:]
	if out := d.run("logs", "low", "--task", index); out != "resumed\n" {
		t.Errorf("the task that saved its work goes on with %q", out)
	}
}
