package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/access"
	"github.com/gpuai/gpuai/integration/nursery"
)

// devReady is how soon gpuai dev must be ready, also after kill -9.
const devReady = 10 * time.Second

// A dev is a "gpuai dev" on one address and data directory.
type dev struct {
	*proc
	t          *testing.T
	addr, data string
	// client is that of its operator from start on, unless there is one before:
	// then it is plain HTTP.
	client *client.Client
	secure bool
}

// env has it and its commands keep their contexts beside its data.
func (d *dev) env(c *exec.Cmd) {
	c.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(filepath.Dir(d.data), "config"))
}

func (d *dev) start(args ...string) {
	d.t.Helper()
	began := time.Now()
	args = append([]string{"dev", "--http", d.addr, "--data", d.data}, args...)
	if d.secure = d.client == nil || d.secure; !d.secure {
		args = append(args, "--insecure")
	}
	d.proc = startWith(d.t, "dev", "gpuai", d.env, args...)
	eventually(d.t, devReady, "ready region at "+d.addr, func(ctx context.Context) error {
		if !d.alive() {
			return fmt.Errorf("it ended with exit code %d", d.exit(0))
		}
		if err := d.login(ctx); err != nil {
			return err
		}
		return d.client.Ready(ctx)
	})
	d.t.Logf("ready after %s", time.Since(began))
}

// login has d.client speak with the operator's token, once there is one.
func (d *dev) login(ctx context.Context) error {
	if !d.secure || d.client != nil {
		return nil
	}
	token, err := os.ReadFile(filepath.Join(d.data, "operator.token"))
	if err != nil {
		return err
	}
	r, err := access.Trust(ctx, filepath.Join(d.data, "servers", "a"))
	if err == nil {
		d.client, err = r.As(gpuai.NewSecret(strings.TrimSpace(string(token))), "https://"+d.addr)
	}
	return err
}

// call starts the command as a user of the region does.
func (d *dev) call(args ...string) *proc {
	d.t.Helper()
	if !d.secure {
		args = append(args, "--addr", "http://"+d.addr)
	}
	return startWith(d.t, "gpuai "+args[0], "gpuai", d.env, args...)
}

// run calls the command against the region and returns what it prints.
func (d *dev) run(args ...string) string {
	d.t.Helper()
	p := d.call(args...)
	if code := p.exit(patience); code != 0 {
		d.t.Fatalf("gpuai %s: exit code %d: %s", strings.Join(args, " "), code, p.err)
	}
	return p.out.String()
}

const devJob = `name: %s
type: batch
groups:
  - resources: {gpu: {count: 1}, cpu: 1, memory: 64MiB}
    task: {runtime: process, command: [/bin/sh, -c, %q]}
`

// job writes a job file.
func (d *dev) job(name, script string) string {
	d.t.Helper()
	path := filepath.Join(filepath.Dir(d.data), name+".yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, devJob, name, script), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// awaitSleeper waits until the one task of the job "sleeper" runs, in its first
// run.
func (d *dev) awaitSleeper(what string) {
	d.t.Helper()
	eventually(d.t, patience, what, func(ctx context.Context) error {
		j, err := d.client.Job(ctx, "sleeper")
		if err == nil && (j.Counts.Running != 1 || j.Restarts != 0) {
			err = fmt.Errorf("it is %s with tasks %+v and %d restarts", j.Status, j.Counts, j.Restarts)
		}
		return err
	})
}

// TestDevOutlivesKill runs jobs in "gpuai dev", kills it with -9, and finds
// them again in the next one on the same data directory. SIGTERM then leaves no
// process behind.
func TestDevOutlivesKill(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := &dev{t: t, addr: freeAddr(t), data: filepath.Join(dir, "data")}
	d.start()
	d.run("run", d.job("hello", "echo hello from $GPUAI_GPUS"), "--wait=done", "--timeout", "15s")
	if out := d.run("logs", "hello"); out != "hello from 1\n" {
		t.Errorf("the task's output is %q", out)
	}
	before, err := d.client.Job(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	d.run("run", d.job("sleeper", "exec sleep 600"), "--wait=running", "--timeout", "15s")
	d.awaitSleeper("running task") // it has its lease only; a task that is not started yet would be placed again

	d.kill()
	d.start()
	after, err := d.client.Job(t.Context(), "hello")
	if err != nil || after.ID != before.ID || after.Status != gpuai.JobSucceeded || after.ModifyIndex != before.ModifyIndex {
		t.Errorf("the job was %+v and is %+v, %v", before, after, err)
	}
	nodes, _, err := d.client.Nodes(t.Context(), client.Page{})
	if err != nil || len(nodes) != 4 {
		t.Errorf("there are %d hosts, %v", len(nodes), err)
	}
	d.awaitSleeper("the same run after the kill")
	d.run("run", d.job("again", "true"), "--wait=done", "--timeout", "15s")

	d.signal(sigTerm)
	if code := d.exit(patience); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	eventually(t, 5*time.Second, "end of all its processes", func(context.Context) error {
		if left := nursery.Naming(dir); len(left) > 0 {
			return fmt.Errorf("these are left: %v", left)
		}
		return nil
	})
	if conn, err := net.Dial("tcp", d.addr); err == nil {
		conn.Close()
		t.Error("something still answers at the address")
	}
}
