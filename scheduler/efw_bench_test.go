package scheduler

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A mix is nodes and tasks much like openb's: kinds of hosts, and kinds of
// tasks with their weights.
var packHosts = []struct {
	cpu, mem int64 // milli, MiB
	gpus     int
	model    string
	weight   int
}{
	{104_000, 524_288, 2, "T4", 387}, {96_000, 393_216, 8, "G2", 549}, {16_000, 122_880, 2, "P100", 107},
	{128_000, 786_432, 8, "G3", 39}, {32_000, 131_072, 4, "V16", 28}, {64_000, 262_144, 2, "P100", 22},
	{96_000, 786_432, 8, "V32", 21}, {8_000, 32_768, 1, "V16", 19}, {96_000, 393_216, 4, "T4", 17},
}

// packTasks returns kinds of tasks: 150, the first ones the most frequent.
func packTasks(r *rand.Rand) (out []gpuai.Resources, weights []int) {
	for i := range 150 {
		x := gpuai.Resources{CPU: gpuai.MilliCPU(2_000 + 100*r.IntN(160)), Memory: gpuai.Bytes(4+r.IntN(60)) << 30}
		switch k := r.IntN(20); {
		case k < 2:
		case k < 11:
			x.GPU.Count, x.GPU.Share.Milli = 1, gpuai.Milli(100+10*r.IntN(90))
		case k < 18:
			x.GPU.Count = 1
		default:
			x.GPU.Count = uint32(2 << r.IntN(3))
			x.CPU *= gpuai.MilliCPU(x.GPU.Count) / 2
		}
		out = append(out, x)
		weights = append(weights, 1+1_000/(i+1))
	}
	return out, weights
}

type packBench struct {
	s      *State
	sp     *mem.Space
	r      *rand.Rand
	ids    []ShapeID
	needs  []gpuai.Resources
	draw   []int // kinds, as often as they weigh
	leases []benchLease
}

type benchLease struct {
	fit  Fit
	kind int
}

func newPackBench(b testing.TB, nodes int, p gpuai.Packing) *packBench {
	sp := mem.NewSpace()
	x := &packBench{s: New(sp), sp: sp, r: rand.New(rand.NewPCG(1, 2))}
	x.s.SetPacking(p)
	var hosts []int
	for i := range packHosts {
		for range packHosts[i].weight {
			hosts = append(hosts, i)
		}
	}
	for slot := range uint32(nodes) {
		h := &packHosts[hosts[x.r.IntN(len(hosts))]]
		info := NodeInfo{CPU: h.cpu, Memory: h.mem << 20}
		for range h.gpus {
			info.Devices = append(info.Devices, DeviceInfo{Vendor: "nvidia", Model: h.model, Memory: 80, Usable: true})
		}
		if code := x.s.SetNode(slot, &info); code != gpuai.OK {
			b.Fatal(code)
		}
		x.s.SetOpen(slot, true)
		sp.Commit()
	}
	var weights []int
	x.needs, weights = packTasks(x.r)
	var demand []Demand
	for i := range x.needs {
		id, code := x.s.AddShape(fmt.Append(nil, i), x.needs[i], nil)
		if code != gpuai.OK {
			b.Fatal(code)
		}
		x.s.RetainShape(id)
		x.ids = append(x.ids, id)
		demand = append(demand, Demand{id, uint64(weights[i])})
		for range weights[i] {
			x.draw = append(x.draw, i)
		}
	}
	x.s.SeedDemand(demand, true)
	sp.Commit()
	return x
}

// place places a task of a kind drawn.
func (x *packBench) place() bool {
	kind := x.draw[x.r.IntN(len(x.draw))]
	f, ok := x.s.Place(x.ids[kind])
	if ok {
		x.s.Take(f, x.ids[kind])
		x.leases = append(x.leases, benchLease{f, kind})
	}
	x.sp.Commit()
	return ok
}

// end ends a task drawn.
func (x *packBench) end() {
	i := x.r.IntN(len(x.leases))
	l := x.leases[i]
	n := &x.needs[l.kind]
	x.s.Give(l.fit.Node, l.fit.Devices, l.fit.Share, int64(n.CPU), int64(n.Memory))
	x.leases[i] = x.leases[len(x.leases)-1]
	x.leases = x.leases[:len(x.leases)-1]
	x.sp.Commit()
}

// packWarm is how many decisions come before those that are measured, so that
// each kind of task has been placed.
const packWarm = 20_000

// A decision is the end of a task and the placement of another, in a cluster
// that is nearly full.
func BenchmarkPackingChurn(b *testing.B) {
	for _, p := range []gpuai.Packing{gpuai.PackingBestFit, gpuai.PackingEFW} {
		for _, nodes := range []int{1_213, 24_260, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", p, nodes), func(b *testing.B) {
				x := newPackBench(b, nodes, p)
				for fails := 0; fails < 20; {
					if !x.place() {
						fails++
					}
				}
				for range len(x.leases) / 20 {
					x.end()
				}
				for range packWarm {
					x.end()
					x.place()
				}
				b.ReportAllocs()
				done := startCPU(b)
				for b.Loop() {
					x.end()
					x.place()
				}
				done()
				b.ReportMetric(float64(x.s.packSums.Get().live), "buckets")
			})
		}
	}
}

// The same while a cluster fills: a decision is a placement.
func BenchmarkPackingFill(b *testing.B) {
	for _, nodes := range []int{1_213, 24_260, 100_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			x := newPackBench(b, nodes, gpuai.PackingEFW)
			done := startCPU(b)
			placed := 0
			for b.Loop() {
				if x.place() {
					placed++
				}
			}
			done()
			b.ReportMetric(float64(placed)/float64(b.N), "placed/op")
			b.ReportMetric(float64(x.s.packSums.Get().live), "buckets")
			b.ReportMetric(float64(x.s.packSums.Get().heaps.top), "entries")
		})
	}
}

// The first search for a shape after a freeze, a restore or on a fork: nothing
// is remembered. It looks at no more states than one search may.
func BenchmarkPackingCold(b *testing.B) {
	for _, nodes := range []int{1_213, 24_260, 100_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			x := newPackBench(b, nodes, gpuai.PackingEFW)
			for range 5 * nodes {
				x.place()
			}
			done := startCPU(b)
			for b.Loop() {
				x.s.dropHeaps()
				x.s.packing.Mut().cold++
				clear(x.s.scratch().memo)
				clear(x.s.scratch().buckets)
				x.place()
				x.end()
			}
			done()
			b.ReportMetric(float64(x.s.packSums.Get().live), "buckets")
		})
	}
}
