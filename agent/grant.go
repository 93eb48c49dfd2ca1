package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/cdi"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
	"github.com/gpuai/gpuai/plugins"
)

// cdiEdits are what CDI says a sandbox needs for its devices.
type cdiEdits cdi.Edits

// driverCDI are the directories where the drivers of this node may keep CDI
// specifications of their own.
func (a *Agent) driverCDI() (dirs []string) {
	for _, c := range a.cfg.Drivers {
		dirs = append(dirs, filepath.Join(cmp.Or(c.SocketDir, a.path(driversDir)), c.Name, "state", "cdi"))
	}
	return dirs
}

// resolve looks up the CDI names of a lease's devices. Those of a name that
// cannot be resolved are taken out of use.
func (w *worker) resolve(names []string) (*cdiEdits, error) {
	if len(names) == 0 {
		return &cdiEdits{}, nil
	}
	e, err := w.a.boxes.cdi.Resolve(names)
	var no *cdi.UnresolvedError
	if errors.As(err, &no) {
		w.unusable, w.unusableWhy = namedBy(no.Name, w.lease.Devices), err.Error()
		return nil, fmt.Errorf("device %s: %w", w.unusable[0], err)
	}
	if err != nil {
		return nil, err
	}
	for _, spec := range e.Hooks {
		if w.a.boxes.tell(spec) {
			w.a.log.Warn("a CDI specification has hooks, which are not run: sandboxes get its devices, mounts and variables", "specification", spec)
		}
	}
	return (*cdiEdits)(&e), nil
}

// namedBy returns the devices that a CDI name means: drivers name them by their
// IDs; else it is not known, and may be any.
func namedBy(name string, ids []gpuai.DeviceID) []gpuai.DeviceID {
	for _, id := range ids {
		if strings.HasSuffix(name, "="+string(id)) {
			return []gpuai.DeviceID{id}
		}
	}
	return slices.Clone(ids)
}

// tell reports whether a specification's hooks are to be told of: once.
func (b *boxes) tell(spec string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := !b.told[spec]
	b.told[spec] = true
	return first
}

// granted adds the edits' variables to what the drivers granted, and their
// libraries' directories to base, the image's variables. The edits are over the
// grant: that is right for the host, where a device may have another place.
func (e *cdiEdits) granted(base, granted map[string]string) {
	maps.Copy(granted, e.Env)
	if len(e.Libraries) > 0 {
		const name = "LD_LIBRARY_PATH"
		paths := e.Libraries
		if old := base[name]; old != "" {
			paths = slices.Concat([]string{old}, paths)
		}
		base[name] = strings.Join(paths, ":")
	}
}

// add gives the sandbox the edits' devices and mounts.
func (e *cdiEdits) add(t *sandbox.Task) {
	for _, n := range e.Nodes {
		t.Devices = append(t.Devices, sandbox.Device{Path: n.Path, Block: n.Block, Major: n.Major, Minor: n.Minor, Permissions: n.Permissions})
	}
	for _, m := range e.Mounts {
		o := sandbox.Mount{Path: m.Path, HostPath: m.HostPath, Writable: m.Writable}
		if m.NoExec {
			o.Options = []string{"noexec"}
		}
		t.Mounts = append(t.Mounts, o)
	}
}

// grantBox gives the sandbox what its drivers granted without CDI.
func grantBox(t *sandbox.Task, grant plugins.Grant) error {
	for _, m := range grant.Mounts {
		t.Mounts = append(t.Mounts, sandbox.Mount{Path: m.ContainerPath, HostPath: m.HostPath, Options: m.Options})
	}
	for _, d := range grant.DeviceNodes {
		var st unix.Stat_t
		if err := unix.Stat(d.HostPath, &st); err != nil {
			return fmt.Errorf("the device %s of the lease: %w", d.HostPath, err)
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFCHR && kind != unix.S_IFBLK {
			return fmt.Errorf("the device %s of the lease is no device file", d.HostPath)
		}
		t.Devices = append(t.Devices, sandbox.Device{
			Path: cmp.Or(d.ContainerPath, d.HostPath), Block: kind == unix.S_IFBLK, Permissions: cmp.Or(d.Permissions, "rw"),
			Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		})
	}
	return nil
}

// nodesOf are the device files that the watchdog makes for a sandbox.
func nodesOf(t *sandbox.Task) (out []watchdog.Node) {
	for _, d := range t.Devices {
		out = append(out, watchdog.Node{Block: d.Block, Major: d.Major, Minor: d.Minor})
	}
	return out
}
