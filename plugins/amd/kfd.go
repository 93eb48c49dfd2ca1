package amd

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	kfdClass = "sys/class/kfd/kfd"
	kfdNodes = kfdClass + "/topology/nodes"
)

// Types of a KFD io_link, of the kernel's kfd_crat.h.
const ioLinkXGMI = 11

// A node is one GPU, or one partition of a GPU, in KFD's topology.
type node struct {
	number   uint64 // of the directory
	place    int    // among the GPUs: the index that ROCm counts by
	gpuID    uint64
	addr     string // PCI address
	render   uint64 // minor of renderD
	gfx      string // "gfx942"
	uniqueID uint64 // 0: none
	memory   uint64 // bytes of its own
	links    []ioLink
}

// An ioLink is one direction of a link to another node.
type ioLink struct {
	kind, to         uint64
	minMBps, maxMBps uint64
}

// nodes returns KFD's GPU nodes in the order of the topology, and whether there
// is a KFD at all.
func (t tree) nodes() (out []node, present bool) {
	for _, name := range t.list(kfdNodes) {
		number, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			continue
		}
		present = true
		if n, ok := t.node(number); ok {
			n.place = len(out)
			out = append(out, n)
		}
	}
	return out, present
}

func (t tree) node(number uint64) (node, bool) {
	dir := filepath.Join(kfdNodes, strconv.FormatUint(number, 10))
	text, err := t.text(dir, "properties")
	if err != nil {
		return node{}, false
	}
	p := parseProperties(text)
	gpuID, _ := t.number(dir, "gpu_id")
	if gpuID == 0 || p["simd_count"] == 0 { // a CPU
		return node{}, false
	}
	n := node{
		number: number, gpuID: gpuID, addr: pciAddr(p["domain"], p["location_id"]),
		render: p["drm_render_minor"], gfx: gfxTarget(p["gfx_target_version"]), uniqueID: p["unique_id"],
	}
	n.memory = t.bankMemory(dir)
	n.links = append(t.ioLinks(dir, "io_links"), t.ioLinks(dir, "p2p_links")...)
	return n, true
}

// parseProperties reads lines of a name and a number. Lines that are none are
// passed over; of a name that comes twice the first counts.
func parseProperties(text string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		if _, twice := out[name]; err == nil && !twice && name != "" {
			out[name] = n
		}
	}
	return out
}

// pciAddr makes an address of KFD's domain and location: bus, device and function
// in the lower 16 bits. The uppermost four hold a partition's number.
func pciAddr(domain, location uint64) string {
	return fmt.Sprintf("%04x:%02x:%02x.%x", domain, location>>8&0xff, location>>3&0x1f, location&7)
}

// gfxTarget makes the compiler's name of KFD's number: 90402 is gfx942, 90010 is
// gfx90a.
func gfxTarget(v uint64) string {
	if v == 0 || v > 999_999 {
		return ""
	}
	return fmt.Sprintf("gfx%d%x%x", v/10_000, v/100%100, v%100)
}

// Kinds of memory banks that are the GPU's own (frame buffer, public and not).
const (
	heapPublic  = 1
	heapPrivate = 2
)

func (t tree) bankMemory(dir string) uint64 {
	sum := uint64(0)
	for _, name := range t.list(dir, "mem_banks") {
		text, err := t.text(dir, "mem_banks", name, "properties")
		if err != nil {
			continue
		}
		p := parseProperties(text)
		if kind := p["heap_type"]; kind == heapPublic || kind == heapPrivate {
			sum += min(p["size_in_bytes"], math.MaxUint64-sum)
		}
	}
	return sum
}

func (t tree) ioLinks(dir, sub string) []ioLink {
	var out []ioLink
	for _, name := range t.list(dir, sub) {
		text, err := t.text(dir, sub, name, "properties")
		if err != nil {
			continue
		}
		p := parseProperties(text)
		if _, ok := p["node_to"]; ok {
			out = append(out, ioLink{kind: p["type"], to: p["node_to"], minMBps: p["min_bandwidth"], maxMBps: p["max_bandwidth"]})
		}
	}
	return out
}

// width returns how many XGMI links this one is: the kernel gives the bandwidth
// of one as the least and of all as the greatest. It is 0 when the two are not
// joined directly, and 1 for GPUs before gfx90a, which give no bandwidth.
func (l ioLink) width() uint32 {
	switch {
	case l.minMBps == 0:
		return 1
	case l.maxMBps/l.minMBps > 64:
		return 1 // no such machine
	}
	return uint32(l.maxMBps / l.minMBps)
}
