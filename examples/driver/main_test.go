package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/conformance"
)

// write makes a list of accelerators in a new directory.
func write(t *testing.T, list string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "accelerators.json")
	if err := os.WriteFile(path, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const two = `[{"name":"b","model":"U55C","memory_bytes":17179869184,"node":"/dev/null"},
	{"name":"a","model":"U55C","memory_bytes":17179869184,"node":"/dev/zero"}]`

// The example keeps the contract that every driver must keep.
func TestConformance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "driver")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the driver: %v\n%s", err, out)
	}
	conformance.Run(t, conformance.Subject{
		Path: path, Config: fmt.Appendf(nil, `{"devices":%q}`, write(t, two)),
		Refused: map[string][]byte{"nothing": []byte(`{}`), "a relative path": []byte(`{"devices":"list.json"}`)},
	})
}

func configured(t *testing.T, file string) *driver {
	t.Helper()
	d := newDriver(slog.New(slog.DiscardHandler))
	c := plugins.Config{JSON: fmt.Appendf(nil, `{"devices":%q}`, file), StateDir: t.TempDir()}
	if err := d.Configure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return d
}

func reserve(d *driver, id string, device gpuai.DeviceID) (plugins.Grant, error) {
	r := plugins.Reservation{ID: id, Devices: []gpuai.DeviceID{device}, Share: gpuai.WholeDevice, Incarnation: 1}
	return d.Reserve(context.Background(), r)
}

func TestGrant(t *testing.T) {
	d := configured(t, write(t, two))
	g, err := reserve(d, "1", "a")
	if err != nil || g.Env[envDevices] != "/dev/zero" || len(g.DeviceNodes) != 1 || g.DeviceNodes[0].HostPath != "/dev/zero" {
		t.Errorf("granted %+v, %v", g, err)
	}
}

// What becomes of the list shows: an accelerator that breaks keeps its task and
// takes no other.
func TestListChanges(t *testing.T) {
	file := write(t, two)
	d := configured(t, file)
	if _, err := reserve(d, "1", "a"); err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(two, `"/dev/zero"`, `"/dev/zero","broken":"fan"`, 1)
	if err := os.WriteFile(file, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	d.read()
	if h := d.list[0].health(); h.State != plugins.HealthUnhealthy || h.Message != "fan" {
		t.Errorf("health is %+v", h)
	}
	if _, err := reserve(d, "1", "a"); err != nil {
		t.Errorf("what is held, repeated: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	d.read()
	if g, err := reserve(d, "1", "a"); err != nil || g.Env[envDevices] != "/dev/zero" || len(d.list) != 1 || d.why != "" {
		t.Errorf("what is held and gone: %+v, %v, %q", g, err, d.why)
	}
	if _, _, err := d.Release(t.Context(), "1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := reserve(d, "2", "a"); !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("a broken one gets %v", err)
	}
	d.read()
	if len(d.list) > 0 || d.why == "" {
		t.Errorf("when it is free the list is %v, %q", d.list, d.why)
	}
}

func TestListRefused(t *testing.T) {
	for list, want := range map[string]string{
		`[]`:                             "lists 0 accelerators",
		`{}`:                             "accelerators.json",
		`[{"name":"a"}]`:                 "needs a name",
		`[{"name":"a","color":"red"}]`:   "color",
		two[:len(two)-1] + `,` + two[1:]: `"a" needs a name of its own`,
		strings.Replace(two, "/dev/null", "null", 1): "device node",
		strings.Replace(two, "17179869184", "-1", 1): "memory_bytes",
	} {
		d := configured(t, write(t, list))
		if len(d.list) > 0 || !strings.Contains(d.why, want) {
			t.Errorf("%s gives %v, %q, want %q", list, d.list, d.why, want)
		}
	}
	if d := configured(t, "/none/such.json"); !strings.Contains(d.why, "/none/such.json") {
		t.Errorf("a list that is missing: %q", d.why)
	}
}
