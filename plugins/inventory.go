package plugins

import (
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
)

// Health codes that the host gives to devices itself.
const (
	// CodeDriverUnstable: the driver died too often; it clears when it has
	// lived for a while.
	CodeDriverUnstable = "driver:unstable"
	// CodeDriverError: the driver runs but has no device, see Snapshot.Err.
	CodeDriverError = "driver:error"
	// CodeVanished: the driver does not report the device any more.
	CodeVanished = "driver:vanished"
	// CodeUnknown: the driver has not said how the device is.
	CodeUnknown = "driver:health_unknown"
)

// A Snapshot is what a host knows of its driver's devices.
type Snapshot struct {
	// Generation grows by one with every change of anything below. It is the
	// host's own and goes on over restarts of the driver.
	Generation uint64
	// Devices are those to offer to the region, sorted by ID. A device that
	// was offered once stays in the list, as lost, when its driver reports it
	// no more. Of devices that exclude one another only whole ones are
	// offered, not their partitions; one that is partitioned is not.
	Devices   []gpuai.Device
	Simulated bool
	// Err says, in a sentence, why there is no device or why the driver is
	// down; "" when all is well.
	Err string
	// DriverVersion and RuntimeVersion are as in Inventory.
	DriverVersion  string
	RuntimeVersion string
	Links          []Link
	// Health is the driver's last word on each device.
	Health map[gpuai.DeviceID]Health
	// Details are the devices in the driver's own terms.
	Details []Device

	Driver   Info
	Up       bool   // its process runs and is configured
	PID      int    // 0 when it is not up
	Restarts uint64 // of the process since the host started
}

// A view is what the host has heard from the driver, from which a snapshot is
// made. It outlives the driver's process.
type view struct {
	inventory Inventory
	health    map[gpuai.DeviceID]Health
	offered   map[gpuai.DeviceID]Device // ever
}

func newView() *view {
	return &view{health: map[gpuai.DeviceID]Health{}, offered: map[gpuai.DeviceID]Device{}}
}

func (v *view) setHealth(hs []Health) {
	for _, h := range hs {
		v.health[h.Device] = h
	}
	if len(v.health) <= maxHealth {
		return
	}
	here := map[gpuai.DeviceID]bool{}
	for _, d := range v.inventory.Devices {
		here[d.ID] = true
	}
	maps.DeleteFunc(v.health, func(id gpuai.DeviceID, _ Health) bool { return !here[id] })
}

// maxHealth bounds what is remembered: health may be told of devices that the
// inventory does not have yet, or never has.
const maxHealth = 4 * gpuai.MaxGPUs

// complete reports whether the health of every device is known.
func (v *view) complete() bool {
	for _, d := range v.inventory.Devices {
		if _, ok := v.health[d.ID]; !ok {
			return false
		}
	}
	return true
}

// devices returns what to offer. With unstable set all of it is unhealthy.
func (v *view) devices(unstable bool) []gpuai.Device {
	here := map[gpuai.DeviceID]bool{}
	all := offerable(v.inventory.Devices)
	for _, d := range all {
		here[d.ID] = true
		v.offered[d.ID] = d
	}
	for _, d := range v.inventory.Devices {
		if d.Partitioned {
			delete(v.offered, d.ID) // not lost: its partitions stand for it
		}
	}
	for _, id := range slices.Sorted(maps.Keys(v.offered)) {
		if !here[id] && len(all) < gpuai.MaxGPUs {
			all = append(all, v.offered[id])
		}
	}
	return edgeDevices(all, func(id gpuai.DeviceID) (gpuai.DeviceHealth, string) {
		switch {
		case unstable:
			return gpuai.DeviceUnhealthy, CodeDriverUnstable
		case !here[id] && v.inventory.Err != "":
			return gpuai.DeviceUnhealthy, CodeDriverError
		case !here[id]:
			return gpuai.DeviceLost, CodeVanished
		}
		return edgeHealth(v.health[id])
	})
}

// offerable leaves out what must not be placed beside something else in the
// list: until the region knows of conflicts, whole devices go first and a
// device that excludes one already taken is not offered. One that is partitioned
// is not there to be placed at all.
func offerable(ds []Device) []Device {
	sorted := slices.DeleteFunc(slices.Clone(ds), func(d Device) bool { return d.Partitioned })
	slices.SortFunc(sorted, func(a, b Device) int {
		if whole, partition := a.Parent == "", b.Parent == ""; whole != partition {
			if whole {
				return -1
			}
			return 1
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	taken := map[gpuai.DeviceID]bool{}
	return slices.DeleteFunc(sorted, func(d Device) bool {
		out := slices.ContainsFunc(d.Conflicts, func(id gpuai.DeviceID) bool { return taken[id] })
		taken[d.ID] = !out
		return out
	})
}

func edgeHealth(h Health) (gpuai.DeviceHealth, string) {
	switch h.State {
	case HealthOK:
		return gpuai.DeviceHealthy, h.Code
	case HealthDegraded:
		return gpuai.DeviceDegraded, h.Code
	case HealthUnhealthy:
		return gpuai.DeviceUnhealthy, h.Code
	case HealthLost:
		return gpuai.DeviceLost, h.Code
	default:
		return gpuai.DeviceUnhealthy, CodeUnknown
	}
}
