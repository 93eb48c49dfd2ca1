//go:build cgo

package nvidia

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/conformance"
)

// await waits until the host's snapshot is as f wants.
func await(t *testing.T, h *plugins.Host, what string, f func(plugins.Snapshot) bool) plugins.Snapshot {
	t.Helper()
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for {
		s := h.Inventory()
		if f(s) {
			return s
		}
		select {
		case <-h.Changed():
		case <-late.C:
			t.Fatalf("%s: the host still has %+v", what, s)
		}
	}
}

func says(text string) func(plugins.Snapshot) bool {
	return func(s plugins.Snapshot) bool { return strings.Contains(s.Err, text) }
}

// well wants all of n devices healthy.
func well(n int) func(plugins.Snapshot) bool {
	return func(s plugins.Snapshot) bool {
		return s.Up && s.Err == "" && len(s.Devices) == n &&
			!slices.ContainsFunc(s.Devices, func(d gpuai.Device) bool { return d.Health != gpuai.DeviceHealthy })
	}
}

// The binary that is shipped passes what every driver must, with a GPU whose MIG
// is on and shares by MPS.
func TestConformance(t *testing.T) {
	m := newMachine(t, fakeLibrary(t), versions, line(0, "temp=40 power=90000 limit=700000 util=3 memutil=1"), line(1, ""),
		strings.Replace(line(2, ""), "mig=0", "mig=1", 1),
		"mig 2 0 uuid=MIG-a name=NVIDIA_H100_80GB_HBM3_MIG_1g.10gb gi=7 ci=0 memory=10200547328",
		"mig 2 1 uuid=MIG-b name=NVIDIA_H100_80GB_HBM3_MIG_2g.20gb gi=3 ci=0 memory=20937965568",
		"topo 0 1 20")
	m.Write("mps/control", "")
	conformance.Run(t, conformance.Subject{
		Path: driverBinary(t), Config: m.JSON(),
		Refused: map[string][]byte{
			"a relative library": []byte(`{"library_path":"libnvidia-ml.so.1"}`),
			"a quick scan":       []byte(`{"scan_ms":1}`),
			"an unknown CDI":     []byte(`{"cdi":"hooks"}`),
		},
	})
}

func TestFingerprint(t *testing.T) {
	m := newMachine(t, fakeLibrary(t), versions, line(0, ""), line(1, ""), line(2, ""),
		strings.Replace(line(3, ""), "mig=0", "mig=1", 1),
		"mig 3 0 uuid=MIG-a name=NVIDIA_H100_80GB_HBM3_MIG_1g.10gb gi=7 ci=0 memory=10200547328",
		"mig 3 2 uuid=MIG-b slices=2 compute=1 gi=3 ci=1 memory=21474836480",
		"link 0 0 1", "link 0 1 1", "link 1 0 0", "link 1 1 0", "link 1 2 2",
		"topo 0 2 20", "topo 1 2 30", "topo 0 3 50", "topo 1 3 50", "topo 2 3 10")
	h := m.start()
	s := await(t, h, "devices", func(s plugins.Snapshot) bool { return len(s.Details) == 6 })
	if s.DriverVersion != "550.54.15" || s.RuntimeVersion != "CUDA 12.4" || s.Simulated || s.Err != "" {
		t.Errorf("the inventory is %+v", s)
	}
	id := func(i int) gpuai.DeviceID { return gpuai.DeviceID(uuid(i)) }
	if got, want := s.Details[1], (plugins.Device{
		ID: id(1), Vendor: "nvidia", Kind: "gpu", Model: "H100-80GB-HBM3", Memory: 85520809984, Index: 1,
		PCIBusID: "0000:20:00.0", NUMANode: 0, Serial: "1651",
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("GPU 1 is %+v, want %+v", got, want)
	}
	if p := s.Details[3]; !p.Partitioned || !slices.Equal(p.Conflicts, []gpuai.DeviceID{"MIG-a", "MIG-b"}) {
		t.Errorf("the GPU with MIG is %+v", p)
	}
	if got, want := s.Details[5], (plugins.Device{
		ID: "MIG-b", Vendor: "nvidia", Kind: "mig", Model: "H100-80GB-HBM3-MIG-1c.2g.20gb", Memory: 20 << 30, Index: 3,
		PCIBusID: "0000:40:00.0", NUMANode: 1, Serial: "1653", Parent: id(3), Conflicts: []gpuai.DeviceID{id(3)},
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("a MIG instance is %+v, want %+v", got, want)
	}
	if want := []plugins.Link{
		{A: id(0), B: id(1), Kind: plugins.LinkNVLink, Width: 2},
		{A: id(0), B: id(2), Kind: plugins.LinkPCIeMultiSwitch},
		{A: id(0), B: id(3), Kind: plugins.LinkSystem},
		{A: id(1), B: id(2), Kind: plugins.LinkHostBridge}, // one end alone tells of an NVLink
		{A: id(1), B: id(3), Kind: plugins.LinkSystem},
		{A: id(2), B: id(3), Kind: plugins.LinkPCIeSwitch},
	}; !reflect.DeepEqual(s.Links, want) {
		t.Errorf("links are %+v, want %+v", s.Links, want)
	}
	placed := slices.Clone(s.Devices)
	plugins.Place(placed, []plugins.Snapshot{s})
	var places []gpuai.DevicePlace // of three GPUs, and two MIG instances that reach nobody
	for _, d := range placed {
		places = append(places, d.DevicePlace)
	}
	if want := []gpuai.DevicePlace{
		{NUMA: 1, LinkIsland: 1, PCIeGroup: 1}, {NUMA: 1, LinkIsland: 1}, {NUMA: 2, PCIeGroup: 1}, {NUMA: 2}, {NUMA: 2},
	}; !slices.Equal(places, want) {
		t.Errorf("the devices are at %+v, want %+v", places, want)
	}
	var offered []string
	for _, d := range s.Devices {
		offered = append(offered, string(d.ID))
	}
	if want := []string{uuid(0), uuid(1), uuid(2), "MIG-a", "MIG-b"}; !slices.Equal(offered, want) {
		t.Errorf("the region is offered %v, want %v", offered, want)
	}
}

// What can be wrong with the library: each time the host goes on and says why, and
// has the devices once it is put right.
func TestCase29BadLibrary(t *testing.T) {
	good := []string{versions, line(0, ""), line(1, "")}
	for _, c := range []struct {
		name    string
		library func(t *testing.T) string
		bad     string // line of nvml.conf
		want    string
	}{
		{"missing library", func(*testing.T) string { return "" }, "", "install the NVIDIA driver"},
		{"missing symbol", func(t *testing.T) string { return fakeLibrary(t, "nvmlDeviceGetUUID", "nvmlErrorString") }, "", "lacks nvmlErrorString, nvmlDeviceGetUUID"},
		{"no kernel module", nil, "fail nvmlInit_v2 9", "Driver Not Loaded: load the kernel module"},
		{"exits with 127", nil, "lookup nvmlDeviceGetName", "exit status 127: "},
		{"crashes", nil, "crash nvmlDeviceGetCount_v2", "NVML ends the process that calls it: exit status 2: SIGSEGV"},
		{"hangs", nil, "hang nvmlDeviceGetMemoryInfo", "NVML does not answer within 3s"},
		{"no device can be read", nil, "fail nvmlDeviceGetHandleByIndex_v2 3", "GPU 0 cannot be read: NVML error 3; GPU 1 cannot"},
		{"hangs for longer than it is waited for", nil, "hang nvmlInit_v2", "NVML has not answered for 3s"},
		{"no device", nil, "", "reports no GPU"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.library == nil {
				c.library = func(t *testing.T) string { return fakeLibrary(t) }
			}
			m := newMachine(t, c.library(t), append(slices.Clone(good), c.bad)...)
			if strings.Contains(c.want, "within 3s") {
				m.Config["hang_after_ms"] = 3000
			}
			if c.name == "no device" {
				m.Set(versions)
			}
			h := m.start()
			s := await(t, h, "why there is no device", says(c.want))
			if !s.Up || len(s.Devices) > 0 || s.Restarts > 0 {
				t.Errorf("the host has %+v", s)
			}
			src, err := os.ReadFile(fakeLibrary(t))
			if err != nil {
				t.Fatal(err)
			}
			m.Write(defaultLibrary, string(src))
			m.Set(good...)
			await(t, h, "put right", well(2))
		})
	}
}

// Symbols that older libraries lack are done without.
func TestMissingOptionalSymbols(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t, "nvmlDeviceGetSerial", "nvmlDeviceGetTemperature", "nvmlDeviceGetFieldValues", "nvmlDeviceGetRemappedRows",
		"nvmlDeviceGetNvLinkState", "nvmlDeviceGetMigMode", "nvmlEventSetCreate", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetGpuFabricInfo",
		"nvmlDeviceGetMemoryAffinity", "nvmlDeviceGetComputeMode", "nvmlSystemGetCudaDriverVersion", "nvmlDeviceGetTopologyCommonAncestor",
		"nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetTotalEccErrors"), versions, line(0, "temp=40"))
	h := m.start()
	s := await(t, h, "devices", well(1))
	if s.Details[0].Serial != "" || s.RuntimeVersion != "" || s.Details[0].NUMANode != -1 {
		t.Errorf("the inventory is %+v", s)
	}
	stats := measure(t, h)
	if stats[0].TemperatureCelsius != nil || stats[0].MemoryTotalBytes == nil {
		t.Errorf("measured %+v", stats[0])
	}
	if _, err := h.Reserve(t.Context(), reservation("1", 0)); err != nil {
		t.Error(err)
	}
	if clean, why, err := h.Release(t.Context(), "1", true); !clean || err != nil {
		t.Error(clean, why, err)
	}
}

// measure returns the first measurements of all devices.
func measure(t *testing.T, h *plugins.Host) []plugins.Stats {
	t.Helper()
	var out []plugins.Stats
	enough := errors.New("enough")
	err := h.Stats(t.Context(), time.Second, nil, func(s []plugins.Stats) error { out = s; return enough })
	if !errors.Is(err, enough) || len(out) == 0 {
		t.Fatalf("measured %+v: %v", out, err)
	}
	return out
}

func reservation(id string, share gpuai.Milli, gpus ...int) plugins.Reservation {
	if len(gpus) == 0 {
		gpus = []int{0}
	}
	r := plugins.Reservation{ID: id, Share: share, Incarnation: 1}
	for _, i := range gpus {
		r.Devices = append(r.Devices, gpuai.DeviceID(uuid(i)))
	}
	return r
}

// A library that goes bad under a running driver: the host starts it again, and
// says why there is no device until the library is good again. What is reserved
// stays so.
func TestCase29LibraryGoesBad(t *testing.T) {
	good := []string{versions, line(0, ""), line(1, "")}
	for _, c := range []struct{ name, bad, want string }{
		{"crash", "crash nvmlDeviceGetName", "SIGSEGV"},
		{"exit 127", "lookup nvmlDeviceGetMigMode", "symbol lookup error"},
		{"hang", "hang nvmlDeviceGetMinorNumber", "does not answer within 3s"},
		{"module unloaded", "fail nvmlDeviceGetCount_v2 9", "Driver Not Loaded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, fakeLibrary(t), good...)
			if c.name == "hang" {
				m.Config["hang_after_ms"] = 3000
			}
			h := m.start()
			await(t, h, "devices", well(2))
			if _, err := h.Reserve(t.Context(), reservation("held", 0)); err != nil {
				t.Fatal(err)
			}
			m.Set(append(slices.Clone(good), c.bad)...)
			s := await(t, h, "why there is no device", func(s plugins.Snapshot) bool { return s.Up && strings.Contains(s.Err, c.want) })
			if s.Restarts == 0 || len(s.Devices) != 2 || s.Devices[0].HealthCode != plugins.CodeDriverError {
				t.Errorf("the host has %+v", s)
			}
			m.Set(good...)
			await(t, h, "put right", well(2))
			if known, _, err := h.Recover(t.Context(), []string{"held"}); err != nil || len(known) != 1 {
				t.Errorf("of what was held it knows %v, %v", known, err)
			}
		})
	}
}

// Xid errors come by events and change the health of the device, over a restart of
// the driver; the reservation that met one that passes ends it.
func TestXidErrors(t *testing.T) {
	t.Parallel()
	conf := []string{versions, line(0, ""), line(1, ""), line(2, "elsewhere=1"),
		strings.Replace(line(3, ""), "mig=0", "mig=1", 1),
		"mig 3 0 uuid=MIG-a name=MIG_1g gi=7 ci=0 memory=1000", "mig 3 1 uuid=MIG-b name=MIG_1g gi=9 ci=0 memory=1000"}
	m := newMachine(t, fakeLibrary(t), append(slices.Clone(conf), "event 1 8 95 4294967295")...) // an old one
	h := m.start()
	await(t, h, "devices", well(5))
	health := func(code string, state plugins.HealthState, action plugins.HealthAction, ids ...string) func(plugins.Snapshot) bool {
		return func(s plugins.Snapshot) bool {
			return !slices.ContainsFunc(ids, func(id string) bool {
				h := s.Health[gpuai.DeviceID(id)]
				return h.Code != code || h.State != state || h.Action != action
			})
		}
	}
	conf = append(conf, "event 1 8 95 4294967295", "event 0 8 79 4294967295", "event 1 8 13 4294967295", "event 2 8 119 4294967295", "event 3 8 94 9")
	m.Set(conf...)
	lost := health("xid:79", plugins.HealthLost, plugins.ActionRebootNode, uuid(0))
	reset := health("xid:119", plugins.HealthUnhealthy, plugins.ActionResetDevice, uuid(2))
	s := await(t, h, "events", func(s plugins.Snapshot) bool {
		return lost(s) && reset(s) && health("xid:94", plugins.HealthDegraded, plugins.ActionRestartTask, "MIG-b")(s) &&
			health("xid:13", plugins.HealthOK, plugins.ActionWarn, uuid(1))(s)
	})
	if h := s.Health["MIG-a"]; h.State != plugins.HealthOK {
		t.Errorf("the error of another GPU instance makes it %+v", h)
	}
	if _, err := h.Reserve(t.Context(), reservation("1", 0, 2)); !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("a GPU that must be reset is reserved: %v", err)
	}
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, h, "after a restart", func(s plugins.Snapshot) bool { return s.Restarts == 1 && s.Up && lost(s) && reset(s) })
	for _, r := range []plugins.Reservation{reservation("1", 0, 1), {ID: "2", Devices: []gpuai.DeviceID{"MIG-b"}, Incarnation: 1}} {
		if _, err := h.Reserve(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if clean, why, err := h.Release(t.Context(), r.ID, true); !clean || err != nil {
			t.Error(clean, why, err)
		}
	}
	await(t, h, "released", health("", plugins.HealthOK, plugins.ActionNone, uuid(1), "MIG-b"))
	// NVML says that the GPU was reset, to a driver that did not see the error.
	conf[3] = line(2, "recovery=0")
	m.Set(conf...)
	await(t, h, "reset", health("", plugins.HealthOK, plugins.ActionNone, uuid(2)))
}

// What reading a GPU shows of its health.
func TestHealthByReading(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t), versions,
		line(0, "ecc_now=3"), line(1, "remap_pending=1 remap_failed=0"), line(2, "remap_pending=1 remap_failed=1"),
		line(3, "fabric=2"), line(4, "recovery=1"), line(5, ""), line(6, ""), "fail nvmlDeviceGetMemoryInfo 15 5", "fail nvmlDeviceGetMemoryInfo 16 6")
	h := m.start()
	s := await(t, h, "devices", func(s plugins.Snapshot) bool { return len(s.Health) == 7 })
	got := map[string]string{}
	for i := range 7 {
		got[uuid(i)] = s.Health[gpuai.DeviceID(uuid(i))].Code
	}
	want := map[string]string{
		uuid(0): "ecc:dbe", uuid(1): "remap:pending", uuid(2): "remap:failed", uuid(3): "fabric:not_ready",
		uuid(4): "recovery:reset", uuid(5): "nvml:gpu_is_lost", uuid(6): "nvml:reset_required",
	}
	if !maps.Equal(got, want) {
		t.Errorf("health codes are %v, want %v", got, want)
	}
	if h := s.Health[gpuai.DeviceID(uuid(2))]; h.Action != plugins.ActionReplace || !strings.Contains(h.Message, "also remap:pending") {
		t.Errorf("with two faults: %+v", h)
	}
	// Those that are lost while the driver runs stay what they were, with their instances.
	mig := []string{versions, line(0, ""), line(1, ""), strings.Replace(line(2, ""), "mig=0", "mig=1", 1), "mig 2 0 uuid=MIG-a name=MIG_1g gi=7 ci=0 memory=1000",
		line(3, ""), line(4, ""), line(5, ""), line(6, "")}
	m.Write("mode.6", "2")
	m.Set(mig...)
	before := await(t, h, "well", func(s plugins.Snapshot) bool {
		return len(s.Details) == 8 && s.Details[7].Memory > 0 && s.Health["MIG-a"].State == plugins.HealthOK && s.Health[gpuai.DeviceID(uuid(6))].Code == "mode:prohibited"
	})
	m.Set(append(mig, "fail nvmlDeviceGetName 15 2", "fail nvmlDeviceGetMemoryInfo 15 2", "fail nvmlDeviceGetMigMode 15 2", "fail nvmlDeviceGetUUID 15 1")...)
	s = await(t, h, "lost", func(s plugins.Snapshot) bool {
		return s.Health["MIG-a"].State == plugins.HealthLost && s.Health[gpuai.DeviceID(uuid(1))].Code == "nvml:vanished"
	})
	if !reflect.DeepEqual(s.Details, before.Details) {
		t.Errorf("with two GPUs lost the devices are %+v, they were %+v", s.Details, before.Details)
	}
	if err := os.Remove(m.Path("mode.6")); err != nil {
		t.Fatal(err)
	}
	// A GPU that NVML does not list any more is lost, and well when it is back.
	lines := []string{versions, line(0, ""), line(1, "")}
	m.Set(lines...)
	await(t, h, "gone", func(s plugins.Snapshot) bool {
		return s.Health[gpuai.DeviceID(uuid(4))].Code == "nvml:vanished" && s.Health[gpuai.DeviceID(uuid(1))].State == plugins.HealthOK
	})
	m.Set(append(lines, line(2, ""), line(3, ""), line(4, ""), line(5, ""), line(6, ""))...)
	await(t, h, "back", func(s plugins.Snapshot) bool {
		return len(s.Details) == 7 && !slices.ContainsFunc(s.Details, func(d plugins.Device) bool { return s.Health[d.ID].State != plugins.HealthOK })
	})
}

func TestStats(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t), versions,
		line(0, "used=1000 util=97 memutil=40 power=350500 limit=700000 energy=123 temp=61 clock=1980 throttle=4 ecc_corrected=2 ecc_uncorrected=0 pcie_rx=5 pcie_tx=6 nvlink_rx=1 nvlink_tx=2"),
		line(1, "power=0 temp=0"), "proc 0 4711 900", "proc 0 4712 18446744073709551615", "proc 0 4711 900 graphics")
	h := m.start()
	await(t, h, "devices", well(2))
	got := measure(t, h)
	want := []plugins.Stats{{
		Device: gpuai.DeviceID(uuid(0)), GPUUtilization: new(0.97), MemoryUtilization: new(0.4),
		MemoryUsedBytes: new(uint64(1000)), MemoryTotalBytes: new(uint64(85520809984)),
		PowerWatts: new(350.5), PowerLimitWatts: new(700.0), EnergyMillijoules: new(uint64(123)), TemperatureCelsius: new(61.0),
		SMClockHertz: new(1.98e9), PCIeRxBytes: new(uint64(5)), PCIeTxBytes: new(uint64(6)), LinkBytes: new(uint64(3 << 10)),
		ECCUncorrected: new(uint64(0)), ECCCorrected: new(uint64(2)), ThrottleReasons: new(uint64(4)),
		Processes: []plugins.ProcessUse{{PID: 4711, Memory: 900}, {PID: 4712}},
	}, {
		Device: gpuai.DeviceID(uuid(1)), MemoryUsedBytes: new(uint64(0)), MemoryTotalBytes: new(uint64(85520809984)),
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("measured %+v, want %+v", got, want)
	}
}

// A device is clean when no process holds it and its memory is free; one that is
// not is unhealthy until it is.
func TestRelease(t *testing.T) {
	t.Parallel()
	gpus := []string{versions, line(0, ""), line(1, "")}
	m := newMachine(t, fakeLibrary(t), gpus...)
	m.Write("scrub", "#!/bin/sh\necho \"$CUDA_VISIBLE_DEVICES\" >>"+m.Path("scrubbed")+"\ntest ! -e "+m.Path("broken")+" || { echo no memory; exit 3; }\n")
	if err := os.Chmod(m.Path("scrub"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.Config["scrub_command"] = []string{m.Path("scrub")}
	h := m.start()
	await(t, h, "devices", well(2))
	release := func(id string, lines ...string) (bool, string) {
		t.Helper()
		if _, err := h.Reserve(t.Context(), reservation(id, 0)); err != nil {
			t.Fatal(err)
		}
		m.Set(append(slices.Clone(gpus), lines...)...)
		clean, why, err := h.Release(t.Context(), id, true)
		if err != nil {
			t.Fatal(err)
		}
		return clean, why
	}
	if clean, why := release("1"); !clean {
		t.Errorf("a free GPU is not clean: %s", why)
	}
	if src, err := os.ReadFile(m.Path("scrubbed")); err != nil || string(src) != uuid(0)+"\n" {
		t.Errorf("scrubbed %q, %v", src, err)
	}
	unclean := func(s plugins.Snapshot) bool {
		return s.Health[gpuai.DeviceID(uuid(0))].Code == codeUnclean && s.Devices[0].Health == gpuai.DeviceUnhealthy
	}
	if clean, why := release("2", "proc 0 1 5000"); clean || !strings.Contains(why, uuid(0)+": process 1 (") {
		t.Errorf("with a process: clean %t, %s", clean, why)
	}
	await(t, h, "held", unclean)
	if _, err := h.Reserve(t.Context(), reservation("3", 0)); !errors.Is(err, plugins.ErrUnusable) {
		t.Errorf("an unclean device is reserved: %v", err)
	}
	m.Set(gpus...)
	await(t, h, "not held", well(2))
	if clean, why := release("3", "proc 0 2147483647 5000 graphics"); clean || !strings.Contains(why, "gone") {
		t.Errorf("with a process of a display: clean %t, %s", clean, why)
	}
	await(t, h, "held by a display", unclean)
	m.Set(gpus...)
	await(t, h, "not held", well(2))
	m.Write("broken", "")
	if clean, why := release("4"); clean || !strings.Contains(why, "scrub_command: exit status 3: no memory") {
		t.Errorf("not scrubbed: clean %t, %s", clean, why)
	}
	await(t, h, "not scrubbed", func(s plugins.Snapshot) bool { return s.Health[gpuai.DeviceID(uuid(0))].Code == codeUnscrubbed })
}

// Memory in use without a process is held by one that does not show.
func TestReleaseResidue(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t), versions, line(0, "used=3221225472"))
	h := m.start()
	await(t, h, "devices", well(1))
	if _, err := h.Reserve(t.Context(), reservation("1", 0)); err != nil {
		t.Fatal(err)
	}
	if clean, why, err := h.Release(t.Context(), "1", true); clean || err != nil || !strings.Contains(why, "3072 MiB of its memory") {
		t.Errorf("clean %t, %s, %v", clean, why, err)
	}
}

// Shares are those of MPS: its limits in the environment, the compute mode that
// lets only its server in, and refused while it is not there.
func TestShare(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t), versions, line(0, ""), line(1, ""))
	m.Config["mps_shm_directory"] = m.Path("shm")
	h := m.start()
	await(t, h, "devices", well(2))
	if _, err := h.Reserve(t.Context(), reservation("1", 250)); !errors.Is(err, plugins.ErrUnusable) || !strings.Contains(err.Error(), "nvidia-cuda-mps-control") {
		t.Errorf("without MPS: %v", err)
	}
	m.Write("mps/control", "")
	g, err := h.Reserve(t.Context(), reservation("1", 250))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"CUDA_VISIBLE_DEVICES": uuid(0), "NVIDIA_VISIBLE_DEVICES": uuid(0), "CUDA_MPS_PIPE_DIRECTORY": m.Path("mps"),
		"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=20389M",
	}
	if !maps.Equal(g.Env, want) || len(g.Mounts) != 2 || g.Mounts[1].ContainerPath != "/dev/shm" {
		t.Errorf("granted %+v, want %v", g, want)
	}
	mode := func() string {
		src, err := os.ReadFile(m.Path("mode.0"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(src))
	}
	if got := mode(); got != "3" {
		t.Errorf("the compute mode of a shared GPU is %s, want 3, EXCLUSIVE_PROCESS", got)
	}
	if clean, why, err := h.Release(t.Context(), "1", true); !clean || err != nil {
		t.Error(clean, why, err)
	}
	if got := mode(); got != "0" {
		t.Errorf("the compute mode of a released GPU is %s, want 0, DEFAULT", got)
	}
	m.Set(versions, line(0, ""), line(1, ""), "fail nvmlDeviceSetComputeMode 4")
	if _, err := h.Reserve(t.Context(), reservation("2", 250)); !errors.Is(err, plugins.ErrUnusable) || !strings.Contains(err.Error(), "as root") {
		t.Errorf("without the right to set the mode: %v", err)
	}
	if _, err := h.Reserve(t.Context(), reservation("3", 0)); err != nil {
		t.Errorf("the refused share is still held: %v", err)
	}
}

// The release of a device that takes longer than its caller waits goes on, and the
// next caller has its result.
func TestReleaseOutlivesItsCaller(t *testing.T) {
	t.Parallel()
	m := newMachine(t, fakeLibrary(t), versions, line(0, ""))
	fifo := m.Path("fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Config["scrub_command"] = []string{"/bin/sh", "-c", "read go <" + fifo + "; exit 4"}
	p, err := plugins.Launch(t.Context(), m.hostConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	r := p.Remote()
	if _, err := r.Reserve(t.Context(), reservation("1", 0)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, _, err := r.Release(t.Context(), "1", true); ended <- err }()
	gate, err := os.OpenFile(fifo, os.O_WRONLY, 0) // when the program has opened it
	if err != nil {
		t.Fatal(err)
	}
	known, _, err := r.Recover(t.Context(), []string{"1"})
	if err != nil || len(known) != 1 {
		t.Errorf("while it is released, %v is known, %v", known, err)
	}
	if _, err := gate.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	gate.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if known, _, err := r.Recover(t.Context(), []string{"1"}); err != nil || len(known) != 0 {
		t.Errorf("afterwards %v is known, %v", known, err)
	}
}

// A driver finds its library by the loader too.
func TestLibraryByTheLoader(t *testing.T) {
	m := newMachine(t, fakeLibrary(t), versions, line(0, ""))
	delete(m.Config, "library_path")
	t.Setenv("LD_LIBRARY_PATH", filepath.Dir(m.Path(defaultLibrary)))
	await(t, m.start(), "devices", well(1))
}
