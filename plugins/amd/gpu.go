package amd

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A gpu is one device of the inventory and where it is found. Its form on disk
// outlives a reboot, see driver.remember.
type gpu struct {
	plugins.Device `json:",inline"`

	Render uint64 `json:"render_minor"`
	GPUID  uint64 `json:"kfd_gpu_id"`
	Node   uint64 `json:"kfd_node"`
	GFX    string `json:"gfx_target"`
	// Token names it in ROCR_VISIBLE_DEVICES: "GPU-…", or ROCm's index when no
	// unique ID tells it from the others.
	Token string `json:"rocr_token"`

	links []ioLink
	fn    *function
}

func (g *gpu) renderNode() string { return "dev/dri/renderD" + strconv.FormatUint(g.Render, 10) }

// indexed reports whether only its place tells the device to ROCm.
func (g *gpu) indexed() bool { return !strings.HasPrefix(g.Token, "GPU-") }

// A finding is all that one look at the tree shows.
type finding struct {
	gpus []gpu // sorted by ID
	fns  map[string]*function
	why  string // there is no GPU; "" when there is one
}

// find looks at the tree. exclude lists PCI addresses that are not offered.
func (t tree) find(exclude []string) finding {
	out := finding{fns: t.functions()}
	nodes, kfd := t.nodes()
	byAddr := map[string][]node{}
	for _, n := range nodes {
		f := out.function(n.addr)
		if f != nil && f.driver == kernelBound && !slices.Contains(exclude, f.addr) {
			byAddr[f.addr] = append(byAddr[f.addr], n)
		}
	}
	unique := uniqueIDs(nodes)
	chips := t.chipIDs(out.fns)
	for addr, parts := range byAddr {
		out.gpus = append(out.gpus, t.gpus(out.fns[addr], parts, chips[addr])...)
	}
	if len(out.gpus) > gpuai.MaxGPUs {
		out.gpus = withoutWholes(out.gpus)
	}
	for i := range out.gpus {
		g := &out.gpus[i]
		n := nodes[slices.IndexFunc(nodes, func(n node) bool { return n.number == g.Node })]
		g.Token = strconv.Itoa(n.place)
		if unique[n.uniqueID] {
			g.Token = fmt.Sprintf("GPU-%016x", n.uniqueID)
		}
	}
	slices.SortFunc(out.gpus, func(a, b gpu) int { return cmp.Compare(a.ID, b.ID) })
	if len(out.gpus) == 0 {
		out.why = t.whyNone(out.fns, kfd)
	}
	return out
}

// function returns the function at an address. There are kernels that add a
// partition's number to its GPU's address, where there is no function then.
func (f *finding) function(addr string) *function {
	if fn := f.fns[addr]; fn != nil {
		return fn
	}
	return f.fns[addr[:len(addr)-1]+"0"]
}

// uniqueIDs returns the IDs that name one node only: there are kernels that give
// every partition of a GPU the same.
func uniqueIDs(nodes []node) map[uint64]bool {
	count := map[uint64]int{}
	for _, n := range nodes {
		count[n.uniqueID]++
	}
	out := map[uint64]bool{}
	for id, n := range count {
		out[id] = id != 0 && n == 1
	}
	return out
}

// chipIDs returns the unique ID of each GPU by its address; those that have none,
// or share one, are left out.
func (t tree) chipIDs(fns map[string]*function) map[string]uint64 {
	out, owner := map[string]uint64{}, map[uint64]string{}
	shared := map[uint64]bool{}
	for addr, f := range fns {
		id, ok := t.hex(f.dir(), "unique_id")
		if !ok || id == 0 {
			continue
		}
		_, taken := owner[id]
		shared[id] = shared[id] || taken
		owner[id], out[addr] = addr, id
	}
	for addr, id := range out {
		if shared[id] {
			delete(out, addr)
		}
	}
	return out
}

// withoutWholes leaves out the GPUs that are partitioned: eight MI300X in CPX mode
// have as many partitions as a node may have devices.
func withoutWholes(gpus []gpu) []gpu {
	gpus = slices.DeleteFunc(gpus, func(g gpu) bool { return g.Partitioned })
	for i := range gpus {
		gpus[i].Conflicts = nil
	}
	return gpus
}

// gpus returns the devices of one GPU: itself, or its partitions and itself as
// partitioned, which is for its health and what it measures.
func (t tree) gpus(f *function, parts []node, chip uint64) []gpu {
	id := gpuai.DeviceID(fmt.Sprintf("PCI-%s-%04x", f.addr, f.device))
	if chip == 0 && len(parts) == 1 {
		chip = parts[0].uniqueID // older kernels: KFD has it, the card's directory has not
	}
	if chip != 0 {
		id = gpuai.DeviceID(fmt.Sprintf("GPU-%016x", chip))
	}
	total, hasTotal := t.number(f.dir(), "mem_info_vram_total") // 0 if not
	model := modelName(t.word(f.dir(), "product_name"), f.device, f.revision)
	var out []gpu
	for _, n := range parts {
		g := gpu{
			Device: plugins.Device{
				ID: id, Vendor: "amd", Kind: "gpu", Model: model, Memory: memoryOf(n.memory), Index: uint32(n.place),
				PCIBusID: f.addr, NUMANode: f.numa, Serial: clip(t.word(f.dir(), "serial_number")),
			},
			Render: n.render, GPUID: n.gpuID, Node: n.number, GFX: n.gfx, links: n.links, fn: f,
		}
		if hasTotal && len(parts) == 1 {
			g.Memory = memoryOf(total)
		}
		out = append(out, g)
	}
	if len(out) > 1 {
		out = partitions(out, t.partitionMode(f, len(parts)), memoryOf(total))
	}
	return out
}

// partitions makes equal devices the partitions of one, which comes first.
func partitions(parts []gpu, mode string, total gpuai.Bytes) []gpu {
	whole := parts[0]
	whole.Partitioned, whole.links, whole.GPUID = true, nil, 0
	sum := gpuai.Bytes(0)
	for i := range parts {
		p := &parts[i]
		p.Kind, p.Parent, p.Conflicts = "partition", whole.ID, []gpuai.DeviceID{whole.ID}
		p.ID = gpuai.DeviceID(fmt.Sprintf("%s-%s%d", whole.ID, strings.ToLower(mode), i))
		p.Model += "-" + mode
		whole.Conflicts = append(whole.Conflicts, p.ID)
		sum += p.Memory
	}
	whole.Memory = cmp.Or(total, memoryOf(uint64(sum)))
	return append([]gpu{whole}, parts...)
}

// partitionMode returns "CPX" and the like: what the card says, or the number of
// partitions.
func (t tree) partitionMode(f *function, parts int) string {
	switch mode := t.word(f.dir(), "current_compute_partition"); mode {
	case "SPX", "DPX", "TPX", "QPX", "CPX":
		return mode
	}
	return strconv.Itoa(parts) + "PX"
}

// memoryOf keeps a garbage number within what a device can have.
func memoryOf(n uint64) gpuai.Bytes { return gpuai.Bytes(min(n, uint64(gpuai.MaxMemory)-1)) }

func clip(s string) string { return s[:min(len(s), gpuai.MaxTextLen)] }

// whyNone says why there is no device, and what would help.
func (t tree) whyNone(fns map[string]*function, kfd bool) string {
	if len(fns) == 0 {
		return "there is no AMD GPU on the PCI bus"
	}
	bound := 0
	for _, f := range fns {
		if f.driver == kernelBound {
			bound++
		}
	}
	switch {
	case bound == 0:
		return fmt.Sprintf("the AMD GPUs (%d) are not bound to the kernel's amdgpu driver: load it (modprobe amdgpu)", len(fns))
	case !kfd:
		return "the kernel's amdgpu driver has no KFD (/sys/class/kfd): it must be built with CONFIG_HSA_AMD"
	}
	return fmt.Sprintf("KFD lists none of the AMD GPUs (%d) that are to be offered: they are excluded, or the kernel does not support them for compute", bound)
}

// linksOf joins every pair of devices that can be had, in the contract's normal form: by XGMI
// where the topology says so, else by the way through PCIe.
func linksOf(gpus []gpu) []plugins.Link {
	var out []plugins.Link
	for i := range gpus {
		for j := i + 1; j < len(gpus); j++ {
			if !gpus[i].Partitioned && !gpus[j].Partitioned {
				out = append(out, linkOf(&gpus[i], &gpus[j]))
			}
		}
	}
	return out
}

func linkOf(a, b *gpu) plugins.Link {
	l := plugins.Link{A: a.ID, B: b.ID}
	l.Width = max(xgmi(a, b), xgmi(b, a))
	switch {
	case a.PCIBusID == b.PCIBusID:
		l.Kind, l.Width = plugins.LinkSameBoard, 0
	case l.Width > 0:
		l.Kind = plugins.LinkXGMI
	default:
		l.Kind = pciLink(a.fn, b.fn)
	}
	return l
}

// xgmi returns the number of XGMI links from a to b.
func xgmi(a, b *gpu) uint32 {
	for _, l := range a.links {
		if l.to == b.Node && l.kind == ioLinkXGMI {
			return l.width()
		}
	}
	return 0
}
