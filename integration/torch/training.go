package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A training is one run of the training script.
type training struct {
	r   *region
	job gpuai.JobID
	// said is what rank 0 printed, by lease. What a host that is lost had is what
	// was read of it before.
	said map[gpuai.Token]string
}

// A line is what rank 0 tells of its progress.
type line struct {
	Event   string  `json:"event"`
	Step    int     `json:"step"`
	Loss    float64 `json:"loss"`
	World   int     `json:"world"`
	Hosts   string  `json:"hosts"`
	Restart int     `json:"restart"`
	At      float64 `json:"at"`
}

// redirects is torchrun's default, to redirect no output, said of a local rank
// that there is not: PyTorch 1.13 takes its own default for nothing under Python
// 3.11, whose flags leave 0 out.
const redirects = "9:1"

// train submits a gang of tasks with gpus devices each, and one process each. Its
// class is the one whose leases end soonest after a host was lost.
func (r *region) train(ctx context.Context, name string, tasks, gpus uint32, args ...string) (*training, error) {
	script := scriptInImage
	if r.image == "" {
		var err error
		if script, err = filepath.Abs(trainingScript); err != nil {
			return nil, err
		}
	}
	task := gpuai.TaskSpec{
		Command:  append([]string{"/usr/bin/torchrun", script}, args...),
		Env:      map[string]string{"PET_REDIRECTS": redirects, "PET_TEE": redirects},
		Launcher: gpuai.Launcher{Kind: gpuai.LauncherTorchrun, ProcsPerNode: 1},
	}
	if r.image != "" {
		task.Image = "oci:" + r.image
	}
	s := gpuai.JobSpec{Name: name, Type: gpuai.Train, Class: gpuai.ClassBatch, Groups: []gpuai.Group{{
		Name: "worker", Count: tasks, Gang: true, Task: task,
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: gpus}, CPU: 1000, Memory: 1 << 30},
		Restart:   gpuai.Restart{Attempts: 10, On: []gpuai.RestartCause{gpuai.CauseFailure, gpuai.CauseNodeLost, gpuai.CauseGPUError}},
	}}}
	s.Defaults()
	out, err := r.client.Submit(ctx, client.SubmitRequest{Spec: &s})
	return &training{r: r, job: out.Job.ID, said: map[gpuai.Token]string{}}, err
}

// logLimit is more than rank 0 prints.
const logLimit = 1 << 20

// lines are what rank 0 told so far, in all its starts.
func (t *training) lines(ctx context.Context) (out []line, err error) {
	leases, _, err := t.r.client.Leases(ctx, client.LeaseQuery{Job: t.job.String()})
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		if l.Task != 0 {
			continue
		}
		c, err := t.r.client.Logs(ctx, client.LogQuery{Job: t.job.String(), Lease: l.ID, Limit: logLimit})
		if err == nil && len(c.Data) > len(t.said[l.ID]) {
			t.said[l.ID] = string(c.Data)
		}
	}
	tokens := make([]gpuai.Token, 0, len(t.said))
	for token := range t.said {
		tokens = append(tokens, token)
	}
	slices.SortFunc(tokens, func(a, b gpuai.Token) int { return cmp.Compare(a, b) })
	for _, token := range tokens {
		for text := range strings.Lines(t.said[token]) {
			var l line
			if strings.HasSuffix(text, "\n") && json.Unmarshal([]byte(text), &l) == nil && l.Event != "" {
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// reached waits until rank 0 has told of a step in the given start or a later one.
func (t *training) reached(ctx context.Context, start, step int) error {
	return await(ctx, 5*time.Minute, fmt.Sprintf("step %d of start %d", step, start), func() (bool, error) {
		all, err := t.lines(ctx)
		if err != nil {
			return false, err
		}
		starts := 0
		for _, l := range all {
			if l.Event == "start" {
				starts++
			}
			if starts >= start && l.Event == "step" && l.Step >= step {
				return true, nil
			}
		}
		return false, t.failed(ctx)
	})
}

// failed returns why the training has failed, nil when it has not.
func (t *training) failed(ctx context.Context) error {
	j, err := t.r.client.Job(ctx, t.job.String())
	if err == nil && j.Status.Final() && j.Status != gpuai.JobSucceeded {
		return fmt.Errorf("the training is %s (%s); its ranks' output is below %s", j.Status, j.Reason, t.r.dir)
	}
	return err
}

// finished waits for the training's end, and reads what rank 0 tells meanwhile.
func (t *training) finished(ctx context.Context) error {
	return await(ctx, 8*time.Minute, "the end of the training", func() (bool, error) {
		if _, err := t.lines(ctx); err != nil {
			return false, err
		}
		if err := t.failed(ctx); err != nil {
			return false, err
		}
		j, err := t.r.client.Job(ctx, t.job.String())
		return err == nil && j.Status.Final(), err
	})
}
