//go:build cgo

package nvidia

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// Reserve holds devices.
func (d *Driver) Reserve(_ context.Context, r plugins.Reservation) (plugins.Grant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held, err := d.book.Answer(r)
	if err != nil {
		return plugins.Grant{}, err
	}
	gpus, err := d.find(r.Devices)
	if err != nil {
		return plugins.Grant{}, err
	}
	if !held {
		if err := d.usable(gpus, r.Share); err != nil {
			return plugins.Grant{}, err
		}
		if err := d.book.Reserve(r, d.conflicts); err != nil {
			return plugins.Grant{}, err
		}
		if err := d.setMode(gpus, r.Share); err != nil {
			_, undo := d.book.Release(r.ID)
			return plugins.Grant{}, fmt.Errorf("%w (released again: %v)", err, undo == nil)
		}
	}
	return d.grant(gpus, r.Share), nil
}

// find returns the devices of these IDs; the caller locks.
func (d *Driver) find(ids []gpuai.DeviceID) ([]*gpu, error) {
	var out []*gpu
	for _, id := range ids {
		i := slices.IndexFunc(d.now.gpus, func(g gpu) bool { return g.ID == id })
		if i < 0 && d.err != "" {
			return nil, fmt.Errorf("%w: %s: %s", plugins.ErrUnusable, id, d.err)
		}
		if i < 0 {
			return nil, fmt.Errorf("%w: %s", plugins.ErrNoDevice, id)
		}
		out = append(out, &d.now.gpus[i])
	}
	return out, nil
}

func (d *Driver) conflicts(id gpuai.DeviceID) []gpuai.DeviceID {
	if gs, err := d.find([]gpuai.DeviceID{id}); err == nil {
		return gs[0].Conflicts
	}
	return nil
}

// usable says why devices cannot be reserved now; the caller locks.
func (d *Driver) usable(gpus []*gpu, share gpuai.Milli) error {
	all := d.health()
	for _, g := range gpus {
		h := all[g.ID]
		switch {
		case d.err != "":
			return fmt.Errorf("%w: %s: %s", plugins.ErrUnusable, g.ID, d.err)
		case g.Partitioned:
			return fmt.Errorf("%w: MIG is on, %s is handed out as its instances", plugins.ErrUnusable, g.ID)
		case h.State >= plugins.HealthUnhealthy:
			return fmt.Errorf("%w: %s: %s", plugins.ErrUnusable, g.ID, h.Message)
		case share == gpuai.WholeDevice:
		case g.mig != nil:
			return fmt.Errorf("%w: %s is a MIG instance, which is not shared any further", plugins.ErrUnsupported, g.ID)
		case !d.config.mpsRuns():
			return fmt.Errorf("%w: a share of %s needs MPS, whose control daemon is not at %s: start nvidia-cuda-mps-control -d",
				plugins.ErrUnusable, g.ID, d.config.MPSPipe)
		}
	}
	return nil
}

// setMode brings the compute mode to what the reservation needs.
func (d *Driver) setMode(gpus []*gpu, share gpuai.Milli) error {
	if d.config.ComputeMode == modeKeep || !d.lib.has("nvmlDeviceGetComputeMode") || !d.lib.has("nvmlDeviceSetComputeMode") {
		return nil
	}
	want := nvml.COMPUTEMODE_DEFAULT
	if share < gpuai.WholeDevice {
		want = nvml.COMPUTEMODE_EXCLUSIVE_PROCESS
	}
	defer d.watch.enter("setting the compute mode")()
	for _, g := range gpus {
		if g.mig != nil {
			continue // has none of its own
		}
		mode, ret := g.handle.GetComputeMode()
		if ret != nvml.SUCCESS || mode == want {
			continue
		}
		if ret = g.handle.SetComputeMode(want); ret != nvml.SUCCESS {
			return fmt.Errorf("%w: the compute mode of %s cannot be set: %w: run the agent as root, or set compute_mode to keep",
				plugins.ErrUnusable, g.ID, ret)
		}
	}
	return nil
}

// grant is what a task needs to use the devices; the caller locks.
func (d *Driver) grant(gpus []*gpu, share gpuai.Milli) plugins.Grant {
	var ids []gpuai.DeviceID
	var cdi []string
	for _, g := range gpus {
		ids = append(ids, g.ID)
		if name := d.specs.name(g); name != "" {
			cdi = append(cdi, name)
		}
	}
	out := plugins.Grant{Env: environment(ids)}
	if len(cdi) == len(gpus) {
		out.CDI = cdi
	} else {
		out.DeviceNodes = d.nodes(gpus)
	}
	if share < gpuai.WholeDevice {
		d.config.addShare(&out, share, gpus[0].Memory)
	}
	return out
}

func (d *Driver) nodes(gpus []*gpu) []plugins.DeviceNode {
	var minors, caps []int
	file, _ := os.ReadFile(migMinorsFile) // without it there is no MIG
	for _, g := range gpus {
		if g.minor >= 0 && !slices.Contains(minors, g.minor) {
			minors = append(minors, g.minor)
		}
		if g.mig != nil {
			caps = append(caps, migCaps(string(file), g.minor, g.mig.gi, g.mig.ci)...)
		}
	}
	slices.Sort(caps)
	return d.config.deviceNodes(minors, slices.Compact(caps))
}

// Recover compares reservations.
func (d *Driver) Recover(_ context.Context, ids []string) (known, orphaned []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, orphaned = d.book.Recover(ids)
	return known, orphaned, nil
}
