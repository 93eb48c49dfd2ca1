package sim

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

const mixed = `{"seed":"n1","devices":[
	{"vendor":"nvidia","model":"H100","memory_bytes":80,"count":2,"link":"nvlink","link_width":18},
	{"vendor":"amd","model":"MI300X","memory_bytes":192,"count":1},
	{"vendor":"acme","model":"X","memory_bytes":10,"count":1,"partitions":2}]`

// driver returns a configured driver; faults is a JSON list.
func driver(t *testing.T, faults string) *Driver {
	t.Helper()
	d := New(slog.New(slog.DiscardHandler))
	configure(t, d, faults, t.TempDir())
	return d
}

func configure(t *testing.T, d *Driver, faults, dir string) {
	t.Helper()
	src := mixed + `,"faults":[` + faults + `]}`
	if err := d.Configure(t.Context(), plugins.Config{JSON: []byte(src), StateDir: dir}); err != nil {
		t.Fatal(err)
	}
}

func reserve(d *Driver, id string, share gpuai.Milli, places ...int) (plugins.Grant, error) {
	r := plugins.Reservation{ID: id, Share: share, Incarnation: 1}
	for _, i := range places {
		r.Devices = append(r.Devices, d.all[i].ID)
	}
	r, err := r.Normal()
	if err != nil {
		return plugins.Grant{}, err
	}
	return d.Reserve(context.Background(), r)
}

func TestDevices(t *testing.T) {
	d := driver(t, "")
	v, _ := d.inventory()
	if !v.Simulated || !d.Info().Simulated {
		t.Error("it does not say that it is simulated")
	}
	var got []string
	for _, one := range v.Devices {
		got = append(got, strings.Join([]string{one.Vendor, one.Kind, one.Model}, " "))
		if !strings.HasPrefix(string(one.ID), "SIM-") || !strings.HasPrefix(one.Serial, "simulated-") {
			t.Errorf("%s with serial %s does not say that it is simulated", one.ID, one.Serial)
		}
	}
	want := []string{
		"nvidia gpu H100", "nvidia gpu H100", "amd gpu MI300X",
		"acme gpu X", "acme partition X-1of2", "acme partition X-1of2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("devices are %q, want %q", got, want)
	}
	ids := []gpuai.DeviceID{v.Devices[0].ID, v.Devices[1].ID}
	if want := []plugins.Link{{A: ids[0], B: ids[1], Kind: plugins.LinkNVLink, Width: 18}}; !reflect.DeepEqual(v.Links, want) {
		t.Errorf("links are %+v, want %+v", v.Links, want)
	}
}

// Groups stand for islands, PCIe switches and NUMA nodes.
func TestTopology(t *testing.T) {
	c, err := parse([]byte(`{"seed":"s","devices":[
		{"vendor":"nvidia","model":"H100","memory_bytes":80,"count":2,"link":"nvlink","numa_node":0},
		{"vendor":"nvidia","model":"H100","memory_bytes":80,"count":2,"link":"nvlink","numa_node":1},
		{"vendor":"nvidia","model":"L4","memory_bytes":24,"count":2,"link":"pcie","numa_node":1},
		{"vendor":"nvidia","model":"L4","memory_bytes":24,"count":1}]}`))
	if err != nil {
		t.Fatal(err)
	}
	snap := plugins.Snapshot{Links: c.links(c.devices())}
	var ds []gpuai.Device
	for _, d := range c.devices() {
		snap.Details = append(snap.Details, d.Device)
		ds = append(ds, gpuai.Device{ID: d.ID})
	}
	plugins.Place(ds, []plugins.Snapshot{snap})
	for i, want := range []gpuai.DevicePlace{
		{NUMA: 1, LinkIsland: 1}, {NUMA: 1, LinkIsland: 1}, {NUMA: 2, LinkIsland: 2}, {NUMA: 2, LinkIsland: 2},
		{NUMA: 2, PCIeGroup: 1}, {NUMA: 2, PCIeGroup: 1}, {},
	} {
		if ds[i].DevicePlace != want {
			t.Errorf("device %d is at %+v, want %+v", i, ds[i].DevicePlace, want)
		}
	}
}

// IDs are a function of the seed and the place: they may not change between
// releases, since jobs and reservations name them.
func TestDeviceIDs(t *testing.T) {
	ids := func(seed string) string {
		c, err := parse([]byte(`{"seed":"` + seed + `","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":2}]}`))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, d := range c.devices() {
			out = append(out, string(d.ID))
		}
		return strings.Join(out, " ")
	}
	if got, want := ids("node-1"), "SIM-35971be6e9bb-000 SIM-35971be6e9bb-001"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if ids("node-1") != ids("node-1") || ids("node-1") == ids("node-2") {
		t.Error("IDs are not a function of the seed")
	}
}

func TestEnvironment(t *testing.T) {
	d := driver(t, "")
	g, err := reserve(d, "1", 0, 1, 0, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	id := func(i int) string { return string(d.all[i].ID) }
	want := map[string]string{
		gpuai.EnvSimDevices:  strings.Join([]string{id(0), id(1), id(2), id(3)}, ","),
		gpuai.EnvCUDADevices: id(0) + "," + id(1),
		gpuai.EnvROCRDevices: id(2),
	}
	if !reflect.DeepEqual(g.Env, want) {
		t.Errorf("environment is %v, want %v", g.Env, want)
	}
}

func TestSchemaNamesEveryField(t *testing.T) {
	var s struct {
		Properties map[string]struct {
			Items struct {
				Properties map[string]any `json:"properties"`
			} `json:"items"`
		} `json:"properties"`
	}
	if err := json.Unmarshal([]byte(schema), &s); err != nil {
		t.Fatal(err)
	}
	check := func(v any, has func(string) bool) {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if !has(name) {
				t.Errorf("the schema lacks %s of %s", name, typ)
			}
		}
	}
	check(Config{}, func(n string) bool { _, ok := s.Properties[n]; return ok })
	check(Group{}, func(n string) bool { _, ok := s.Properties["devices"].Items.Properties[n]; return ok })
	check(Fault{}, func(n string) bool { _, ok := s.Properties["faults"].Items.Properties[n]; return ok })
}

func TestParseRefuses(t *testing.T) {
	group := `{"vendor":"v","model":"m","memory_bytes":1,"count":1}`
	with := func(fault string) string { return `{"seed":"s","devices":[` + group + `],"faults":[` + fault + `]}` }
	for src, want := range map[string]string{
		``:                            "configuration",
		`{"devices":[` + group + `]}`: "/seed",
		`{"seed":"s"}`:                "/devices",
		`{"seed":"s","devices":[{}]}`: "/devices/0/vendor",
		`{"seed":"s","gpus":[]}`:      "gpus",
		`{"seed":"s","seed":"s"}`:     "seed",
		`{"seed":"s","devices":[{"vendor":"v","model":"m","memory_bytes":0,"count":1}]}`:                                  "/devices/0/memory_bytes",
		`{"seed":"s","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":65}]}`:                                 "/devices/0/count",
		`{"seed":"s","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":40},` + group[:len(group)-2] + `40}]}`: "at most 64",
		`{"seed":"s","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":1,"link":"wire"}]}`:                    "/devices/0/link",
		`{"seed":"s","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":1,"link_width":2}]}`:                   "/devices/0/link_width",
		`{"seed":"s","devices":[{"vendor":"v","model":"m","memory_bytes":1,"count":1,"partitions":1}]}`:                   "/devices/0/partitions",
		with(`{"kind":"fire"}`):                                  "/faults/0/kind",
		with(`{"kind":"crash","device":0}`):                      "/faults/0/device",
		with(`{"kind":"unhealthy","device":1}`):                  "/faults/0/device",
		with(`{"kind":"unhealthy","after_ms":-1}`):               "/faults/0/after_ms",
		with(`{"kind":"unhealthy","after_ms":1,"on_file":"/x"}`): "/faults/0/on_file",
		with(`{"kind":"unhealthy","on_file":"x"}`):               "absolute path",
		with(`{"kind":"crash","for_ms":1}`):                      "/faults/0/for_ms",
		with(`{"kind":"crash","repeat":true}`):                   "/faults/0/repeat",
		with(`{"kind":"vanish","code":"x"}`):                     "are for unhealthy",
		with(`{"kind":"unhealthy","state":"sad"}`):               `unknown state "sad"`,
		with(`{"kind":"unhealthy","action":"pray"}`):             `action "pray"`,
		with(`{"kind":"slow_reserve"}`):                          "/faults/0/delay_ms",
		with(`{"kind":"vanish","delay_ms":5}`):                   "/faults/0/delay_ms",
		with(`{"kind":"vanish","colour":"red"}`):                 "colour",
	} {
		if _, err := parse([]byte(src)); !errors.Is(err, plugins.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngets %v, want %q", src, err, want)
		}
	}
}

func TestShares(t *testing.T) {
	d := driver(t, "")
	for _, c := range []struct {
		id    string
		share gpuai.Milli
		want  error
	}{{"1", 250, nil}, {"2", 500, nil}, {"1", 250, nil}, {"3", 251, plugins.ErrHeld}, {"3", 250, nil}, {"4", 1, plugins.ErrHeld}, {"5", 0, plugins.ErrHeld}} {
		if _, err := reserve(d, c.id, c.share, 0); !errors.Is(err, c.want) {
			t.Errorf("%s: %d/1000 gets %v, want %v", c.id, c.share, err, c.want)
		}
	}
	if got := d.book.Share(d.all[0].ID); got != 1000 {
		t.Errorf("%d/1000 are held", got)
	}
}

func TestFaultActive(t *testing.T) {
	file := filepath.Join(t.TempDir(), "go")
	for _, c := range []struct {
		f    Fault
		age  gpuai.Duration
		want bool
	}{
		{Fault{}, 0, true},
		{Fault{After: 10}, 9, false},
		{Fault{After: 10}, 10, true},
		{Fault{After: 10, For: 5}, 14, true},
		{Fault{After: 10, For: 5}, 15, false},
		{Fault{OnFile: file}, 99, false},
	} {
		if got := c.f.active(c.age); got != c.want {
			t.Errorf("%+v at %d: %t", c.f, c.age, got)
		}
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := (Fault{OnFile: file}); !f.active(0) {
		t.Error("not active though its file is there")
	}
}

func TestUnhealthyFault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "break")
	d := driver(t, `{"kind":"unhealthy","device":1,"code":"xid:79","action":"reset_device","on_file":"`+file+`"}`)
	if _, err := reserve(d, "before", 0, 1); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.step()
	h := d.health[d.all[1].ID]
	if h.State != plugins.HealthUnhealthy || h.Code != "xid:79" || h.Action != plugins.ActionResetDevice {
		t.Errorf("health is %+v", h)
	}
	if d.health[d.all[0].ID].State != plugins.HealthOK {
		t.Error("the fault hit another device too")
	}
	if _, err := reserve(d, "before", 0, 1); err != nil {
		t.Errorf("what is held, repeated: %v", err)
	}
	if _, err := reserve(d, "after", 500, 1); !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("an unhealthy device: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	d.step()
	if d.health[d.all[1].ID].State != plugins.HealthOK {
		t.Error("it does not get well when the file is gone")
	}
}

func TestVanishFault(t *testing.T) {
	d := driver(t, `{"kind":"vanish","device":3}`)
	v, _ := d.inventory()
	if len(v.Devices) != 3 {
		t.Errorf("devices are %+v; the whole device and its partitions should be gone", v.Devices)
	}
	if _, err := reserve(d, "1", 0, 3); !errors.Is(err, plugins.ErrUnusable) {
		t.Error(err)
	}
}

func TestStreamsFollowFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "break")
	d := driver(t, `{"kind":"unhealthy","device":0,"state":"lost","on_file":"`+file+`"}, {"kind":"vanish","device":1,"on_file":"`+file+`"}`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ended := errors.New("seen")
	healths, devices := 0, 0
	fault := func() error { return os.WriteFile(file, nil, 0o600) }
	err := d.Health(ctx, func(hs []plugins.Health) error {
		if healths++; healths == 1 {
			return fault()
		}
		if len(hs) != 1 || hs[0].State != plugins.HealthLost {
			t.Errorf("the change is %+v", hs)
		}
		return ended
	})
	if !errors.Is(err, ended) {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	err = d.Fingerprint(ctx, func(v plugins.Inventory) error {
		switch len(v.Devices) {
		case 6:
			devices++
			return fault()
		case 5:
			if devices > 0 {
				return ended
			}
		}
		return nil
	})
	if !errors.Is(err, ended) {
		t.Fatal(err)
	}
}

func TestSlowReserveFault(t *testing.T) {
	d := driver(t, `{"kind":"slow_reserve","device":0,"delay_ms":60000}`)
	if _, err := reserve(d, "quick", 0, 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	r := plugins.Reservation{ID: "slow", Devices: []gpuai.DeviceID{d.all[0].ID}, Share: 1000, Incarnation: 1}
	if _, err := d.Reserve(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a slow reservation gets %v", err)
	}
	if known, _, _ := d.Recover(t.Context(), []string{"slow"}); len(known) != 1 {
		t.Error("the answer was late, but the reservation must be there")
	}
}

func TestUncleanReleaseFault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dirt")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := driver(t, `{"kind":"unclean_release","device":0,"on_file":"`+file+`"}`)
	if _, err := reserve(d, "1", 0, 0, 1); err != nil {
		t.Fatal(err)
	}
	clean, detail, err := d.Release(t.Context(), "1", true)
	if err != nil || clean || !strings.Contains(detail, string(d.all[0].ID)) {
		t.Errorf("released: clean %t, %q, %v", clean, detail, err)
	}
	if h := d.health[d.all[0].ID]; h.State != plugins.HealthUnhealthy || h.Code != "sim:unclean" {
		t.Errorf("health is %+v", h)
	}
	if _, err := reserve(d, "2", 0, 0); !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("an unclean device: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	d.step()
	if _, err := reserve(d, "2", 0, 0); err != nil {
		t.Errorf("after it was cleaned: %v", err)
	}
}
