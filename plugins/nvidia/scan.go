//go:build cgo

package nvidia

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A scan is what NVML said of all devices at one time.
type scan struct {
	gpus    []gpu // partitions after their whole device
	links   []plugins.Link
	driver  string // version
	runtime string // "CUDA 12.4"
	unread  string // which GPUs could not be read, and why
}

// A gpu is one device, or one MIG instance of it.
type gpu struct {
	plugins.Device
	handle nvml.Device
	minor  int
	mig    *instance // nil for a whole device
	pci    pciAddress
	faults []fault // that reading it shows
}

// An instance is the place of a MIG device in its GPU.
type instance struct{ gi, ci int }

// noInstance is the GPU instance of an event that concerns the whole GPU.
const noInstance = 0xFFFFFFFF

// A pciAddress is where a GPU is.
type pciAddress struct{ domain, bus, device uint32 }

func (a pciAddress) String() string {
	return fmt.Sprintf("%04x:%02x:%02x.0", a.domain, a.bus, a.device)
}

// scan reads all devices. An error means that none can be read.
func (l *library) scan() (scan, error) {
	var s scan
	if v, ret := l.SystemGetDriverVersion(); ret == nvml.SUCCESS {
		s.driver = v
	}
	if l.has("nvmlSystemGetCudaDriverVersion") {
		if v, ret := l.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
			s.runtime = fmt.Sprintf("CUDA %d.%d", v/1000, v%1000/10)
		}
	}
	n, ret := l.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return s, fmt.Errorf("NVML does not count the devices: %w", ret)
	}
	for i := range n {
		h, ret := l.DeviceGetHandleByIndex(i)
		var g gpu
		if ret == nvml.SUCCESS {
			g, ret = l.whole(h, i)
		}
		if ret != nvml.SUCCESS {
			s.unread += fmt.Sprintf("GPU %d cannot be read: %v; ", i, ret)
			continue
		}
		s.gpus = append(s.gpus, l.split(g)...)
	}
	if len(s.gpus) > gpuai.MaxGPUs {
		return s, fmt.Errorf("there are %d devices with their MIG instances, a node has at most %d", len(s.gpus), gpuai.MaxGPUs)
	}
	s.links = l.links(s.gpus)
	return s, nil
}

// whole reads the GPU of an index; an error says that it cannot be told which one
// it is.
func (l *library) whole(h nvml.Device, index int) (gpu, nvml.Return) {
	g := gpu{handle: h, minor: -1}
	id, ret := h.GetUUID()
	if ret != nvml.SUCCESS {
		return g, ret
	}
	g.Device = plugins.Device{ID: gpuai.DeviceID(clip(id)), Vendor: "nvidia", Kind: "gpu", Index: uint32(index), NUMANode: -1, Model: "unknown"}
	if name, ret := h.GetName(); g.ok(ret) {
		g.Model = modelOf(name)
	}
	if m, ret := h.GetMemoryInfo(); g.ok(ret) {
		g.Memory = gpuai.Bytes(min(m.Total, uint64(gpuai.MaxMemory)-1))
	}
	if minor, ret := h.GetMinorNumber(); g.ok(ret) {
		g.minor = minor
	}
	if p, ret := h.GetPciInfo(); g.ok(ret) {
		g.pci = pciAddress{p.Domain, p.Bus, p.Device}
		g.PCIBusID = g.pci.String()
	}
	if l.has("nvmlDeviceGetSerial") {
		if serial, ret := h.GetSerial(); g.ok(ret) {
			g.Serial = clip(serial)
		}
	}
	g.NUMANode = l.numa(&g)
	l.examine(&g)
	return g, nvml.SUCCESS
}

// ok notes what an answer says of the device itself, and reports whether it is one.
func (g *gpu) ok(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_GPU_IS_LOST:
		g.note(fault{"nvml:gpu_is_lost", "NVML: the GPU has fallen off the bus", plugins.HealthLost, plugins.ActionRebootNode})
	case nvml.ERROR_RESET_REQUIRED:
		g.note(fault{"nvml:reset_required", "NVML: the GPU must be reset", plugins.HealthUnhealthy, plugins.ActionResetDevice})
	}
	return ret == nvml.SUCCESS
}

// lost reports whether reading the device says that it is gone.
func (g *gpu) lost() bool {
	return slices.ContainsFunc(g.faults, func(f fault) bool { return f.State == plugins.HealthLost })
}

// note adds a fault once.
func (g *gpu) note(f fault) {
	if !slices.ContainsFunc(g.faults, func(o fault) bool { return o.Code == f.Code }) {
		g.faults = append(g.faults, f)
	}
}

// clip bounds what the library says.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "")
	for len(s) > gpuai.MaxTextLen {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

// modelOf makes the name of a model of NVML's name of it: "NVIDIA H100 80GB HBM3"
// is H100-80GB-HBM3.
func modelOf(name string) string {
	words := strings.Fields(clip(name))
	if len(words) > 1 && strings.EqualFold(words[0], "NVIDIA") {
		words = words[1:]
	}
	if len(words) == 0 {
		return "unknown"
	}
	return strings.Join(words, "-")
}

// maxNUMA bounds the nodes that NVML is asked about.
const maxNUMA = 64

// numa is the NUMA node of the memory nearest to a GPU, -1 if not known.
func (l *library) numa(g *gpu) int32 {
	if l.has("nvmlDeviceGetMemoryAffinity") {
		if set, ret := g.handle.GetMemoryAffinity(maxNUMA, nvml.AFFINITY_SCOPE_NODE); ret == nvml.SUCCESS && len(set) > 0 {
			if bits.OnesCount(set[0]) == 1 {
				return int32(bits.TrailingZeros(set[0]))
			}
		}
	}
	if src, err := os.ReadFile("/sys/bus/pci/devices/" + g.PCIBusID + "/numa_node"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(src)), 10, 32); err == nil {
			return int32(n)
		}
	}
	return -1
}

// split returns a GPU and, if MIG is on, its instances.
func (l *library) split(g gpu) []gpu {
	if !l.has("nvmlDeviceGetMigMode") || !l.has("nvmlDeviceGetMigDeviceHandleByIndex") || !l.has("nvmlDeviceGetMaxMigDeviceCount") {
		return []gpu{g}
	}
	mode, _, ret := g.handle.GetMigMode()
	if !g.ok(ret) || mode != nvml.DEVICE_MIG_ENABLE {
		return []gpu{g}
	}
	g.Partitioned = true
	out := []gpu{g}
	n, ret := g.handle.GetMaxMigDeviceCount()
	if !g.ok(ret) {
		return out
	}
	for i := range n {
		h, ret := g.handle.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // a place without an instance
		}
		if m, ok := l.instance(&g, h); ok {
			m.Index = g.Index
			out[0].Conflicts = append(out[0].Conflicts, m.ID)
			out = append(out, m)
		}
	}
	slices.Sort(out[0].Conflicts)
	if len(out) == 1 {
		out[0].note(fault{"mig:empty", "MIG is on and no instance has been made: make some with nvidia-smi mig -cgi … -C, or turn MIG off",
			plugins.HealthDegraded, plugins.ActionWarn})
	}
	return out
}

// instance reads a MIG device of g.
func (l *library) instance(g *gpu, h nvml.Device) (gpu, bool) {
	m := *g
	m.handle, m.Partitioned, m.Kind, m.Parent = h, false, "mig", g.ID
	m.Conflicts, m.faults = []gpuai.DeviceID{g.ID}, slices.Clone(g.faults)
	id, ret := h.GetUUID()
	if ret != nvml.SUCCESS || id == "" {
		return m, false
	}
	m.ID = gpuai.DeviceID(clip(id))
	gi, err := l.place(h)
	if err != nil {
		return m, false
	}
	m.mig = &gi
	if info, ret := h.GetMemoryInfo(); ret == nvml.SUCCESS {
		m.Memory = gpuai.Bytes(min(info.Total, uint64(gpuai.MaxMemory)-1))
	}
	m.Model = l.profile(g, h)
	return m, true
}

func (l *library) place(h nvml.Device) (instance, error) {
	if !l.has("nvmlDeviceGetGpuInstanceId") || !l.has("nvmlDeviceGetComputeInstanceId") {
		return instance{}, errors.New("NVML does not say where MIG instances are")
	}
	gi, ret := h.GetGpuInstanceId()
	if ret != nvml.SUCCESS {
		return instance{}, ret
	}
	ci, ret := h.GetComputeInstanceId()
	if ret != nvml.SUCCESS {
		return instance{}, ret
	}
	return instance{gi, ci}, nil
}

// profile is the model of a MIG instance: the GPU's and the profile's name, as
// "A100-SXM4-40GB-MIG-1g.5gb".
func (l *library) profile(g *gpu, h nvml.Device) string {
	if name, ret := h.GetName(); ret == nvml.SUCCESS && strings.Contains(name, "MIG") {
		return modelOf(name)
	}
	if !l.has("nvmlDeviceGetAttributes_v2") && !l.has("nvmlDeviceGetAttributes") {
		return g.Model + "-MIG"
	}
	a, ret := h.GetAttributes()
	if ret != nvml.SUCCESS {
		return g.Model + "-MIG"
	}
	name := fmt.Sprintf("%s-MIG-%dg.%dgb", g.Model, a.GpuInstanceSliceCount, (a.MemorySizeMB+1023)/1024)
	if a.ComputeInstanceSliceCount < a.GpuInstanceSliceCount {
		name = fmt.Sprintf("%s-MIG-%dc.%dg.%dgb", g.Model, a.ComputeInstanceSliceCount, a.GpuInstanceSliceCount, (a.MemorySizeMB+1023)/1024)
	}
	return name
}
