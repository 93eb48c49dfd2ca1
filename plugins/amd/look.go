package amd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A sight is what one look at the tree showed.
type sight struct {
	view  view
	users map[gpuai.DeviceID]string // see show
	ends  uint64                    // of the driver, when it began
}

// look brings what the driver knows up to date: devices, links, names, health.
// One look at a time.
func (d *Driver) look() { d.take(d.glance()) }

// glance reads the tree, without the lock, so that a kernel that is slow to answer
// holds up no reservation.
func (d *Driver) glance() sight {
	d.mu.Lock()
	before, ends, unclean := d.view, d.ends, maps.Clone(d.unclean)
	d.mu.Unlock()
	now := d.tree.find(d.config.Exclude)
	if len(now.gpus) > gpuai.MaxGPUs {
		d.log.Error("more devices than a node may have: the last are not offered", "devices", len(now.gpus), "most", gpuai.MaxGPUs)
		now.gpus = now.gpus[:gpuai.MaxGPUs]
	}
	if !d.tree.exists(kfdNode) && len(now.gpus) > 0 {
		now.gpus, now.why = nil, "there is no /dev/kfd: udev has not made it, or this is a container without it"
	}
	d.nameCDI(now.gpus)
	next := d.seen(before, now)
	users := map[gpuai.DeviceID]string{}
	for id, g := range next.gpus {
		if s, ok := unclean[id]; ok {
			users[id] = d.tree.holder(&g, s.since)
		} else {
			users[id] = d.tree.computing(&g)
		}
	}
	return sight{next, users, ends}
}

// take makes a sight what the driver shows.
func (d *Driver) take(s sight) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.ends != d.ends {
		s.users = nil // of a lease that has ended since, it may be
	}
	d.show(s.view, s.users)
}

// nameCDI names the devices and writes what a container needs to know of them,
// when it has changed.
func (d *Driver) nameCDI(gpus []gpu) {
	s := d.tree.nameCDI(gpus, d.config.CDIDirs)
	_, err := os.Stat(filepath.Join(d.stateDir, cdiDir, cdiFile))
	if reflect.DeepEqual(s, d.spec) && (err == nil || s == nil) {
		return
	}
	if err := writeCDI(s, d.stateDir); err != nil {
		d.log.Error("tasks in sandboxes get no AMD GPUs", "error", err)
		return
	}
	d.spec = s
}

// seen makes a view of a finding. A device that was there stays as lost, unless
// its GPU is there in another mode of partitions.
func (d *Driver) seen(before view, now finding) view {
	next := view{gpus: map[gpuai.DeviceID]gpu{}, cards: map[gpuai.DeviceID]plugins.Health{}}
	cards := map[*function]card{}
	for _, g := range now.gpus {
		c, ok := cards[g.fn]
		if !ok {
			c = d.tree.card(g.fn)
			cards[g.fn] = c
		}
		next.gpus[g.ID] = g
		next.cards[g.ID] = d.tree.health(&g, c, before.cards[g.ID])
	}
	for id, g := range before.gpus {
		if _, here := next.gpus[id]; !here && !repartitioned(&g, now.gpus) && len(next.gpus) < gpuai.MaxGPUs {
			next.gpus[id], next.cards[id] = g, lost(&g, now)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(next.gpus)) {
		one := next.gpus[id].Device
		one.Conflicts = slices.DeleteFunc(slices.Clone(one.Conflicts), func(o gpuai.DeviceID) bool {
			_, here := next.gpus[o]
			return !here
		})
		next.inventory.Devices = append(next.inventory.Devices, one)
	}
	next.inventory.Links, next.inventory.DriverVersion = linksOf(now.gpus), d.tree.driverVersion()
	if len(next.gpus) == 0 {
		next.inventory.Err = now.why
	}
	return next
}

// repartitioned reports whether a device's GPU is there as other devices.
func repartitioned(g *gpu, now []gpu) bool {
	return slices.ContainsFunc(now, func(o gpu) bool { return o.PCIBusID == g.PCIBusID })
}

// show makes next what the driver shows. users says by which process a device is
// used or, if it is unclean, held; nil leaves that as it is known. The caller
// locks.
func (d *Driver) show(next view, users map[gpuai.DeviceID]string) {
	old := d.view
	next.health = d.judge(next.cards, users)
	d.view = next
	for id, g := range next.gpus {
		if h := next.health[id]; h.Code != old.health[id].Code {
			d.log.Info("health", "device", id, "code", h.Code, "message", h.Message)
		}
		if _, known := old.health[id]; !known {
			d.log.Info("device", "id", id, "model", g.Model, "gfx", g.GFX, "pci", g.PCIBusID, "render", g.Render,
				"memory_gib", g.Memory>>30, "cdi", g.CDIName, "amdgpu", next.inventory.DriverVersion)
		}
	}
	if reflect.DeepEqual(old.inventory, next.inventory) && maps.Equal(old.health, next.health) {
		return
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// judge adds to what the hardware says what processes make of it.
func (d *Driver) judge(cards map[gpuai.DeviceID]plugins.Health, users map[gpuai.DeviceID]string) map[gpuai.DeviceID]plugins.Health {
	out := maps.Clone(cards)
	for id, h := range cards {
		s, soiled := d.unclean[id]
		if who, looked := users[id]; soiled && looked {
			if s.why = who; who == "" {
				delete(d.unclean, id)
				soiled = false
			}
		}
		switch who := users[id]; {
		case h.State >= plugins.HealthUnhealthy:
		case soiled:
			out[id] = plugins.Health{
				Device: id, State: plugins.HealthUnhealthy, Code: codeUnclean, Action: plugins.ActionResetDevice,
				Message: "it was released, and " + s.why,
			}
		case who != "" && d.book.Share(id) == 0:
			out[id] = plugins.Health{
				Device: id, State: plugins.HealthUnhealthy, Code: codeForeign, Action: plugins.ActionWarn,
				Message: "no lease has it, and " + who,
			}
		case users == nil && d.view.health[id].Code == codeForeign && d.book.Share(id) == 0:
			out[id] = d.view.health[id]
		}
	}
	return out
}

// stuck calls every device unhealthy that is not lost, until a look ends.
func (d *Driver) stuck() {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.view
	next.cards = maps.Clone(next.cards)
	for id, h := range next.cards {
		if h.State != plugins.HealthLost {
			next.cards[id] = plugins.Health{
				Device: id, State: plugins.HealthUnhealthy, Code: codeStuck, Action: plugins.ActionRebootNode,
				Message: fmt.Sprintf("the kernel has not answered for %s", stuckAfter),
			}
		}
	}
	d.show(next, nil)
}

// driverVersion returns the version of amdgpu where it is a module of its own
// (DKMS), else the kernel's.
func (t tree) driverVersion() string {
	if v := t.word("sys/module/amdgpu/version"); v != "" {
		return v
	}
	return t.word("proc/sys/kernel/osrelease")
}

// memoryFile keeps the devices that are reserved: their grants must be the same
// when a device has vanished and the process is a new one.
const memoryFile = "devices.json"

// remember writes down what the reserved devices are. Failing that costs no more
// than the grant of a device that vanishes. The caller locks.
func (d *Driver) remember() {
	held := map[gpuai.DeviceID]gpu{}
	for id, g := range d.view.gpus {
		if d.book.Share(id) > 0 {
			held[id] = g
		}
	}
	src, err := json.Marshal(held)
	if err == nil {
		err = plugins.ReplaceFile(filepath.Join(d.stateDir, memoryFile), src)
	}
	if err != nil {
		d.log.Warn("the reserved devices cannot be written down", "error", err)
	}
}

// remembered returns the devices that were reserved when they were written down.
func (d *Driver) remembered() map[gpuai.DeviceID]gpu {
	out := map[gpuai.DeviceID]gpu{}
	src, err := os.ReadFile(filepath.Join(d.stateDir, memoryFile))
	if err == nil {
		err = json.Unmarshal(src, &out, json.RejectUnknownMembers(true))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("the reserved devices cannot be read back", "error", err)
		return nil
	}
	maps.DeleteFunc(out, func(id gpuai.DeviceID, g gpu) bool { return g.ID != id || d.book.Share(id) == 0 })
	return out
}
