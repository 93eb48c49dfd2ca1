package amd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// Version is the driver's version.
const Version = "0.1.0"

// A Driver hands out AMD's GPUs. Make it with New.
type Driver struct {
	log *slog.Logger

	// Set by Configure.
	config   *Config
	tree     tree
	stateDir string
	spec     *specs.Spec   // as written; of look
	patience time.Duration // letGo, but in tests

	mu      sync.Mutex // guards below
	book    *plugins.Book
	ends    uint64 // counts releases
	view    view
	unclean map[gpuai.DeviceID]soiled
	changed chan struct{} // closed and replaced when view changes
}

// A view is what the driver last saw.
type view struct {
	inventory plugins.Inventory
	gpus      map[gpuai.DeviceID]gpu            // with those that are lost
	cards     map[gpuai.DeviceID]plugins.Health // what the hardware says
	health    map[gpuai.DeviceID]plugins.Health // with what processes make of it
}

// A soiled device was released while a process held it.
type soiled struct {
	since gpuai.Duration // of the reservation
	why   string
}

var _ plugins.Driver = (*Driver)(nil)

// New returns a driver that is to be configured.
func New(log *slog.Logger) *Driver {
	return &Driver{log: log, changed: make(chan struct{}), unclean: map[gpuai.DeviceID]soiled{}, patience: letGo}
}

// Info says who the driver is. It has no shares: the kernel has no bound on what
// a process takes of a GPU.
func (d *Driver) Info() plugins.Info {
	return plugins.Info{Name: "amd", Version: Version, ConfigSchema: schema, Capabilities: []string{plugins.CapTopology, plugins.CapPartition}}
}

// Configure reads the reservations, looks at the devices, and goes on looking.
func (d *Driver) Configure(_ context.Context, c plugins.Config) error {
	config, err := parse(c.JSON)
	if err != nil {
		return err
	}
	book, err := plugins.OpenBook(c.StateDir)
	if err != nil {
		return err
	}
	d.config, d.tree, d.stateDir, d.book = config, tree(config.Root), c.StateDir, book
	d.view.gpus = d.remembered()
	d.look()
	go d.watch()
	return nil
}

// stuckAfter is how long a look may take. A kernel that resets a GPU, or cannot,
// keeps whoever reads of it waiting.
const stuckAfter = 15 * time.Second

// watch looks at the devices for as long as the process lives.
func (d *Driver) watch() {
	for range time.Tick(d.config.period()) {
		looked := make(chan struct{})
		go func() {
			defer close(looked)
			d.look()
		}()
		select {
		case <-looked:
		case <-time.After(stuckAfter):
			d.stuck()
			<-looked
		}
	}
}

// Fingerprint sends the devices, and again when they change.
func (d *Driver) Fingerprint(ctx context.Context, send func(plugins.Inventory) error) error {
	return plugins.FollowInventory(ctx, send, func() (plugins.Inventory, <-chan struct{}) {
		now, changed := d.current()
		return now.inventory, changed
	})
}

// Health sends the health of every device, then what changed.
func (d *Driver) Health(ctx context.Context, send func([]plugins.Health) error) error {
	return plugins.FollowHealth(ctx, send, func() (map[gpuai.DeviceID]plugins.Health, <-chan struct{}) {
		now, changed := d.current()
		return now.health, changed
	})
}

func (d *Driver) current() (view, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.view, d.changed
}

// Reserve holds devices.
func (d *Driver) Reserve(_ context.Context, r plugins.Reservation) (plugins.Grant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held, err := d.book.Answer(r)
	if err != nil {
		return plugins.Grant{}, err
	}
	var gpus []*gpu
	for _, id := range r.Devices {
		g, ok := d.view.gpus[id]
		if !ok {
			return plugins.Grant{}, fmt.Errorf("%w: %s", plugins.ErrNoDevice, id)
		}
		gpus = append(gpus, &g)
	}
	if held {
		return d.tree.grant(gpus), nil
	}
	for _, g := range gpus {
		if g.Partitioned {
			return plugins.Grant{}, fmt.Errorf("%w: %s is partitioned: its partitions are to be had", plugins.ErrUnusable, g.ID)
		}
		if h := d.view.health[g.ID]; h.State == plugins.HealthUnhealthy || h.State == plugins.HealthLost {
			return plugins.Grant{}, fmt.Errorf("%w: %s: %s (%s)", plugins.ErrUnusable, g.ID, h.Message, h.Code)
		}
	}
	if err := d.book.Reserve(r, nil); err != nil {
		return plugins.Grant{}, err
	}
	d.remember()
	return d.tree.grant(gpus), nil
}

// letGo bounds how long Release waits for the kernel to end the processes of a
// task that has been killed.
const letGo = 2 * time.Second

// Release ends a reservation. The kernel wipes a GPU's memory as a process gives
// it back, so a device is clean when no process holds it, whether or not it is to
// be scrubbed.
func (d *Driver) Release(ctx context.Context, id string, _ bool) (clean bool, detail string, err error) {
	d.mu.Lock()
	e, held := d.book.Lookup(id)
	gpus := maps.Clone(d.view.gpus)
	d.mu.Unlock()
	if !held {
		return true, "", nil
	}
	dirt := d.holders(ctx, e, gpus)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.book.Release(id); err != nil {
		return false, "", err
	}
	d.ends++
	var dirty []string
	for _, one := range e.Devices {
		if why := dirt[one]; why != "" {
			dirty = append(dirty, fmt.Sprintf("%s: %s", one, why))
			d.unclean[one] = soiled{e.SinceBoot, why}
		}
	}
	d.show(d.view, nil)
	d.remember()
	detail = strings.Join(dirty, "; ")
	d.log.Info("released", "reservation", id, "devices", e.Devices, "unclean", detail)
	return detail == "", detail, nil
}

// holders waits until no process holds a device of the reservation and returns
// those that one still holds, with the process.
func (d *Driver) holders(ctx context.Context, e plugins.Entry, gpus map[gpuai.DeviceID]gpu) map[gpuai.DeviceID]string {
	late := time.NewTimer(d.patience)
	defer late.Stop()
	again := time.NewTicker(d.patience / 40)
	defer again.Stop()
	for {
		out := map[gpuai.DeviceID]string{}
		for _, id := range e.Devices {
			if g, ok := gpus[id]; ok {
				if who := d.tree.holder(&g, e.SinceBoot); who != "" {
					out[id] = who
				}
			}
		}
		if len(out) == 0 {
			return nil
		}
		select {
		case <-again.C:
		case <-late.C:
			return out
		case <-ctx.Done():
			return out
		}
	}
}

// Recover compares reservations.
func (d *Driver) Recover(_ context.Context, ids []string) (known, orphaned []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, orphaned = d.book.Recover(ids)
	return known, orphaned, nil
}

// Stats measures devices. Of one that is lost nothing is measured.
func (d *Driver) Stats(_ context.Context, ids []gpuai.DeviceID) ([]plugins.Stats, error) {
	now, _ := d.current()
	var out []plugins.Stats
	for _, one := range now.inventory.Devices {
		if len(ids) > 0 && !slices.Contains(ids, one.ID) {
			continue
		}
		if g := now.gpus[one.ID]; now.health[one.ID].State == plugins.HealthLost {
			out = append(out, plugins.Stats{Device: g.ID})
		} else {
			out = append(out, d.tree.stats(&g))
		}
	}
	return out, nil
}
