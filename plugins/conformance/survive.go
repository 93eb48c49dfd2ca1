package conformance

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// checkRecover: what the driver holds is split into what was asked for and the rest.
func checkRecover(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	b.expect([]string{"1"}, nil, nil)
	b.must("reserving", b.reserve("1", b.devices[0]))
	b.expect([]string{"2", "1"}, []string{"1"}, nil)
	b.expect(nil, nil, []string{"1"})
	b.must("reserving what was recovered", b.reserve("1", b.devices[0]))
	b.release("1", false)
	b.expect([]string{"1"}, nil, nil)
}

func (b *bench) expect(ask, known, orphaned []string) {
	b.t.Helper()
	k, o, err := b.remote.Recover(b.ctx, ask)
	b.must("recovering", err)
	if !slices.Equal(k, known) || !slices.Equal(o, orphaned) {
		b.t.Errorf("asked for %q, the driver knows %q and has the orphans %q; want %q and %q", ask, k, o, known, orphaned)
	}
}

// checkSurvivesKill: reservations and the newest incarnation are on disk before
// Reserve answers, a release before Release does.
func checkSurvivesKill(t TB, s Subject) {
	cfg := s.hostConfig(t)
	b := launch(t, s, cfg)
	r := request("kept", gpuai.WholeDevice, b.devices[0])
	r.Incarnation = 7
	grant, err := b.remote.Reserve(b.ctx, r)
	b.must("reserving", err)
	b.kill()
	b = launch(t, s, cfg)
	b.expect([]string{"kept", "other"}, []string{"kept"}, nil)
	other := r
	other.ID = "other"
	if _, err := b.remote.Reserve(b.ctx, other); !errors.Is(err, plugins.ErrHeld) {
		t.Errorf("after kill -9 the device gets %v for another, want RESOURCE_EXHAUSTED", err)
	}
	other.Incarnation = 6
	if _, err := b.remote.Reserve(b.ctx, other); !errors.Is(err, plugins.ErrStale) {
		t.Errorf("after kill -9 an older incarnation gets %v, want ABORTED", err)
	}
	again, err := b.remote.Reserve(b.ctx, r)
	b.must("the same after kill -9", err)
	if len(again.Env) != len(grant.Env) || len(again.CDI) != len(grant.CDI) {
		t.Errorf("the grant was %+v, after kill -9 it is %+v", grant, again)
	}
	b.release("kept", true)
	b.kill()
	launch(t, s, cfg).expect([]string{"kept"}, nil, nil)
}

// kill kills the driver as a crash would and gives its directory up.
func (b *bench) kill() {
	b.t.Helper()
	b.must("kill -9", syscall.Kill(b.process.PID(), syscall.SIGKILL))
	select {
	case <-b.process.Gone():
	case <-time.After(b.wait):
		b.t.Fatalf("the driver is still there after kill -9")
	}
	b.must("closing", b.process.Close())
}

// checkSurvivesHost: an agent that restarts finds its reservations.
func checkSurvivesHost(t TB, s Subject) {
	cfg := s.hostConfig(t)
	h, err := plugins.Start(t.Context(), cfg)
	if err != nil {
		t.Fatalf("the driver does not start under a host: %v", err)
	}
	t.Cleanup(func() { h.Close() })
	before := h.Inventory()
	if len(before.Devices) == 0 || !before.Up || before.Err != "" {
		t.Fatalf("the host offers %+v", before)
	}
	i := slices.IndexFunc(before.Devices, func(d gpuai.Device) bool { return d.Health == gpuai.DeviceHealthy })
	r := plugins.Reservation{ID: "kept", Devices: []gpuai.DeviceID{before.Devices[max(i, 0)].ID}, Incarnation: 1}
	if _, err := h.Reserve(t.Context(), r); err != nil {
		t.Fatalf("reserving: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatalf("closing the host: %v", err)
	}
	next, err := plugins.Start(t.Context(), cfg)
	if err != nil {
		t.Fatalf("the driver does not start under the next host: %v", err)
	}
	t.Cleanup(func() { next.Close() })
	if after := next.Inventory(); !slices.Equal(before.Devices, after.Devices) {
		t.Errorf("the host offered %+v, the next %+v", before.Devices, after.Devices)
	}
	known, orphaned, err := next.Recover(t.Context(), []string{"kept"})
	if err != nil || !slices.Equal(known, []string{"kept"}) || len(orphaned) > 0 {
		t.Errorf("recovered %q and the orphans %q, %v", known, orphaned, err)
	}
	if clean, detail, err := next.Release(t.Context(), "kept", true); err != nil || !clean {
		t.Errorf("released: clean %t %s, %v", clean, detail, err)
	}
}

// checkEnds: asked to end, the driver ends, and leaves no socket.
func checkEnds(t TB, s Subject) {
	cfg := s.hostConfig(t)
	b := launch(t, s, cfg)
	began := time.Now()
	b.must("closing", b.process.Close())
	if took := time.Since(began); took > b.wait/2 {
		t.Errorf("it took %s to end", took)
	}
	select {
	case <-b.process.Gone():
	default:
		t.Errorf("the process is still there")
	}
	left, err := os.ReadDir(filepath.Join(cfg.SocketDir, cfg.Name, "run"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
