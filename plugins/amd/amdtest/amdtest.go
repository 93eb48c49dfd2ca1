// Package amdtest builds trees that look like "/" of a host with AMD's GPUs, for
// tests of the driver: sysfs, KFD's topology, hwmon, /dev and /proc, as far as
// the driver reads them. The devices in /dev are plain files.
package amdtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A Card is one GPU.
type Card struct {
	Bus      uint64   // of its PCI address, 0000:<bus>:00.0
	Above    []string // host bridge and bridges, such as pci0000:00, 0000:00:01.1
	Device   uint64   // PCI ID
	Revision uint64
	Product  string // "" for none
	UniqueID uint64 // 0 for none
	VRAM     uint64
	NUMA     int
	GFX      uint64 // KFD's number, 90402 is gfx942
	RAS      bool
	// Parts is the number of compute partitions, in Mode; 0 for a whole GPU.
	Parts uint64
	Mode  string
}

// Addr is the card's PCI address.
func (c *Card) Addr() string { return fmt.Sprintf("0000:%02x:00.0", c.Bus) }

// A Tree is a directory that stands for "/".
type Tree struct {
	t     testing.TB
	Root  string
	Cards []Card
	nodes uint64 // of the topology
	first map[uint64]uint64
}

// firstRender is the minor of the first render node, as in Linux.
const firstRender = 128

// New builds a tree with one CPU and the given cards.
func New(t testing.TB, cards ...Card) *Tree {
	t.Helper()
	tr := &Tree{t: t, Root: newRoot(t), first: map[uint64]uint64{}}
	tr.node(properties{{"cpu_cores_count", 64}, {"simd_count", 0}}, 0)
	tr.Set("dev/kfd", "")
	tr.Set("sys/module/amdgpu/version", "6.12.12")
	tr.Set("sys/devices/system/node/node0/cpulist", "0-31")
	tr.Set("sys/devices/system/node/node1/cpulist", "32-63")
	tr.Set("proc/1/comm", "init")
	tr.Set("proc/1/stat", procStat(1, 0))
	if err := os.MkdirAll(tr.path("proc/1/fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		tr.add(c)
	}
	return tr
}

// newRoot makes a directory in memory where there is such a place: a tree has
// hundreds of small files.
func newRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "amdtest-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// MI300X builds a host with eight of them, each joined to each by XGMI.
func MI300X(t testing.TB) *Tree {
	t.Helper()
	var cards []Card
	for i := range uint64(8) {
		cards = append(cards, mi300x(i))
	}
	tr := New(t, cards...)
	tr.mesh(64_000, 64_000)
	return tr
}

func mi300x(i uint64) Card {
	root := fmt.Sprintf("pci0000:%02x", i*16)
	return Card{
		Bus: i*16 + 5, Above: []string{root, fmt.Sprintf("0000:%02x:01.1", i*16)}, Device: 0x74a1, Product: "AMD Instinct MI300X OAM",
		UniqueID: 0xa1b2c3d4e5f60000 + i, VRAM: 192 << 30, NUMA: int(i / 4), GFX: 90402, RAS: true,
	}
}

// MI300XParts builds a host with two of them in CPX mode, eight partitions each.
func MI300XParts(t testing.TB) *Tree {
	t.Helper()
	var cards []Card
	for i := range uint64(2) {
		c := mi300x(i)
		c.Parts, c.Mode = 8, "CPX"
		cards = append(cards, c)
	}
	return New(t, cards...)
}

// MI210 builds a host with up to four of them: pairs with an XGMI bridge of three
// links, all behind one PCIe switch. They have no product_name.
func MI210(t testing.TB, count uint64) *Tree {
	t.Helper()
	var cards []Card
	for i := range count {
		cards = append(cards, Card{
			Bus: 0x21 + i, Above: []string{"pci0000:20", "0000:20:01.1", "0000:20:02.0", fmt.Sprintf("0000:20:%02x.0", 3+i)},
			Device: 0x740f, Revision: 2, UniqueID: 0x7c0ffee000000000 + i, VRAM: 64 << 30, GFX: 90010, RAS: true,
		})
	}
	tr := New(t, cards...)
	for i := 1; i < len(cards); i += 2 {
		tr.Link(i-1, i, 50_000, 150_000)
	}
	return tr
}

// Radeon builds a workstation with an RX 7900 XTX and a card without a unique ID
// that no table names.
func Radeon(t testing.TB) *Tree {
	t.Helper()
	return New(t,
		Card{Bus: 3, Above: []string{"pci0000:00", "0000:00:01.1"}, Device: 0x744c, Revision: 0xc8, UniqueID: 0x1f2e3d4c5b6a7988, VRAM: 24 << 30, NUMA: -1, GFX: 110000},
		Card{Bus: 8, Above: []string{"pci0000:00", "0000:00:03.1"}, Device: 0x6fdf, VRAM: 8 << 30, NUMA: -1, GFX: 80003},
	)
}

func (tr *Tree) path(rel string) string { return filepath.Join(tr.Root, rel) }

// Set writes a file, and the directories above it. A file that is there is
// replaced in one step: the driver may be reading.
func (tr *Tree) Set(rel, text string) {
	tr.t.Helper()
	path := tr.path(rel)
	if _, err := os.Lstat(path); err == nil {
		defer func() {
			if err := os.Rename(path, tr.path(rel)); err != nil {
				tr.t.Fatal(err)
			}
		}()
		path += ".new"
	}
	err := os.WriteFile(path, []byte(text), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
	}
	if err != nil {
		tr.t.Fatal(err)
	}
}

// Remove removes files, and directories with all that is in them.
func (tr *Tree) Remove(rels ...string) {
	tr.t.Helper()
	for _, rel := range rels {
		if err := os.RemoveAll(tr.path(rel)); err != nil {
			tr.t.Fatal(err)
		}
	}
}

func (tr *Tree) symlink(to, rel string) {
	tr.t.Helper()
	if err := os.MkdirAll(filepath.Dir(tr.path(rel)), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.Symlink(to, tr.path(rel)); err != nil {
		tr.t.Fatal(err)
	}
}

// PCI is the directory of a card.
func (tr *Tree) PCI(card int) string { return "sys/bus/pci/devices/" + tr.Cards[card].Addr() }

// Hwmon is the directory of a card's sensors.
func (tr *Tree) Hwmon(card int) string { return tr.PCI(card) + "/hwmon/hwmon" + strconv.Itoa(card) }

// Node is the directory of a card in KFD's topology; of its first partition.
func (tr *Tree) Node(card int) string {
	return "sys/class/kfd/kfd/topology/nodes/" + strconv.FormatUint(tr.first[uint64(card)], 10)
}

// GPUID is KFD's number of a card; of its first partition.
func (tr *Tree) GPUID(card int) uint64 { return gpuID(tr.first[uint64(card)]) }

func gpuID(node uint64) uint64 { return 1_000 + node }

type properties []struct {
	name  string
	value uint64
}

func (p properties) String() string {
	var b strings.Builder
	for _, one := range p {
		fmt.Fprintf(&b, "%s %d\n", one.name, one.value)
	}
	return b.String()
}

// node adds a node to the topology.
func (tr *Tree) node(p properties, memory uint64) uint64 {
	n := tr.nodes
	tr.nodes++
	dir := fmt.Sprintf("sys/class/kfd/kfd/topology/nodes/%d/", n)
	id := uint64(0)
	if memory > 0 {
		id = gpuID(n)
		tr.Set(dir+"mem_banks/0/properties", properties{{"heap_type", 1}, {"size_in_bytes", memory}, {"flags", 0}, {"width", 8192}}.String())
	}
	tr.Set(dir+"gpu_id", fmt.Sprintf("%d\n", id))
	tr.Set(dir+"properties", p.String())
	return n
}

func (tr *Tree) add(c Card) {
	i := len(tr.Cards)
	tr.Cards = append(tr.Cards, c)
	real := filepath.Join(append(append([]string{"sys/devices"}, c.Above...), c.Addr())...)
	for n := 1; n < len(c.Above); n++ {
		tr.Set(filepath.Join(append([]string{"sys/devices"}, c.Above[:n+1]...)...)+"/vendor", "0x1022\n")
	}
	class := 0x030000
	if c.Product != "" {
		class = 0x120000
	}
	for name, text := range map[string]string{
		"vendor": "0x1002\n", "device": fmt.Sprintf("0x%04x\n", c.Device), "revision": fmt.Sprintf("0x%02x\n", c.Revision),
		"class": fmt.Sprintf("0x%06x\n", class), "numa_node": fmt.Sprintf("%d\n", c.NUMA), "config": "\x02\x10\x00\x00",
		"mem_info_vram_total": fmt.Sprintf("%d\n", c.VRAM), "mem_info_vram_used": "294912\n",
		"gpu_busy_percent": "37\n", "mem_busy_percent": "12\n", "power/runtime_status": "active\n",
	} {
		tr.Set(real+"/"+name, text)
	}
	tr.symlink("../../../"+strings.TrimPrefix(real, "sys/"), tr.PCI(i))
	tr.symlink("/sys/bus/pci/drivers/amdgpu", real+"/driver")
	if c.UniqueID != 0 {
		tr.Set(real+"/unique_id", fmt.Sprintf("%016x\n", c.UniqueID))
	}
	if c.Product != "" {
		tr.Set(real+"/product_name", c.Product+"\n")
		tr.Set(real+"/serial_number", fmt.Sprintf("PCB%06d\n", c.Bus))
	}
	tr.sensors(tr.Hwmon(i))
	if c.RAS {
		for _, block := range []string{"umc", "gfx", "sdma"} {
			tr.Set(real+"/ras/"+block+"_err_count", "ue: 0\nce: 0\n")
		}
		tr.Set(real+"/ras/gpu_vram_bad_pages", "")
	}
	tr.compute(i)
}

func (tr *Tree) sensors(dir string) {
	for name, text := range map[string]string{
		"name": "amdgpu", "temp1_label": "edge", "temp1_input": "41000", "temp2_label": "junction", "temp2_input": "46000",
		"temp2_crit": "100000", "temp2_emergency": "105000", "temp3_label": "mem", "temp3_input": "44000",
		"power1_average": "142000000", "power1_cap": "750000000", "freq1_input": "1300000000", "freq1_label": "sclk",
	} {
		tr.Set(dir+"/"+name, text+"\n")
	}
}

// compute adds a card, or its partitions, to the topology and to /dev.
func (tr *Tree) compute(i int) {
	c := tr.Cards[i]
	parts := max(c.Parts, 1)
	for n := range parts {
		location := c.Bus << 8
		if c.Parts > 1 {
			location |= n << 28
		}
		render := firstRender + tr.nodes - 1
		node := tr.node(properties{
			{"cpu_cores_count", 0}, {"simd_count", 1216 / parts}, {"gfx_target_version", c.GFX}, {"vendor_id", 4098},
			{"device_id", c.Device}, {"location_id", location}, {"domain", 0}, {"drm_render_minor", render},
			{"unique_id", c.UniqueID}, {"num_xcc", 8 / parts},
		}, c.VRAM/parts)
		if n == 0 {
			tr.first[uint64(i)] = node
		}
		tr.link(node, 0, properties{{"type", 2}, {"min_bandwidth", 312}, {"max_bandwidth", 64_000}})
		tr.Set(fmt.Sprintf("dev/dri/renderD%d", render), "")
	}
	if c.Mode != "" {
		tr.Set(tr.PCI(i)+"/current_compute_partition", c.Mode+"\n")
	}
}

func (tr *Tree) link(from, to uint64, p properties) {
	p = append(p, properties{{"node_from", from}, {"node_to", to}}...)
	tr.Set(fmt.Sprintf("sys/class/kfd/kfd/topology/nodes/%d/io_links/%d/properties", from, to), p.String())
}

// Link joins two cards by XGMI, both ways; the bandwidth in MB/s of one link and
// of all.
func (tr *Tree) Link(a, b int, one, all uint64) {
	for _, way := range [][2]int{{a, b}, {b, a}} {
		tr.link(tr.first[uint64(way[0])], tr.first[uint64(way[1])],
			properties{{"type", 11}, {"weight", 15}, {"min_bandwidth", one}, {"max_bandwidth", all}})
	}
}

func (tr *Tree) mesh(one, all uint64) {
	for a := range tr.Cards {
		for b := range a {
			tr.Link(a, b, one, all)
		}
	}
}

// Unbind takes the kernel's driver from a card, and with it what the driver shows.
func (tr *Tree) Unbind(card int) {
	tr.Remove(tr.PCI(card)+"/driver", tr.PCI(card)+"/hwmon", tr.PCI(card)+"/mem_info_vram_total", tr.Node(card))
}

// Vanish takes a card from the PCI bus.
func (tr *Tree) Vanish(card int) { tr.Remove(tr.PCI(card), tr.Node(card)) }

// A Process is one in /proc, and of KFD if it computes.
type Process struct {
	PID, Start uint64 // start in ticks of 10 ms since the boot
	Opens      []string
	// Memory is what it has on cards, by their place; nil is a process that does
	// not compute.
	Memory map[int]uint64
	Queue  *int // a card that it has a queue on
}

// Run adds a process.
func (tr *Tree) Run(p Process) {
	dir := fmt.Sprintf("proc/%d/", p.PID)
	tr.Set(dir+"comm", "task\n")
	tr.Set(dir+"stat", procStat(p.PID, p.Start))
	for fd, to := range append([]string{"/dev/null"}, p.Opens...) {
		tr.symlink(to, fmt.Sprintf("%sfd/%d", dir, fd))
	}
	if p.Memory == nil && p.Queue == nil {
		return
	}
	kfd := fmt.Sprintf("sys/class/kfd/kfd/proc/%d/", p.PID)
	for card := range tr.Cards {
		tr.Set(fmt.Sprintf("%svram_%d", kfd, tr.GPUID(card)), fmt.Sprintf("%d\n", p.Memory[card]))
	}
	if p.Queue != nil {
		tr.Set(kfd+"queues/0/gpuid", fmt.Sprintf("%d\n", tr.GPUID(*p.Queue)))
	}
}

// End removes a process.
func (tr *Tree) End(pid uint64) {
	tr.Remove(fmt.Sprintf("proc/%d", pid), fmt.Sprintf("sys/class/kfd/kfd/proc/%d", pid))
}

// procStat is a line of /proc/PID/stat.
func procStat(pid, start uint64) string {
	return fmt.Sprintf("%d (task) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d %s\n", pid, start, strings.TrimSuffix(strings.Repeat("0 ", 30), " "))
}
