package amd

import (
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai/plugins"
)

const (
	pciDevices  = "sys/bus/pci/devices"
	vendorAMD   = 0x1002
	kernelBound = "amdgpu"
)

// A function is one GPU on the PCI bus: its address names the directory.
type function struct {
	addr     string // "0000:05:00.0"
	driver   string // of the kernel, "" when none is bound
	device   uint16
	revision uint8
	numa     int32    // -1: not known
	way      []string // from the host bridge down to the GPU
}

func (f *function) dir() string { return filepath.Join(pciDevices, f.addr) }

// functions finds AMD's GPUs, whatever driver they are bound to.
func (t tree) functions() map[string]*function {
	out := map[string]*function{}
	for _, addr := range t.list(pciDevices) {
		if f := t.function(addr); f != nil {
			out[addr] = f
		}
	}
	return out
}

// function reads one, or returns nil when it is no GPU of AMD's.
func (t tree) function(addr string) *function {
	dir := filepath.Join(pciDevices, addr)
	vendor, _ := t.hex(dir, "vendor")
	class, _ := t.hex(dir, "class")
	if vendor != vendorAMD || !gpuClass(class) {
		return nil
	}
	device, _ := t.hex(dir, "device")
	revision, _ := t.hex(dir, "revision")
	f := &function{addr: addr, driver: t.target(dir, "driver"), device: uint16(device), revision: uint8(revision), numa: -1}
	if n, err := strconv.ParseInt(t.word(dir, "numa_node"), 10, 32); err == nil && n >= 0 {
		f.numa = int32(n)
	}
	f.way = t.way(dir)
	return f
}

// gpuClass reports whether a PCI class is a display controller's (03) or a
// processing accelerator's (12), as Instinct cards are.
func gpuClass(class uint64) bool { return class>>16 == 0x03 || class>>16 == 0x12 }

// way returns the host bridge and the bridges above a function, and itself.
// Bridges of AMD's directly above it are its card's own.
func (t tree) way(dir string) []string {
	real, err := filepath.EvalSymlinks(t.path(dir))
	if err != nil {
		return nil
	}
	var way []string
	at := real
	for ; strings.Contains(filepath.Base(at), ":"); at = filepath.Dir(at) {
		way = append([]string{filepath.Base(at)}, way...)
	}
	for len(way) > 2 {
		bridge := filepath.Join(append([]string{at}, way[:len(way)-1]...)...)
		if v, _ := tree("/").hex(bridge, "vendor"); v != vendorAMD {
			break
		}
		way = append(way[:len(way)-2], way[len(way)-1])
	}
	return way
}

// offBus reports whether the function answers configuration reads with ones,
// as one does that has fallen off the bus. One that sleeps does so too.
func (t tree) offBus(f *function) bool {
	if t.word(f.dir(), "power/runtime_status") == "suspended" {
		return false
	}
	b, err := t.bytes(2, f.dir(), "config")
	return err == nil && len(b) == 2 && b[0] == 0xff && b[1] == 0xff
}

// pciLink says how two functions are joined when nothing but PCIe joins them.
func pciLink(a, b *function) plugins.LinkKind {
	common := 0
	for common < min(len(a.way), len(b.way)) && a.way[common] == b.way[common] {
		common++
	}
	below := max(len(a.way), len(b.way)) - common - 1 // bridges of their own
	switch {
	case common >= 2 && below <= 1:
		return plugins.LinkPCIeSwitch
	case common >= 2:
		return plugins.LinkPCIeMultiSwitch
	case common == 1:
		return plugins.LinkHostBridge
	case a.numa >= 0 && a.numa == b.numa:
		return plugins.LinkNUMA
	}
	return plugins.LinkSystem
}
