package plugins

import (
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
)

// check says how v breaks the contract. A driver that sends such an inventory
// is treated like one that crashed.
func (v Inventory) check() error {
	if v.Err != "" && len(v.Devices) > 0 {
		return fmt.Errorf("%w: it reports devices and an error: %s", ErrGarbage, clip(v.Err))
	}
	if len(v.Devices) > gpuai.MaxGPUs {
		return fmt.Errorf("%w: it reports %d devices, a node has at most %d", ErrGarbage, len(v.Devices), gpuai.MaxGPUs)
	}
	byID := make(map[gpuai.DeviceID]*Device, len(v.Devices))
	for i := range v.Devices {
		byID[v.Devices[i].ID] = &v.Devices[i]
	}
	if len(byID) != len(v.Devices) {
		return fmt.Errorf("%w: it reports a device twice", ErrGarbage)
	}
	var bad []gpuai.FieldError
	gpuai.ValidateDevices(edgeDevices(v.Devices, nil), &bad)
	if len(bad) > 0 {
		return fmt.Errorf("%w: %s %s", ErrGarbage, bad[0].Pointer, bad[0].Detail)
	}
	for i := range v.Devices {
		if err := v.Devices[i].checkConflicts(byID); err != nil {
			return err
		}
	}
	return v.checkLinks(byID)
}

func (d *Device) checkConflicts(byID map[gpuai.DeviceID]*Device) error {
	for _, id := range d.Conflicts {
		o := byID[id]
		if o == nil || o == d || !slices.Contains(o.Conflicts, d.ID) {
			return fmt.Errorf("%w: device %s conflicts with %s, which does not say the same",
				ErrGarbage, clip(string(d.ID)), clip(string(id)))
		}
	}
	return nil
}

func (v Inventory) checkLinks(byID map[gpuai.DeviceID]*Device) error {
	for i, l := range v.Links {
		if l.A >= l.B || byID[l.A] == nil || byID[l.B] == nil {
			return fmt.Errorf("%w: link %s-%s is not between two known devices in order", ErrGarbage, clip(string(l.A)), clip(string(l.B)))
		}
		if p := v.Links[max(i, 1)-1]; i > 0 && (p.A > l.A || p.A == l.A && p.B >= l.B) {
			return fmt.Errorf("%w: links are not sorted, or one comes twice", ErrGarbage)
		}
	}
	return nil
}

// edgeDevices turns a driver's devices into those of the region, sorted by ID.
// health gives the verdict on each; nil means healthy.
func edgeDevices(ds []Device, health func(gpuai.DeviceID) (gpuai.DeviceHealth, string)) []gpuai.Device {
	out := make([]gpuai.Device, 0, len(ds))
	for _, d := range ds {
		e := gpuai.Device{ID: d.ID, Vendor: d.Vendor, Model: d.Model, Memory: d.Memory}
		if health != nil {
			e.Health, e.HealthCode = health(d.ID)
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b gpuai.Device) int {
		if a.ID < b.ID { // IDs are unique
			return -1
		}
		return 1
	})
	return out
}
