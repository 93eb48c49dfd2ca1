package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// Version is the driver's version.
const Version = "0.1.0"

// A Driver simulates devices. Make it with New.
type Driver struct {
	log     *slog.Logger
	started time.Time

	// Set by Configure.
	config *Config
	all    []device

	mu      sync.Mutex // guards below
	book    *plugins.Book
	gone    map[gpuai.DeviceID]bool // vanished
	unclean map[gpuai.DeviceID]bool
	health  map[gpuai.DeviceID]plugins.Health
	changed chan struct{} // closed and replaced when gone or health changes
}

var _ plugins.Driver = (*Driver)(nil)

// New returns a driver that is to be configured; faults count from now.
func New(log *slog.Logger) *Driver {
	return &Driver{
		log: log, started: time.Now(), changed: make(chan struct{}),
		gone: map[gpuai.DeviceID]bool{}, unclean: map[gpuai.DeviceID]bool{},
	}
}

// Info says that the driver is simulated.
func (d *Driver) Info() plugins.Info {
	return plugins.Info{
		Name: "sim", Version: Version, Simulated: true, ConfigSchema: schema,
		Capabilities: []string{plugins.CapShare, plugins.CapTopology, plugins.CapPartition},
	}
}

// Configure makes the devices, reads the reservations and starts the faults.
func (d *Driver) Configure(_ context.Context, c plugins.Config) error {
	config, err := parse(c.JSON)
	if err != nil {
		return err
	}
	book, err := plugins.OpenBook(c.StateDir)
	if err != nil {
		return err
	}
	d.config, d.all, d.book = config, config.devices(), book
	if err := d.writeCDI(c.StateDir); err != nil {
		return err
	}
	d.log.Warn("these devices are SIMULATED", "devices", len(d.all), "seed", config.Seed)
	d.update(d.now())
	go d.play()
	return nil
}

// update brings gone and health up to date; the caller locks, or is alone.
func (d *Driver) update(faults []*Fault) {
	gone, health := map[gpuai.DeviceID]bool{}, map[gpuai.DeviceID]plugins.Health{}
	for _, v := range d.all {
		health[v.ID] = plugins.Health{Device: v.ID, State: plugins.HealthOK}
		if d.unclean[v.ID] {
			d.unclean[v.ID] = struck(faults, FaultUncleanRelease, v) != nil
		}
		if f := struck(faults, FaultUnhealthy, v); f != nil {
			health[v.ID] = f.health(v.ID)
		} else if d.unclean[v.ID] {
			health[v.ID] = plugins.Health{
				Device: v.ID, State: plugins.HealthUnhealthy, Code: "sim:unclean",
				Message: "simulated: released without being clean", Action: plugins.ActionResetDevice,
			}
		}
		if struck(faults, FaultVanish, v) != nil {
			gone[v.ID] = true
		}
	}
	if maps.Equal(gone, d.gone) && maps.Equal(health, d.health) {
		return
	}
	d.gone, d.health = gone, health
	close(d.changed)
	d.changed = make(chan struct{})
}

// struck returns the first fault of a kind that hits v, or nil.
func struck(faults []*Fault, kind string, v device) *Fault {
	for _, f := range faults {
		if f.Kind == kind && f.hits(v.place) {
			return f
		}
	}
	return nil
}

// Fingerprint sends the devices that have not vanished.
func (d *Driver) Fingerprint(ctx context.Context, send func(plugins.Inventory) error) error {
	return plugins.FollowInventory(ctx, send, d.inventory)
}

func (d *Driver) inventory() (plugins.Inventory, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := plugins.Inventory{Simulated: true}
	for _, one := range d.all {
		if d.gone[one.ID] {
			continue
		}
		one.Conflicts = slices.DeleteFunc(slices.Clone(one.Conflicts), func(id gpuai.DeviceID) bool { return d.gone[id] })
		v.Devices = append(v.Devices, one.Device)
	}
	v.Links = slices.DeleteFunc(d.config.links(d.all), func(l plugins.Link) bool { return d.gone[l.A] || d.gone[l.B] })
	return v, d.changed
}

// Health sends the health of every device, then what changed.
func (d *Driver) Health(ctx context.Context, send func([]plugins.Health) error) error {
	return plugins.FollowHealth(ctx, send, func() (map[gpuai.DeviceID]plugins.Health, <-chan struct{}) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.health, d.changed
	})
}

// Reserve holds devices. A slow one answers late, but has reserved: as a real
// driver that hangs after the fact.
func (d *Driver) Reserve(ctx context.Context, r plugins.Reservation) (plugins.Grant, error) {
	g, delay, err := d.reserve(r)
	if err != nil || delay == 0 {
		return g, err
	}
	late := time.NewTimer(delay)
	defer late.Stop()
	select {
	case <-late.C:
		return g, nil
	case <-ctx.Done():
		return plugins.Grant{}, ctx.Err()
	}
}

func (d *Driver) reserve(r plugins.Reservation) (plugins.Grant, time.Duration, error) {
	faults := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	var ds []device
	var delay gpuai.Duration
	for _, id := range r.Devices {
		v, err := d.find(id)
		if err != nil {
			return plugins.Grant{}, 0, err
		}
		ds = append(ds, v)
		if f := struck(faults, FaultSlowReserve, v); f != nil {
			delay = max(delay, f.Delay)
		}
	}
	grant := plugins.Grant{Env: environment(ds), CDI: names(ds)}
	wait := time.Duration(delay) * time.Millisecond
	if held, err := d.book.Answer(r); held || err != nil {
		return grant, wait, err
	}
	for _, v := range ds {
		if err := d.usable(v.ID); err != nil {
			return plugins.Grant{}, 0, err
		}
	}
	return grant, wait, d.book.Reserve(r, d.conflicts)
}

func (d *Driver) find(id gpuai.DeviceID) (device, error) {
	for _, v := range d.all {
		if v.ID == id {
			return v, nil
		}
	}
	return device{}, fmt.Errorf("%w: %s", plugins.ErrNoDevice, id)
}

func (d *Driver) conflicts(id gpuai.DeviceID) []gpuai.DeviceID {
	v, _ := d.find(id)
	return v.Conflicts
}

// usable says why a device cannot be reserved now.
func (d *Driver) usable(id gpuai.DeviceID) error {
	h := d.health[id]
	switch {
	case d.gone[id]:
		return fmt.Errorf("%w: %s is not there any more", plugins.ErrUnusable, id)
	case h.State == plugins.HealthUnhealthy || h.State == plugins.HealthLost:
		return fmt.Errorf("%w: %s is unhealthy (%s)", plugins.ErrUnusable, id, h.Code)
	}
	return nil
}

// Release ends a reservation. There is no memory to scrub.
func (d *Driver) Release(_ context.Context, id string, scrub bool) (clean bool, detail string, err error) {
	faults := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	e, err := d.book.Release(id)
	if err != nil {
		return false, "", err
	}
	clean, detail = true, ""
	for _, one := range e.Devices {
		v, err := d.find(one)
		if errors.Is(err, plugins.ErrNoDevice) {
			continue // the configuration changed since
		}
		if struck(faults, FaultUncleanRelease, v) != nil {
			clean, detail = false, strings.TrimPrefix(detail+fmt.Sprintf("; simulated: %s could not be cleaned", one), "; ")
			d.unclean[one] = true
		}
	}
	d.log.Info("released", "reservation", id, "scrub", scrub, "clean", clean)
	d.update(faults)
	return clean, detail, nil
}

// Recover compares reservations.
func (d *Driver) Recover(_ context.Context, ids []string) (known, orphaned []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, orphaned = d.book.Recover(ids)
	return known, orphaned, nil
}

// Stats measures what a simulation can: a device is as busy as it is reserved.
// Temperature, power and errors are absent.
func (d *Driver) Stats(_ context.Context, ids []gpuai.DeviceID) ([]plugins.Stats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []plugins.Stats
	for _, v := range d.all {
		if d.gone[v.ID] || len(ids) > 0 && !slices.Contains(ids, v.ID) {
			continue
		}
		busy := float64(d.book.Share(v.ID)) / float64(gpuai.WholeDevice)
		out = append(out, plugins.Stats{
			Device: v.ID, GPUUtilization: &busy,
			MemoryUsedBytes: new(uint64(0)), MemoryTotalBytes: new(uint64(v.Memory)),
		})
	}
	return out, nil
}
