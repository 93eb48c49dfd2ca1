package integration

import (
	"bytes"
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
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// trainingSize is the most members of the training, trainingSteps its length:
	// at least 40 s, so that it is not over before members have come and gone.
	trainingSize  = 4
	trainingSteps = "2000"
)

// A training starts with the two devices that there are, grows when a host joins,
// goes on with two when that host is drained, and ends with the weights of a gang
// that had four members all along.
func TestElasticTrainingGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	for _, m := range r.servers {
		r.levelOf(m, fsm.MaxLevel)
	}
	r.shortLeases()
	dir := scratch(t)
	r.startNodeIn("r1", "a", 2, r.addrs()...)
	spec := beatJob(t, "training", dir)
	spec.Type = gpuai.Train
	g := &spec.Groups[0]
	g.Gang, g.Count, g.MinCount = true, trainingSize, 2
	g.Task = gpuai.TaskSpec{
		Command: []string{program("dataparallel"), "-steps", trainingSteps, "-samples", "256", "-pace", "20ms", "-report-every", "1000"},
		Env:     map[string]string{"CHECKPOINT": filepath.Join(dir, "checkpoint")},
	}
	job := r.submit(spec).Job.ID
	first := r.awaitMembers(job, 2, nil)
	r.awaitOutput(job, "with members [0 1] of at most 4")
	r.startNodeIn("r1", "c", 2, r.addrs()...)
	r.awaitMembers(job, trainingSize, first)
	r.awaitOutput(job, "members [0 1 2 3]")
	if _, err := r.client().SetDrained(t.Context(), "c", true); err != nil {
		t.Fatal(err)
	}
	r.awaitMembers(job, 2, first)
	out := r.awaitOutput(job, "members [0 1]: it was told to stop")
	eventually(t, 6*patience, "end of the training", func(ctx context.Context) error {
		j, err := r.client().Job(ctx, job.String())
		if err == nil && j.Status != gpuai.JobSucceeded {
			err = errors.New("it is " + j.Status.String() + " " + j.Reason)
		}
		return err
	})
	out = r.awaitOutput(job, "done: ")
	_, got, _ := strings.Cut(out, "done: ")
	if want := fixedTraining(t); strings.TrimSpace(got) != want {
		t.Errorf("elastic: %s\nfixed: %s\n%s", got, want, out)
	}
}

// awaitOutput waits until the first task of a job has printed something, and
// returns all that it has.
func (r *region) awaitOutput(job gpuai.JobID, mark string) (out string) {
	r.t.Helper()
	c := r.client()
	eventually(r.t, patience, strconv.Quote(mark), func(ctx context.Context) error {
		chunk, err := c.Logs(ctx, client.LogQuery{Job: job.String()})
		if out = string(chunk.Data); err == nil && !strings.Contains(out, mark) {
			err = fmt.Errorf("it printed %q", out)
		}
		return err
	})
	return out
}

// fixedTraining runs the training as a gang of full size that is not elastic, and
// returns what it ends with.
func fixedTraining(t *testing.T) string {
	t.Helper()
	_, port, _ := strings.Cut(freeAddr(t), ":")
	outs := make([]bytes.Buffer, trainingSize)
	cmds := make([]*exec.Cmd, trainingSize)
	for rank := range cmds {
		c := exec.CommandContext(t.Context(), program("dataparallel"), "-steps", trainingSteps, "-samples", "256", "-report-every", "1000")
		c.Env = append(os.Environ(), gpuai.EnvNodeRank+"="+strconv.Itoa(rank), gpuai.EnvNodes+"="+strconv.Itoa(trainingSize),
			gpuai.EnvMasterAddr+"=127.0.0.1", gpuai.EnvMasterPort+"="+port)
		c.Stdout, c.Stderr = &outs[rank], &outs[rank]
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds[rank] = c
	}
	for rank, c := range cmds {
		if err := c.Wait(); err != nil {
			t.Fatalf("rank %d: %v\n%s", rank, err, outs[rank].String())
		}
	}
	_, out, _ := strings.Cut(outs[0].String(), "done: ")
	return strings.TrimSpace(out)
}
