package conformance_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/conformance"
	"github.com/gpuai/gpuai/plugins/sim"
)

// TestMain makes the test binary a driver when it is run under a driver's name.
func TestMain(m *testing.M) {
	mode, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "driver-")
	if !ok {
		os.Exit(m.Run())
	}
	os.Exit(plugins.Serve(&flawed{Driver: sim.New(plugins.Logger()), mode: mode}))
}

// A flawed driver is the sim driver with one rule broken.
type flawed struct {
	plugins.Driver
	mode  string
	mu    sync.Mutex
	calls int
}

func (d *flawed) Info() plugins.Info {
	i := d.Driver.Info()
	switch d.mode {
	case "claims-real":
		i.Simulated = false
	case "no-share":
		i.Capabilities = []string{plugins.CapTopology}
	}
	return i
}

func (d *flawed) Configure(ctx context.Context, c plugins.Config) error {
	switch d.mode {
	case "lax":
		var fields map[string]any
		json.Unmarshal(c.JSON, &fields)
		delete(fields, "conformance_unknown_field")
		if src, err := json.Marshal(fields); err == nil {
			c.JSON = src
		}
	case "new-ids":
		c.JSON = []byte(strings.Replace(string(c.JSON), "flawed", fmt.Sprint("flawed", os.Getpid()), 1))
	case "forgets":
		c.StateDir = filepath.Join(c.StateDir, fmt.Sprint(os.Getpid()))
		if err := os.Mkdir(c.StateDir, 0o700); err != nil {
			return err
		}
	}
	return d.Driver.Configure(ctx, c)
}

func (d *flawed) Health(ctx context.Context, send func([]plugins.Health) error) error {
	return d.Driver.Health(ctx, func(hs []plugins.Health) error {
		if d.mode == "half-health" {
			hs = hs[:1]
		}
		return send(hs)
	})
}

func (d *flawed) Reserve(ctx context.Context, r plugins.Reservation) (plugins.Grant, error) {
	if d.mode == "no-fence" {
		r.Incarnation = 1
	}
	g, err := d.Driver.Reserve(ctx, r)
	switch {
	case d.mode == "gives-away" && errors.Is(err, plugins.ErrHeld):
		return plugins.Grant{Env: map[string]string{"A": "b"}}, nil
	case d.mode == "wrong-code" && errors.Is(err, plugins.ErrHeld):
		return g, errors.New("busy")
	case d.mode == "partial" && errors.Is(err, plugins.ErrHeld):
		for _, id := range r.Devices {
			part := r
			part.ID, part.Devices = r.ID+string(id), []gpuai.DeviceID{id}
			d.Driver.Reserve(ctx, part)
		}
	case d.mode == "fickle" && err == nil:
		d.mu.Lock()
		defer d.mu.Unlock()
		d.calls++
		g.Env["CALL"] = fmt.Sprint(d.calls)
	}
	return g, err
}

func (d *flawed) Stats(ctx context.Context, ids []gpuai.DeviceID) ([]plugins.Stats, error) {
	out, err := d.Driver.Stats(ctx, ids)
	if d.mode == "zeroes" {
		for i := range out {
			out[i].TemperatureCelsius = new(float64(0))
		}
	}
	return out, err
}

// subject is the driver of mode.
func subject(t testing.TB, mode string) conformance.Subject {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "driver-"+mode)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return conformance.Subject{Path: path, Config: []byte(`{"seed":"flawed","devices":[
		{"vendor":"nvidia","model":"H100","memory_bytes":1024,"count":2},
		{"vendor":"nvidia","model":"A100","memory_bytes":1024,"count":1,"partitions":2}]}`)}
}

func TestSuitePassesAGoodDriver(t *testing.T) {
	conformance.Run(t, subject(t, "good"))
}

// A suite is worth what it finds: each flaw must fail the check made for it.
func TestSuiteFindsFlaws(t *testing.T) {
	for mode, want := range map[string]string{
		"claims-real": "info",
		"lax":         "configure is strict",
		"new-ids":     "device IDs are stable",
		"half-health": "health",
		"no-fence":    "reserve fences",
		"gives-away":  "reserve is exclusive",
		"wrong-code":  "reserve under contention",
		"partial":     "reserve is all or nothing",
		"fickle":      "reserve is idempotent",
		"zeroes":      "stats",
		"forgets":     "survives kill -9",
		"no-share":    "partitions", // reported without the capability
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := subject(t, mode)
			s.Patience = 5 * time.Second
			checks := conformance.Checks()
			i := slices.IndexFunc(checks, func(c conformance.Check) bool { return c.Name == want })
			if failures := record(t, checks[i], s); len(failures) == 0 {
				t.Errorf("check %q does not find it", want)
			}
		})
	}
}

// record runs one check and returns what it complains of.
func record(t *testing.T, c conformance.Check, s conformance.Subject) []string {
	r := &recorder{T: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Func(r, s)
	}()
	<-done
	return r.failures
}

// A recorder keeps failures instead of failing.
type recorder struct {
	*testing.T
	failures []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}
