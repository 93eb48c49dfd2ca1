package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// code is the health code that the region has of a device.
func (f *fixture) code(id gpuai.DeviceID) string {
	f.region.mu.Lock()
	defer f.region.mu.Unlock()
	for _, d := range f.region.node[testNode].devices {
		if d.ID == id {
			return d.HealthCode
		}
	}
	return ""
}

// Of a lease's devices only that is taken out of use which its driver names, with
// what the driver says and not why the task ended; until the operator says that it
// is clean, over a restart of the agent too.
func TestOperatorTakesAnUncleanDeviceBack(t *testing.T) {
	f := newFixture(t)
	d := newDriver("GPU-1", "GPU-10", "GPU-2")
	d.unclean = "process 77 holds GPU-10."
	a := f.runWith(d, nil)
	r := f.last(f.grant(testNode, gpuTask("exit 3", "GPU-1", "GPU-10")))
	if r.State != gpuai.ReportFailed || r.Reason != "exit code 3" || !slices.Equal(r.Unclean, []gpuai.DeviceID{"GPU-10"}) {
		t.Errorf("reported %+v", r)
	}
	a.stop(t)
	a = f.runWith(d, nil)
	if f.health("GPU-10") != gpuai.DeviceUnhealthy || f.code("GPU-10") != "agent:unclean: not clean: process 77 holds GPU-10." || f.health("GPU-1") != gpuai.DeviceHealthy {
		t.Errorf("health %s %q, of the other %s", f.health("GPU-10"), f.code("GPU-10"), f.health("GPU-1"))
	}
	for id, want := range map[gpuai.DeviceID]string{"GPU-2": "is in use", "GPU-9": "has no device", "": "name a device"} {
		if err := Clean(t.Context(), f.dir, id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if err := Clean(t.Context(), f.dir, "GPU-10"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device to come back", func() bool { return f.health("GPU-10") == gpuai.DeviceHealthy && f.code("GPU-10") == "" })
	a.stop(t)
	ended, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := Clean(ended, f.dir, "GPU-10"); err == nil || !strings.Contains(err.Error(), "does so when it runs") {
		t.Errorf("without an agent: %v", err)
	}
	if err := Clean(t.Context(), t.TempDir(), "GPU-10"); err == nil || !strings.Contains(err.Error(), "no agent's data directory") {
		t.Errorf("elsewhere: %v", err)
	}
}

// A driver that does not answer a release is asked again, and its devices come
// back when it says that they are clean.
func TestReleaseWithoutAnAnswerIsAskedAgain(t *testing.T) {
	f := newFixture(t)
	d := newDriver("GPU-1")
	d.mute = errors.New("no answer within 5s")
	f.runWith(d, func(c *Config) { c.testAgain = 10 * time.Millisecond })
	lease := f.grant(testNode, gpuTask("exit 0", "GPU-1"))
	if r := f.last(lease); !slices.Equal(r.Unclean, []gpuai.DeviceID{"GPU-1"}) || !strings.Contains(r.Reason, "no answer within 5s") {
		t.Errorf("reported %+v", r)
	}
	eventually(t, "the device to be taken out", func() bool { return f.health("GPU-1") == gpuai.DeviceUnhealthy })
	d.mu.Lock()
	d.mute = nil
	d.mu.Unlock()
	eventually(t, "the device to come back", func() bool { return f.health("GPU-1") == gpuai.DeviceHealthy })
	if d.holds(lease) {
		t.Error("it is not released")
	}
}

// The real simulation driver: its fault takes out the device that it hits, and
// gives it back when it is over.
func TestUncleanReleaseOfTheSimulation(t *testing.T) {
	f := newFixture(t)
	fault := filepath.Join(t.TempDir(), "fault")
	f.run(simDriver(t, `{"seed":"gpu-a1","devices":[{"vendor":"sim","model":"S1","memory_bytes":1073741824,"count":3}],
		"faults":[{"kind":"unclean_release","device":1,"on_file":"`+fault+`"}]}`))
	var ids []gpuai.DeviceID
	for _, d := range f.hellos(testNode)[0].Node.Devices {
		ids = append(ids, d.ID)
	}
	if err := os.WriteFile(fault, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := f.last(f.grant(testNode, gpuTask("exit 0", ids[:2]...))); r.State != gpuai.ReportDone || !slices.Equal(r.Unclean, ids[1:2]) {
		t.Errorf("reported %+v", r)
	}
	want := "sim:unclean: reset the device; not clean: simulated: " + string(ids[1]) + " could not be cleaned"
	eventually(t, "the device to be taken out", func() bool { return f.health(ids[1]) == gpuai.DeviceUnhealthy && f.code(ids[1]) == want })
	if f.health(ids[0]) != gpuai.DeviceHealthy || f.health(ids[2]) != gpuai.DeviceHealthy {
		t.Error("another device is out too")
	}
	if err := os.Remove(fault); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device to come back", func() bool { return f.health(ids[1]) == gpuai.DeviceHealthy })
}
