package conformance

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A Subject is the driver to check.
type Subject struct {
	// Path is the driver's binary.
	Path string
	// Config is a configuration that it accepts, a JSON object with at least
	// one member. Device IDs are a function of it.
	Config []byte
	// Refused are further configurations that it must refuse, by a name for
	// each. Those with unknown or duplicate fields are made from Config.
	Refused map[string][]byte
	// Patience bounds what a check waits for; 0 is 15 s, longer than the host's
	// deadlines, so that a busy machine does not fail a driver.
	Patience time.Duration
}

// A TB is what a check needs of a *testing.T.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any) // does not return
	TempDir() string
	Context() context.Context
	Cleanup(func())
}

var _ TB = (*testing.T)(nil)

// A Check is one rule of the contract.
type Check struct {
	Name string
	Func func(t TB, s Subject)
}

// Checks returns all rules, in the order in which they make sense.
func Checks() []Check {
	return []Check{
		{"by hand", checkByHand},
		{"info", checkInfo},
		{"configure is strict", checkConfigure},
		{"configure once", checkConfigureOnce},
		{"fingerprint", checkFingerprint},
		{"device IDs are stable", checkStableIDs},
		{"health", checkHealth},
		{"reserve is idempotent", checkReserveIdempotent},
		{"reserve is exclusive", checkReserveExclusive},
		{"reserve under contention", checkReserveContention},
		{"reserve is all or nothing", checkReserveAllOrNothing},
		{"reserve refuses", checkReserveRefuses},
		{"reserve fences", checkReserveFences},
		{"shares", checkShares},
		{"partitions", checkPartitions},
		{"release", checkRelease},
		{"recover", checkRecover},
		{"stats", checkStats},
		{"survives kill -9", checkSurvivesKill},
		{"survives a host restart", checkSurvivesHost},
		{"ends", checkEnds},
	}
}

// Run checks a driver, one subtest for each rule.
func Run(t *testing.T, s Subject) {
	for _, c := range Checks() {
		t.Run(c.Name, func(t *testing.T) { c.Func(t, s) })
	}
}

func (s Subject) patience() time.Duration { return cmp.Or(s.Patience, 15*time.Second) }

// hostConfig is the driver's configuration for a host in a new directory.
func (s Subject) hostConfig(t TB) plugins.HostConfig {
	t.Helper()
	return plugins.HostConfig{
		Name: "subject", Path: s.Path, Config: s.Config, SocketDir: t.TempDir(),
		Logger: slog.New(slog.DiscardHandler),
	}
}

// A bench is one running driver and what a check asks of it.
type bench struct {
	t       TB
	process *plugins.Process
	remote  *plugins.Remote
	ctx     context.Context
	wait    time.Duration    // Subject.patience
	devices []plugins.Device // those that a check may reserve
}

// launch starts the driver; it is closed when the check ends.
func launch(t TB, s Subject, cfg plugins.HostConfig) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*s.patience())
	t.Cleanup(cancel)
	p, err := plugins.Launch(ctx, cfg)
	if err != nil {
		t.Fatalf("the driver does not start: %v", err)
	}
	t.Cleanup(func() { p.Close() })
	b := &bench{t: t, process: p, remote: p.Remote(), ctx: ctx, wait: s.patience()}
	v := b.inventory()
	health := b.health()
	for _, d := range v.Devices {
		excluded := slices.ContainsFunc(b.devices, func(taken plugins.Device) bool { return slices.Contains(taken.Conflicts, d.ID) })
		if !excluded && !d.Partitioned && health[d.ID].State == plugins.HealthOK {
			b.devices = append(b.devices, d)
		}
	}
	if len(b.devices) == 0 {
		t.Fatalf("the driver has no healthy device to check with; its error: %q", v.Err)
	}
	return b
}

// inventory returns the driver's current inventory.
func (b *bench) inventory() plugins.Inventory {
	b.t.Helper()
	vs := b.inventories(1)
	return vs[0]
}

// inventories returns the first n inventories of a stream of 100 ms.
func (b *bench) inventories(n int) []plugins.Inventory {
	b.t.Helper()
	var out []plugins.Inventory
	ctx, cancel := context.WithTimeout(b.ctx, b.wait)
	defer cancel()
	err := b.remote.Fingerprint(ctx, 100*time.Millisecond, func(v plugins.Inventory) error {
		if out = append(out, v); len(out) == n {
			cancel()
		}
		return nil
	})
	if len(out) < n {
		b.t.Fatalf("got %d of %d inventories within %s: %v", len(out), n, b.wait, err)
	}
	return out[:n]
}

// health returns the health of all devices, as told at first.
func (b *bench) health() map[gpuai.DeviceID]plugins.Health {
	b.t.Helper()
	want := b.inventory().Devices
	got := map[gpuai.DeviceID]plugins.Health{}
	ctx, cancel := context.WithTimeout(b.ctx, b.wait)
	defer cancel()
	err := b.remote.Health(ctx, func(hs []plugins.Health) error {
		for _, h := range hs {
			got[h.Device] = h
		}
		if !slices.ContainsFunc(want, func(d plugins.Device) bool { _, ok := got[d.ID]; return !ok }) {
			cancel()
		}
		return nil
	})
	if ctx.Err() != nil && len(got) >= len(want) {
		return got
	}
	b.t.Fatalf("the driver told the health of %d of %d devices: %v", len(got), len(want), err)
	return nil
}

// reserve reserves whole devices.
func (b *bench) reserve(id string, ds ...plugins.Device) error {
	_, err := b.remote.Reserve(b.ctx, request(id, gpuai.WholeDevice, ds...))
	return err
}

// must fails the check when err is not nil.
func (b *bench) must(what string, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

func request(id string, share gpuai.Milli, ds ...plugins.Device) plugins.Reservation {
	r := plugins.Reservation{ID: id, Share: share, Incarnation: 1}
	for _, d := range ds {
		r.Devices = append(r.Devices, d.ID)
	}
	return r
}
