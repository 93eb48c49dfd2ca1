package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/store"
)

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// A memDriver is an in-memory twin of a driver's host.
type memDriver struct {
	changed chan struct{}
	stats   chan []plugins.Stats // measurements to send

	mu       sync.Mutex // guards below
	snap     plugins.Snapshot
	reserved map[string]plugins.Reservation
	unclean  string // release says this
	err      error  // reserve says this
	mute     error  // release fails so
}

var _ Driver = (*memDriver)(nil)

func newDriver(ids ...gpuai.DeviceID) *memDriver {
	d := &memDriver{changed: make(chan struct{}, 1), stats: make(chan []plugins.Stats), reserved: map[string]plugins.Reservation{}}
	d.snap = plugins.Snapshot{Generation: 1, Up: true, Simulated: true, Health: map[gpuai.DeviceID]plugins.Health{}}
	for _, id := range ids {
		d.snap.Devices = append(d.snap.Devices, gpuai.Device{ID: id, Vendor: "sim", Model: "S1", Memory: 1 << 30})
	}
	return d
}

func (d *memDriver) Inventory() plugins.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snap
}

func (d *memDriver) Changed() <-chan struct{} { return d.changed }

func (d *memDriver) Reserve(_ context.Context, r plugins.Reservation) (plugins.Grant, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return plugins.Grant{}, d.err
	}
	d.reserved[r.ID] = r
	var ids []string
	for _, id := range r.Devices {
		ids = append(ids, string(id))
	}
	return plugins.Grant{Env: map[string]string{gpuai.EnvSimDevices: strings.Join(ids, ",")}}, nil
}

func (d *memDriver) Release(_ context.Context, id string, _ bool) (bool, string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mute != nil {
		return false, "", d.mute
	}
	delete(d.reserved, id)
	return d.unclean == "", d.unclean, nil
}

func (d *memDriver) Recover(_ context.Context, ids []string) (known, orphaned []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(d.reserved)) {
		if slices.Contains(ids, id) {
			known = append(known, id)
		} else {
			orphaned = append(orphaned, id)
		}
	}
	return known, orphaned, nil
}

// Stats hands on what is sent to stats.
func (d *memDriver) Stats(ctx context.Context, _ time.Duration, _ []gpuai.DeviceID, f func([]plugins.Stats) error) error {
	for {
		select {
		case all := <-d.stats:
			if err := f(all); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *memDriver) Close() error { return nil }

func (d *memDriver) holds(t gpuai.Token) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.reserved[t.String()]
	return ok
}

// change alters the inventory and says so.
func (d *memDriver) change(f func(s *plugins.Snapshot)) {
	d.mu.Lock()
	d.snap.Devices = slices.Clone(d.snap.Devices)
	d.snap.Health = maps.Clone(d.snap.Health)
	f(&d.snap)
	d.snap.Generation++
	d.mu.Unlock()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// runWith starts an agent with an in-memory driver.
func (f *fixture) runWith(d *memDriver, change func(*Config)) *runningAgent {
	f.t.Helper()
	return f.run(func(c *Config) {
		c.testDrivers = append(c.testDrivers, driver{"mem", d})
		if change != nil {
			change(c)
		}
	})
}

func gpuTask(s string, ids ...gpuai.DeviceID) func(*gpuai.Assignment) {
	return func(a *gpuai.Assignment) { a.Task.Script, a.Lease.Devices = s, ids }
}

func TestDevicesAreReservedAndReleased(t *testing.T) {
	f := newFixture(t)
	one, two := newDriver("GPU-1", "GPU-2"), newDriver("GPU-3")
	f.runWith(one, func(c *Config) { c.testDrivers = append(c.testDrivers, driver{"two", two}) })
	if h := f.hellos(testNode)[0]; len(h.Node.Devices) != 3 || !h.Node.Simulated {
		t.Errorf("registered %+v", h.Node)
	}
	lease := f.grant(testNode, gpuTask(`echo $GPUAI_GPUS $GPUAI_SIM_DEVICES; while [ ! -e go ]; do sleep 0.02; done`, "GPU-2"))
	f.running(lease)
	if !one.holds(lease) || two.holds(lease) {
		t.Error("not reserved, or with the wrong driver")
	}
	f.revoke(testNode, lease)
	f.last(lease)
	if one.holds(lease) {
		t.Error("not released before the report")
	}
	if c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout"}); string(c.Data) != "1 GPU-2\n" {
		t.Errorf("the task saw %q", c.Data)
	}
}

func TestReserveFails(t *testing.T) {
	f := newFixture(t)
	d := newDriver("GPU-1")
	d.err = plugins.ErrUnusable
	f.runWith(d, nil)
	for _, id := range []gpuai.DeviceID{"GPU-1", "GPU-9"} {
		if r := f.last(f.grant(testNode, gpuTask("exit 0", id))); r.State != gpuai.ReportGPUError || r.Reason == "" {
			t.Errorf("%s: reported %+v", id, r)
		}
	}
}

// A device that is not clean is reported with the lease and offered as unhealthy
// until its driver has seen to it, over a restart of the agent too.
func TestUncleanDeviceStaysOut(t *testing.T) {
	f := newFixture(t)
	d := newDriver("GPU-1", "GPU-2")
	d.unclean = "a process holds it"
	a := f.runWith(d, nil)
	r := f.last(f.grant(testNode, gpuTask("exit 0", "GPU-1")))
	if r.State != gpuai.ReportDone || !slices.Equal(r.Unclean, []gpuai.DeviceID{"GPU-1"}) {
		t.Fatalf("reported %+v", r)
	}
	eventually(t, "the device to be taken out", func() bool { return f.health("GPU-1") == gpuai.DeviceUnhealthy })
	if f.health("GPU-2") != gpuai.DeviceHealthy {
		t.Error("the other device is out too")
	}
	a.stop(t)
	f.runWith(d, nil)
	if f.health("GPU-1") != gpuai.DeviceUnhealthy {
		t.Error("a restart forgot it")
	}
	d.change(func(s *plugins.Snapshot) {
		s.Devices[0].Health, s.Devices[0].HealthCode = gpuai.DeviceUnhealthy, "xid:1"
	})
	eventually(t, "the driver's word", func() bool {
		f.region.mu.Lock()
		defer f.region.mu.Unlock()
		return f.region.node[testNode].devices[0].HealthCode == "xid:1: not clean: a process holds it"
	})
	d.change(func(s *plugins.Snapshot) {
		s.Devices[0].Health, s.Devices[0].HealthCode = gpuai.DeviceHealthy, ""
	})
	eventually(t, "the device to come back", func() bool { return f.health("GPU-1") == gpuai.DeviceHealthy })
}

// The devices of a task that outlived its kill are out until it is gone and
// they are released clean; then they are offered again.
func TestDevicesOfAnUnkillableTaskComeBack(t *testing.T) {
	f := newFixture(t)
	a := f.runWith(newDriver("GPU-1", "GPU-2"), nil)
	lease := f.grant(testNode, gpuTask("sleep 60", "GPU-1"))
	f.running(lease)
	a.post(func() {
		a.step(decide.TaskUnkillable{Lease: lease, Reason: "it outlived the kill budget"})
		a.carryOut()
	})
	if r := f.last(lease); r.State != gpuai.ReportUnkillable {
		t.Fatalf("reported %+v", r)
	}
	eventually(t, "the device to be taken out", func() bool { return f.health("GPU-1") == gpuai.DeviceUnhealthy })
	if err := a.watchdog().Kill(lease, gpuai.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the device to come back", func() bool { return f.health("GPU-1") == gpuai.DeviceHealthy })
	if r := f.last(f.grant(testNode, gpuTask("exit 0", "GPU-1"))); r.State != gpuai.ReportDone {
		t.Errorf("on the device that came back: %+v", r)
	}
}

// The watchdog dies while such a task is left: what is left of it is looked for
// all the same. Found by the simulation, seed 10733.
func TestDevicesOfAnUnkillableTaskComeBackWithoutItsWatchdog(t *testing.T) {
	f := newFixture(t)
	a := f.runWith(newDriver("GPU-1", "GPU-2"), nil)
	lease := f.grant(testNode, gpuTask("sleep 60", "GPU-1"))
	f.running(lease)
	a.post(func() {
		a.step(decide.TaskUnkillable{Lease: lease, Reason: "it outlived the kill budget"})
		a.carryOut()
	})
	eventually(t, "the device to be taken out", func() bool { return f.health("GPU-1") == gpuai.DeviceUnhealthy })
	killWatchdog(t, f.dir)
	eventually(t, "the device to come back", func() bool { return f.health("GPU-1") == gpuai.DeviceHealthy })
}

// An answer that comes when its session is over already is journaled, and the
// agent may end before it hears another. Its next life must not hold the lease's
// devices for a task that nobody ends. Found by the simulation, seed 1726.
func TestAnsweredLeaseIsForgottenAfterARestart(t *testing.T) {
	f := newFixture(t)
	a := f.runWith(newDriver("GPU-1"), nil)
	var was gpuai.Assignment
	f.last(f.grant(testNode, func(a *gpuai.Assignment) {
		gpuTask("exit 0", "GPU-1")(a)
		was = *a
	}))
	a.stop(t)
	j, err := store.OpenJournal(filepath.Join(f.dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	rec := store.JournalLease{Assignment: was, State: store.JournalEnded, BootID: id.BootID, Seq: 2}
	if err := errors.Join(j.Commit(store.JournalChange{Put: []store.JournalLease{rec}}), j.Close()); err != nil {
		t.Fatal(err)
	}
	f.runWith(newDriver("GPU-1"), nil)
	if r := f.last(f.grant(testNode, gpuTask("exit 0", "GPU-1"))); r.State != gpuai.ReportDone {
		t.Errorf("the next lease of the device is reported %+v", r)
	}
}

// What the driver says of its host can be asked for; a change is told with the next
// registration.
func TestVersionsOfADriverAreLabels(t *testing.T) {
	f := newFixture(t)
	d := newDriver("GPU-1")
	d.snap.DriverVersion, d.snap.RuntimeVersion = "550.54.15", "CUDA 12.4"
	f.runWith(d, func(c *Config) { c.Labels = map[string]string{"disk": "ssd"} })
	labels := func() map[string]string {
		h := f.hellos(testNode)
		return h[len(h)-1].Node.Labels
	}
	if got := labels(); got["driver.mem.version"] != "550.54.15" || got["driver.mem.runtime"] != "CUDA 12.4" || got["disk"] != "ssd" {
		t.Errorf("labels %v", got)
	}
	d.change(func(s *plugins.Snapshot) { s.DriverVersion, s.RuntimeVersion = "560.28.03", "" })
	f.set(func(r *region) { r.node[testNode].session.Close() })
	eventually(t, "the new version", func() bool {
		_, runtime := labels()["driver.mem.runtime"]
		return labels()["driver.mem.version"] == "560.28.03" && !runtime
	})
	cfg := testConfig(t.TempDir(), "127.0.0.1:1", discard())
	cfg.Labels = map[string]string{"driver.mem.version": "1"}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "driver.mem.version is the agent's own") {
		t.Errorf("opened: %v", err)
	}
}

func TestFailedDeviceEndsItsTask(t *testing.T) {
	f := newFixture(t)
	d := newDriver("GPU-1", "GPU-2")
	f.runWith(d, nil)
	sick := f.grant(testNode, gpuTask("sleep 60", "GPU-1"))
	well := f.grant(testNode, gpuTask("sleep 60", "GPU-2"))
	f.running(sick)
	f.running(well)
	d.change(func(s *plugins.Snapshot) {
		s.Devices[0].Health, s.Devices[0].HealthCode = gpuai.DeviceUnhealthy, "xid:79"
		s.Health["GPU-1"] = plugins.Health{Device: "GPU-1", State: plugins.HealthUnhealthy, Code: "xid:79", Action: plugins.ActionRestartTask}
	})
	if r := f.last(sick); r.State != gpuai.ReportGPUError || !strings.Contains(r.Reason, "xid:79") {
		t.Errorf("reported %+v", r)
	}
	if n := len(f.reports(well)); n != 1 {
		t.Errorf("the other task has %d reports", n)
	}
	d.change(func(s *plugins.Snapshot) {
		s.Devices[1].Health, s.Devices[1].HealthCode = gpuai.DeviceLost, "xid:79"
		s.Health["GPU-2"] = plugins.Health{Device: "GPU-2", State: plugins.HealthLost, Code: "xid:79", Message: "off the bus", Action: plugins.ActionRebootNode}
	})
	if r := f.last(well); r.Reason != "device GPU-2 failed: xid:79 off the bus; its operator has to reboot the node" {
		t.Errorf("reported %+v", r)
	}
	eventually(t, "what to do", func() bool {
		f.region.mu.Lock()
		defer f.region.mu.Unlock()
		return f.region.node[testNode].devices[1].HealthCode == "xid:79: reboot the node"
	})
}

// killWatchdog kills the watchdog of a data directory with -9.
func killWatchdog(t *testing.T, dir string) {
	t.Helper()
	procs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if b, _ := os.ReadFile("/proc/" + p.Name() + "/cmdline"); string(b) == watchdogPath+"\x00--dir\x00"+dir+"\x00" {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no watchdog found")
}
