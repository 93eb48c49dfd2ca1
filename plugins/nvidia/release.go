//go:build cgo

package nvidia

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// Faults of a device that was released and not clean.
const (
	codeUnclean    = "nvidia:unclean"    // something holds it; over when nothing does
	codeUnscrubbed = "nvidia:unscrubbed" // its memory could not be wiped
)

// Limits of a release.
const (
	holdersLook  = 50 * time.Millisecond
	scrubLimit   = 30 * time.Second
	residueLimit = 512 << 20 // memory in use of a device that nobody uses
)

// An ending is a release under way. It goes on when its caller stops to wait, and
// the next caller has its result.
type ending struct {
	done   chan struct{}
	clean  bool
	detail string
	err    error
}

// Release ends a reservation once nothing holds its devices any more.
func (d *Driver) Release(ctx context.Context, id string, scrub bool) (clean bool, detail string, err error) {
	d.mu.Lock()
	e := d.ends[id]
	if e == nil {
		entry, held := d.book.Lookup(id)
		if !held {
			d.mu.Unlock()
			return true, "", nil
		}
		e = &ending{done: make(chan struct{})}
		d.ends[id] = e
		go d.finish(e, id, entry, scrub)
	}
	d.mu.Unlock()
	select {
	case <-e.done:
	case <-ctx.Done():
		return false, "", ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ends[id] == e {
		delete(d.ends, id)
	}
	return e.clean, e.detail, e.err
}

// finish cleans the devices of a reservation and strikes it out.
func (d *Driver) finish(e *ending, id string, entry plugins.Entry, scrub bool) {
	defer close(e.done)
	var details []string
	dirty := map[gpuai.DeviceID]fault{}
	for _, dev := range entry.Devices {
		if code, why := d.clean(dev, entry.Share, scrub); why != "" {
			dirty[dev] = fault{code, "released, but not clean: " + why, plugins.HealthUnhealthy, plugins.ActionResetDevice}
			details = append(details, fmt.Sprintf("%s: %s", dev, why))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, e.err = d.book.Release(id); e.err != nil {
		return
	}
	e.clean, e.detail = len(dirty) == 0, strings.Join(details, "; ")
	for _, dev := range entry.Devices {
		d.over(dev)
		if f, ok := dirty[dev]; ok {
			if err := d.faults.add(dev, f); err != nil {
				d.log.Error("faults", "err", err)
			}
		}
	}
	d.log.Info("released", "reservation", id, "scrub", scrub, "clean", e.clean, "detail", e.detail)
	d.tell()
}

// over forgets what happened to a device and its GPU while it was held, and ends
// with the task; the caller locks.
func (d *Driver) over(id gpuai.DeviceID) {
	ids := []gpuai.DeviceID{id}
	if gs, err := d.find(ids); err == nil && gs[0].Parent != "" {
		ids = append(ids, gs[0].Parent)
	}
	for _, one := range ids {
		if d.book.Share(one) > 0 {
			continue
		}
		if err := d.faults.drop(one, func(f fault) bool { return !f.lasting() }); err != nil {
			d.log.Error("faults", "err", err)
		}
	}
}

// clean waits until nothing holds a device, wipes it if asked, and says what is
// not clean, as a fault's code and why. Of a device that others share nothing can
// be said.
func (d *Driver) clean(id gpuai.DeviceID, share gpuai.Milli, scrub bool) (code, why string) {
	d.mu.Lock()
	others := d.book.Share(id) > share
	gs, err := d.find([]gpuai.DeviceID{id})
	var g gpu
	if err == nil {
		g = *gs[0]
	}
	state := d.health()[id]
	d.mu.Unlock()
	switch {
	case err != nil:
		return codeUnclean, "it cannot be checked: " + err.Error()
	case others:
		return "", ""
	case state.State == plugins.HealthLost:
		return codeUnclean, "it cannot be checked: " + state.Message
	}
	if why := d.unheld(&g); why != "" {
		return codeUnclean, why
	}
	if scrub && share == gpuai.WholeDevice && len(d.config.Scrub) > 0 {
		if err := scrubWith(d.config.Scrub, id); err != nil {
			return codeUnscrubbed, err.Error()
		}
		if why := d.unheld(&g); why != "" {
			return codeUnclean, why
		}
	}
	if share < gpuai.WholeDevice {
		if err := d.setMode([]*gpu{&g}, gpuai.WholeDevice); err != nil {
			d.log.Warn("a device that is not shared any more keeps its compute mode until it is handed out", "device", id, "err", err)
		}
	}
	return "", ""
}

// unheld waits for processes that are ending, and says who still holds a device.
func (d *Driver) unheld(g *gpu) string {
	for deadline := time.Now().Add(milliseconds(d.config.ReleaseWait)); ; time.Sleep(holdersLook) {
		why := d.holders(g)
		if why == "" || time.Now().After(deadline) {
			return why
		}
	}
}

// holders says who holds a device, or that its memory is in use without a process
// that shows: one whose end is stuck in the kernel.
func (d *Driver) holders(g *gpu) string {
	defer d.watch.enter("looking for processes on " + string(g.ID))()
	ps, ret := g.handle.GetComputeRunningProcesses()
	if ret == nvml.SUCCESS && d.lib.hasGraphics() && !d.config.AllowGraphics {
		var more []nvml.ProcessInfo
		if more, ret = g.handle.GetGraphicsRunningProcesses(); ret == nvml.ERROR_NOT_SUPPORTED {
			ret = nvml.SUCCESS // a MIG instance, or a board without a display
		}
		ps = append(ps, more...)
	}
	if ret != nvml.SUCCESS {
		return fmt.Sprintf("it cannot be told which processes hold it: %v", ret)
	}
	for _, p := range ps {
		if !mpsServer(p.Pid) {
			return fmt.Sprintf("process %d (%s) still holds it", p.Pid, command(p.Pid))
		}
	}
	if g.mig == nil && len(ps) == 0 && d.lib.has("nvmlDeviceGetMemoryInfo_v2") {
		if m, ret := g.handle.GetMemoryInfo_v2(); ret == nvml.SUCCESS && m.Used > residueLimit {
			return fmt.Sprintf("%d MiB of its memory are in use, and no process shows", m.Used>>20)
		}
	}
	return ""
}

// mpsBinary is the server of MPS, which stays on a GPU without a client.
const mpsBinary = "/usr/bin/nvidia-cuda-mps-server"

// mpsServer reports whether a process is the host's MPS server: by its file, since
// a name is easily taken.
func mpsServer(pid uint32) bool {
	its, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return false
	}
	ours, err := os.Stat(mpsBinary)
	return err == nil && os.SameFile(its, ours)
}

// command is the name of a process for a message.
func command(pid uint32) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "of another PID namespace, or gone"
	}
	return strings.TrimSpace(string(name))
}

// scrubWith runs the operator's program on a device.
func scrubWith(argv []string, id gpuai.DeviceID) error {
	ctx, cancel := context.WithTimeout(context.Background(), scrubLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	for name, value := range environment([]gpuai.DeviceID{id}) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH"))
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("scrub_command was not done within %s", scrubLimit)
	}
	if err != nil {
		return fmt.Errorf("scrub_command: %w: %s", err, lastLine(string(bytes.TrimSpace(out))))
	}
	return nil
}
