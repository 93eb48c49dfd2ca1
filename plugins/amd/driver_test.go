package amd

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
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/amd/amdtest"
)

// driver returns a driver of a tree, which looks when the test tells it to.
func driver(t *testing.T, tr *amdtest.Tree, dir string) *Driver {
	t.Helper()
	d := New(slog.New(slog.DiscardHandler))
	d.patience = 40 * time.Millisecond
	src := `{"root":"` + tr.Root + `","period_ms":60000}`
	if err := d.Configure(t.Context(), plugins.Config{JSON: []byte(src), StateDir: dir}); err != nil {
		t.Fatal(err)
	}
	return d
}

func reserve(d *Driver, id string, places ...int) (plugins.Grant, error) {
	now, _ := d.current()
	r := plugins.Reservation{ID: id, Incarnation: 1}
	for _, i := range places {
		r.Devices = append(r.Devices, now.inventory.Devices[i].ID)
	}
	r, err := r.Normal()
	if err != nil {
		return plugins.Grant{}, err
	}
	return d.Reserve(context.Background(), r)
}

// codes are the health codes of all devices, in order; "" is well.
func codes(d *Driver) []string {
	now, _ := d.current()
	var out []string
	for _, one := range now.inventory.Devices {
		out = append(out, now.health[one.ID].Code)
	}
	return out
}

func expect(t *testing.T, d *Driver, want ...string) {
	t.Helper()
	if got := codes(d); !slices.Equal(got, want) {
		t.Errorf("health is %q, want %q", got, want)
	}
}

func TestGrant(t *testing.T) {
	d := driver(t, amdtest.MI300X(t), t.TempDir())
	g, err := reserve(d, "1", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := plugins.Grant{
		Env:    map[string]string{gpuai.EnvROCRDevices: "GPU-a1b2c3d4e5f60000,GPU-a1b2c3d4e5f60001"},
		CDI:    []string{"amd.com/gpu=GPU-a1b2c3d4e5f60000", "amd.com/gpu=GPU-a1b2c3d4e5f60001"},
		CPUSet: "0-31", MemSet: "0",
	}
	if !reflect.DeepEqual(g, want) {
		t.Errorf("got  %+v\nwant %+v", g, want)
	}
	if g, err := reserve(d, "2", 3, 4); err != nil || g.CPUSet != "" || g.MemSet != "" {
		t.Errorf("devices on two NUMA nodes get %+v, %v", g, err)
	}
}

// The specification is a valid one, gives /dev/kfd and the device, and no hooks.
func TestCDISpec(t *testing.T) {
	for name, c := range map[string]struct {
		tree *amdtest.Tree
		env  string
	}{
		"MI210":  {amdtest.MI210(t, 4), ""},
		"Radeon": {amdtest.Radeon(t), "ROCR_VISIBLE_DEVICES=0,1"},
	} {
		dir := t.TempDir()
		d := driver(t, c.tree, dir)
		cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(filepath.Join(dir, cdiDir)))
		if err != nil {
			t.Fatal(err)
		}
		now, _ := d.current()
		for _, one := range now.inventory.Devices {
			found := cache.GetDevice(one.CDIName)
			if found == nil {
				t.Fatalf("%s: %s is not in the specification: %v", name, one.CDIName, cache.GetErrors())
			}
			common, own := found.GetSpec().ContainerEdits, found.ContainerEdits
			render := now.gpus[one.ID]
			if len(common.DeviceNodes) != 1 || common.DeviceNodes[0].Path != "/dev/kfd" || common.DeviceNodes[0].HostPath != filepath.Join(c.tree.Root, "dev/kfd") {
				t.Errorf("%s: common to all is %+v", name, common)
			}
			if len(own.DeviceNodes) != 1 || own.DeviceNodes[0].Path != "/"+render.renderNode() || own.DeviceNodes[0].Permissions != "rw" {
				t.Errorf("%s: %s is given %+v", name, one.ID, own)
			}
			if strings.Join(common.Env, " ") != c.env || len(common.Hooks)+len(own.Hooks)+len(own.Env)+len(own.Mounts) > 0 {
				t.Errorf("%s: common to all is %+v, to %s %+v", name, common, one.ID, own)
			}
		}
	}
}

// A specification that is there comes first; one with hooks, or of several
// devices, does not; one that somebody removes is written again.
func TestHostCDI(t *testing.T) {
	tr := amdtest.MI210(t, 4)
	tr.Set("etc/cdi/amd.json", `{"cdiVersion":"0.6.0","kind":"amd.com/gpu","devices":[
		{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/kfd"},{"path":"/dev/dri/card0"},{"path":"/dev/dri/renderD128"}]}},
		{"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/kfd"},{"path":"/dev/dri/renderD129"}],"hooks":[{"hookName":"createContainer","path":"/bin/x"}]}},
		{"name":"2","containerEdits":{"deviceNodes":[{"path":"/dev/dri/renderD130"}]}},
		{"name":"all","containerEdits":{"deviceNodes":[{"path":"/dev/kfd"},{"path":"/dev/dri/renderD128"},{"path":"/dev/dri/renderD131"}]}}]}`)
	tr.Set("var/run/cdi/broken.yaml", "cdiVersion: [")
	dir := t.TempDir()
	d := driver(t, tr, dir)
	names := func() (out []string) {
		now, _ := d.current()
		for _, one := range now.inventory.Devices {
			out = append(out, strings.TrimPrefix(one.CDIName, "amd.com/gpu="))
		}
		return out
	}
	ours := []string{"GPU-7c0ffee000000000", "GPU-7c0ffee000000001", "GPU-7c0ffee000000002", "GPU-7c0ffee000000003"}
	if got, want := names(), append([]string{"0"}, ours[1:]...); !slices.Equal(got, want) {
		t.Errorf("named %q, want %q", got, want)
	}
	tr.Remove("etc/cdi")
	file := filepath.Join(dir, cdiDir, cdiFile)
	for range 2 {
		d.look()
		if src, err := os.ReadFile(file); err != nil || !strings.Contains(string(src), ours[0]) || !slices.Equal(names(), ours) {
			t.Errorf("without the host's: %v, %s, named %q", err, src, names())
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	for card := range 4 {
		tr.Vanish(card)
	}
	d.look()
	if _, err := os.Stat(file); err == nil {
		t.Error("no device is there, the specification is")
	}
}

// A device that ROCm finds by its place needs our specification.
func TestHostCDIOfIndexedDevice(t *testing.T) {
	tr := amdtest.Radeon(t)
	tr.Set("etc/cdi/amd.json", `{"cdiVersion":"0.6.0","kind":"amd.com/gpu","containerEdits":{"deviceNodes":[{"path":"/dev/kfd"}]},"devices":[
		{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/dri/renderD128"}]}},
		{"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/dri/renderD129"}]}}]}`)
	now, _ := driver(t, tr, t.TempDir()).current()
	if ds := now.inventory.Devices; ds[0].CDIName != "amd.com/gpu=0" || ds[1].CDIName != "amd.com/gpu=PCI-0000:08:00.0-6fdf" {
		t.Errorf("devices are %+v", ds)
	}
}

// A device that vanishes is lost with the reason, keeps its grant over a new
// process, and gets well when it is back.
func TestLost(t *testing.T) {
	for name, c := range map[string]struct {
		odd    func(tr *amdtest.Tree)
		code   string
		action plugins.HealthAction
	}{
		"unplugged":      {func(tr *amdtest.Tree) { tr.Vanish(1) }, codeGone, plugins.ActionRebootNode},
		"unbound":        {func(tr *amdtest.Tree) { tr.Unbind(1) }, codeUnbound, plugins.ActionWarn},
		"out of KFD":     {func(tr *amdtest.Tree) { tr.Remove(tr.Node(1)) }, codeNoKFD, plugins.ActionRebootNode},
		"off the bus":    {func(tr *amdtest.Tree) { tr.Set(tr.PCI(1)+"/config", "\xff\xff") }, codeOffBus, plugins.ActionRebootNode},
		"no render node": {func(tr *amdtest.Tree) { tr.Remove("dev/dri/renderD129") }, codeNoRender, plugins.ActionRebootNode},
	} {
		t.Run(name, func(t *testing.T) {
			tr, dir := amdtest.MI210(t, 4), t.TempDir()
			d := driver(t, tr, dir)
			before, err := reserve(d, "held", 1)
			if err != nil {
				t.Fatal(err)
			}
			c.odd(tr)
			d.look()
			expect(t, d, "", c.code, "", "")
			now, _ := d.current()
			if h := now.health[now.inventory.Devices[1].ID]; h.State != plugins.HealthLost || h.Action != c.action || h.Message == "" {
				t.Errorf("health is %+v", h)
			}
			if stats, err := d.Stats(t.Context(), nil); err != nil || len(stats) != 4 || stats[1].MemoryTotalBytes != nil {
				t.Errorf("stats are %+v, %v", stats, err)
			}
			d = driver(t, tr, dir)
			expect(t, d, "", c.code, "", "")
			if after, err := reserve(d, "held", 1); err != nil || !reflect.DeepEqual(after, before) {
				t.Errorf("the grant was %+v, it is %+v, %v", before, after, err)
			}
			if _, err := reserve(d, "other", 1, 2); !errors.Is(err, plugins.ErrHeld) && !errors.Is(err, plugins.ErrUnusable) {
				t.Errorf("a lost device gets %v", err)
			}
			if clean, detail, err := d.Release(t.Context(), "held", true); err != nil || !clean {
				t.Errorf("released: %t, %q, %v", clean, detail, err)
			}
			if _, err := reserve(d, "other", 1); !errors.Is(err, plugins.ErrUnusable) {
				t.Errorf("a lost device gets %v", err)
			}
		})
	}
}

// A partition that is held and gone excludes nothing that the driver does not
// list: the host would take that for garbage.
func TestLostPartition(t *testing.T) {
	tr, dir := amdtest.MI300XParts(t), t.TempDir()
	if _, err := reserve(driver(t, tr, dir), "1", 3); err != nil {
		t.Fatal(err)
	}
	tr.Vanish(0)
	d := driver(t, tr, dir)
	now, _ := d.current()
	if ds := now.inventory.Devices; len(ds) != 10 || ds[0].ID != "GPU-a1b2c3d4e5f60000-cpx2" || len(ds[0].Conflicts) > 0 || len(ds[1].Conflicts) != 8 {
		t.Errorf("devices are %+v", ds)
	}
	if codes(d)[0] != codeGone {
		t.Errorf("health is %q", codes(d))
	}
}

// A GPU whose operator chooses other partitions is not lost: it is other devices.
func TestRepartitioned(t *testing.T) {
	tr := amdtest.MI300XParts(t)
	d := driver(t, tr, t.TempDir())
	if _, err := reserve(d, "1", 0); !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("a GPU that is partitioned gets %v", err)
	}
	if stats, err := d.Stats(t.Context(), nil); err != nil || len(stats) != 18 || stats[0].PowerWatts == nil || stats[1].PowerWatts != nil {
		t.Errorf("stats are %+v, %v", stats, err)
	}
	tr.Set(tr.PCI(0)+"/current_compute_partition", "SPX\n")
	tr.Remove(strings.TrimSuffix(tr.Node(0), "1")+"2", tr.Node(0)[:len(tr.Node(0))-1]+"3")
	for _, n := range []string{"4", "5", "6", "7", "8"} {
		tr.Remove(strings.TrimSuffix(tr.Node(0), "1") + n)
	}
	d.look()
	now, _ := d.current()
	if len(now.inventory.Devices) != 10 || now.inventory.Devices[0].ID != "GPU-a1b2c3d4e5f60000" || now.inventory.Devices[0].Partitioned {
		t.Errorf("devices are %+v", now.inventory.Devices)
	}
	expect(t, d, make([]string, 10)...)
	if v := now.inventory.DriverVersion; v != "6.12.12" {
		t.Errorf("the version of amdgpu is %q", v)
	}
}

// Who holds a device keeps it from being clean; who only looks, or computes
// elsewhere, does not.
func TestReleaseFindsHolders(t *testing.T) {
	const late = 1 << 40 // ticks: after any reservation
	for name, c := range map[string]struct {
		process amdtest.Process
		says    string
	}{
		"memory":                 {amdtest.Process{PID: 7, Memory: map[int]uint64{0: 1}}, `process 7 ("task") has 1 bytes`},
		"a queue":                {amdtest.Process{PID: 7, Queue: new(0)}, "1 queues"},
		"an open render node":    {amdtest.Process{PID: 7, Start: late, Opens: []string{"/dev/dri/renderD128"}}, "/dev/dri/renderD128 open"},
		"one that was removed":   {amdtest.Process{PID: 7, Start: late, Opens: []string{"/dev/dri/renderD128 (deleted)"}}, "open"},
		"another render node":    {amdtest.Process{PID: 7, Start: late, Opens: []string{"/dev/dri/renderD129"}}, ""},
		"a display server":       {amdtest.Process{PID: 7, Start: 1, Opens: []string{"/dev/dri/renderD128"}}, ""},
		"computing elsewhere":    {amdtest.Process{PID: 7, Start: late, Memory: map[int]uint64{1: 1}, Opens: []string{"/dev/dri/renderD128"}}, ""},
		"computing, long before": {amdtest.Process{PID: 7, Start: 1, Memory: map[int]uint64{0: 9}}, "9 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := amdtest.MI210(t, 2)
			d := driver(t, tr, t.TempDir())
			if _, err := reserve(d, "1", 0); err != nil {
				t.Fatal(err)
			}
			tr.Run(c.process)
			d.look()
			clean, detail, err := d.Release(t.Context(), "1", true)
			if err != nil || clean != (c.says == "") || !strings.Contains(detail, c.says) {
				t.Fatalf("released: %t, %q, %v", clean, detail, err)
			}
			if again, _, err := d.Release(t.Context(), "1", true); !again || err != nil {
				t.Errorf("released again: %t, %v", again, err)
			}
			if clean {
				return
			}
			expect(t, d, codeUnclean, "")
			d.look()
			expect(t, d, codeUnclean, "")
			if _, err := reserve(d, "2", 0); !errors.Is(err, plugins.ErrUnusable) || !strings.Contains(err.Error(), "process 7") {
				t.Errorf("an unclean device gets %v", err)
			}
			tr.End(7)
			d.look()
			expect(t, d, "", "")
			if _, err := reserve(d, "2", 0); err != nil {
				t.Errorf("after the process ended: %v", err)
			}
		})
	}
}

// The reason names each device that is not clean, and no other.
func TestReleaseNamesTheUnclean(t *testing.T) {
	tr := amdtest.MI210(t, 4)
	d := driver(t, tr, t.TempDir())
	if _, err := reserve(d, "1", 0, 1, 2); err != nil {
		t.Fatal(err)
	}
	tr.Run(amdtest.Process{PID: 7, Memory: map[int]uint64{0: 1, 2: 2}})
	clean, detail, err := d.Release(t.Context(), "1", true)
	want := `GPU-7c0ffee000000000: process 7 ("task") has 1 bytes and 0 queues on it; GPU-7c0ffee000000002: process 7 ("task") has 2 bytes and 0 queues on it`
	if clean || err != nil || detail != want {
		t.Errorf("released: %t, %v, %q", clean, err, detail)
	}
	expect(t, d, codeUnclean, "", codeUnclean, "")
}

// A killed process takes a moment to give its memory back: Release waits for it.
func TestReleaseWaits(t *testing.T) {
	tr := amdtest.MI210(t, 1)
	d := driver(t, tr, t.TempDir())
	d.patience = 4 * time.Second
	if _, err := reserve(d, "1", 0); err != nil {
		t.Fatal(err)
	}
	tr.Run(amdtest.Process{PID: 7, Memory: map[int]uint64{0: 1 << 30}})
	time.AfterFunc(20*time.Millisecond, func() { os.RemoveAll(filepath.Join(tr.Root, kfdProcs, "7")) })
	if clean, detail, err := d.Release(t.Context(), "1", true); !clean || err != nil {
		t.Errorf("released: %t, %q, %v", clean, detail, err)
	}
}

// A device that somebody uses without a lease is not offered as healthy.
func TestForeignProcess(t *testing.T) {
	tr := amdtest.MI210(t, 4)
	d := driver(t, tr, t.TempDir())
	if _, err := reserve(d, "1", 0); err != nil {
		t.Fatal(err)
	}
	tr.Run(amdtest.Process{PID: 7, Memory: map[int]uint64{0: 1, 1: 1}})
	d.look()
	expect(t, d, "", codeForeign, "", "")
	if _, err := reserve(d, "2", 1); !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("a device in use gets %v", err)
	}
	if _, err := reserve(d, "3", 2); err != nil {
		t.Fatal(err)
	}
	if clean, detail, err := d.Release(t.Context(), "3", true); !clean || err != nil {
		t.Fatalf("released: %t, %q, %v", clean, detail, err)
	}
	expect(t, d, "", codeForeign, "", "")
	tr.End(7)
	d.look()
	expect(t, d, "", "", "", "")
}

// A look that began before a lease got its device, or gave it back, does not call
// the lease's process a stranger's.
func TestLookBesideLease(t *testing.T) {
	tr := amdtest.MI210(t, 1)
	d := driver(t, tr, t.TempDir())
	before := d.glance()
	if _, err := reserve(d, "1", 0); err != nil {
		t.Fatal(err)
	}
	d.take(before)
	expect(t, d, "")
	tr.Run(amdtest.Process{PID: 7, Memory: map[int]uint64{0: 1}})
	during := d.glance()
	d.take(during)
	expect(t, d, "")
	tr.End(7)
	if clean, detail, err := d.Release(t.Context(), "1", true); !clean || err != nil {
		t.Fatalf("released: %t, %q, %v", clean, detail, err)
	}
	d.take(during)
	expect(t, d, "")
}

func TestStuck(t *testing.T) {
	tr := amdtest.MI210(t, 4)
	tr.Remove("dev/dri/renderD131")
	d := driver(t, tr, t.TempDir())
	d.stuck()
	expect(t, d, codeStuck, codeStuck, codeStuck, codeNoRender)
	d.look()
	expect(t, d, "", "", "", codeNoRender)
}

// A host without a GPU, or with one that nobody drives, is no error: the driver
// says why and looks again.
func TestNoGPU(t *testing.T) {
	tr := amdtest.New(t)
	d := driver(t, tr, t.TempDir())
	now, changed := d.current()
	if len(now.inventory.Devices) > 0 || !strings.Contains(now.inventory.Err, "no AMD GPU") {
		t.Errorf("the inventory is %+v", now.inventory)
	}
	d.look()
	select {
	case <-changed:
		t.Error("it says the same again")
	default:
	}
	tr = amdtest.MI210(t, 4)
	tr.Remove("dev/kfd")
	d = driver(t, tr, t.TempDir())
	if now, _ := d.current(); !strings.Contains(now.inventory.Err, "/dev/kfd") {
		t.Errorf("the inventory is %+v", now.inventory)
	}
	tr.Set("dev/kfd", "")
	d.look()
	expect(t, d, "", "", "", "")
	tr.Remove("dev/kfd")
	d.look()
	expect(t, d, codeNoKFD, codeNoKFD, codeNoKFD, codeNoKFD)
	if now, _ := d.current(); !strings.Contains(now.health[now.inventory.Devices[0].ID].Message, "/dev/kfd") {
		t.Errorf("health is %+v", now.health)
	}
}

func TestStreamsFollow(t *testing.T) {
	tr := amdtest.MI210(t, 4)
	d := driver(t, tr, t.TempDir())
	seen := errors.New("seen")
	first := true
	err := d.Health(t.Context(), func(hs []plugins.Health) error {
		if first {
			first = false
			tr.Set(tr.PCI(2)+"/ras/umc_err_count", "ue: 1\n")
			go d.look()
			return nil
		}
		if len(hs) != 1 || hs[0].Code != "ras:ue:umc" {
			t.Errorf("the change is %+v", hs)
		}
		return seen
	})
	if !errors.Is(err, seen) {
		t.Error(err)
	}
	first = true
	err = d.Fingerprint(t.Context(), func(v plugins.Inventory) error {
		if first {
			first = false
			tr.Set("etc/cdi/amd.json", `{"cdiVersion":"0.6.0","kind":"amd.com/gpu","devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/kfd"},{"path":"/dev/dri/renderD128"}]}}]}`)
			go d.look()
			return nil
		}
		if v.Devices[0].CDIName != "amd.com/gpu=0" {
			t.Errorf("devices are %+v", v.Devices)
		}
		return seen
	})
	if !errors.Is(err, seen) {
		t.Error(err)
	}
}

func TestParseRefuses(t *testing.T) {
	for src, want := range map[string]string{
		``:                               "configuration",
		`{"root":"sys"}`:                 "/root",
		`{"root":""}`:                    "/root",
		`{"exclude":["03:00.0"]}`:        "/exclude/0",
		`{"exclude":["0000:03:00.0",1]}`: "exclude",
		`{"cdi_dirs":["/a","b"]}`:        "/cdi_dirs/1",
		`{"period_ms":99}`:               "/period_ms",
		`{"period_ms":60001}`:            "/period_ms",
		`{"shares":true}`:                "shares",
	} {
		if _, err := parse([]byte(src)); !errors.Is(err, plugins.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngets %v, want %q", src, err, want)
		}
	}
	if c, err := parse([]byte(`{}`)); err != nil || c.Root != "/" || c.period() != 2*time.Second {
		t.Errorf("nothing said is %+v, %v", c, err)
	}
}

func TestSchemaNamesEveryField(t *testing.T) {
	var s struct {
		Properties map[string]any `json:"properties"`
	}
	if err := json.Unmarshal([]byte(schema), &s); err != nil {
		t.Fatal(err)
	}
	typ := reflect.TypeFor[Config]()
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if _, ok := s.Properties[name]; !ok {
			t.Errorf("the schema lacks %s", name)
		}
	}
}
