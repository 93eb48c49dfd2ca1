//go:build cgo

package nvidia

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A host without a CDI specification gets one by NVIDIA's generator, without hooks,
// in the directory of the driver that the agent reads.
func TestOwnCDI(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t), versions, line(0, ""), line(1, ""))
	m.Install(2)
	h := m.start()
	s := await(t, h, "devices", well(2))
	if got := s.Details[1].CDIName; got != "nvidia.com/gpu="+uuid(1) {
		t.Errorf("the CDI name is %q", got)
	}
	g, err := h.Reserve(t.Context(), reservation("1", 0, 0, 1))
	if err != nil || !slices.Equal(g.CDI, []string{"nvidia.com/gpu=" + uuid(0), "nvidia.com/gpu=" + uuid(1)}) || len(g.DeviceNodes) > 0 {
		t.Errorf("granted %+v, %v", g, err)
	}
	src, err := os.ReadFile(m.Path("sockets/nvidia/state/cdi/" + ownSpec))
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Kind    string `json:"kind"`
		Devices []struct {
			Name  string `json:"name"`
			Edits struct {
				Nodes []struct {
					Path string `json:"path"`
					Host string `json:"hostPath"`
				} `json:"deviceNodes"`
			} `json:"containerEdits"`
		} `json:"devices"`
		Edits struct {
			Mounts []struct {
				Path string `json:"containerPath"`
			} `json:"mounts"`
			Nodes []struct {
				Path string `json:"path"`
			} `json:"deviceNodes"`
		} `json:"containerEdits"`
	}
	if err := json.Unmarshal(src, &spec); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(src), "hook") || strings.Contains(string(src), EnvVisible) {
		t.Errorf("the specification has hooks, or asks NVIDIA's runtime for devices: %s", src)
	}
	if spec.Kind != cdiKind || len(spec.Devices) != 2 || spec.Devices[1].Name != uuid(1) || spec.Devices[1].Edits.Nodes[0].Path != "/dev/nvidia1" {
		t.Errorf("the specification is %s", src)
	}
	for _, want := range []string{"/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15", "/usr/bin/nvidia-smi"} {
		if !strings.Contains(string(src), `"containerPath": "`+want) && !strings.Contains(string(src), `"containerPath":"`+want) {
			t.Errorf("the specification does not mount %s: %s", want, src)
		}
	}
	for path, wants := range map[string]os.FileMode{"sockets/nvidia/state/cdi": 0o755 | os.ModeDir, "sockets/nvidia/state/cdi/" + ownSpec: 0o644} {
		if st, err := os.Stat(m.Path(path)); err != nil || st.Mode() != wants {
			t.Errorf("%s has mode %v, want %v", path, st.Mode(), wants)
		}
	}
}

// A GPU that cannot be described does not take the others' names with it.
func TestOwnCDIWithALostGPU(t *testing.T) {
	t.Parallel()
	gpus := []string{versions, line(0, ""), line(1, ""), line(2, "")}
	m := newMachine(t, fakeLibrary(t), append(slices.Clone(gpus), "fail nvmlDeviceGetMinorNumber 3 2")...)
	m.Install(3)
	h := m.start()
	s := await(t, h, "devices", well(3))
	if s.Details[0].CDIName == "" || s.Details[2].CDIName != "" {
		t.Errorf("the CDI names are %q and %q", s.Details[0].CDIName, s.Details[2].CDIName)
	}
	m.Set(append(gpus, "fail nvmlDeviceGetUUID 15 1")...)
	s = await(t, h, "lost", func(s plugins.Snapshot) bool {
		return s.Devices[1].Health == gpuai.DeviceLost && s.Details[2].CDIName != ""
	})
	if s.Details[0].CDIName == "" {
		t.Errorf("with a GPU lost, the others have no CDI name: %+v", s.Details)
	}
}

// The host's specifications come first, by the device's UUID or by its place if it
// is that of the device's file; then nothing is written.
func TestHostCDI(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t), versions, line(0, ""), line(1, ""), line(2, ""))
	m.Install(3)
	entry := func(name string, minor int) string {
		return fmt.Sprintf(`{"name":%q,"containerEdits":{"deviceNodes":[{"path":"/dev/nvidia%d"}]}}`, name, minor)
	}
	m.Write("etc-cdi/nvidia.json", `{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[`+
		entry(uuid(0), 0)+","+entry("1", 1)+","+entry("2", 7)+`]}`)
	h := m.start()
	await(t, h, "devices", well(3))
	g, err := h.Reserve(t.Context(), reservation("1", 0, 0, 1, 2))
	if want := []string{"nvidia.com/gpu=" + uuid(0), "nvidia.com/gpu=1", "nvidia.com/gpu=" + uuid(2)}; err != nil || !slices.Equal(g.CDI, want) {
		t.Errorf("granted %+v, %v, want %v", g, err, want)
	}
}

// Without the driver's files there is no specification: device files, and the
// variables of the devices.
func TestNoCDI(t *testing.T) {
	t.Parallel()
	for _, cdi := range []string{cdiAuto, cdiOff} {
		m := newMachine(t, fakeLibrary(t), versions, line(0, ""), line(1, ""))
		m.Install(2)
		m.Config["cdi"] = cdi
		if err := os.Remove(m.Path("root/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15")); err != nil {
			t.Fatal(err)
		}
		h := m.start()
		await(t, h, "devices", well(2))
		g, err := h.Reserve(t.Context(), reservation("1", 0, 1))
		if err != nil || len(g.CDI) > 0 || len(g.DeviceNodes) != 4 || g.DeviceNodes[0] != (plugins.DeviceNode{
			HostPath: m.Path("root/dev/nvidia1"), ContainerPath: "/dev/nvidia1", Permissions: "rw",
		}) || g.Env["CUDA_VISIBLE_DEVICES"] != uuid(1) {
			t.Errorf("cdi %s: granted %+v, %v", cdi, g, err)
		}
	}
}
