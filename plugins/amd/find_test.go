package amd

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/plugins/amd/amdtest"
)

func find(tr *amdtest.Tree) finding { return tree(tr.Root).find(nil) }

func TestMI300X(t *testing.T) {
	tr := amdtest.MI300X(t)
	f := find(tr)
	if len(f.gpus) != 8 || f.why != "" {
		t.Fatalf("found %d devices, %q", len(f.gpus), f.why)
	}
	want := plugins.Device{
		ID: "GPU-a1b2c3d4e5f60005", Vendor: "amd", Kind: "gpu", Model: "MI300X", Memory: 192 << 30, Index: 5,
		PCIBusID: "0000:55:00.0", NUMANode: 1, Serial: "PCB000085",
	}
	g := f.gpus[5]
	if !reflect.DeepEqual(g.Device, want) {
		t.Errorf("got  %+v\nwant %+v", g.Device, want)
	}
	if g.Token != "GPU-a1b2c3d4e5f60005" || g.GFX != "gfx942" || g.Render != 133 {
		t.Errorf("ROCm's name %s, target %s, render node %d", g.Token, g.GFX, g.Render)
	}
	links := linksOf(f.gpus)
	if len(links) != 28 {
		t.Fatalf("%d links join 8 devices", len(links))
	}
	for i, l := range links {
		if l.Kind != plugins.LinkXGMI || l.Width != 1 || l.A >= l.B {
			t.Errorf("link %d is %+v", i, l)
		}
	}
}

func TestMI210(t *testing.T) {
	f := find(amdtest.MI210(t, 4))
	if len(f.gpus) != 4 || f.gpus[0].Model != "MI210" || f.gpus[0].GFX != "gfx90a" || f.gpus[0].Memory != 64<<30 {
		t.Fatalf("found %+v", f.gpus)
	}
	var got []string
	for _, l := range linksOf(f.gpus) {
		got = append(got, fmt.Sprintf("%s-%s %d×%d", l.A[19:], l.B[19:], l.Kind, l.Width))
	}
	want := []string{"0-1 8×3", "0-2 2×0", "0-3 2×0", "1-2 2×0", "1-3 2×0", "2-3 8×3"}
	if !slices.Equal(got, want) {
		t.Errorf("links are %q, want %q", got, want)
	}
}

// places are those that the region is told of the devices of a tree.
func places(f *finding) (out []gpuai.DevicePlace) {
	snap := plugins.Snapshot{Links: linksOf(f.gpus)}
	var ds []gpuai.Device
	for i := range f.gpus {
		snap.Details = append(snap.Details, f.gpus[i].Device)
		ds = append(ds, gpuai.Device{ID: f.gpus[i].ID})
	}
	plugins.Place(ds, []plugins.Snapshot{snap})
	for i := range ds {
		out = append(out, ds[i].DevicePlace)
	}
	return out
}

// An MI300X host is one island over two NUMA nodes; of four MI210 behind one switch
// two and two are bridged; Radeons are joined by nothing.
func TestPlaces(t *testing.T) {
	big, bridged, cards := find(amdtest.MI300X(t)), find(amdtest.MI210(t, 4)), find(amdtest.Radeon(t))
	for i, p := range places(&big) {
		if want := (gpuai.DevicePlace{NUMA: gpuai.NUMAOf(int32(i / 4)), LinkIsland: 1}); p != want {
			t.Errorf("MI300X %d is at %+v, want %+v", i, p, want)
		}
	}
	for i, p := range places(&bridged) {
		if p.LinkIsland != uint8(i/2+1) || p.PCIeGroup != 1 {
			t.Errorf("MI210 %d is at %+v", i, p)
		}
	}
	for i, p := range places(&cards) {
		if p != (gpuai.DevicePlace{}) {
			t.Errorf("Radeon %d is at %+v", i, p)
		}
	}
}

func TestRadeon(t *testing.T) {
	f := find(amdtest.Radeon(t))
	if len(f.gpus) != 2 {
		t.Fatalf("found %+v", f.gpus)
	}
	known, other := f.gpus[0], f.gpus[1]
	if known.ID != "GPU-1f2e3d4c5b6a7988" || known.Model != "Radeon RX 7900 XTX" || known.NUMANode != -1 || known.GFX != "gfx1100" {
		t.Errorf("the known card is %+v", known)
	}
	if other.ID != "PCI-0000:08:00.0-6fdf" || other.Model != "AMD-6fdf" || other.Token != "1" || other.Serial != "" {
		t.Errorf("the card without a unique ID is %+v", other)
	}
	if l := linksOf(f.gpus); len(l) != 1 || l[0].Kind != plugins.LinkHostBridge {
		t.Errorf("links are %+v", l)
	}
	if left := tree(amdtest.Radeon(t).Root).find([]string{"0000:03:00.0"}).gpus; len(left) != 1 || left[0].PCIBusID != "0000:08:00.0" {
		t.Errorf("with one excluded there is %+v", left)
	}
}

// Partitions are devices of their own. This kernel gives all of a GPU the same
// unique ID, so ROCm finds them by their place.
func TestPartitions(t *testing.T) {
	f := find(amdtest.MI300XParts(t))
	if len(f.gpus) != 18 {
		t.Fatalf("found %d devices", len(f.gpus))
	}
	whole, p := f.gpus[9], f.gpus[13]
	if !whole.Partitioned || whole.ID != "GPU-a1b2c3d4e5f60001" || whole.Memory != 192<<30 || len(whole.Conflicts) != 8 || whole.Model != "MI300X" {
		t.Errorf("the GPU is %+v", whole.Device)
	}
	want := plugins.Device{
		ID: "GPU-a1b2c3d4e5f60001-cpx3", Vendor: "amd", Kind: "partition", Model: "MI300X-CPX", Memory: 24 << 30, Index: 11,
		PCIBusID: "0000:15:00.0", Serial: "PCB000021", Parent: "GPU-a1b2c3d4e5f60001",
		Conflicts: []gpuai.DeviceID{"GPU-a1b2c3d4e5f60001"},
	}
	if !reflect.DeepEqual(p.Device, want) || p.Token != "11" {
		t.Errorf("got  %+v, ROCm's name %s\nwant %+v", p.Device, p.Token, want)
	}
	board, system := 0, 0
	for _, l := range linksOf(f.gpus) {
		switch l.Kind {
		case plugins.LinkSameBoard:
			board++
		case plugins.LinkNUMA:
			system++
		}
	}
	if board != 2*28 || system != 64 {
		t.Errorf("%d pairs on one board, %d across", board, system)
	}
}

// Partitions that the kernel gives unique IDs of their own are named by them.
func TestPartitionsWithUniqueIDs(t *testing.T) {
	tr := amdtest.MI300XParts(t)
	dir := tr.Node(0) + "/properties"
	text, err := tree(tr.Root).text(dir)
	if err != nil {
		t.Fatal(err)
	}
	tr.Set(dir, strings.ReplaceAll(text, fmt.Sprintf("unique_id %d", uint64(0xa1b2c3d4e5f60000)), "unique_id 255"))
	if g := find(tr).gpus[1]; g.Token != "GPU-00000000000000ff" || g.ID != "GPU-a1b2c3d4e5f60000-cpx0" {
		t.Errorf("the partition is %s, ROCm's name is %s", g.ID, g.Token)
	}
}

// There are kernels that add a partition's number to the address instead.
func TestPartitionsInTheAddress(t *testing.T) {
	tr := amdtest.MI300XParts(t)
	for n := range uint64(8) {
		file := fmt.Sprintf("sys/class/kfd/kfd/topology/nodes/%d/properties", n+1)
		text, err := tree(tr.Root).text(file)
		if err != nil {
			t.Fatal(err)
		}
		tr.Set(file, strings.Replace(text, fmt.Sprintf("location_id %d\n", 0x500|n<<28), fmt.Sprintf("location_id %d\n", 0x500|n), 1))
	}
	if f := find(tr); len(f.gpus) != 18 || f.gpus[8].ID != "GPU-a1b2c3d4e5f60000-cpx7" || f.gpus[8].PCIBusID != "0000:05:00.0" {
		t.Errorf("found %+v", f.gpus)
	}
}

// Eight GPUs in CPX mode have as many partitions as a node may have devices: they
// themselves are left out.
func TestMostPartitions(t *testing.T) {
	var cards []amdtest.Card
	for i := range uint64(8) {
		cards = append(cards, amdtest.Card{Bus: i + 1, Above: []string{"pci0000:00"}, Device: 0x74a1, UniqueID: i + 1, VRAM: 192 << 30, Parts: 8, Mode: "CPX"})
	}
	f := find(amdtest.New(t, cards...))
	if len(f.gpus) != gpuai.MaxGPUs {
		t.Fatalf("found %d devices", len(f.gpus))
	}
	for _, g := range f.gpus {
		if g.Partitioned || len(g.Conflicts) > 0 || g.Parent == "" {
			t.Errorf("found %+v", g.Device)
		}
	}
}

func TestModelName(t *testing.T) {
	for _, c := range []struct {
		product  string
		device   uint16
		revision uint8
		want     string
	}{
		{"AMD Instinct MI300X OAM", 0x74a1, 0, "MI300X"},
		{"", 0x74a1, 7, "MI300X"},
		{"AMD INSTINCT MI250 (MCM) OAM AC MBA", 0x740c, 1, "MI250"},
		{"", 0x740c, 1, "MI250"},
		{"N/A", 0x740f, 2, "MI210"},
		{"", 0x744c, 0xcc, "Radeon RX 7900 XT"},
		{"", 0x744c, 0x01, "AMD-744c"},
		{"AMD Radeon PRO V710", 0x7461, 0, "Radeon PRO V710"},
		{strings.Repeat("x", 65), 0x1, 0, "AMD-0001"},
		{"MIX", 0x2, 0, "MIX"},
	} {
		if got := modelName(c.product, c.device, c.revision); got != c.want {
			t.Errorf("%q %04x:%02x is %q, want %q", c.product, c.device, c.revision, got, c.want)
		}
	}
}

func TestGFXTarget(t *testing.T) {
	for v, want := range map[uint64]string{
		0: "", 90402: "gfx942", 90010: "gfx90a", 90008: "gfx908", 100300: "gfx1030", 110000: "gfx1100", 120001: "gfx1201", 1 << 40: "",
	} {
		if got := gfxTarget(v); got != want {
			t.Errorf("%d is %q, want %q", v, got, want)
		}
	}
}

func TestPCILink(t *testing.T) {
	way := func(s string) *function { return &function{way: strings.Fields(s), numa: -1} }
	near := func(f *function, numa int32) *function { f.numa = numa; return f }
	for _, c := range []struct {
		a, b *function
		want plugins.LinkKind
	}{
		{way("pci0 port up down1 a"), way("pci0 port up down2 b"), plugins.LinkPCIeSwitch},
		{way("pci0 port up down1 up2 down3 a"), way("pci0 port up down2 b"), plugins.LinkPCIeMultiSwitch},
		{way("pci0 port1 a"), way("pci0 port2 b"), plugins.LinkHostBridge},
		{near(way("pci0 port a"), 1), near(way("pci1 port b"), 1), plugins.LinkNUMA},
		{near(way("pci0 port a"), 0), near(way("pci1 port b"), 1), plugins.LinkSystem},
		{way("pci0 port a"), way("pci1 port b"), plugins.LinkSystem},
		{way(""), way(""), plugins.LinkSystem},
	} {
		if got := pciLink(c.a, c.b); got != c.want {
			t.Errorf("%v and %v are %d, want %d", c.a.way, c.b.way, got, c.want)
		}
		if got := pciLink(c.b, c.a); got != c.want {
			t.Errorf("%v and %v are %d, want %d", c.b.way, c.a.way, got, c.want)
		}
	}
}

// Radeon cards have a switch of their own, which does not set two of them apart.
func TestCardsOwnSwitches(t *testing.T) {
	var cards []amdtest.Card
	var bridges []string
	for i := range uint64(2) {
		above := []string{"pci0000:20", "0000:20:01.1", "0000:21:00.0", fmt.Sprintf("0000:22:0%d.0", i), fmt.Sprintf("0000:3%d:00.0", i), fmt.Sprintf("0000:4%d:00.0", i)}
		bridges = append(bridges, "sys/devices/"+strings.Join(above, "/"), "sys/devices/"+strings.Join(above[:5], "/"))
		cards = append(cards, amdtest.Card{Bus: 0x50 + i, Above: above, Device: 0x744c, Revision: 0xc8, UniqueID: i + 1, VRAM: 24 << 30, GFX: 110000})
	}
	tr := amdtest.New(t, cards...)
	kind := func() plugins.LinkKind { return linksOf(find(tr).gpus)[0].Kind }
	if got := kind(); got != plugins.LinkPCIeMultiSwitch {
		t.Errorf("switches of somebody else's join them as %d", got)
	}
	for _, b := range bridges {
		tr.Set(b+"/vendor", "0x1002\n")
	}
	if got := kind(); got != plugins.LinkPCIeSwitch {
		t.Errorf("switches of their own join them as %d", got)
	}
}

// Whatever a tree lacks or says, what is left is offered, and it keeps to the
// contract.
func TestOddTrees(t *testing.T) {
	const kfd = "sys/class/kfd/kfd/topology/nodes/"
	for _, c := range []struct {
		name string
		odd  func(tr *amdtest.Tree)
		left int
		see  func(f finding) bool
	}{
		{"as it is", func(*amdtest.Tree) {}, 2, func(f finding) bool { return f.gpus[1].Memory == 64<<30 }},
		{"no unique ID in sysfs", func(tr *amdtest.Tree) { tr.Remove(tr.PCI(0) + "/unique_id") }, 2, func(f finding) bool { return f.gpus[0].ID == "GPU-7c0ffee000000000" }},
		{"one unique ID twice", func(tr *amdtest.Tree) { tr.Set(tr.PCI(1)+"/unique_id", "7c0ffee000000000\n") }, 2, func(f finding) bool {
			return f.gpus[0].ID != f.gpus[1].ID
		}},
		{"a unique ID of words", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/unique_id", "not available\n") }, 2, nil},
		{"no memory size", func(tr *amdtest.Tree) { tr.Remove(tr.PCI(0) + "/mem_info_vram_total") }, 2, func(f finding) bool { return f.gpus[0].Memory == 64<<30 }},
		{"a memory of 2^64-1", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/mem_info_vram_total", "18446744073709551615") }, 2, func(f finding) bool {
			return f.gpus[0].Memory == gpuai.MaxMemory-1
		}},
		{"a memory below nothing", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/mem_info_vram_total", "-1") }, 2, func(f finding) bool { return f.gpus[0].Memory == 64<<30 }},
		{"banks beyond 2^64", func(tr *amdtest.Tree) {
			tr.Remove(tr.PCI(0) + "/mem_info_vram_total")
			for _, n := range []string{"0", "1"} {
				tr.Set(tr.Node(0)+"/mem_banks/"+n+"/properties", "heap_type 2\nsize_in_bytes 18446744073709551615\n")
			}
		}, 2, func(f finding) bool { return f.gpus[0].Memory == gpuai.MaxMemory-1 }},
		{"no properties of a node", func(tr *amdtest.Tree) { tr.Remove(tr.Node(0) + "/properties") }, 1, nil},
		{"properties that are a directory", func(tr *amdtest.Tree) { tr.Remove(tr.Node(0) + "/properties"); tr.Set(tr.Node(0)+"/properties/x", "") }, 1, nil},
		{"properties without end", func(tr *amdtest.Tree) { tr.Set(tr.Node(0)+"/properties", strings.Repeat("x", maxFile+1)) }, 1, nil},
		{"properties of noise", func(tr *amdtest.Tree) { tr.Set(tr.Node(0)+"/properties", "\x00\xff simd_count\nsimd_count\n=\n") }, 1, nil},
		{"a node for no PCI function", func(tr *amdtest.Tree) {
			tr.Set(kfd+"99/gpu_id", "7")
			tr.Set(kfd+"99/properties", "simd_count 4\nlocation_id 61440\n")
		}, 2, nil},
		{"a node with a name", func(tr *amdtest.Tree) { tr.Set(kfd+"x/properties", "simd_count 4\n") }, 2, nil},
		{"links to nowhere", func(tr *amdtest.Tree) {
			tr.Set(tr.Node(0)+"/io_links/7/properties", "type 11\nnode_to 77\nmin_bandwidth 1\nmax_bandwidth 18446744073709551615\n")
		}, 2, nil},
		{"a link of no sane width", func(tr *amdtest.Tree) { tr.Link(0, 1, 1, 1<<60) }, 2, func(f finding) bool { return xgmi(&f.gpus[0], &f.gpus[1]) == 1 }},
		{"another vendor's card", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/vendor", "0x10de\n") }, 1, nil},
		{"a class of no GPU", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/class", "0x040300\n") }, 1, nil},
		{"an unbound card", func(tr *amdtest.Tree) { tr.Unbind(0) }, 1, nil},
		{"a card of another driver that KFD still lists", func(tr *amdtest.Tree) { tr.Remove(tr.PCI(0) + "/driver") }, 1, nil},
		{"no NUMA node", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/numa_node", "99999999999\n") }, 2, func(f finding) bool { return f.gpus[0].NUMANode == -1 }},
		{"a product name of control characters", func(tr *amdtest.Tree) { tr.Set(tr.PCI(0)+"/product_name", "MI300X\x07\n") }, 2, func(f finding) bool { return f.gpus[0].Model == "MI210" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := amdtest.MI210(t, 2)
			c.odd(tr)
			f := find(tr)
			if len(f.gpus) != c.left || c.left > 0 && c.see != nil && !c.see(f) {
				t.Errorf("%d of %d devices are left: %+v", len(f.gpus), c.left, f.gpus)
			}
			checkContract(t, f.gpus)
		})
	}
}

func checkContract(t *testing.T, gpus []gpu) {
	t.Helper()
	var edge []gpuai.Device
	for _, g := range gpus {
		edge = append(edge, gpuai.Device{ID: g.ID, Vendor: g.Vendor, Model: g.Model, Memory: g.Memory})
	}
	var bad []gpuai.FieldError
	if gpuai.ValidateDevices(edge, &bad); len(bad) > 0 {
		t.Errorf("the devices are no devices of a node: %+v", bad)
	}
	links := linksOf(gpus)
	for i, l := range links {
		if l.A >= l.B || i > 0 && (links[i-1].A > l.A || links[i-1].A == l.A && links[i-1].B >= l.B) || l.Kind == 0 {
			t.Errorf("link %d is %+v", i, l)
		}
	}
}

func TestWhyNone(t *testing.T) {
	for _, c := range []struct {
		odd  func(tr *amdtest.Tree)
		want string
	}{
		{func(tr *amdtest.Tree) { tr.Vanish(0); tr.Vanish(1) }, "no AMD GPU on the PCI bus"},
		{func(tr *amdtest.Tree) { tr.Unbind(0); tr.Unbind(1) }, "modprobe amdgpu"},
		{func(tr *amdtest.Tree) { tr.Remove("sys/class/kfd") }, "CONFIG_HSA_AMD"},
		{func(tr *amdtest.Tree) { tr.Remove(tr.Node(0), tr.Node(1)) }, "KFD lists none"},
	} {
		tr := amdtest.Radeon(t)
		c.odd(tr)
		if f := find(tr); len(f.gpus) > 0 || !strings.Contains(f.why, c.want) {
			t.Errorf("%d devices, %q, want %q", len(f.gpus), f.why, c.want)
		}
	}
}

// What is read neither blocks nor fills the memory.
func TestTreeIsBounded(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "long"), make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "most"), []byte(strings.Repeat("a", maxFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "long", "none", "."} {
		if s, err := tree(root).text(name); err == nil {
			t.Errorf("%s is read: %d bytes", name, len(s))
		}
	}
	if s, err := tree(root).text("most"); err != nil || len(s) != maxFile {
		t.Errorf("%d bytes, %v", len(s), err)
	}
	for _, n := range []string{"10", "9", "x", "b"} {
		if err := os.Mkdir(filepath.Join(root, "most.d"+n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "d", "10"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"9", "x", "b", "009"} {
		if err := os.Mkdir(filepath.Join(root, "d", n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := tree(root).list("d"), []string{"009", "9", "10", "b", "x"}; !slices.Equal(got, want) {
		t.Errorf("in order: %q, want %q", got, want)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("simd_count 304\nlocation_id 1280\ndomain 0\nunique_id 18446744073709551615\n")
	f.Add("ue: 1\nce: 2\nde: 3\n")
	f.Add("0x00000001 : 0x00001000 : R\n0x2 : 0x1000 : P\n: : F")
	f.Add("heap_type 1\nsize_in_bytes 18446744073709551615")
	f.Add("AMD Instinct MI300X OAM")
	f.Fuzz(func(t *testing.T, text string) {
		p := parseProperties(text)
		if len(p) > strings.Count(text, "\n")+1 {
			t.Errorf("%d properties of %d lines", len(p), strings.Count(text, "\n")+1)
		}
		if addr := pciAddr(p["domain"], p["location_id"]); p["domain"] < 1<<16 && !pciAddress.MatchString(addr) {
			t.Errorf("%q is no PCI address", addr)
		}
		gfxTarget(p["gfx_target_version"])
		l := ioLink{minMBps: p["min_bandwidth"], maxMBps: p["max_bandwidth"]}
		if l.width() > 64 {
			t.Errorf("a link of width %d", l.width())
		}
		pages, lines := parseBadPages(text), uint64(strings.Count(text, "\n")+1)
		if pages.retired+pages.pending+pages.failed > lines {
			t.Errorf("%+v pages of %d lines", pages, lines)
		}
		if ue, ce, ok := parseErrCount(text); !ok && ue+ce > 0 {
			t.Errorf("counts %d and %d that are none", ue, ce)
		}
		if m := modelName(text, 1, 0); m == "" || len(m) > gpuai.MaxTextLen {
			t.Errorf("a model of %d bytes", len(m))
		}
	})
}
