//go:build cgo

package nvidia

import (
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpuai/gpuai/plugins"
)

// ancestors are the kinds of links by what two GPUs have in common.
var ancestors = map[nvml.GpuTopologyLevel]plugins.LinkKind{
	nvml.TOPOLOGY_INTERNAL:   plugins.LinkSameBoard,
	nvml.TOPOLOGY_SINGLE:     plugins.LinkPCIeSwitch,
	nvml.TOPOLOGY_MULTIPLE:   plugins.LinkPCIeMultiSwitch,
	nvml.TOPOLOGY_HOSTBRIDGE: plugins.LinkHostBridge,
	nvml.TOPOLOGY_NODE:       plugins.LinkNUMA,
	nvml.TOPOLOGY_SYSTEM:     plugins.LinkSystem,
}

// links are those between whole GPUs: NVLink where there is one, else what they
// have in common on PCIe. MIG instances have none: they reach no peer.
func (l *library) links(gpus []gpu) []plugins.Link {
	var whole []*gpu
	for i := range gpus {
		if gpus[i].mig == nil {
			whole = append(whole, &gpus[i])
		}
	}
	lines := make([]nvlinks, len(whole))
	for i, g := range whole {
		lines[i] = l.nvlinks(g)
	}
	var out []plugins.Link
	for i, a := range whole {
		for j := i + 1; j < len(whole); j++ {
			b := whole[j]
			link := plugins.Link{A: min(a.ID, b.ID), B: max(a.ID, b.ID), Kind: plugins.LinkNVLink}
			link.Width = max(min(lines[i].peers[b.pci], lines[j].peers[a.pci]), min(lines[i].switches, lines[j].switches))
			if link.Width == 0 {
				link.Kind = l.ancestor(a, b)
			}
			if link.Kind != 0 {
				out = append(out, link)
			}
		}
	}
	slices.SortFunc(out, func(a, b plugins.Link) int {
		if a.A != b.A {
			return strings.Compare(string(a.A), string(b.A))
		}
		return strings.Compare(string(a.B), string(b.B))
	})
	return out
}

// ancestor is what two GPUs have in common on PCIe; 0 if NVML does not say.
func (l *library) ancestor(a, b *gpu) plugins.LinkKind {
	if !l.has("nvmlDeviceGetTopologyCommonAncestor") {
		return 0
	}
	level, ret := l.DeviceGetTopologyCommonAncestor(a.handle, b.handle)
	if ret != nvml.SUCCESS {
		return 0
	}
	return ancestors[level]
}

// Nvlinks are the active NVLinks of one GPU.
type nvlinks struct {
	peers    map[pciAddress]uint32 // to a GPU directly
	switches uint32                // to NVSwitches, which join all
}

func (l *library) nvlinks(g *gpu) nvlinks {
	n := nvlinks{peers: map[pciAddress]uint32{}}
	if !l.has("nvmlDeviceGetNvLinkState") || g.Partitioned {
		return n
	}
	for i := range nvml.NVLINK_MAX_LINKS {
		state, ret := g.handle.GetNvLinkState(i)
		if ret != nvml.SUCCESS {
			return n // the GPU has no more
		}
		if state != nvml.FEATURE_ENABLED {
			continue
		}
		if l.toSwitch(g, i) {
			n.switches++
		} else if p, ret := l.remote(g, i); ret {
			n.peers[p]++
		}
	}
	return n
}

func (l *library) toSwitch(g *gpu, i int) bool {
	if !l.has("nvmlDeviceGetNvLinkRemoteDeviceType") {
		return false
	}
	kind, ret := g.handle.GetNvLinkRemoteDeviceType(i)
	return ret == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH
}

func (l *library) remote(g *gpu, i int) (pciAddress, bool) {
	if !l.has("nvmlDeviceGetNvLinkRemotePciInfo_v2") && !l.has("nvmlDeviceGetNvLinkRemotePciInfo") {
		return pciAddress{}, false
	}
	p, ret := g.handle.GetNvLinkRemotePciInfo(i)
	return pciAddress{p.Domain, p.Bus, p.Device}, ret == nvml.SUCCESS
}
