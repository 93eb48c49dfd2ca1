package plugins_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

const twoDevices = `{"seed":"test","devices":[{"vendor":"nvidia","model":"H100","memory_bytes":1024,"count":2,"link":"nvlink"}]}`

// config returns a host's configuration for the driver of mode.
func config(t testing.TB, mode string) plugins.HostConfig {
	t.Helper()
	return plugins.HostConfig{
		Name: "sim", Path: driverBinary(t, mode), Config: []byte(twoDevices),
		SocketDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(new(logSink), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// A logSink keeps log lines.
type logSink struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *logSink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p)
	return len(p), nil
}

// begin starts a host and closes it at the end of the test.
func begin(t testing.TB, cfg plugins.HostConfig) *plugins.Host {
	t.Helper()
	h, err := plugins.StartQuick(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// await waits for a snapshot that ok likes.
func await(t testing.TB, h *plugins.Host, what string, ok func(plugins.Snapshot) bool) plugins.Snapshot {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s := h.Inventory()
		if ok(s) {
			return s
		}
		select {
		case <-h.Changed():
		case <-deadline:
			t.Fatalf("waiting for %s; last: %+v", what, s)
		}
	}
}

func reservation(s plugins.Snapshot, id string, devices ...int) plugins.Reservation {
	r := plugins.Reservation{ID: id, Incarnation: 1}
	for _, i := range devices {
		r.Devices = append(r.Devices, s.Devices[i].ID)
	}
	return r
}

func healths(s plugins.Snapshot) string {
	var out []string
	for _, d := range s.Devices {
		out = append(out, strings.TrimSuffix(d.Health.String()+" "+d.HealthCode, " "))
	}
	return strings.Join(out, ", ")
}

func TestHostOffersDevices(t *testing.T) {
	h := begin(t, config(t, "sim"))
	s := h.Inventory()
	if !s.Up || !s.Simulated || !s.Driver.Simulated || s.Err != "" || s.PID == 0 || s.Generation == 0 {
		t.Errorf("snapshot is %+v", s)
	}
	if len(s.Devices) != 2 || s.Devices[0].ID >= s.Devices[1].ID || healths(s) != "healthy, healthy" {
		t.Fatalf("devices are %+v", s.Devices)
	}
	want := gpuai.Device{ID: s.Devices[0].ID, Vendor: "nvidia", Model: "H100", Memory: 1024}
	if s.Devices[0] != want {
		t.Errorf("device is %+v, want %+v", s.Devices[0], want)
	}
	if len(s.Links) != 1 || s.Links[0].Kind != plugins.LinkNVLink {
		t.Errorf("links are %+v", s.Links)
	}
}

func TestHostReserves(t *testing.T) {
	h := begin(t, config(t, "sim"))
	s := h.Inventory()
	both := reservation(s, "7", 1, 0)
	g, err := h.Reserve(t.Context(), both)
	if err != nil {
		t.Fatal(err)
	}
	ids := string(s.Devices[0].ID + "," + s.Devices[1].ID)
	if g.Env[gpuai.EnvSimDevices] != ids || g.Env[gpuai.EnvCUDADevices] != ids {
		t.Errorf("environment is %v, want %s", g.Env, ids)
	}
	if again, err := h.Reserve(t.Context(), both); err != nil || again.Env[gpuai.EnvSimDevices] != ids {
		t.Errorf("repeated: %v, %v", again, err)
	}
	for _, c := range []struct {
		name string
		r    plugins.Reservation
		want error
	}{
		{"held", reservation(s, "8", 0), plugins.ErrHeld},
		{"other devices", reservation(s, "7", 0), plugins.ErrMismatch},
		{"no device", plugins.Reservation{ID: "9", Devices: []gpuai.DeviceID{"none"}, Incarnation: 1}, plugins.ErrNoDevice},
		{"none", plugins.Reservation{ID: "9"}, plugins.ErrInvalid},
		{"twice", reservation(s, "9", 0, 0), plugins.ErrInvalid},
		{"no ID", reservation(s, "", 0), plugins.ErrInvalid},
	} {
		if _, err := h.Reserve(t.Context(), c.r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if clean, detail, err := h.Release(t.Context(), "7", true); !clean || err != nil {
		t.Errorf("released: %t %q %v", clean, detail, err)
	}
	if _, err := h.Reserve(t.Context(), reservation(s, "8", 0)); err != nil {
		t.Error(err)
	}
}

func TestHostStats(t *testing.T) {
	h := begin(t, config(t, "sim"))
	enough := errors.New("enough")
	err := h.Stats(t.Context(), 100*time.Millisecond, nil, func(all []plugins.Stats) error {
		for _, s := range all {
			if s.GPUUtilization == nil || *s.GPUUtilization != 0 {
				t.Errorf("%s: utilization is %v, want a measured 0", s.Device, s.GPUUtilization)
			}
			if s.TemperatureCelsius != nil || s.PowerWatts != nil {
				t.Errorf("%s: a simulated device has no temperature and no power", s.Device)
			}
		}
		if len(all) != 2 {
			t.Errorf("got %d devices", len(all))
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
}

func TestHostCloseKeepsReservations(t *testing.T) {
	cfg := config(t, "sim")
	h := begin(t, cfg)
	s := h.Inventory()
	for i, id := range []string{"kept", "orphan"} {
		if _, err := h.Reserve(t.Context(), reservation(s, id, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Reserve(t.Context(), reservation(s, "late", 0)); !errors.Is(err, plugins.ErrDown) {
		t.Errorf("after Close: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(cfg.SocketDir, "sim", "run", "*"))
	if len(left) > 0 {
		t.Errorf("sockets left behind: %v", left)
	}
	h = begin(t, cfg)
	known, orphaned, err := h.Recover(t.Context(), []string{"kept", "unknown"})
	if err != nil || !slices.Equal(known, []string{"kept"}) || !slices.Equal(orphaned, []string{"orphan"}) {
		t.Errorf("recovered %v, %v, %v", known, orphaned, err)
	}
}

func TestSecondHostOnOneDirectory(t *testing.T) {
	cfg := config(t, "sim")
	h := begin(t, cfg)
	_, err := plugins.StartQuick(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by process %d", os.Getpid())) {
		t.Errorf("second host: %v", err)
	}
	if s := h.Inventory(); !s.Up || syscall.Kill(s.PID, 0) != nil {
		t.Errorf("the first host's driver is gone: %+v", s)
	}
}

// A socket's name has at most 107 bytes; an agent's data directory may have more.
func TestLongSocketDir(t *testing.T) {
	cfg := config(t, "sim")
	cfg.SocketDir = filepath.Join(cfg.SocketDir, strings.Repeat("long-", 40))
	if h := begin(t, cfg); len(h.Inventory().Devices) != 2 {
		t.Error("no devices")
	}
}

func TestDriverInheritsNoSecrets(t *testing.T) {
	t.Setenv("GPUAI_TOKEN", "gpu_id_secret")
	t.Setenv("LD_LIBRARY_PATH", "/opt/vendor/lib")
	cfg := config(t, "env")
	begin(t, cfg)
	env, err := os.ReadFile(filepath.Join(cfg.SocketDir, "sim", "state", "env"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(env), "secret") || !strings.Contains(string(env), "/opt/vendor/lib") {
		t.Errorf("the driver's environment is\n%s", env)
	}
}

func TestDriverWithoutDevicesSaysWhy(t *testing.T) {
	h := begin(t, config(t, "broken"))
	s := h.Inventory()
	if !s.Up || len(s.Devices) != 0 || s.Err != "libvendor.so.1 not found" {
		t.Errorf("snapshot is %+v", s)
	}
}

func TestCallerGivesUp(t *testing.T) {
	h := begin(t, config(t, "deaf"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := h.Reserve(ctx, reservation(h.Inventory(), "1", 0))
	if !errors.Is(err, plugins.ErrTimeout) || time.Since(began) > time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}
