package agent

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// cdiConfig is of two simulated devices whose files are real ones of the host,
// which root alone may open there and no sandbox may by itself.
const cdiConfig = `{"seed":"gpu-a1","devices":[{"vendor":"sim","model":"S1","memory_bytes":1073741824,"count":2}],"cdi_nodes":["/dev/fuse","/dev/loop-control"]}`

// cdiFixture is an agent with sandboxes and simulated devices by CDI.
func cdiFixture(t *testing.T, change func(*Config)) (f *fixture, a *runningAgent, image string, ids []gpuai.DeviceID) {
	t.Helper()
	dir := t.TempDir()
	sandboxes := boxed(t, dir)
	for _, node := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(node); err != nil {
			t.Skip("this host has no such device to give: ", err)
		}
	}
	image, f = archiveImage(t, dir), newFixture(t)
	drivers := simDriver(t, cdiConfig)
	a = f.run(func(c *Config) {
		sandboxes(c)
		drivers(c)
		c.Sandbox.CDIDirs = []string{filepath.Join(dir, "cdi")}
		if change != nil {
			change(c)
		}
	})
	for _, d := range f.hellos(testNode)[0].Node.Devices {
		ids = append(ids, d.ID)
	}
	if len(ids) != 2 {
		t.Fatalf("devices %v", ids)
	}
	return f, a, image, ids
}

// A sandbox has the device files of its lease, which its own users may open, and
// no others: neither their files nor, should it get one, the right to open it.
func TestSandboxHasItsOwnDevicesByCDI(t *testing.T) {
	f, _, image, ids := cdiFixture(t, nil)
	for i, want := range []map[string]string{
		{"/dev/gpuai-sim0": "open", "/dev/gpuai-sim1": "ENOENT", "/dev/fuse": "ENOENT", "/dev/null": "open"},
		{"/dev/gpuai-sim0": "ENOENT", "/dev/gpuai-sim1": "open", "/dev/loop-control": "ENOENT"},
	} {
		paths := slices.Sorted(maps.Keys(want))
		lease := f.grant(testNode, func(a *gpuai.Assignment) {
			inImage(image)(a)
			a.Task.Command, a.Lease.Devices = append([]string{"gpuai-probe", "open"}, paths...), ids[i:i+1]
		})
		r := f.last(lease)
		out := string(f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 10_000}).Data)
		if r.State != gpuai.ReportDone || len(r.Unclean) > 0 {
			t.Errorf("reported %+v\n%s", r, f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stderr", Limit: 10_000}).Data)
		}
		for path, got := range want {
			if !strings.Contains(out, path+" "+got+"\n") {
				t.Errorf("device %d: %s is not %s in\n%s", i, path, got, out)
			}
		}
	}
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.Lease.Devices = ids
	})
	f.last(lease)
	out := string(f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 10_000}).Data)
	for _, want := range []string{"env GPUAI_SIM_NODE_0=/dev/gpuai-sim0\n", "env GPUAI_SIM_NODE_1=/dev/gpuai-sim1\n", "env GPUAI_SIM_DEVICES=" + string(ids[0]) + "," + string(ids[1])} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// What CDI says of a device's place is of the sandbox, what a grant says of the host.
func TestVariablesOfCDIAreOverTheGrant(t *testing.T) {
	base := map[string]string{"LD_LIBRARY_PATH": "/image/lib"}
	grant := map[string]string{"ROCR_VISIBLE_DEVICES": "5", "OTHER": "x"}
	e := &cdiEdits{Env: map[string]string{"ROCR_VISIBLE_DEVICES": "0"}, Libraries: []string{"/usr/lib/gpu"}}
	e.granted(base, grant)
	if !maps.Equal(grant, map[string]string{"ROCR_VISIBLE_DEVICES": "0", "OTHER": "x"}) || base["LD_LIBRARY_PATH"] != "/image/lib:/usr/lib/gpu" {
		t.Errorf("%v, %v", grant, base)
	}
}

// A name that nothing resolves takes its device out of use, and the task is
// placed again.
func TestUnresolvedDeviceIsQuarantined(t *testing.T) {
	f, a, image, ids := cdiFixture(t, nil)
	if err := os.RemoveAll(filepath.Join(a.path(driversDir), "sim", "state", "cdi")); err != nil {
		t.Fatal(err)
	}
	r := f.last(f.grant(testNode, func(a *gpuai.Assignment) {
		inImage(image)(a)
		a.Lease.Devices = ids[1:]
	}))
	if r.State != gpuai.ReportLost || !slices.Equal(r.Unclean, ids[1:]) {
		t.Errorf("reported %+v", r)
	}
	for _, want := range []string{string(ids[1]), "sim/state/cdi", a.boxes.cdi.Host[0]} {
		if !strings.Contains(r.Reason, want) {
			t.Errorf("%q is not in %q", want, r.Reason)
		}
	}
	eventually(t, "the device to be taken out", func() bool { return f.health(ids[1]) == gpuai.DeviceUnhealthy })
	if f.health(ids[0]) != gpuai.DeviceHealthy {
		t.Error("the other device is out too")
	}
}
