package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A driver is one of the agent's drivers by its name.
type driver struct {
	name string
	Driver
}

// devices is what the node offers, and what is wrong with it. The loop owns it.
type devices struct {
	drivers []driver
	offered []gpuai.Device // to the region, sorted by ID
	told    []gpuai.Device // in this session
	// unclean are devices that could not be cleaned, or whose task could not be
	// killed, with the reason. They are offered as unhealthy.
	unclean map[gpuai.DeviceID]string
	// bad are unclean devices that their driver has called unhealthy since:
	// when it calls them healthy again, they are.
	bad map[gpuai.DeviceID]bool
}

// Health codes that the agent gives itself.
const (
	codeUnclean = "agent:unclean"
	codeDrained = "agent:drained"
)

// driverLabels precede the labels that say what the drivers' hosts have.
const driverLabels = "driver."

// list merges the drivers' inventories. drained, if it says
// why, makes all of it unhealthy.
func (d *devices) list(drained string) []gpuai.Device {
	var out []gpuai.Device
	var snaps []plugins.Snapshot
	for _, dr := range d.drivers {
		snap := dr.Inventory()
		snaps = append(snaps, snap)
		for _, dev := range snap.Devices {
			switch {
			case drained != "":
				dev.Health, dev.HealthCode = gpuai.DeviceUnhealthy, healthCode(codeDrained, drained)
			case d.masked(&dev):
				dev.Health, dev.HealthCode = gpuai.DeviceUnhealthy, healthCode("", d.unclean[dev.ID])
			case dev.HealthCode != "" || d.unclean[dev.ID] != "":
				dev.HealthCode = healthCode(dev.HealthCode, sickness(snap.Health[dev.ID], dev.HealthCode, d.unclean[dev.ID]))
			}
			out = append(out, dev)
		}
	}
	slices.SortStableFunc(out, func(a, b gpuai.Device) int { return strings.Compare(string(a.ID), string(b.ID)) })
	out = slices.CompactFunc(out, func(a, b gpuai.Device) bool { return a.ID == b.ID })
	out = out[:min(len(out), gpuai.MaxGPUs)]
	plugins.Place(out, snaps)
	return out
}

// sickness says what is to be done about a device of which the driver gives code,
// and why it is unclean, where it is. The driver's message is left out: it may
// change with each reading.
func sickness(h plugins.Health, code, unclean string) string {
	remedy := remedies[h.Action]
	if h.Code != code {
		remedy = "" // the host's own word: the driver is away
	}
	if remedy != "" && unclean != "" {
		remedy += "; "
	}
	return remedy + unclean
}

// masked reports whether a device must not be offered as healthy.
func (d *devices) masked(dev *gpuai.Device) bool {
	if _, ok := d.unclean[dev.ID]; !ok {
		return false
	}
	if dev.Health != gpuai.DeviceHealthy {
		d.bad[dev.ID] = true
		return false
	}
	if d.bad[dev.ID] { // it was reset
		delete(d.unclean, dev.ID)
		delete(d.bad, dev.ID)
		return false
	}
	return true
}

// simulated reports whether a driver made its devices up.
func (d *devices) simulated() bool {
	return slices.ContainsFunc(d.drivers, func(dr driver) bool { return dr.Inventory().Simulated })
}

// labels adds the versions of the vendors' software to a node's labels, as far as
// there is room: jobs ask for one by a constraint.
func (d *devices) labels(of map[string]string) map[string]string {
	out := maps.Clone(of)
	for _, dr := range d.drivers {
		snap := dr.Inventory()
		for what, version := range map[string]string{".version": snap.DriverVersion, ".runtime": snap.RuntimeVersion} {
			key := driverLabels + dr.name + what
			if version == "" || len(version) > gpuai.MaxTextLen || !gpuai.ValidLabel(key) || len(out) >= gpuai.MaxLabels {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[key] = version
		}
	}
	return out
}

// owners splits devices by the driver that has them.
func owners(drivers []driver, ids []gpuai.DeviceID) (map[int][]gpuai.DeviceID, error) {
	out := map[int][]gpuai.DeviceID{}
	for _, id := range ids {
		i := slices.IndexFunc(drivers, func(dr driver) bool {
			return slices.ContainsFunc(dr.Inventory().Devices, func(d gpuai.Device) bool { return d.ID == id })
		})
		if i < 0 {
			return nil, fmt.Errorf("no driver of this node has device %s", id)
		}
		out[i] = append(out[i], id)
	}
	return out, nil
}

// reserve reserves a lease's devices with their drivers and returns what gives
// them to the task.
func reserve(ctx context.Context, drivers []driver, l *gpuai.Lease) (all plugins.Grant, err error) {
	by, err := owners(drivers, l.Devices)
	if err != nil {
		return all, err
	}
	all.Env = map[string]string{}
	for _, i := range slices.Sorted(maps.Keys(by)) {
		g, err := drivers[i].Reserve(ctx, plugins.Reservation{
			ID: l.ID.String(), Devices: by[i], Share: l.Share, Incarnation: l.Incarnation,
		})
		if err != nil {
			return all, fmt.Errorf("reserve devices: %w", err)
		}
		maps.Copy(all.Env, g.Env)
		all.CDI = append(all.CDI, g.CDI...)
		all.Mounts = append(all.Mounts, g.Mounts...)
		all.DeviceNodes = append(all.DeviceNodes, g.DeviceNodes...)
	}
	return all, nil
}

// releaseTries bounds how often a driver is asked that does not answer.
const releaseTries = 3

func releaseFrom(ctx context.Context, d driver, id string) (clean bool, detail string, err error) {
	for try := range releaseTries {
		if try > 0 {
			again := time.NewTimer(time.Second)
			select {
			case <-again.C:
			case <-ctx.Done():
				again.Stop()
				return false, "", ctx.Err()
			}
		}
		if clean, detail, err = d.Release(ctx, id, true); err == nil {
			return clean, detail, nil
		}
	}
	return false, "", err
}

// remedies say what a driver's action asks of the node's operator, where it asks
// for something.
var remedies = map[plugins.HealthAction]string{
	plugins.ActionResetDevice: "reset the device",
	plugins.ActionRebootNode:  "reboot the node",
	plugins.ActionReplace:     "replace the device",
}

// failedUnder says which device of a running lease its driver wants to take
// out of use, or "".
func failedUnder(drivers []driver, l *gpuai.Lease) string {
	for _, dr := range drivers {
		snap := dr.Inventory()
		if !snap.Up {
			continue // a task that has its devices goes on while the driver is away
		}
		for _, id := range l.Devices {
			if h, ok := snap.Health[id]; ok && h.Action >= plugins.ActionRestartTask {
				why := fmt.Sprintf("device %s failed: %s %s", id, h.Code, h.Message)
				if remedy := remedies[h.Action]; remedy != "" {
					why += "; its operator has to " + remedy
				}
				return why
			}
		}
	}
	return ""
}
