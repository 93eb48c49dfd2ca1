package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A region is one server and the agents of hosts.
type region struct {
	dir    string // of data and logs
	bin    string // of our binaries
	client *client.Client
	server *exec.Cmd
	agents []*exec.Cmd
	logs   []*os.File
}

const httpPort, raftPort = "7470", "7471"

// build builds our binaries into dir.
func build(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./cmd/gpuai", "./cmd/gpuai-watchdog", "./cmd/gpuai-driver-sim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build our binaries (run this in the repository): %w: %s", err, out)
	}
	return nil
}

// start starts a command whose output goes to a file.
func (r *region) start(name string, cmd *exec.Cmd) error {
	f, err := os.Create(filepath.Join(r.dir, name+".log"))
	if err != nil {
		return err
	}
	r.logs = append(r.logs, f)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}

// openRegion starts a server on the bridge.
func openRegion(ctx context.Context, dir, bin string) (*region, error) {
	url := "http://" + prefix + "1:" + httpPort
	c, err := client.New(client.Config{Addrs: []string{url}, RetryFor: -1})
	if err != nil {
		return nil, err
	}
	r := &region{dir: dir, bin: bin, client: c}
	r.server = exec.Command(filepath.Join(bin, "gpuai"), "server", "run", "--id", "s1", "--data", filepath.Join(dir, "server"),
		"--http", prefix+"1:"+httpPort, "--raft", prefix+"1:"+raftPort, "--bootstrap", "--insecure-plaintext")
	if err := r.start("server", r.server); err != nil {
		return nil, err
	}
	return r, await(ctx, time.Minute, "the server", func() (bool, error) {
		_, err := r.client.Policy(ctx)
		return err == nil && r.client.Ready(ctx) == nil, nil
	})
}

// join starts the agent of a host with simulated devices, and waits for its node.
func (r *region) join(ctx context.Context, h *host) error {
	devices := map[string]any{"seed": h.name, "devices": []map[string]any{
		{"vendor": "nvidia", "model": "H100-SXM5-80GB", "memory_bytes": int64(80) << 30, "count": h.gpus},
	}}
	b, err := json.Marshal(devices)
	if err != nil {
		return err
	}
	config := filepath.Join(r.dir, h.name+".json")
	if err := os.WriteFile(config, b, 0o644); err != nil {
		return err
	}
	cmd := h.in(filepath.Join(r.bin, "gpuai"), "agent", "run", "--id", h.name, "--data", filepath.Join(r.dir, h.name),
		"--servers", r.client.Addrs()[0], "--address", h.ip, "--ports", "29500-29509", "--cpu", "8", "--memory", "8GiB",
		"--driver", "sim="+filepath.Join(r.bin, "gpuai-driver-sim")+","+config, "--allow-process-runtime", "--oci-runtime", "none")
	if err := r.start(h.name, cmd); err != nil {
		return err
	}
	r.agents = append(r.agents, cmd)
	return await(ctx, time.Minute, "node "+h.name, func() (bool, error) {
		n, err := r.client.Node(ctx, gpuai.NodeID(h.name))
		return err == nil && n.State == gpuai.NodeReady, nil
	})
}

// close ends the server; the agents go with their hosts.
func (r *region) close() {
	if r.server.Process != nil {
		_ = r.server.Process.Kill()
		_ = r.server.Wait()
	}
	for _, a := range r.agents {
		_ = a.Wait() // it was killed
	}
	for _, f := range r.logs {
		_ = f.Close()
	}
}

// poll is how often something that has no event is looked at.
const poll = 100 * time.Millisecond

// await waits until f reports true, fails or the time is over.
func await(ctx context.Context, most time.Duration, what string, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if ok, err := f(); err != nil || ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s: waited in vain for %s", what, most)
		}
	}
}

// A training is one run of the training script.
type training struct {
	job      gpuai.JobID
	progress string
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
	dir := filepath.Join(r.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	script, err := filepath.Abs("examples/torch-ddp/train.py")
	if err != nil {
		return nil, err
	}
	t := &training{progress: filepath.Join(dir, "progress.jsonl")}
	command := append([]string{"/usr/bin/torchrun", script, "--progress", t.progress}, args...)
	s := gpuai.JobSpec{Name: name, Type: gpuai.Train, Class: gpuai.ClassBatch, Groups: []gpuai.Group{{
		Name: "worker", Count: tasks, Gang: true,
		Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: gpus}, CPU: 1000, Memory: 1 << 30},
		Restart:   gpuai.Restart{Attempts: 10, On: []gpuai.RestartCause{gpuai.CauseFailure, gpuai.CauseNodeLost, gpuai.CauseGPUError}},
		Task: gpuai.TaskSpec{
			Command: command, Env: map[string]string{"CHECKPOINT_DIR": dir, "PET_REDIRECTS": redirects, "PET_TEE": redirects},
			Launcher: gpuai.Launcher{Kind: gpuai.LauncherTorchrun, ProcsPerNode: 1},
		},
	}}}
	s.Defaults()
	out, err := r.client.Submit(ctx, client.SubmitRequest{Spec: &s})
	t.job = out.Job.ID
	return t, err
}

// lines are what rank 0 told so far.
func (t *training) lines() (out []line, err error) {
	b, err := os.ReadFile(t.progress)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for text := range strings.Lines(string(b)) {
		var l line
		if !strings.HasSuffix(text, "\n") {
			break // being written
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return nil, fmt.Errorf("%s: %w", t.progress, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// reached waits until rank 0 has told of a step in the given start or a later one.
func (t *training) reached(ctx context.Context, start, step int) error {
	return await(ctx, 3*time.Minute, fmt.Sprintf("step %d of start %d", step, start), func() (bool, error) {
		all, err := t.lines()
		starts := 0
		for _, l := range all {
			if l.Event == "start" {
				starts++
			}
			if starts >= start && l.Event == "step" && l.Step >= step {
				return true, err
			}
		}
		return false, err
	})
}

// finished waits for the training's end.
func (r *region) finished(ctx context.Context, t *training) error {
	return await(ctx, 5*time.Minute, "the end of the training", func() (bool, error) {
		j, err := r.client.Job(ctx, t.job.String())
		if err == nil && j.Status.Final() && j.Status != gpuai.JobSucceeded {
			err = fmt.Errorf("the training is %s (%s)", j.Status, j.Reason)
		}
		return err == nil && j.Status.Final(), err
	})
}
