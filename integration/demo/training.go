package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/nursery"
)

// A trainingLog is what rank 0 has printed, over all its runs.
type trainingLog struct {
	runs   map[gpuai.Token]string
	losses map[int]string // by step, as printed
	newest gpuai.Token
	// differing says which step was printed with two losses.
	differing string
}

func newTrainingLog() *trainingLog {
	return &trainingLog{runs: map[gpuai.Token]string{}, losses: map[int]string{}}
}

// take notes all that one run has printed so far.
func (t *trainingLog) take(run gpuai.Token, out string) {
	t.runs[run] = out
	t.newest = max(t.newest, run)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || f[0] != "step" || f[2] != "loss" || !strings.HasSuffix(line, "\n") {
			continue
		}
		step, err := strconv.Atoi(f[1])
		if old, ok := t.losses[step]; err == nil && ok && old != f[3] {
			t.differing = fmt.Sprintf("step %d had loss %s in one run and %s in another", step, old, f[3])
		}
		if err == nil {
			t.losses[step] = f[3]
		}
	}
}

// step returns the last step that was printed.
func (t *trainingLog) step() int {
	last := 0
	for s := range t.losses {
		last = max(last, s)
	}
	return last
}

// line returns what follows a line's beginning in the newest run; "" without.
func (t *trainingLog) line(beginning string) string {
	for line := range strings.Lines(t.runs[t.newest]) {
		if rest, ok := strings.CutPrefix(line, beginning); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// summary checks the training: the loss fell, the last run went on from a
// checkpoint, and all that was printed is what an unbroken run prints.
func (t *trainingLog) summary(unbroken string) (training, error) {
	whole := newTrainingLog()
	whole.take(0, unbroken)
	var out training
	var err error
	if out.ResumedStep, err = strconv.Atoi(t.line("resumed from the checkpoint of step ")); err != nil || out.ResumedStep == 0 {
		return out, fmt.Errorf("the gang's last run did not go on from a checkpoint: rank 0 printed %q", t.runs[t.newest])
	}
	out.FirstLoss, out.LastLoss = t.losses[0], t.losses[t.step()]
	first, errFirst := strconv.ParseFloat(out.FirstLoss, 64)
	last, errLast := strconv.ParseFloat(out.LastLoss, 64)
	if errFirst != nil || errLast != nil || !(last < first) {
		return out, fmt.Errorf("the loss did not fall: %s at first, %s at last", out.FirstLoss, out.LastLoss)
	}
	out.Done = t.line("done: ")
	if t.differing != "" {
		return out, errors.New("a run after a checkpoint went another way: " + t.differing)
	}
	for step, loss := range t.losses {
		if whole.losses[step] != loss {
			return out, fmt.Errorf("at step %d the loss was %s, and %s in a run that was not broken off", step, loss, whole.losses[step])
		}
	}
	if out.Done == "" || out.Done != whole.line("done: ") {
		return out, fmt.Errorf("the training ended with %q, one that was not broken off with %q", out.Done, whole.line("done: "))
	}
	return out, nil
}

// readLastTraining reads all that rank 0 printed in the run that succeeded.
func (d *demo) readLastTraining(ctx context.Context) error {
	tasks, _, err := d.region.api.Tasks(ctx, d.gang, client.Page{})
	if err != nil || len(tasks) != gangSize {
		return fmt.Errorf("list the gang's %d tasks: %w", len(tasks), err)
	}
	c, err := d.region.api.Logs(ctx, client.LogQuery{Job: d.gang, Lease: tasks[0].Lease, Limit: logLimit})
	if err != nil {
		return fmt.Errorf("read what rank 0 printed: %w", err)
	}
	d.training.take(tasks[0].Lease, string(c.Data))
	return nil
}

// train runs the same training outside of the region, at full speed and
// unbroken, and returns what rank 0 prints.
func (d *demo) train(ctx context.Context) (string, error) {
	port, err := nursery.FreePorts(1)
	if err != nil {
		return "", err
	}
	outs := make([]bytes.Buffer, gangSize)
	ranks := make([]*exec.Cmd, gangSize)
	for r := range ranks {
		c := exec.CommandContext(ctx, d.programs.bin("dataparallel"), trainingArgs...)
		c.Env = append(os.Environ(),
			gpuai.EnvNodeRank+"="+strconv.Itoa(r), gpuai.EnvNodes+"="+strconv.Itoa(gangSize),
			gpuai.EnvMasterAddr+"=127.0.0.1", gpuai.EnvMasterPort+"="+strconv.Itoa(port))
		c.Stdout, c.Stderr = &outs[r], &outs[r]
		if err := c.Start(); err != nil {
			return "", fmt.Errorf("start the unbroken training: %w", err)
		}
		ranks[r] = c
	}
	var errs []error
	for r, c := range ranks {
		if err := c.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("rank %d of the unbroken training: %w: %s", r, err, outs[r].String()))
		}
	}
	return outs[0].String(), errors.Join(errs...)
}
