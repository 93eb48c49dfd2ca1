//go:build cgo

package nvidia

import (
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// mocked is one of NVIDIA's mocks of its machines. What they leave open, and panic
// on, is filled in: links to switches, their places, and live measurements.
func mocked(s *server.Server, links int) *library {
	for i, d := range s.Devices {
		g := d.(*server.Device)
		g.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(i + 7)}, nvml.SUCCESS }
		g.GetSerialFunc = func() (string, nvml.Return) { return "", nvml.ERROR_NOT_SUPPORTED }
		g.GetMemoryAffinityFunc = func(int, nvml.AffinityScope) ([]uint, nvml.Return) { return []uint{1 << (i / 4)}, nvml.SUCCESS }
		g.GetNvLinkStateFunc = func(l int) (nvml.EnableState, nvml.Return) {
			if l >= links {
				return 0, nvml.ERROR_INVALID_ARGUMENT
			}
			return nvml.FEATURE_ENABLED, nvml.SUCCESS
		}
		g.GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) {
			return nvml.NVLINK_DEVICE_TYPE_SWITCH, nvml.SUCCESS
		}
		g.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
		g.GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NOT_FOUND }
		healthy(g)
		busy(g)
	}
	s.DeviceGetTopologyCommonAncestorFunc = func(nvml.Device, nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
		return nvml.TOPOLOGY_SYSTEM, nvml.SUCCESS
	}
	return &library{Interface: s, has: func(string) bool { return true }}
}

func healthy(g *server.Device) {
	g.GetComputeModeFunc = func() (nvml.ComputeMode, nvml.Return) { return nvml.COMPUTEMODE_DEFAULT, nvml.SUCCESS }
	g.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, nvml.SUCCESS }
	g.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, nvml.SUCCESS }
	g.GetRetiredPagesPendingStatusFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_DISABLED, nvml.SUCCESS }
	g.GetGpuFabricInfoFunc = func() (nvml.GpuFabricInfo, nvml.Return) { return nvml.GpuFabricInfo{}, nvml.ERROR_NOT_SUPPORTED }
	g.GetFieldValuesFunc = func(v []nvml.FieldValue) nvml.Return {
		v[0].NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
		return nvml.SUCCESS
	}
}

func busy(g *server.Device) {
	some := func(v uint32) func() (uint32, nvml.Return) {
		return func() (uint32, nvml.Return) { return v, nvml.SUCCESS }
	}
	g.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 50, Memory: 25}, nvml.SUCCESS }
	g.GetPowerUsageFunc, g.GetEnforcedPowerLimitFunc = some(120_000), some(400_000)
	g.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	g.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 44, nvml.SUCCESS }
	g.GetClockInfoFunc = func(nvml.ClockType) (uint32, nvml.Return) { return 1410, nvml.SUCCESS }
	g.GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) { return 1, nvml.SUCCESS }
	none := func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS }
	g.GetComputeRunningProcessesFunc, g.GetGraphicsRunningProcessesFunc = none, none
}

// NVIDIA's mocks of its own machines: eight GPUs, joined by switches.
func TestDGX(t *testing.T) {
	for _, c := range []struct {
		server *server.Server
		links  int
		model  string
		memory gpuai.Bytes
		cuda   string
	}{
		{dgxa100.New(), 12, "Mock-NVIDIA-A100-SXM4-40GB", 40 << 30, "CUDA 12.4"},
		{dgxh100.New(), 18, "H100-80GB-HBM3", 80 << 30, "CUDA 12.4"},
	} {
		l := mocked(c.server, c.links)
		s, err := l.scan()
		if err != nil || len(s.gpus) != 8 || len(s.links) != 28 || s.driver != c.server.DriverVersion || s.runtime != c.cuda {
			t.Fatalf("read %+v, %v", s, err)
		}
		g := s.gpus[5]
		if g.Model != c.model || g.Memory != c.memory || g.NUMANode != 1 || g.PCIBusID != "0000:0c:00.0" || len(g.faults) > 0 {
			t.Errorf("GPU 5 is %+v", g)
		}
		for _, link := range s.links {
			if link.Kind != plugins.LinkNVLink || link.Width != uint32(c.links) || link.A >= link.B {
				t.Errorf("a link is %+v", link)
			}
		}
		m := l.stats(&g)
		if *m.GPUUtilization != 0.5 || *m.PowerWatts != 120 || *m.SMClockHertz != 1.41e9 || m.EnergyMillijoules != nil || m.PCIeRxBytes != nil {
			t.Errorf("measured %+v", m)
		}
		// MIG, with nothing made yet: nothing to hand out, and no NVLink.
		if ret := g.handle.(*server.Device).SetMigModeFunc; ret == nil {
			t.Fatal("the mock has no MIG")
		}
		g.handle.SetMigMode(nvml.DEVICE_MIG_ENABLE)
		s, err = l.scan()
		if err != nil || len(s.gpus) != 8 || !s.gpus[5].Partitioned || len(s.gpus[5].faults) != 1 {
			t.Errorf("with MIG GPU 5 is %+v, %v", s.gpus[5], err)
		}
		for _, link := range s.links {
			if has := link.A == g.ID || link.B == g.ID; has != (link.Kind == plugins.LinkSystem) {
				t.Errorf("with MIG a link is %+v", link)
			}
		}
	}
}

func TestModelOf(t *testing.T) {
	for name, want := range map[string]string{
		"NVIDIA H100 80GB HBM3": "H100-80GB-HBM3", "Tesla T4": "Tesla-T4", "NVIDIA": "NVIDIA", "": "unknown",
		"NVIDIA A100-SXM4-40GB MIG 1g.5gb": "A100-SXM4-40GB-MIG-1g.5gb", "NVIDIA \xff GeForce": "GeForce",
	} {
		if got := modelOf(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}
