//go:build cgo

package nvidia

import (
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// stats measures a device. What NVML does not measure is left out: of a MIG
// instance it measures the memory only.
func (l *library) stats(g *gpu) plugins.Stats {
	s := plugins.Stats{Device: g.ID}
	if m, ret := g.handle.GetMemoryInfo(); ret == nvml.SUCCESS && m.Total > 0 {
		s.MemoryTotalBytes, s.MemoryUsedBytes = new(m.Total), new(min(m.Used, m.Total))
	}
	s.Processes = l.processes(g)
	if g.mig != nil {
		return s
	}
	if l.has("nvmlDeviceGetUtilizationRates") {
		if u, ret := g.handle.GetUtilizationRates(); ret == nvml.SUCCESS {
			s.GPUUtilization, s.MemoryUtilization = ratio(u.Gpu), ratio(u.Memory)
		}
	}
	l.power(g, &s)
	l.traffic(g, &s)
	if l.has("nvmlDeviceGetTotalEccErrors") {
		s.ECCUncorrected = total(g.handle.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.AGGREGATE_ECC))
		s.ECCCorrected = total(g.handle.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.AGGREGATE_ECC))
	}
	switch {
	case l.has("nvmlDeviceGetCurrentClocksEventReasons"):
		s.ThrottleReasons = total(g.handle.GetCurrentClocksEventReasons())
	case l.has("nvmlDeviceGetCurrentClocksThrottleReasons"):
		s.ThrottleReasons = total(g.handle.GetCurrentClocksThrottleReasons())
	}
	return s
}

func (l *library) power(g *gpu, s *plugins.Stats) {
	if l.has("nvmlDeviceGetPowerUsage") {
		s.PowerWatts = scaled(g.handle.GetPowerUsage())(1e-3)
	}
	if l.has("nvmlDeviceGetEnforcedPowerLimit") {
		s.PowerLimitWatts = scaled(g.handle.GetEnforcedPowerLimit())(1e-3)
	}
	if l.has("nvmlDeviceGetTotalEnergyConsumption") {
		s.EnergyMillijoules = total(g.handle.GetTotalEnergyConsumption())
	}
	if l.has("nvmlDeviceGetTemperature") {
		s.TemperatureCelsius = scaled(g.handle.GetTemperature(nvml.TEMPERATURE_GPU))(1)
	}
	if l.has("nvmlDeviceGetClockInfo") {
		s.SMClockHertz = scaled(g.handle.GetClockInfo(nvml.CLOCK_SM))(1e6)
	}
}

// allLinks asks for the sum over the NVLinks of a GPU.
const allLinks = math.MaxUint32

func (l *library) traffic(g *gpu, s *plugins.Stats) {
	if v, ok := l.field(g.handle, nvml.FI_DEV_PCIE_COUNT_RX_BYTES, 0); ok {
		s.PCIeRxBytes = new(v)
	}
	if v, ok := l.field(g.handle, nvml.FI_DEV_PCIE_COUNT_TX_BYTES, 0); ok {
		s.PCIeTxBytes = new(v)
	}
	rx, ok := l.field(g.handle, nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_RX, allLinks)
	tx, ok2 := l.field(g.handle, nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_TX, allLinks)
	if ok && ok2 {
		s.LinkBytes = new((rx + tx) << 10) // NVML counts KiB
	}
}

func ratio(percent uint32) *float64 { return new(min(float64(percent)/100, 1)) }

// total keeps a counter that was read.
func total(v uint64, ret nvml.Return) *uint64 {
	if ret != nvml.SUCCESS {
		return nil
	}
	return &v
}

// scaled keeps a measurement that was made: NVML has 0 for some that were not.
func scaled(v uint32, ret nvml.Return) func(by float64) *float64 {
	return func(by float64) *float64 {
		if ret != nvml.SUCCESS || v == 0 {
			return nil
		}
		return new(float64(v) * by)
	}
}

// processes are those that have the device open, with their memory, which is 0
// where NVML does not say it.
func (l *library) processes(g *gpu) []plugins.ProcessUse {
	var out []plugins.ProcessUse
	seen := map[uint32]bool{}
	add := func(ps []nvml.ProcessInfo, ret nvml.Return) {
		for _, p := range ps {
			if ret != nvml.SUCCESS || seen[p.Pid] {
				continue
			}
			seen[p.Pid] = true
			use := plugins.ProcessUse{PID: p.Pid}
			if p.UsedGpuMemory < uint64(gpuai.MaxMemory) {
				use.Memory = gpuai.Bytes(p.UsedGpuMemory)
			}
			out = append(out, use)
		}
	}
	add(g.handle.GetComputeRunningProcesses())
	if l.hasGraphics() {
		add(g.handle.GetGraphicsRunningProcesses())
	}
	return out
}

func (l *library) hasGraphics() bool {
	return l.has("nvmlDeviceGetGraphicsRunningProcesses_v3") || l.has("nvmlDeviceGetGraphicsRunningProcesses_v2") ||
		l.has("nvmlDeviceGetGraphicsRunningProcesses")
}
