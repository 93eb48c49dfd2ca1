//go:build cgo

package nvidia

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// Version is the driver's version.
const Version = "0.1.0"

// A Driver hands NVIDIA's devices out. Make it with New.
type Driver struct {
	log *slog.Logger
	// open tries and opens NVML; a test has another.
	open func() (*library, error)

	// Set by Configure.
	config *Config
	watch  *watch
	specs  *specs
	ready  chan struct{} // closed when it is known what there is
	rescan chan struct{} // asks for a scan at once

	mu      sync.Mutex // guards below
	lib     *library   // nil while there is none
	now     scan
	err     string // why there is no device
	known   bool   // ready is closed
	book    *plugins.Book
	faults  *faults
	ends    map[string]*ending // releases under way, by reservation
	changed chan struct{}      // closed and replaced with every change
}

var _ plugins.Driver = (*Driver)(nil)

// New returns a driver that is to be configured.
func New(log *slog.Logger) *Driver {
	return &Driver{
		log: log, ready: make(chan struct{}), rescan: make(chan struct{}, 1),
		ends: map[string]*ending{}, changed: make(chan struct{}),
	}
}

// Info says what the driver is.
func (d *Driver) Info() plugins.Info {
	return plugins.Info{
		Name: "nvidia", Version: Version, ConfigSchema: schema,
		Capabilities: []string{plugins.CapShare, plugins.CapTopology, plugins.CapPartition},
	}
}

// firstWait is how long Configure waits for the first scan: the host gives it 5 s,
// and has devices that come later as well.
const firstWait = 3 * time.Second

// Configure reads what the driver holds, and starts to look for devices. That
// there are none, or no library, is no error.
func (d *Driver) Configure(ctx context.Context, c plugins.Config) error {
	config, err := parse(c.JSON)
	if err != nil {
		return err
	}
	if d.book, err = plugins.OpenBook(c.StateDir); err != nil {
		return err
	}
	if d.faults, err = openFaults(c.StateDir, bootID()); err != nil {
		d.log.Warn("what happened to devices before is forgotten", "err", err)
	}
	if d.specs, err = newSpecs(config, c.StateDir, d.log); err != nil {
		return err
	}
	d.config = config
	limit := milliseconds(config.HangAfter)
	d.watch = newWatch(limit, d.end)
	if d.open == nil {
		d.open = func() (*library, error) {
			if err := try(config.Library, limit); err != nil {
				return nil, err
			}
			defer d.watch.enter("loading NVML")()
			return openLibrary(config.Library)
		}
	}
	go d.watch.run()
	go d.follow()
	d.await(ctx, firstWait)
	return nil
}

func milliseconds(d gpuai.Duration) time.Duration { return time.Duration(d) * time.Millisecond }

// bootID tells one boot from another.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
}

// exitHung is the status of a driver that ended itself.
const exitHung = 70

func (d *Driver) end(what string) {
	d.log.Error("NVML does not answer: the driver ends itself, to be started again", "call", what, "for", d.watch.limit)
	os.Exit(exitHung)
}

// await waits until it is known what there is, and says after a while that it is
// not.
func (d *Driver) await(ctx context.Context, atMost time.Duration) {
	late := time.NewTimer(atMost)
	defer late.Stop()
	select {
	case <-d.ready:
	case <-ctx.Done():
	case <-late.C:
		d.mu.Lock()
		defer d.mu.Unlock()
		if !d.known {
			d.err = fmt.Sprintf("NVML has not answered for %s: it is being waited for (nvidia-persistenced makes it quick)", atMost)
			d.tell()
		}
	}
}

// tell wakes who waits for a change; the caller locks.
func (d *Driver) tell() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// retryMost bounds the back-off of looking for a library, in scans.
const retryMost = 12

// follow looks for the library, and then at the devices, for as long as the
// process lives.
func (d *Driver) follow() {
	every := milliseconds(d.config.Scan)
	for wait := every; ; wait = min(2*wait, retryMost*every) {
		lib, err := d.open()
		if err == nil {
			d.mu.Lock()
			d.lib = lib
			d.mu.Unlock()
			break
		}
		d.without(err)
		time.Sleep(wait)
	}
	d.step()
	go d.listen()
	tick := time.NewTicker(every)
	for {
		select {
		case <-tick.C:
		case <-d.rescan:
		}
		d.step()
	}
}

// without makes err the reason why there is no device.
func (d *Driver) without(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != err.Error() {
		d.err = err.Error()
		d.log.Error("there are no devices", "err", err)
		d.tell()
	}
	d.know()
}

// know notes that it is known what there is; the caller locks.
func (d *Driver) know() {
	if !d.known {
		d.known = true
		close(d.ready)
	}
}

// step reads all devices once. NVML that cannot even count them is started anew,
// with the process: it does not get well by itself when the kernel module has
// been changed under it.
func (d *Driver) step() {
	done := d.watch.enter("reading the devices")
	s, err := d.lib.scan()
	done()
	if err != nil && len(s.gpus) == 0 {
		d.log.Error("NVML failed: the driver ends itself, to be started again", "err", err)
		os.Exit(exitHung)
	}
	if err != nil {
		d.without(err)
		return
	}
	d.specs.update(d.lib, s.gpus, d.watch)
	d.take(s)
}

// take makes s what there is.
func (d *Driver) take(s scan) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.keep(d.now)
	for i := range s.gpus {
		s.gpus[i].CDIName = d.specs.name(&s.gpus[i])
		d.settle(&s.gpus[i])
	}
	first := !d.known || d.err != ""
	if s.unread != "" && s.unread != d.now.unread {
		d.log.Error("GPUs are missing", "why", s.unread)
	}
	d.now, d.err = s, ""
	if len(s.gpus) == 0 {
		d.err = cmp.Or(strings.TrimSuffix(s.unread, "; "), "NVML is there and reports no GPU")
	}
	d.know()
	if first {
		d.log.Info("devices", "devices", len(s.gpus), "driver_version", s.driver, "runtime", s.runtime)
	}
	d.tell() // who waits compares
}

// vanished is the fault of a GPU that NVML does not list any more.
var vanished = fault{"nvml:vanished", "NVML does not report the GPU any more", plugins.HealthLost, plugins.ActionRebootNode}

// keep has the GPUs that were there before and are lost now as they were, with
// their instances and links. An instance is gone when its GPU is there without it.
func (s *scan) keep(before scan) {
	gone := map[gpuai.DeviceID][]fault{}
	for _, g := range before.gpus {
		i := slices.IndexFunc(s.gpus, func(now gpu) bool { return now.ID == g.ID })
		switch {
		case g.mig != nil:
		case i < 0:
			gone[g.ID] = []fault{vanished}
		case s.gpus[i].lost():
			gone[g.ID] = s.gpus[i].faults
		}
	}
	s.gpus = slices.DeleteFunc(s.gpus, func(g gpu) bool { return gone[g.ID] != nil || gone[g.Parent] != nil })
	for _, g := range before.gpus {
		if why := slices.Concat(gone[g.ID], gone[g.Parent]); why != nil {
			g.faults = why
			s.gpus = append(s.gpus, g)
		}
	}
	s.links = slices.DeleteFunc(s.links, func(l plugins.Link) bool { return gone[l.A] != nil || gone[l.B] != nil })
	for _, l := range before.links {
		if gone[l.A] != nil || gone[l.B] != nil {
			s.links = append(s.links, l)
		}
	}
	slices.SortStableFunc(s.gpus, func(a, b gpu) int { return cmp.Compare(a.Index, b.Index) })
	slices.SortFunc(s.links, func(a, b plugins.Link) int {
		return strings.Compare(string(a.A)+"\x00"+string(a.B), string(b.A)+"\x00"+string(b.B))
	})
}

// settle forgets faults of g that are over; the caller locks.
func (d *Driver) settle(g *gpu) {
	var err error
	if f, ok := d.lib.recovery(g); ok && f.Code == "" && g.mig == nil {
		// NVML has nothing against the GPU: what another process has noted, which
		// ended, was cured by a reset since. The own notes may be ahead of NVML.
		err = d.faults.drop(g.ID, func(f fault) bool {
			return f.Action == plugins.ActionResetDevice && strings.HasPrefix(f.Code, "xid:") && d.faults.noted[key(g.ID, f.Code)].IsZero()
		})
	}
	if !d.held(g) {
		now := time.Now()
		err = errors.Join(err, d.faults.drop(g.ID, func(f fault) bool {
			return f.Code == codeUnclean && d.holders(g) == "" || d.faults.over(g.ID, f, now)
		}))
	}
	if err != nil {
		d.log.Error("faults", "err", err)
	}
}

// held reports whether a device, or an instance of it, is reserved; the caller locks.
func (d *Driver) held(g *gpu) bool {
	return d.book.Share(g.ID) > 0 || slices.ContainsFunc(g.Conflicts, func(id gpuai.DeviceID) bool { return g.Partitioned && d.book.Share(id) > 0 })
}

// Fingerprint sends what there is.
func (d *Driver) Fingerprint(ctx context.Context, send func(plugins.Inventory) error) error {
	return plugins.FollowInventory(ctx, send, d.inventory)
}

func (d *Driver) inventory() (plugins.Inventory, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := plugins.Inventory{Err: d.err, DriverVersion: d.now.driver, RuntimeVersion: d.now.runtime}
	if d.err == "" {
		v.Links = d.now.links
		for i := range d.now.gpus {
			v.Devices = append(v.Devices, d.now.gpus[i].Device)
		}
	}
	return v, d.changed
}

// Health sends the health of every device, then what changed.
func (d *Driver) Health(ctx context.Context, send func([]plugins.Health) error) error {
	return plugins.FollowHealth(ctx, send, func() (map[gpuai.DeviceID]plugins.Health, <-chan struct{}) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.health(), d.changed
	})
}

// health is the verdict on every device; the caller locks.
func (d *Driver) health() map[gpuai.DeviceID]plugins.Health {
	out := map[gpuai.DeviceID]plugins.Health{}
	for i := range d.now.gpus {
		g := &d.now.gpus[i]
		all := slices.Concat(g.faults, d.faults.of(g.ID))
		if g.Parent != "" {
			all = append(all, d.faults.of(g.Parent)...)
		}
		out[g.ID] = health(g.ID, all)
	}
	return out
}

// Stats measures the given devices, or all.
func (d *Driver) Stats(_ context.Context, ids []gpuai.DeviceID) ([]plugins.Stats, error) {
	d.mu.Lock()
	lib, gpus := d.lib, d.now.gpus
	d.mu.Unlock()
	if lib == nil {
		return nil, nil
	}
	defer d.watch.enter("measuring")()
	var out []plugins.Stats
	for i := range gpus {
		if len(ids) == 0 || slices.Contains(ids, gpus[i].ID) {
			out = append(out, lib.stats(&gpus[i]))
		}
	}
	return out, nil
}
