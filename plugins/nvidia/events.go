//go:build cgo

package nvidia

import (
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpuai/gpuai"
)

// Waiting for events.
const (
	eventWait  = time.Second     // for one, if the watch allows
	eventPause = 5 * time.Second // after an error
)

// listen follows the Xid errors of all GPUs for as long as the process lives.
func (d *Driver) listen() {
	for _, s := range []string{"nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetFree", "nvmlDeviceGetSupportedEventTypes"} {
		if !d.lib.has(s) {
			d.log.Error("NVML tells of no Xid errors", "lacks", s)
			return
		}
	}
	if !d.lib.has("nvmlEventSetWait_v2") && !d.lib.has("nvmlEventSetWait") {
		d.log.Error("NVML tells of no Xid errors", "lacks", "nvmlEventSetWait")
		return
	}
	for {
		gpus := d.wholes()
		set, n := d.register(gpus)
		if n == 0 {
			time.Sleep(eventPause) // none supports them, or none is there
		} else {
			d.hear(set, gpus)
		}
		if set != nil {
			set.Free()
		}
	}
}

// wholes are the GPUs that there are, without their instances.
func (d *Driver) wholes() []gpu {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.now.gpus), func(g gpu) bool { return g.mig != nil })
}

// register asks for the Xid errors of the GPUs; n is how many of them tell.
func (d *Driver) register(gpus []gpu) (set nvml.EventSet, n int) {
	defer d.watch.enter("registering for events")()
	set, ret := d.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		d.log.Error("NVML tells of no Xid errors", "err", ret)
		return nil, 0
	}
	for i := range gpus {
		types, ret := gpus[i].handle.GetSupportedEventTypes()
		if ret == nvml.SUCCESS && types&nvml.EventTypeXidCriticalError != 0 {
			ret = gpus[i].handle.RegisterEvents(nvml.EventTypeXidCriticalError, set)
		} else if ret == nvml.SUCCESS {
			ret = nvml.ERROR_NOT_SUPPORTED
		}
		if ret != nvml.SUCCESS {
			d.log.Warn("a GPU tells of no Xid errors", "device", gpus[i].ID, "err", ret)
			continue
		}
		n++
	}
	return set, n
}

// hear waits for events until the GPUs are not those any more, or waiting fails.
func (d *Driver) hear(set nvml.EventSet, gpus []gpu) {
	wait := min(eventWait, d.watch.limit/4)
	for {
		done := d.watch.enter("waiting for an event")
		e, ret := d.lib.EventSetWait(set, uint32(wait.Milliseconds()))
		done()
		switch ret {
		case nvml.SUCCESS:
			d.event(e, gpus)
		case nvml.ERROR_TIMEOUT:
		default: // ERROR_GPU_IS_LOST does not say which
			d.log.Warn("waiting for Xid errors", "err", ret)
			d.look()
			time.Sleep(eventPause)
			return
		}
		if !slices.EqualFunc(gpus, d.wholes(), func(a, b gpu) bool { return a.ID == b.ID }) {
			return
		}
	}
}

// look asks for a scan at once.
func (d *Driver) look() {
	select {
	case d.rescan <- struct{}{}:
	default:
	}
}

// event notes an Xid error.
func (d *Driver) event(e nvml.EventData, gpus []gpu) {
	if e.EventType != nvml.EventTypeXidCriticalError {
		return
	}
	i := d.met(e.Device, gpus)
	if i < 0 {
		d.log.Error("an Xid error of an unknown GPU", "xid", e.EventData)
		return
	}
	x := lookupXid(e.EventData)
	d.log.Warn("Xid error", "device", gpus[i].ID, "xid", e.EventData, "mnemonic", x.mnemonic, "bucket", x.bucket, "gpu_instance", e.GpuInstanceId)
	defer d.look() // what NVML says of the GPU may have changed with it
	f, ok := x.fault(e.EventData)
	if !ok || slices.Contains(d.config.IgnoreXids, e.EventData) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range d.hit(gpus[i].ID, e.GpuInstanceId) {
		if err := d.faults.add(id, f); err != nil {
			d.log.Error("faults", "err", err)
		}
	}
	d.tell()
}

// met finds the GPU of an event: by the handle, which a lost GPU has too, else by
// the UUID; -1 if it is none of them.
func (d *Driver) met(h nvml.Device, gpus []gpu) int {
	if i := slices.IndexFunc(gpus, func(g gpu) bool { return g.handle == h }); i >= 0 {
		return i
	}
	defer d.watch.enter("finding the GPU of an event")()
	id, ret := h.GetUUID()
	if ret != nvml.SUCCESS {
		return -1
	}
	return slices.IndexFunc(gpus, func(g gpu) bool { return string(g.ID) == id })
}

// hit returns the devices that an event concerns: the instances of a GPU instance,
// or the whole GPU; the caller locks.
func (d *Driver) hit(id gpuai.DeviceID, gi uint32) []gpuai.DeviceID {
	var out []gpuai.DeviceID
	for _, g := range d.now.gpus {
		if gi != noInstance && g.Parent == id && g.mig.gi == int(gi) {
			out = append(out, g.ID)
		}
	}
	if len(out) == 0 {
		return []gpuai.DeviceID{id}
	}
	return out
}
