package conformance

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// checkReserveIdempotent: the same request has the same answer.
func checkReserveIdempotent(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	r := request("1", gpuai.WholeDevice, b.devices...)
	first, err := b.remote.Reserve(b.ctx, r)
	b.must("reserving every device", err)
	if len(first.Env)+len(first.CDI)+len(first.DeviceNodes) == 0 {
		t.Errorf("the grant is empty: a task could not find its devices")
	}
	for name, v := range first.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(v, "\x00") {
			t.Errorf("the grant has the impossible variable %q=%q", name, v)
		}
	}
	again, err := b.remote.Reserve(b.ctx, r)
	b.must("the same again", err)
	if !reflect.DeepEqual(first, again) {
		t.Errorf("the first grant is %+v, repeated it is %+v", first, again)
	}
	r.Incarnation++
	_, err = b.remote.Reserve(b.ctx, r)
	b.must("the same by a newer incarnation, which adopted the lease", err)
}

// checkReserveExclusive: a device has one holder.
func checkReserveExclusive(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	d := b.devices[0]
	b.must("reserving", b.reserve("1", d))
	if err := b.reserve("2", d); !errors.Is(err, plugins.ErrHeld) {
		t.Errorf("a second reservation of a device gets %v, want RESOURCE_EXHAUSTED", err)
	}
	if b.process.Info().Can(plugins.CapShare) {
		_, err := b.remote.Reserve(b.ctx, request("3", 1, d))
		if !errors.Is(err, plugins.ErrHeld) {
			t.Errorf("a share of a device that is held whole gets %v, want RESOURCE_EXHAUSTED", err)
		}
	}
	if len(b.devices) > 1 {
		if err := b.reserve("1", b.devices[1]); !errors.Is(err, plugins.ErrMismatch) {
			t.Errorf("the ID held, with another device, gets %v, want ALREADY_EXISTS", err)
		}
		b.must("reserving another device", b.reserve("4", b.devices[1]))
	}
}

// checkReserveContention: of many at the same time one gets the device.
func checkReserveContention(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	const callers = 16
	errs := make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() { errs[i] = b.reserve(fmt.Sprint(i), b.devices[0]) })
	}
	all.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, plugins.ErrHeld):
			t.Errorf("a caller gets %v, want RESOURCE_EXHAUSTED", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d callers have the device", won, callers)
	}
}

// checkReserveAllOrNothing: a refused reservation holds nothing.
func checkReserveAllOrNothing(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	if len(b.devices) < 2 {
		t.Logf("needs two devices, there is one")
		return
	}
	b.must("reserving", b.reserve("1", b.devices[0]))
	if err := b.reserve("2", b.devices[0], b.devices[1]); !errors.Is(err, plugins.ErrHeld) {
		t.Errorf("a held and a free device get %v, want RESOURCE_EXHAUSTED", err)
	}
	b.must("reserving the device that was free", b.reserve("3", b.devices[1]))
}

// checkReserveRefuses: impossible requests are refused and hold nothing.
func checkReserveRefuses(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	d := b.devices[0]
	for _, c := range []struct {
		name string
		r    plugins.Reservation
		want error
	}{
		{"an unknown device", plugins.Reservation{ID: "1", Devices: []gpuai.DeviceID{d.ID, "no-such-device"}, Incarnation: 1}, plugins.ErrNoDevice},
		{"no device", request("1", gpuai.WholeDevice), plugins.ErrInvalid},
		{"a device twice", request("1", gpuai.WholeDevice, d, d), plugins.ErrInvalid},
		{"no ID", request("", gpuai.WholeDevice, d), plugins.ErrInvalid},
		{"more than a device", request("1", gpuai.WholeDevice+1, d), plugins.ErrInvalid},
	} {
		if _, err := b.remote.Reserve(b.ctx, c.r); !errors.Is(err, c.want) {
			t.Errorf("%s gets %v, want %v", c.name, err, c.want)
		}
	}
	b.must("reserving after refusals", b.reserve("1", d))
}

// checkReserveFences: a superseded incarnation reserves nothing.
func checkReserveFences(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	r := request("1", gpuai.WholeDevice, b.devices[0])
	r.Incarnation = 7
	_, err := b.remote.Reserve(b.ctx, r)
	b.must("reserving", err)
	b.release("1", false)
	r.ID, r.Incarnation = "2", 6
	if _, err := b.remote.Reserve(b.ctx, r); !errors.Is(err, plugins.ErrStale) {
		t.Errorf("incarnation 6 after 7 gets %v, want ABORTED", err)
	}
}

// checkShares: shares of a device add up to at most all of it.
func checkShares(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	d := b.devices[0]
	share := func(id string, milli gpuai.Milli) error {
		_, err := b.remote.Reserve(b.ctx, request(id, milli, d))
		return err
	}
	if !b.process.Info().Can(plugins.CapShare) {
		if err := share("1", 500); !errors.Is(err, plugins.ErrUnsupported) {
			t.Errorf("a share of a driver that cannot share gets %v, want UNIMPLEMENTED", err)
		}
		return
	}
	b.must("600/1000", share("1", 600))
	b.must("600/1000 again", share("1", 600))
	b.must("400/1000", share("2", 400))
	if err := share("3", 1); !errors.Is(err, plugins.ErrHeld) {
		t.Errorf("1/1000 of a full device gets %v, want RESOURCE_EXHAUSTED", err)
	}
	if err := share("1", 500); !errors.Is(err, plugins.ErrMismatch) {
		t.Errorf("the ID held, with another share, gets %v, want ALREADY_EXISTS", err)
	}
	if err := b.reserve("4", d); !errors.Is(err, plugins.ErrHeld) {
		t.Errorf("a device that is shared gets %v as a whole, want RESOURCE_EXHAUSTED", err)
	}
	b.release("1", false)
	b.must("600/1000 after a release", share("5", 600))
	if len(b.devices) > 1 {
		if _, err := b.remote.Reserve(b.ctx, request("6", 500, b.devices...)); !errors.Is(err, plugins.ErrInvalid) {
			t.Errorf("a share of several devices gets %v, want INVALID_ARGUMENT", err)
		}
	}
}

// checkPartitions: of devices that exclude one another one is held at a time, and
// one that is partitioned is never held.
func checkPartitions(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	byID := map[gpuai.DeviceID]plugins.Device{}
	for _, d := range b.inventory().Devices {
		byID[d.ID] = d
	}
	for _, d := range byID {
		for _, other := range d.Conflicts {
			if !b.process.Info().Can(plugins.CapPartition) {
				t.Fatalf("it has devices that exclude one another without the capability %q", plugins.CapPartition)
			}
			b.excludes(d, byID[other])
		}
	}
}

// excludes checks that d and other are not held at the same time.
func (b *bench) excludes(d, other plugins.Device) {
	b.t.Helper()
	if d.Partitioned {
		if err := b.reserve("1", d); !errors.Is(err, plugins.ErrUnusable) {
			b.t.Errorf("%s, which is partitioned, gets %v, want FAILED_PRECONDITION", d.ID, err)
		}
		return
	}
	b.must("reserving "+string(d.ID), b.reserve("1", d))
	want := plugins.ErrHeld
	if other.Partitioned {
		want = plugins.ErrUnusable
	}
	if err := b.reserve("2", other); !errors.Is(err, want) {
		b.t.Errorf("%s while %s is held gets %v, want %v", other.ID, d.ID, err, want)
	}
	b.release("1", false)
}

func (b *bench) release(id string, scrub bool) {
	b.t.Helper()
	clean, detail, err := b.remote.Release(b.ctx, id, scrub)
	b.must("releasing "+id, err)
	if !clean {
		b.t.Errorf("released %s, it is not clean: %s", id, detail)
	}
}

// checkRelease: a released device is free, and a release may be repeated.
func checkRelease(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	b.release("never-held", true)
	for i, scrub := range []bool{false, true} {
		id := fmt.Sprint(i)
		b.must("reserving", b.reserve(id, b.devices...))
		b.release(id, scrub)
		b.release(id, scrub)
	}
	b.must("reserving what was released", b.reserve("last", b.devices...))
}
