package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A region is one server and the agents of hosts.
type region struct {
	dir    string // of data and logs
	bin    string // of our binaries
	image  string // layout of the tasks' image; "": they are plain processes
	client *client.Client
	server *exec.Cmd
	agents []*exec.Cmd
	logs   []*os.File
}

const httpPort, raftPort = "7470", "7471"

// build builds our binaries into dir.
func build(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./cmd/gpuai", "./cmd/gpuai-watchdog", "./cmd/gpuai-mesh", "./cmd/gpuai-driver-sim")
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
func openRegion(ctx context.Context, dir, bin, image string) (*region, error) {
	url := "http://" + prefix + "1:" + httpPort
	c, err := client.New(client.Config{Addrs: []string{url}, RetryFor: -1})
	if err != nil {
		return nil, err
	}
	r := &region{dir: dir, bin: bin, image: image, client: c}
	r.server = exec.Command(filepath.Join(bin, "gpuai"), "server", "run", "--id", "s1", "--data", filepath.Join(dir, "server"),
		"--http", prefix+"1:"+httpPort, "--raft", prefix+"1:"+raftPort, "--bootstrap", "--insecure-plaintext", "--store", "file://"+filepath.Join(dir, "store"))
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
	args := []string{filepath.Join(r.bin, "gpuai"), "agent", "run", "--id", h.name, "--data", filepath.Join(r.dir, h.name),
		"--servers", r.client.Addrs()[0], "--address", h.ip, "--ports", "29500-29509", "--cpu", "8", "--memory", "8GiB",
		"--driver", "sim=" + filepath.Join(r.bin, "gpuai-driver-sim") + "," + config}
	if r.image == "" {
		args = append(args, "--allow-process-runtime", "--oci-runtime", "none")
	} else {
		args = append(args, "--oci-runtime", ociRuntime, "--image-dir", r.dir, "--mesh", "auto")
	}
	cmd := h.in(args...)
	if err := r.start(h.name, cmd); err != nil {
		return err
	}
	r.agents = append(r.agents, cmd)
	return await(ctx, time.Minute, "node "+h.name, func() (bool, error) {
		n, err := r.client.Node(ctx, gpuai.NodeID(h.name))
		if err == nil && r.image != "" && (n.Labels[gpuai.LabelOCI] != gpuai.LabelYes || n.Labels[gpuai.LabelMesh] != gpuai.LabelYes) {
			return false, fmt.Errorf("node %s runs no images, or links no gangs with other nodes: see %s.log", h.name, filepath.Join(r.dir, h.name))
		}
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
