package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/image"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
)

// Values of -sandbox.
const (
	sandboxAuto = "auto" // as root
	sandboxOCI  = "oci"
	sandboxNone = "none"
)

// runtimePackage is Debian's package of the OCI runtime, and the runtime's name.
const runtimePackage = "runc"

// sandbox decides whether the jobs run in sandboxes, and makes their image.
func (d *demo) sandbox(ctx context.Context) error {
	root := os.Geteuid() == 0
	switch {
	case d.options.sandbox == sandboxNone:
		d.say("the jobs run as plain processes, as -sandbox none says")
		return nil
	case !root && d.options.sandbox == sandboxOCI:
		return errors.New("sandboxes are made by root: run this as root, or without -sandbox oci")
	case !root:
		d.say("the jobs run as plain processes: sandboxes are made by root, as with sudo make demo")
		return nil
	}
	if err := d.installRuntime(ctx); err != nil {
		return err
	}
	local, err := image.Build(d.programs.root(), image.Run{})
	if err != nil {
		return err
	}
	digest, err := local.WriteLayout(d.programs.layout())
	if err != nil {
		return err
	}
	d.programs.boxed = true
	d.say("the jobs run in sandboxes, in an image of these programs: %s", digest)
	return nil
}

// installRuntime installs the OCI runtime where there is none.
func (d *demo) installRuntime(ctx context.Context) error {
	if _, err := exec.LookPath(runtimePackage); err == nil {
		return nil
	}
	d.say("installing %s", runtimePackage)
	for _, args := range [][]string{{"update"}, {"install", "-y", "--no-install-recommends", runtimePackage}} {
		c := exec.CommandContext(ctx, "apt-get", args...)
		c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("there is no %s, and apt-get %s does not bring it: install it, or run the demo with -sandbox none: %w: %s",
				runtimePackage, strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// runtime returns what runs the jobs, as the hosts say it.
func (d *demo) runtime(ctx context.Context) (string, error) {
	if !d.programs.boxed {
		return "plain processes", nil
	}
	nodes, _, err := d.region.api.Nodes(ctx, client.Page{})
	if err != nil {
		return "", fmt.Errorf("list the nodes: %w", err)
	}
	for i := range nodes {
		if l := nodes[i].Labels; l[gpuai.LabelOCI] != gpuai.LabelYes || l[gpuai.LabelMesh] != gpuai.LabelYes {
			return "", fmt.Errorf("host %s runs no images, or links no gangs with other hosts: its log says why", nodes[i].ID)
		}
	}
	l := nodes[0].Labels
	return fmt.Sprintf("OCI sandboxes by %s %s, the gang's in a mesh", l[gpuai.LabelOCI+".name"], l[gpuai.LabelOCI+".version"]), nil
}

// outputs reads the beats that tasks in sandboxes wrote to their output, from
// where the hosts keep it.
func (d *demo) outputs() (runs []beat.Run, err error) {
	dirs, err := filepath.Glob(filepath.Join(d.dir, "host-*", "tasks", "*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		out, at, _, err := watchdog.ReadLog(dir, "stdout", 0, 1<<20)
		if err != nil {
			return nil, err
		}
		if at > 0 {
			return nil, fmt.Errorf("the beginning of what a task wrote is lost: %s", dir)
		}
		r, err := beat.ReadOutput(dir, out)
		if err != nil {
			return nil, err
		}
		if r.Beats > 0 {
			runs = append(runs, r)
		}
	}
	return runs, nil
}
