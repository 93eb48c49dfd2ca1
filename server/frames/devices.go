package frames

import (
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// HoldsDevices reports whether the region's list says what the agent's does. The
// region keeps the places of lost ones that leases had, and its own quarantine, but
// for devices that the agent calls healthy: it takes a device out before it reports
// of it, so that this is its later word.
func HoldsDevices(region, told []gpuai.Device) bool {
	for i := range region {
		d := region[i]
		k := slices.IndexFunc(told, func(t gpuai.Device) bool { return t.ID == d.ID })
		d.Free = 0
		if d.Health == gpuai.DeviceQuarantined && k >= 0 && told[k].Health != gpuai.DeviceHealthy {
			d.Health = told[k].Health
		}
		if k < 0 && d.Health != gpuai.DeviceLost || k >= 0 && d != told[k] {
			return false
		}
	}
	return !slices.ContainsFunc(told, func(t gpuai.Device) bool {
		return !slices.ContainsFunc(region, func(d gpuai.Device) bool { return d.ID == t.ID })
	})
}

// HoldsRefusal reports whether the region knows what the agent says of new tasks.
func HoldsRefusal(region, told *gpuai.Refusal) bool {
	return region == nil && told == nil || region != nil && told != nil && *region == *told
}

// Tellable is what a machine of a feature level takes of what an agent says: below
// fsm.LevelTenants no places of devices, and no refusal. Once the level is raised
// they are told again, since the region holds something else.
func Tellable(level uint32, devices []gpuai.Device, refuses *gpuai.Refusal) ([]gpuai.Device, *gpuai.Refusal) {
	if level >= fsm.LevelTenants {
		return devices, refuses
	}
	if !gpuai.Places(devices) {
		return devices, nil
	}
	plain := slices.Clone(devices)
	for i := range plain {
		plain[i].DevicePlace = gpuai.DevicePlace{}
	}
	return plain, nil
}
