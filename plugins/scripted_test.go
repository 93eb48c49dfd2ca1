package plugins_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai/plugins"
)

// The scripted faults of the simulation driver, seen from the agent's side.

// scripted starts a sim driver with one fault that a file triggers.
func scripted(t *testing.T, fault string) (h *plugins.Host, file string) {
	t.Helper()
	cfg := config(t, "sim")
	file = filepath.Join(t.TempDir(), "trigger")
	cfg.Config = fmt.Appendf(nil, `%s,"faults":[{"on_file":%q,%s}]}`, strings.TrimSuffix(twoDevices, "}"), file, fault)
	return begin(t, cfg), file
}

func touch(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestScriptedHealth(t *testing.T) {
	t.Parallel()
	h, file := scripted(t, `"kind":"unhealthy","device":1,"code":"xid:79","action":"reset_device"`)
	before := h.Inventory()
	touch(t, file)
	sick := await(t, h, "the device to be unhealthy", func(s plugins.Snapshot) bool { return healths(s) == "healthy, unhealthy xid:79" })
	if sick.Generation <= before.Generation || sick.Health[sick.Devices[1].ID].Action != plugins.ActionResetDevice {
		t.Errorf("snapshot is %+v", sick)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	await(t, h, "the device to be well", func(s plugins.Snapshot) bool { return healths(s) == "healthy, healthy" })
}

func TestScriptedVanish(t *testing.T) {
	t.Parallel()
	h, file := scripted(t, `"kind":"vanish","device":0`)
	touch(t, file)
	s := await(t, h, "the device to be lost", func(s plugins.Snapshot) bool { return healths(s) == "lost driver:vanished, healthy" })
	if len(s.Details) != 1 || len(s.Links) != 0 {
		t.Errorf("the driver reports %+v with links %+v", s.Details, s.Links)
	}
}

func TestScriptedCrashAndHang(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"crash", "hang"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h, file := scripted(t, fmt.Sprintf(`"kind":%q`, kind))
			before := h.Inventory()
			touch(t, file)
			s := await(t, h, "the next process", func(s plugins.Snapshot) bool { return s.Up && s.PID != 0 && s.PID != before.PID })
			if s.Restarts != 1 {
				t.Errorf("it was restarted %d times for one fault", s.Restarts)
			}
			if _, err := os.Stat(file); err == nil {
				t.Error("the trigger is still there")
			}
		})
	}
}

func TestScriptedCrashLoop(t *testing.T) {
	t.Parallel()
	h, file := scripted(t, `"kind":"crash","repeat":true`)
	touch(t, file)
	s := await(t, h, "the breaker to open", func(s plugins.Snapshot) bool {
		return healths(s) == "unhealthy driver:unstable, unhealthy driver:unstable" && !s.Up
	})
	if !strings.Contains(s.Err, "exit status 3") {
		t.Errorf("the snapshot says %q", s.Err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	await(t, h, "steadiness", func(s plugins.Snapshot) bool { return s.Up && healths(s) == "healthy, healthy" })
}

func TestScriptedUncleanRelease(t *testing.T) {
	t.Parallel()
	h, file := scripted(t, `"kind":"unclean_release","device":0`)
	s := h.Inventory()
	if _, err := h.Reserve(t.Context(), reservation(s, "1", 0)); err != nil {
		t.Fatal(err)
	}
	touch(t, file)
	clean, detail, err := h.Release(t.Context(), "1", true)
	if err != nil || clean || detail == "" {
		t.Errorf("released: clean %t, %q, %v", clean, detail, err)
	}
	await(t, h, "the device to be unhealthy", func(s plugins.Snapshot) bool { return healths(s) == "unhealthy sim:unclean, healthy" })
}
