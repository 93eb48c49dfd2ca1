package conformance

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// checkByHand: a driver that somebody runs in a shell says what it is and ends.
func checkByHand(t TB, s Subject) {
	for _, c := range []struct {
		arg  string
		fail bool
	}{{"--version", false}, {"--help", false}, {"", true}} {
		ctx, cancel := context.WithTimeout(t.Context(), s.patience())
		defer cancel()
		cmd := exec.CommandContext(ctx, s.Path)
		if c.arg != "" {
			cmd.Args = append(cmd.Args, c.arg)
		}
		out, err := cmd.CombinedOutput()
		switch {
		case ctx.Err() != nil:
			t.Errorf("run by hand with %q it does not end", c.arg)
		case (err != nil) != c.fail:
			t.Errorf("run by hand with %q it ends with %v", c.arg, err)
		case !strings.Contains(string(out), "driver"):
			t.Errorf("run by hand with %q it does not say that it is a driver: %q", c.arg, out)
		}
	}
}

// checkInfo: the driver says who it is, the same each time, with a schema.
func checkInfo(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	i, err := b.remote.Info(b.ctx)
	b.must("info", err)
	if !reflect.DeepEqual(i, b.process.Info()) {
		t.Errorf("it was %+v before it was configured and is %+v now", b.process.Info(), i)
	}
	var schema map[string]any
	if err := json.Unmarshal([]byte(i.ConfigSchema), &schema); err != nil {
		t.Errorf("its configuration schema is no JSON object: %v", err)
	}
	if v := b.inventory(); v.Simulated != i.Simulated {
		t.Errorf("info says simulated: %t, the inventory %t", i.Simulated, v.Simulated)
	}
}

// checkConfigure: what the driver does not understand, it refuses.
func checkConfigure(t TB, s Subject) {
	bad := map[string][]byte{
		"no JSON": []byte("devices: all"), "a list": []byte("[]"), "trailing data": append(bytes.Clone(s.Config), " {}"...),
		"invalid UTF-8": []byte("{\"\xff\":1}"),
	}
	bad["an unknown field"] = withMember(t, s.Config, `"conformance_unknown_field":1`)
	bad["a field given twice"] = withMember(t, s.Config, firstMember(t, s.Config))
	for name, c := range s.Refused {
		bad[name] = c
	}
	for name, c := range bad {
		cfg := s.hostConfig(t)
		cfg.Config = c
		p, err := plugins.Launch(t.Context(), cfg)
		if err == nil {
			p.Close()
		}
		if !errors.Is(err, plugins.ErrInvalid) {
			t.Errorf("a configuration with %s gets %v, want a refusal (INVALID_ARGUMENT)", name, err)
		}
	}
}

// withMember puts a member in front of a JSON object's.
func withMember(t TB, object []byte, member string) []byte {
	t.Helper()
	inner, ok := bytes.CutPrefix(bytes.TrimSpace(object), []byte("{"))
	if !ok || member == "" {
		t.Fatalf("Subject.Config must be a JSON object with a member")
	}
	return append([]byte("{"+member+","), inner...)
}

// firstMember returns a member of a JSON object as text.
func firstMember(t TB, object []byte) string {
	t.Helper()
	members := map[string]jsontext.Value{}
	if err := json.Unmarshal(object, &members); err != nil {
		t.Fatalf("Subject.Config: %v", err)
	}
	for k, v := range members {
		name, err := jsontext.AppendQuote(nil, k)
		if err != nil {
			t.Fatalf("Subject.Config: %v", err)
		}
		return string(name) + ":" + string(v)
	}
	return ""
}

// checkConfigureOnce: a second configuration is refused and changes nothing.
func checkConfigureOnce(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	before := b.inventory()
	err := b.remote.Configure(b.ctx, plugins.Config{JSON: s.Config, StateDir: t.TempDir()})
	if !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("a second configuration gets %v, want FAILED_PRECONDITION", err)
	}
	if after := b.inventory(); !reflect.DeepEqual(before.Devices, after.Devices) {
		t.Errorf("a second configuration changed the devices from %+v to %+v", before.Devices, after.Devices)
	}
}

// checkFingerprint: the inventory comes at once, is repeated each period, and its
// generation moves exactly when it changes.
func checkFingerprint(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	began := time.Now()
	vs := b.inventories(5)
	if took := time.Since(began); took > b.wait/2 {
		t.Errorf("5 inventories with a period of 100 ms took %s", took)
	}
	if vs[0].Generation == 0 {
		t.Errorf("generations start at 1")
	}
	for i, v := range vs[1:] {
		p := vs[i]
		same := reflect.DeepEqual(p.Devices, v.Devices) && reflect.DeepEqual(p.Links, v.Links) && p.Err == v.Err
		if same != (p.Generation == v.Generation) || v.Generation < p.Generation {
			t.Errorf("generation %d is followed by %d, the same inventory: %t", p.Generation, v.Generation, same)
		}
	}
	for _, d := range vs[0].Devices {
		if d.Memory == 0 || d.Kind == "" {
			t.Errorf("device %s has no memory or no kind: %+v", d.ID, d)
		}
	}
	if len(vs[0].Links) > 0 && !b.process.Info().Can(plugins.CapTopology) {
		t.Errorf("it reports links without the capability %q", plugins.CapTopology)
	}
	checkPlaces(t, &vs[0])
}

// checkPlaces: what the agent tells the region of where the devices are follows from
// the inventory: devices that NVLink or XGMI joins are in one island, those behind
// one PCIe switch in one group, and NUMA nodes are as they were told.
func checkPlaces(t TB, v *plugins.Inventory) {
	ds := make([]gpuai.Device, len(v.Devices))
	at := map[gpuai.DeviceID]*gpuai.Device{}
	for i := range v.Devices {
		ds[i].ID = v.Devices[i].ID
		at[ds[i].ID] = &ds[i]
	}
	plugins.Place(ds, []plugins.Snapshot{{Details: v.Devices, Links: v.Links}})
	for i, d := range v.Devices {
		if ds[i].NUMA != gpuai.NUMAOf(d.NUMANode) {
			t.Errorf("device %s of NUMA node %d is placed at %+v", d.ID, d.NUMANode, ds[i].DevicePlace)
		}
	}
	for _, l := range v.Links {
		a, b := at[l.A], at[l.B]
		if a == nil || b == nil {
			t.Errorf("link %+v joins what is not in the inventory", l)
			continue
		}
		switch l.Kind {
		case plugins.LinkNVLink, plugins.LinkXGMI:
			if a.LinkIsland == 0 || a.LinkIsland != b.LinkIsland {
				t.Errorf("link %+v joins islands %d and %d", l, a.LinkIsland, b.LinkIsland)
			}
		case plugins.LinkPCIeSwitch:
			if a.PCIeGroup == 0 || a.PCIeGroup != b.PCIeGroup {
				t.Errorf("link %+v joins PCIe groups %d and %d", l, a.PCIeGroup, b.PCIeGroup)
			}
		}
	}
}

// checkStableIDs: another process of the same configuration has the same devices.
func checkStableIDs(t TB, s Subject) {
	first := launch(t, s, s.hostConfig(t)).inventory()
	second := launch(t, s, s.hostConfig(t)).inventory()
	if a, b := ids(first), ids(second); !slices.Equal(a, b) {
		t.Errorf("one process has the devices %v, the next %v", a, b)
	}
}

func ids(v plugins.Inventory) []gpuai.DeviceID {
	var out []gpuai.DeviceID
	for _, d := range v.Devices {
		out = append(out, d.ID)
	}
	slices.Sort(out)
	return out
}

// checkHealth: the health of every device is told at once, to each listener.
func checkHealth(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	for range 2 {
		for id, h := range b.health() {
			if h.State == plugins.HealthUnknown {
				t.Errorf("the health of %s is unknown", id)
			}
			if h.State != plugins.HealthOK && h.Code == "" {
				t.Errorf("%s is not healthy and has no code: %+v", id, h)
			}
		}
	}
}

// checkStats: measurements are plausible, and absent where nothing is measured.
func checkStats(t TB, s Subject) {
	b := launch(t, s, s.hostConfig(t))
	only := b.devices[0]
	for _, ask := range [][]gpuai.DeviceID{nil, {only.ID}} {
		for n, stats := range b.stats(ask, 3) {
			if want := len(b.inventory().Devices); ask == nil && len(stats) != want {
				t.Errorf("answer %d has %d devices of %d", n, len(stats), want)
			}
			if ask != nil && (len(stats) != 1 || stats[0].Device != only.ID) {
				t.Errorf("asked for %s, got %+v", only.ID, stats)
			}
			for _, one := range stats {
				checkMeasured(t, one)
			}
		}
	}
}

// stats returns the first n answers.
func (b *bench) stats(ask []gpuai.DeviceID, n int) [][]plugins.Stats {
	b.t.Helper()
	var out [][]plugins.Stats
	ctx, cancel := context.WithTimeout(b.ctx, b.wait)
	defer cancel()
	err := b.remote.Stats(ctx, 100*time.Millisecond, ask, func(s []plugins.Stats) error {
		if out = append(out, s); len(out) == n {
			cancel()
		}
		return nil
	})
	if len(out) < n {
		b.t.Fatalf("got %d of %d measurements within %s: %v", len(out), n, b.wait, err)
	}
	return out[:n]
}

func checkMeasured(t TB, s plugins.Stats) {
	t.Helper()
	for name, v := range map[string]*float64{"gpu_utilization_ratio": s.GPUUtilization, "memory_utilization_ratio": s.MemoryUtilization} {
		if v != nil && (*v < 0 || *v > 1) {
			t.Errorf("%s: %s is %f, want 0 to 1", s.Device, name, *v)
		}
	}
	// None of these is ever 0 on a device: a 0 stands for "not measured", which
	// must be absent.
	for name, v := range map[string]*float64{
		"power_limit_watts": s.PowerLimitWatts, "temperature_celsius": s.TemperatureCelsius, "power_watts": s.PowerWatts,
	} {
		if v != nil && *v == 0 {
			t.Errorf("%s: %s is 0: leave out what is not measured", s.Device, name)
		}
	}
	if s.MemoryTotalBytes != nil && *s.MemoryTotalBytes == 0 {
		t.Errorf("%s: memory_total_bytes is 0: leave out what is not measured", s.Device)
	}
	if s.MemoryTotalBytes != nil && s.MemoryUsedBytes != nil && *s.MemoryUsedBytes > *s.MemoryTotalBytes {
		t.Errorf("%s: %d bytes of %d are used", s.Device, *s.MemoryUsedBytes, *s.MemoryTotalBytes)
	}
}
