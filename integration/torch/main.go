// Command torch trains examples/torch-ddp with real PyTorch on a region of its
// own: a server, and agents on hosts that are network namespaces of this one with
// names and addresses of their own. The tasks run in OCI sandboxes, a gang's with
// a network of its own across the hosts; with -sandbox none as plain processes. It trains on one, two and four tasks, then on
// four while a task and then a host is killed, and fails unless every run ends at
// the same loss. It needs root, Debian's python3-torch and runc, and to be run in the
// repository: make example-torch.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// tolerance is by how much the losses of two runs may differ, of the loss. Sums of
// one batch are rounded otherwise when other ranks make them.
const tolerance = 1e-4

// Values of -sandbox, and what makes the sandboxes.
const (
	sandboxOCI  = "oci"
	sandboxNone = "none"
	ociRuntime  = "runc"
)

const trainingScript = "examples/torch-ddp/train.py"

func main() {
	steps := flag.Int("steps", 400, "steps of each training")
	keep := flag.String("keep", "", "directory for the logs; removed otherwise")
	sandbox := flag.String("sandbox", sandboxOCI, "what runs the tasks: oci, sandboxes of an image made of the host's Python, or none, plain processes")
	flag.Parse()
	if *sandbox != sandboxOCI && *sandbox != sandboxNone {
		fmt.Fprintf(os.Stderr, "torch: -sandbox is oci or none, not %q\n", *sandbox)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := example(ctx, *steps, *keep, *sandbox == sandboxOCI); err != nil {
		fmt.Fprintln(os.Stderr, "torch:", err)
		os.Exit(1)
	}
}

// ready says what is missing.
func ready(boxed bool) error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces are made by root: run it as root")
	}
	programs := []string{"/usr/bin/torchrun", "ip", "unshare", "nsenter"}
	if boxed {
		programs = append(programs, ociRuntime, "dpkg", "ldconfig")
	}
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: apt-get install python3-torch runc iproute2 util-linux", err)
		}
	}
	return nil
}

func example(ctx context.Context, steps int, keep string, boxed bool) error {
	if err := ready(boxed); err != nil {
		return err
	}
	dir := keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "gpuai-torch-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	bin := filepath.Join(dir, "bin")
	if err := build(ctx, bin); err != nil {
		return err
	}
	layout := ""
	if boxed {
		var err error
		if layout, err = imageOf(ctx, dir); err != nil {
			return err
		}
	}
	hosts := newHosts()
	disconnect(hosts) // what an earlier run has left
	defer disconnect(hosts)
	if err := connect(ctx, hosts); err != nil {
		return err
	}
	r, err := openRegion(ctx, dir, bin, layout)
	if r != nil {
		defer r.close()
		defer disconnect(hosts) // before the agents are waited for
	}
	if err != nil {
		return err
	}
	for _, h := range hosts[:2] {
		if err := r.join(ctx, h); err != nil {
			return err
		}
	}
	return trainAll(ctx, r, hosts, steps)
}

// imageOf makes the tasks' image and says how large it is.
func imageOf(ctx context.Context, dir string) (layout string, err error) {
	began := time.Now()
	layout, bytes, err := writeImage(ctx, dir, trainingScript)
	if err == nil {
		fmt.Printf("an image of this host's Python and PyTorch: %d MB, made in %s\n", bytes/1e6, time.Since(began).Round(time.Second))
	}
	return layout, err
}

// A result is how a training went.
type result struct {
	name           string
	loss           float64
	took           time.Duration
	hosts          string
	starts, redone int
}

func trainAll(ctx context.Context, r *region, hosts []*host, steps int) error {
	var all []result
	for _, c := range []struct {
		name        string
		tasks, gpus uint32
	}{{"one", 1, 1}, {"two", 2, 2}, {"four", 4, 1}} {
		t, err := r.train(ctx, c.name, c.tasks, c.gpus, "--steps", strconv.Itoa(steps))
		if err != nil {
			return err
		}
		res, err := r.result(ctx, c.name, t)
		if err != nil {
			return err
		}
		all = append(all, res)
	}
	res, err := broken(ctx, r, hosts, steps)
	if err != nil {
		return err
	}
	return judge(append(all, res))
}

// broken trains on four tasks; a task and then a host is killed.
func broken(ctx context.Context, r *region, hosts []*host, steps int) (result, error) {
	t, err := r.train(ctx, "broken", 4, 1, "--steps", strconv.Itoa(steps), "--pace", "0.03")
	if err != nil {
		return result{}, err
	}
	if err := t.reached(ctx, 1, steps/5); err != nil {
		return result{}, err
	}
	pid, err := hosts[1].worker(ctx)
	if err != nil {
		return result{}, err
	}
	fmt.Printf("killing process %d of a task on %s\n", pid, hosts[1].name)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return result{}, fmt.Errorf("kill a task: %w", err)
	}
	if err := t.reached(ctx, 2, steps/2); err != nil {
		return result{}, err
	}
	fmt.Printf("killing %s, and starting %s\n", hosts[1].name, hosts[2].name)
	if err := hosts[1].kill(ctx); err != nil {
		return result{}, err
	}
	if err := r.join(ctx, hosts[2]); err != nil {
		return result{}, err
	}
	return r.result(ctx, "broken", t)
}

// result waits for a training's end and reads how it went.
func (r *region) result(ctx context.Context, name string, t *training) (result, error) {
	res := result{name: name}
	if err := t.finished(ctx); err != nil {
		return res, err
	}
	all, err := t.lines(ctx)
	if err != nil {
		return res, err
	}
	if len(all) == 0 || all[len(all)-1].Event != "step" {
		return res, fmt.Errorf("training %s told nothing of its end", name)
	}
	highest := 0
	for _, l := range all {
		if l.Event == "start" {
			res.starts, res.hosts = res.starts+1, l.Hosts
			res.redone += highest - l.Step
		}
		highest = max(highest, l.Step)
	}
	last := all[len(all)-1]
	res.loss = last.Loss
	res.took = time.Duration((last.At - all[0].At) * float64(time.Second)).Round(10 * time.Millisecond)
	fmt.Printf("%-7s loss %.8f  %6.2fs  starts %d  hosts %s\n", res.name, res.loss, res.took.Seconds(), res.starts, res.hosts)
	return res, nil
}

// judge fails unless all trainings came to one loss and the last was interrupted
// twice.
func judge(all []result) error {
	worst := 0.0
	for _, res := range all {
		worst = max(worst, math.Abs(res.loss-all[0].loss)/all[0].loss)
	}
	last := all[len(all)-1]
	fmt.Printf("losses differ by %.1e of the loss at most, %.0e is allowed\n", worst, tolerance)
	switch {
	case math.IsNaN(worst) || worst > tolerance:
		return fmt.Errorf("the losses differ by %.1e", worst)
	case last.starts != 3:
		return fmt.Errorf("the broken training started %d times, want 3: a task and a host were killed", last.starts)
	}
	return nil
}
