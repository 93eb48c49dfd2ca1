package scheduler

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// placed returns a node whose devices are in the groups that the digits say: of
// islands, of PCIe groups and of NUMA nodes, '0' for none.
func placed(island, pcie, numa string) *NodeInfo {
	n := &NodeInfo{Zone: "z", CPU: 64_000, Memory: 512 << 30}
	for i := range island {
		n.Devices = append(n.Devices, DeviceInfo{Vendor: "nvidia", Model: "H100", Memory: 80 << 30, Usable: true, Place: gpuai.DevicePlace{
			LinkIsland: island[i] - '0', PCIeGroup: pcie[i] - '0', NUMA: gpuai.NUMANode(numa[i] - '0'),
		}})
	}
	return n
}

// Of the free devices of a node a task gets those that are nearest to one another,
// and leaves what is whole to the next.
func TestDevicesOfATaskAreNear(t *testing.T) {
	const none = "00000000"
	for _, c := range []struct {
		name               string
		island, pcie, numa string
		taken              uint64
		count              uint16
		want               uint64
	}{
		{"nothing is known", none, none, none, 0b0000_0001, 2, 0b0000_0110},
		{"one island of two", "11112222", none, none, 0b0000_0001, 4, 0b1111_0000},
		{"the island with less left", "11112222", none, none, 0b0001_0001, 2, 0b0000_0110},
		{"the fewest of what an island has left", "11112222", none, none, 0b0011_0001, 2, 0b1100_0000},
		{"a single one out of the broken island", "11112222", none, none, 0b0010_0000, 1, 0b0001_0000},
		{"a single one that is joined to nobody", "11110222", none, none, 0, 1, 0b0001_0000},
		{"more than an island has", "11112222", none, none, 0b0000_0001, 6, 0b1111_0110},
		{"interleaved islands", "12121212", none, none, 0, 4, 0b0101_0101},
		{"one switch, one island", "11111111", none, "11112222", 0b0000_0011, 2, 0b0000_1100},
		{"a NUMA node of one island", "11111111", none, "11112222", 0b0000_0001, 4, 0b1111_0000},
		{"pairs by PCIe in NUMA nodes", none, "11223344", "11112222", 0b0000_0001, 2, 0b0000_1100},
		{"pairs by PCIe, the NUMA node with less left", none, "11223344", "11112222", 0b0011_0000, 2, 0b1100_0000},
		{"two pairs of one NUMA node", none, "11223344", "11112222", 0b0000_0010, 4, 0b1111_0000},
		{"three of pairs", none, "11223344", "11112222", 0, 3, 0b0000_0111},
		{"NUMA only", none, none, "12121212", 0, 3, 0b0001_0101},
		{"an island outranks a NUMA node", "12121212", none, "11112222", 0, 4, 0b0101_0101},
		{"all", "11112222", none, none, 0, 8, 0b1111_1111},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(mem.NewSpace())
			if code := s.SetNode(0, placed(c.island, c.pcie, c.numa)); code != gpuai.OK {
				t.Fatal(code)
			}
			s.Hold(0, c.taken, 0, 0, 0)
			s.SetOpen(0, true)
			id, code := s.AddShape([]byte("k"), gpuai.Resources{GPU: gpuai.GPURequest{Count: uint32(c.count)}}, nil)
			if code != gpuai.OK {
				t.Fatal(code)
			}
			f, ok := s.Find(id)
			if !ok || f.Devices != c.want {
				t.Errorf("it gets %08b, want %08b", f.Devices, c.want)
			}
			on, _ := s.FitsOn(id, 0)
			var free Free
			s.FreeOf(0, &free)
			if took := s.pick(s.shapes.Get(uint32(id)), 0, &s.nodes.Get(0).unit, &free); on.Devices != c.want || took != c.want {
				t.Errorf("on the node alone it gets %08b and %08b", on.Devices, took)
			}
			if err := s.checkNodes(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is chosen is free, as many as asked for, in as few islands as can be, and
// within one PCIe group or NUMA node wherever nothing is in islands.
func TestNearestAgainstBruteForce(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	for range 20_000 {
		var p placement
		devices := 1 + r.IntN(12)
		levels := r.IntN(1 << numPlaceLevels)
		for l := range p.group {
			for d := range devices {
				if levels>>l&1 != 0 {
					p.group[l][d] = uint8(r.IntN(4))
				}
			}
		}
		m := r.Uint64() & (1<<devices - 1)
		if m == 0 {
			continue
		}
		k := 1 + r.IntN(bits.OnesCount64(m))
		got := p.nearest(m, k)
		if got&^m != 0 || bits.OnesCount64(got) != k {
			t.Fatalf("%d of %b are %b", k, m, got)
		}
		first := bits.TrailingZeros(uint(levels))
		if first >= numPlaceLevels {
			if got != lowest(m, uint16(k)) {
				t.Fatalf("%d of %b without places are %b", k, m, got)
			}
			continue
		}
		if want := p.fewest(first, m, k); p.groups(first, got) != want {
			t.Fatalf("%d of %b at %v are %b, in %d groups where %d do", k, m, p.group[first][:devices], got, p.groups(first, got), want)
		}
	}
}

// groups is in how many groups of a level devices are.
func (p *placement) groups(level int, m uint64) (n int) {
	for ; m != 0; n++ {
		m &^= p.of(m, level, bits.TrailingZeros64(m))
	}
	return n
}

// fewest is the least number of groups that k devices of m are in.
func (p *placement) fewest(level int, m uint64, k int) int {
	best := k
	for set := m; ; set = (set - 1) & m {
		if bits.OnesCount64(set) == k {
			best = min(best, p.groups(level, set))
		}
		if set == 0 {
			return best
		}
	}
}

// Rows of places come and go with their nodes, are in forks, and hold for nodes of
// many devices.
func TestPlacesOfANodeThatChanges(t *testing.T) {
	sp := mem.NewSpace()
	s := New(sp)
	id, _ := s.AddShape([]byte("k"), gpuai.Resources{GPU: gpuai.GPURequest{Count: 4}}, nil)
	big := &NodeInfo{Zone: "z", CPU: 64_000, Memory: 512 << 30}
	for i := range gpuai.MaxGPUs {
		big.Devices = append(big.Devices, DeviceInfo{Vendor: "amd", Model: "MI300X", Memory: 192 << 30, Usable: true, Place: gpuai.DevicePlace{NUMA: gpuai.NUMAOf(int32(i % 16))}})
	}
	for _, c := range []struct {
		n    *NodeInfo
		want uint64
	}{
		{placed("12121212", "00000000", "00000000"), 0b0101_0101},
		{placed("00000000", "00000000", "00000000"), 0b0000_1111},
		{big, 1 | 1<<16 | 1<<32 | 1<<48},
		{placed("0011", "0000", "0000"), 0b1111},
		{&NodeInfo{Zone: "z"}, 0},
	} {
		if code := s.SetNode(3, c.n); code != gpuai.OK {
			t.Fatal(code)
		}
		s.SetOpen(3, true)
		sp.Commit()
		f := s.Fork(sp.Fork())
		for _, x := range []*State{s, f} {
			if fit, _ := x.Find(id); fit.Devices != c.want {
				t.Errorf("it gets %b, want %b", fit.Devices, c.want)
			}
			if err := x.checkNodes(); err != nil {
				t.Error(err)
			}
		}
	}
	s.RemoveNode(3)
	if err := s.checkNodes(); err != nil || s.placeSlots.Len() != 0 {
		t.Error(err, s.placeSlots.Len())
	}
}

// BenchmarkChoose is what the choice costs on a node of eight devices in two islands
// and two NUMA nodes, beside one that says nothing.
func BenchmarkChoose(b *testing.B) {
	for _, island := range []string{"00000000", "11112222"} {
		s := New(mem.NewSpace())
		s.SetNode(0, placed(island, "00000000", island))
		for _, n := range []uint16{1, 4} {
			b.Run(fmt.Sprintf("islands=%s/devices=%d", island, n), func(b *testing.B) {
				for b.Loop() {
					s.choose(0, &s.nodes.Get(0).unit, 0b1111_0110, n)
				}
			})
		}
	}
}
