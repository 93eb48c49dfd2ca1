// Command driver is a driver of GPUAI in one file, written against package
// plugins only: copy it to begin one of your own. Its accelerators are whatever
// has a device node, listed in a JSON file that may change at any time:
//
//	[{"name": "fpga-0", "model": "U55C", "memory_bytes": 17179869184, "node": "/dev/xfpga0"},
//	 {"name": "fpga-1", "model": "U55C", "memory_bytes": 17179869184, "node": "/dev/xfpga1", "broken": "fan"}]
//
// Run it by hand with --help, or give it to an agent:
//
//	gpuai agent run … --driver list=/path/to/driver,config.json
//
// where config.json is {"devices": "/etc/gpuai/accelerators.json"}.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

func main() { os.Exit(plugins.Serve(newDriver(plugins.Logger()))) }

// envDevices tells a task which of its device nodes are accelerators.
const envDevices = "LIST_DEVICES"

const schema = `{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "additionalProperties": false,
  "required": ["devices"],
  "properties": {
    "devices": {"type": "string", "pattern": "^/", "description": "Absolute path of the list of accelerators."}
  }
}`

// An accelerator is one entry of the list.
type accelerator struct {
	Name   gpuai.DeviceID `json:"name"`
	Model  string         `json:"model"`
	Memory gpuai.Bytes    `json:"memory_bytes"`
	Node   string         `json:"node"`
	Broken string         `json:"broken,omitzero"` // what is wrong with it
}

// A driver knows what the list said last.
type driver struct {
	log  *slog.Logger
	file string // set by Configure

	mu      sync.Mutex // guards below
	book    *plugins.Book
	list    []accelerator // sorted by name
	why     string        // there is none
	changed chan struct{} // closed and replaced when the list changes
}

var _ plugins.Driver = (*driver)(nil)

func newDriver(log *slog.Logger) *driver {
	return &driver{log: log, changed: make(chan struct{})}
}

// Info says who the driver is. It has none of the optional capabilities.
func (d *driver) Info() plugins.Info {
	return plugins.Info{Name: "list", Version: "1.0.0", ConfigSchema: schema}
}

// Configure takes the configuration and reads the reservations back.
func (d *driver) Configure(_ context.Context, c plugins.Config) error {
	var config struct {
		Devices string `json:"devices"`
	}
	if err := plugins.DecodeConfig(c.JSON, &config); err != nil {
		return err
	}
	if !filepath.IsAbs(config.Devices) {
		return fmt.Errorf("%w: configuration: /devices must be the absolute path of the list of accelerators, not %q", plugins.ErrInvalid, config.Devices)
	}
	book, err := plugins.OpenBook(c.StateDir)
	if err != nil {
		return err
	}
	d.file, d.book = config.Devices, book
	d.read()
	go func() {
		for range time.Tick(time.Second) {
			d.read()
		}
	}()
	return nil
}

// read reads the list. One that is missing or wrong is no error of the driver's:
// it says why there is no device, and looks again.
func (d *driver) read() {
	list, err := parse(d.file)
	why := ""
	if err != nil {
		list, why = nil, err.Error()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	list = d.keepHeld(list)
	if len(list) > 0 {
		why = "" // an inventory has devices or says why there is none
	}
	if reflect.DeepEqual(list, d.list) && why == d.why {
		return
	}
	d.log.Info("the list has changed", "devices", len(list), "error", why)
	d.list, d.why = list, why
	close(d.changed)
	d.changed = make(chan struct{})
}

// keepHeld adds to a list what a lease has and the list has no more: a reservation
// that is repeated gets the same grant. The caller locks.
func (d *driver) keepHeld(list []accelerator) []accelerator {
	for _, a := range d.list {
		listed := slices.ContainsFunc(list, func(b accelerator) bool { return a.Name == b.Name })
		if !listed && d.book.Share(a.Name) > 0 {
			a.Broken = "it is not in the list any more"
			list = append(list, a)
		}
	}
	slices.SortFunc(list, byName)
	return list
}

func byName(a, b accelerator) int { return strings.Compare(string(a.Name), string(b.Name)) }

// parse reads and checks a list of accelerators.
func parse(file string) ([]accelerator, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []accelerator
	if err := json.Unmarshal(src, &list, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	slices.SortFunc(list, byName)
	if len(list) == 0 || len(list) > gpuai.MaxGPUs {
		return nil, fmt.Errorf("%s lists %d accelerators, a node has 1 to %d", file, len(list), gpuai.MaxGPUs)
	}
	for i, a := range list {
		twice := i > 0 && list[i-1].Name == a.Name
		if a.Name == "" || twice || a.Model == "" || a.Memory <= 0 || a.Memory >= gpuai.MaxMemory || !filepath.IsAbs(a.Node) {
			return nil, fmt.Errorf("%s: %q needs a name of its own, a model, memory_bytes and the absolute path of its device node", file, a.Name)
		}
	}
	return list, nil
}

// health judges an accelerator.
func (a *accelerator) health() plugins.Health {
	h := plugins.Health{Device: a.Name, State: plugins.HealthOK}
	if _, err := os.Stat(a.Node); err != nil {
		h = plugins.Health{Device: a.Name, State: plugins.HealthLost, Code: "list:no-node", Message: err.Error(), Action: plugins.ActionRebootNode}
	}
	if a.Broken != "" {
		h = plugins.Health{Device: a.Name, State: plugins.HealthUnhealthy, Code: "list:broken", Message: a.Broken, Action: plugins.ActionReplace}
	}
	return h
}

func (d *driver) current() ([]accelerator, string, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list, d.why, d.changed
}

// follow calls send at once and whenever the list has changed.
func (d *driver) follow(ctx context.Context, send func(list []accelerator, why string) error) error {
	for {
		list, why, changed := d.current()
		if err := send(list, why); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Fingerprint sends the devices whenever the list changes.
func (d *driver) Fingerprint(ctx context.Context, send func(plugins.Inventory) error) error {
	return d.follow(ctx, func(list []accelerator, why string) error {
		v := plugins.Inventory{Err: why}
		for i, a := range list {
			v.Devices = append(v.Devices, plugins.Device{
				ID: a.Name, Vendor: "list", Kind: "accelerator", Model: a.Model, Memory: a.Memory, Index: uint32(i), NUMANode: -1,
			})
		}
		return send(v)
	})
}

// Health sends the health of all devices whenever the list changes.
func (d *driver) Health(ctx context.Context, send func([]plugins.Health) error) error {
	return d.follow(ctx, func(list []accelerator, _ string) error {
		var all []plugins.Health
		for _, a := range list {
			all = append(all, a.health())
		}
		return send(all)
	})
}

// Reserve holds accelerators: the book knows the rules, the driver what a task
// needs.
func (d *driver) Reserve(_ context.Context, r plugins.Reservation) (plugins.Grant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held, err := d.book.Answer(r)
	if err != nil {
		return plugins.Grant{}, err
	}
	g := plugins.Grant{Env: map[string]string{}}
	var nodes []string
	for _, id := range r.Devices {
		i := slices.IndexFunc(d.list, func(a accelerator) bool { return a.Name == id })
		if i < 0 {
			return plugins.Grant{}, fmt.Errorf("%w: %s", plugins.ErrNoDevice, id)
		}
		a := d.list[i]
		if h := a.health(); !held && h.State != plugins.HealthOK {
			return plugins.Grant{}, fmt.Errorf("%w: %s: %s", plugins.ErrUnusable, id, h.Message)
		}
		g.DeviceNodes = append(g.DeviceNodes, plugins.DeviceNode{HostPath: a.Node, ContainerPath: a.Node, Permissions: "rw"})
		nodes = append(nodes, a.Node)
	}
	g.Env[envDevices] = strings.Join(nodes, ",")
	if held {
		return g, nil
	}
	return g, d.book.Reserve(r, nil)
}

// Release ends a reservation. These accelerators have no memory to wipe: a real
// driver must see to it that the next tenant finds nothing of the last.
func (d *driver) Release(_ context.Context, id string, _ bool) (clean bool, detail string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.book.Release(id); err != nil {
		return false, "", err
	}
	return true, "", nil
}

// Recover compares reservations.
func (d *driver) Recover(_ context.Context, ids []string) (known, orphaned []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, orphaned = d.book.Recover(ids)
	return known, orphaned, nil
}

// Stats tells the memory, all that is known of an accelerator.
func (d *driver) Stats(_ context.Context, ids []gpuai.DeviceID) ([]plugins.Stats, error) {
	list, _, _ := d.current()
	var out []plugins.Stats
	for _, a := range list {
		if len(ids) == 0 || slices.Contains(ids, a.Name) {
			out = append(out, plugins.Stats{Device: a.Name, MemoryTotalBytes: new(uint64(a.Memory))})
		}
	}
	return out, nil
}
