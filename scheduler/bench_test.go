package scheduler

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A load is a region of nodes of 8 GPUs, 8 models and 4 zones, so 32 pools,
// under tasks that come and go.
type load struct {
	s      *State
	r      *rand.Rand
	shapes []ShapeID
	held   []Fit
	of     []ShapeID
}

func newLoad(tb testing.TB, nodes int, shapes int, fractions int) *load {
	tb.Helper()
	sp := mem.NewSpace()
	l := &load{s: New(sp), r: rand.New(rand.NewPCG(1, 2))}
	for i := range nodes {
		n := NodeInfo{Zone: fmt.Sprint("z", i%4), CPU: 96_000, Memory: 768 << 30, Devices: gpus(8, fmt.Sprint("m", i/4%8))}
		if code := l.s.SetNode(uint32(i), &n); code != gpuai.OK {
			tb.Fatal(code)
		}
		l.s.SetOpen(uint32(i), true)
		sp.Commit()
	}
	for i := range shapes {
		r, cs := benchShape(l.r, i, fractions)
		id, code := l.s.AddShape(fmt.Append(nil, i), r, cs)
		if code != gpuai.OK {
			tb.Fatal(code)
		}
		l.s.RetainShape(id)
		sp.Commit()
		l.shapes = append(l.shapes, id)
	}
	return l
}

// benchShape returns the i-th shape: 1 to 8 GPUs or, in so many of 100, a
// share; half name a model, a fifth a zone.
func benchShape(r *rand.Rand, i, fractions int) (gpuai.Resources, []gpuai.Constraint) {
	n := pick(r, uint32(1), 1, 1, 1, 1, 2, 2, 4, 8)
	needs := gpuai.Resources{GPU: gpuai.GPURequest{Count: n}}
	if r.IntN(100) < fractions {
		needs.GPU.Count, needs.GPU.Share.Milli = 1, gpuai.Milli(1+r.IntN(999))
	}
	needs.CPU = gpuai.MilliCPU(uint32(2000+r.IntN(8000)) * n)
	needs.Memory = gpuai.Bytes(uint64(4+r.IntN(60))*uint64(n)) << 30
	if i%2 == 0 {
		needs.GPU.Any = []gpuai.GPUAlternative{{Model: fmt.Sprint("m", r.IntN(8))}, {Model: fmt.Sprint("m", r.IntN(8))}}
	}
	if i%5 == 0 {
		return needs, []gpuai.Constraint{{Attribute: "zone", Op: gpuai.Equal, Values: []string{fmt.Sprint("z", r.IntN(4))}}}
	}
	return needs, nil
}

// fill takes places until so many of 100 GPUs are in use.
func (l *load) fill(nodes, percent int) {
	for used := 0; used < nodes*8*percent*10; {
		sh := l.shapes[l.r.IntN(len(l.shapes))]
		f, ok := l.s.Find(sh)
		if !ok {
			break
		}
		l.take(f, sh)
		_, _, n := l.s.Demand(sh)
		used += int(n) * int(milli(f.Share))
		l.s.space.Commit()
	}
}

func (l *load) take(f Fit, sh ShapeID) {
	l.s.Take(f, sh)
	l.held, l.of = append(l.held, f), append(l.of, sh)
}

// giveOne ends a random task.
func (l *load) giveOne() {
	i, last := l.r.IntN(len(l.held)), len(l.held)-1
	f, sh := l.held[i], l.of[i]
	cpu, memory, _ := l.s.Demand(sh)
	l.s.Give(f.Node, f.Devices, f.Share, cpu, memory)
	l.held[i], l.of[i] = l.held[last], l.of[last]
	l.held, l.of = l.held[:last], l.of[:last]
}

// churn replaces tasks, so that the nodes are as uneven as in use.
func (l *load) churn(n int) {
	for range n {
		l.giveOne()
		sh := l.shapes[l.r.IntN(len(l.shapes))]
		if f, ok := l.s.Find(sh); ok {
			l.take(f, sh)
		}
		l.s.space.Commit()
	}
}

var benchSizes = []int{1_000, 10_000, 100_000}

func BenchmarkFind(b *testing.B) {
	for _, nodes := range benchSizes {
		for _, fractions := range []int{0, 30} {
			l := newLoad(b, nodes, 4000, fractions)
			l.fill(nodes, 85)
			l.churn(nodes * 2)
			b.Run(fmt.Sprintf("nodes=%d/fractions=%d", nodes, fractions), func(b *testing.B) {
				b.ReportAllocs()
				defer startCPU(b)()
				found := 0
				for i := 0; b.Loop(); i++ {
					if _, ok := l.s.Find(l.shapes[i%len(l.shapes)]); ok {
						found++
					}
				}
				b.ReportMetric(100*float64(found)/float64(b.N), "%found")
			})
		}
	}
}

// One task ends, another starts: Give, Find, Take and Commit.
func BenchmarkChurn(b *testing.B) {
	for _, nodes := range benchSizes {
		for _, fractions := range []int{0, 30} {
			l := newLoad(b, nodes, 4000, fractions)
			l.fill(nodes, 85)
			l.churn(nodes * 2)
			b.Run(fmt.Sprintf("nodes=%d/fractions=%d", nodes, fractions), func(b *testing.B) {
				b.ReportAllocs()
				defer startCPU(b)()
				for b.Loop() {
					l.churn(1)
				}
			})
		}
	}
}

// Fresh nodes, one shape: what a burst of equal jobs meets.
func BenchmarkFindTake(b *testing.B) {
	l := newLoad(b, 100_000, 1, 0)
	r := whole(1)
	id, _ := l.s.AddShape([]byte("one"), r, nil)
	l.s.space.Commit()
	b.ReportAllocs()
	defer startCPU(b)()
	for b.Loop() {
		f, ok := l.s.Find(id)
		if !ok {
			b.StopTimer()
			for i := range uint32(100_000) {
				for d := range uint64(8) {
					l.s.Give(i, 1<<d, 0, int64(r.CPU), int64(r.Memory))
				}
				l.s.space.Commit()
			}
			b.StartTimer()
			continue
		}
		l.s.Take(f, id)
		l.s.space.Commit()
	}
}

// Every block of every tree holds nodes with much CPU and little memory beside
// nodes with much memory and little CPU, and the task needs some of both.
func BenchmarkFindAdversarial(b *testing.B) {
	for _, pools := range []int{1, 32, 512, 4096} {
		for _, needs := range []gpuai.Resources{whole(1), share(13)} {
			s := adversary(b, 100_000, pools)
			needs.CPU, needs.Memory = 50_000, 500<<30
			id, _ := s.AddShape([]byte("x"), needs, nil)
			s.space.Commit()
			b.Run(fmt.Sprintf("pools=%d/share=%d", pools, needs.GPU.Share.Milli), func(b *testing.B) {
				b.ReportAllocs()
				defer startCPU(b)()
				before := s.Work()
				for b.Loop() {
					if _, ok := s.Find(id); ok {
						b.Fatal("it fits")
					}
				}
				b.ReportMetric(float64(s.Work()-before)/float64(b.N), "work/op")
			})
		}
	}
}

// No node has the CPU left: what a region meets whose CPUs ran out first.
func BenchmarkFindStarved(b *testing.B) {
	for _, pools := range []int{1, 32, 512} {
		s := adversary(b, 100_000, pools)
		needs := share(13)
		needs.CPU = 97_000
		id, _ := s.AddShape([]byte("x"), needs, nil)
		s.space.Commit()
		b.Run(fmt.Sprintf("pools=%d", pools), func(b *testing.B) {
			b.ReportAllocs()
			defer startCPU(b)()
			for b.Loop() {
				if _, ok := s.Find(id); ok {
					b.Fatal("it fits")
				}
			}
		})
	}
}

// adversary has every number of free devices in every pool, and all remainders.
func adversary(tb testing.TB, nodes, pools int) *State {
	r := rand.New(rand.NewPCG(5, 6))
	sp := mem.NewSpace()
	s := New(sp)
	for i := range uint32(nodes) {
		n := NodeInfo{CPU: 96_000, Memory: 768 << 30, Devices: gpus(8, "m"), Labels: map[string]string{"p": fmt.Sprint(int(i) % pools)}}
		if code := s.SetNode(i, &n); code != gpuai.OK {
			tb.Fatal(code)
		}
		cpu, memory := int64(0), int64(600<<30)+r.Int64N(1<<30)
		if r.IntN(2) == 0 {
			cpu, memory = 70_000+r.Int64N(10_000), 0
		}
		s.Hold(i, r.Uint64N(255), 0, cpu, memory)
		for d := range 8 {
			if r.IntN(4) == 0 {
				s.Hold(i, 1<<d, uint16(1+r.IntN(999)), 0, 0)
			}
		}
		s.SetOpen(i, true)
		sp.Commit()
	}
	return s
}

// A gang that cannot start: the bound, and the bound for one that might.
func BenchmarkCapacity(b *testing.B) {
	l := newLoad(b, 100_000, 100, 30)
	l.fill(100_000, 99)
	l.churn(10_000)
	id, _ := l.s.AddShape([]byte("gang"), whole(8), nil)
	l.s.space.Commit()
	b.ReportAllocs()
	defer startCPU(b)()
	for b.Loop() {
		l.s.Capacity(id, 4096)
	}
}

func BenchmarkFitsOn(b *testing.B) {
	l := newLoad(b, 10_000, 4000, 30)
	l.fill(10_000, 85)
	b.ReportAllocs()
	defer startCPU(b)()
	for i := 0; b.Loop(); i++ {
		l.s.FitsOn(l.shapes[i%len(l.shapes)], uint32(i)%10_000)
	}
}

func BenchmarkAddShape(b *testing.B) {
	l := newLoad(b, 10_000, 1000, 30)
	b.ReportAllocs()
	defer startCPU(b)()
	for i := 0; b.Loop(); i++ {
		r, cs := benchShape(l.r, i, 30)
		if _, code := l.s.AddShape(fmt.Append(nil, "new", i), r, cs); code != gpuai.OK {
			b.Fatal(code)
		}
		l.s.space.Commit()
	}
}

func BenchmarkSetNode(b *testing.B) {
	l := newLoad(b, 10_000, 1000, 30)
	n := NodeInfo{Zone: "z1", CPU: 96_000, Memory: 768 << 30, Devices: gpus(8, "m1")}
	b.ReportAllocs()
	defer startCPU(b)()
	for i := 0; b.Loop(); i++ {
		l.s.SetNode(uint32(i%10_000), &n)
		l.s.SetOpen(uint32(i%10_000), true)
		l.s.space.Commit()
	}
}

func BenchmarkExplain(b *testing.B) {
	l := newLoad(b, 100_000, 100, 30)
	b.ReportAllocs()
	defer startCPU(b)()
	for i := 0; b.Loop(); i++ {
		l.s.Explain(l.shapes[i%len(l.shapes)], nil)
	}
}

func BenchmarkFork(b *testing.B) {
	l := newLoad(b, 100_000, 4000, 30)
	l.fill(100_000, 85)
	b.ReportAllocs()
	defer startCPU(b)()
	for b.Loop() {
		l.s.Fork(l.s.space.Fork())
	}
}

// BenchmarkMemory reports what a node costs in a region in use.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		l := newLoad(b, 100_000, 100, 30)
		l.fill(100_000, 90)
		l.churn(100_000)
		l.held, l.of = nil, nil
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/100_000, "B/node")
		b.ReportMetric(float64(l.s.forest.slots.Len()), "blocks")
		runtime.KeepAlive(l)
	}
}

// Searching, placing and ending a task allocate nothing.
func TestNoAllocations(t *testing.T) {
	l := newLoad(t, 2000, 200, 30)
	l.fill(2000, 80)
	l.churn(20_000)
	key := fmt.Append(nil, 7)
	if n := testing.AllocsPerRun(2000, func() {
		l.churn(1)
		id, _ := l.s.FindShape(key)
		l.s.RetainShape(id)
		l.s.FitsOn(id, 5)
		l.s.Capacity(id, 100)
		l.s.CanEver(id)
		l.s.EverCapacity(id, 100)
		l.s.ReleaseShape(id)
		l.s.space.Commit()
	}); n > 0 {
		t.Errorf("%v allocations for a task", n)
	}
}

// One task after the other on a region that is otherwise empty.
func BenchmarkTakeGive(b *testing.B) {
	l := newLoad(b, 1000, 1, 0)
	id, _ := l.s.AddShape([]byte("one"), whole(1), nil)
	l.s.space.Commit()
	b.ReportAllocs()
	defer startCPU(b)()
	for b.Loop() {
		f, _ := l.s.Find(id)
		l.s.Take(f, id)
		l.s.space.Commit()
		l.s.Give(f.Node, f.Devices, f.Share, 1000, 1<<30)
		l.s.space.Commit()
	}
}

// newRacks returns an index of 100,000 nodes in racks of 32, of each of which
// so many devices are free.
func newRacks(tb testing.TB, free func(slot uint32) int) *State {
	tb.Helper()
	sp := mem.NewSpace()
	s := New(sp)
	for i := range uint32(100_000) {
		n := NodeInfo{
			CPU: 96_000, Memory: 768 << 30, Devices: gpus(8, "H100"),
			Rack: fmt.Sprint("r", i/32), NVLinkDomain: fmt.Sprint("n", i/16),
		}
		if code := s.SetNode(i, &n); code != gpuai.OK {
			tb.Fatal(code)
		}
		s.Hold(i, 1<<(8-free(i))-1, 0, 0, 0)
		s.SetOpen(i, true)
		sp.Commit()
	}
	return s
}

// benchGang finds and takes the places of a gang, and takes them back.
func benchGang(b *testing.B, s *State, need Members, p gpuai.Placement) {
	b.ReportAllocs()
	defer startCPU(b)()
	for b.Loop() {
		mark, placed := s.space.Mark(), uint32(0)
		x := Search{Level: p.Same, Needs: []Members{need}}
		if sc, ok := s.Next(&x); ok && s.RoomIn(sc, need.Shape, need.Min) >= need.Min {
			k := Picker{Scope: sc, Near: p.Near}
			for ; placed < need.Count; placed++ {
				f, ok := s.Pick(&k, need.Shape, need.Count-placed)
				if !ok {
					break
				}
				s.Take(f, need.Shape)
			}
		}
		s.space.RollbackTo(mark)
		if want := need.Count; placed != want {
			b.Fatalf("%d tasks of %d were placed", placed, want)
		}
	}
}

// Gangs of whole nodes at 100,000 nodes in racks of 32, two thirds of them
// full; and one that no rack can hold, while the region could ten times over:
// in every rack there is room for half of it.
func BenchmarkGang(b *testing.B) {
	s := newRacks(b, func(i uint32) int { return []int{0, 3, 8}[(i/5)%3] })
	id, _ := s.AddShape([]byte("gang"), whole(8), nil)
	s.space.Commit()
	same := gpuai.Placement{Same: gpuai.TopologyRack}
	b.Run("64_GPUs_one_rack", func(b *testing.B) { benchGang(b, s, Members{id, 8, 8}, same) })
	b.Run("512_GPUs_anywhere", func(b *testing.B) { benchGang(b, s, Members{id, 64, 64}, gpuai.Placement{}) })
	b.Run("512_GPUs_few_racks", func(b *testing.B) { benchGang(b, s, Members{id, 64, 64}, gpuai.Placement{Near: gpuai.TopologyRack}) })
	b.Run("hopeless_GPUs_one_rack", func(b *testing.B) {
		b.ReportAllocs()
		defer startCPU(b)()
		x := Search{Level: gpuai.TopologyRack, Needs: []Members{{id, 20, 20}}}
		for b.Loop() {
			x.step, x.tried = 0, false
			if sc, ok := s.Next(&x); ok {
				b.Fatalf("%+v", sc)
			}
		}
	})
}

// BenchmarkGangHopeless is a gang that has the free devices in every rack, but
// in pieces.
func BenchmarkGangHopeless(b *testing.B) {
	s := newRacks(b, func(i uint32) int { return 4 + int(i%4) })
	id, _ := s.AddShape([]byte("gang"), whole(8), nil)
	s.space.Commit()
	b.ReportAllocs()
	defer startCPU(b)()
	x := Search{Level: gpuai.TopologyRack, Needs: []Members{{id, 8, 8}}}
	for b.Loop() {
		x.step, x.tried = 0, false
		if sc, ok := s.Next(&x); ok {
			b.Fatalf("%+v", sc)
		}
	}
}

// BenchmarkFindTakeRacks is what racks add to the way of one task.
func BenchmarkFindTakeRacks(b *testing.B) {
	s := newRacks(b, func(i uint32) int { return []int{0, 3, 8}[(i/5)%3] })
	id, _ := s.AddShape([]byte("one"), whole(1), nil)
	s.space.Commit()
	b.ReportAllocs()
	defer startCPU(b)()
	for b.Loop() {
		f, ok := s.Find(id)
		if !ok {
			b.Fatal("no place")
		}
		s.Take(f, id)
		s.space.Commit()
		s.Give(f.Node, f.Devices, f.Share, 0, 0)
		s.space.Commit()
	}
}
