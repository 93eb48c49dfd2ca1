package scheduler

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// A reclaimWorld is a world whose leases have bands.
type reclaimWorld struct {
	*world
	bands map[uint32][]Holding // by node
}

func newReclaimWorld(t *testing.T, seed uint64) *reclaimWorld {
	w := &reclaimWorld{world: newWorld(t, seed), bands: map[uint32][]Holding{}}
	for range 300 {
		w.step()
		w.sp.Commit()
	}
	for range 60 {
		if len(w.shapes) > 0 {
			w.place(&w.shapes[w.r.IntN(len(w.shapes))])
		}
	}
	for _, l := range w.leases {
		if w.r.IntN(4) == 0 {
			continue // it may not be taken
		}
		h := Holding{
			Band: Band(pick(w.r, 3, 4, 4, 61, 62, 500)), Going: w.r.IntN(8) == 0, Share: l.fit.Share,
			Devices: l.fit.Devices, CPU: l.cpu, Memory: l.mem, Scratch: l.scratch, Unit: pick(w.r, uint32(0), 0, 0, 1, 2),
		}
		if h.Unit != 0 {
			h.Band, h.Going = 62, false
		}
		w.bands[l.fit.Node] = append(w.bands[l.fit.Node], h)
	}
	for slot := range uint32(14) {
		w.s.SetReclaim(slot, w.bands[slot])
	}
	return w
}

// after returns the model's node with holdings gone.
func (w *reclaimWorld) after(slot uint32, gone func(h *Holding) bool) *modelNode {
	n := *w.nodes[slot]
	n.free = slices.Clone(n.free)
	for _, h := range w.bands[slot] {
		if gone(&h) {
			n.move(modelLease{fit: Fit{Devices: h.Devices, Share: h.Share}, cpu: h.CPU, mem: h.Memory, scratch: h.Scratch}, 1)
		}
	}
	return &n
}

// bruteReclaim is FindReclaim by looking at everything.
func (w *reclaimWorld) bruteReclaim(sh *modelShape, limit Band) (uint32, bool) {
	type order [8]int
	var best order
	found := false
	for slot, before := range w.nodes {
		if !before.open {
			continue
		}
		for _, band := range []Band{3, 4, 61, 62, 500} {
			has := slices.ContainsFunc(w.bands[slot], func(h Holding) bool { return h.Band == band })
			if !has || band >= limit {
				continue
			}
			n := w.after(slot, func(h *Holding) bool { return h.Band <= band })
			if n.cpu < int64(sh.needs.CPU) || n.mem < int64(sh.needs.Memory) || n.cpu < 0 || n.mem < 0 || !n.lends(sh) {
				continue
			}
			for alt := range max(len(sh.needs.GPU.Any), 1) {
				for begin := range n.pools {
					count, parted, ok := w.unitPrefix(sh, alt, n, begin)
					x := order{int(band), alt, parted, count, int(priceTier(n.info.Price)), n.pools[begin], int(n.cpu), int(slot)}
					if ok && (!found || slices.Compare(x[:], best[:]) < 0) {
						best, found = x, true
					}
				}
			}
		}
	}
	return uint32(best[7]), found
}

// unitPrefix returns how tight a kind of a node's devices is; parted is 0 where
// a share fits beside others.
func (w *reclaimWorld) unitPrefix(sh *modelShape, alt int, n *modelNode, begin int) (count, parted int, ok bool) {
	var kind *DeviceInfo
	if len(n.info.Devices) > 0 {
		kind = &n.info.Devices[begin]
	}
	if !w.admits(sh, alt, n, kind) {
		return 0, 0, false
	}
	whole, part := 0, 0
	for d := range n.info.Devices {
		if n.pools[d] != n.pools[begin] || !n.info.Devices[d].Usable {
			continue
		}
		if n.free[d] == 1000 {
			whole++
		} else {
			part = max(part, n.free[d])
		}
	}
	if share := int(sh.needs.GPU.Share.Milli); share > 0 && part >= share {
		return part, 0, true
	}
	return whole, 1, whole >= int(sh.needs.GPU.Count)
}

// FindReclaim and FitsReclaim say what looking at everything says.
func TestReclaimAgainstBruteForce(t *testing.T) {
	found := 0
	for seed := range seeds(120) {
		w := newReclaimWorld(t, seed)
		w.check()
		for i := range w.shapes {
			sh := &w.shapes[i]
			for _, limit := range []Band{3, 4, 62, 63, NumBands} {
				want, wantOK := w.bruteReclaim(sh, limit)
				got, ok := w.s.FindReclaim(sh.id, limit)
				if got != want || ok != wantOK {
					t.Fatalf("seed %d: FindReclaim(%+v %+v, %d) = %d %v, want %d %v", seed, sh.needs, sh.cs, limit, got, ok, want, wantOK)
				}
				if ok {
					found++
				}
				any := false
				for slot := range uint32(14) {
					any = any || w.s.FitsReclaim(sh.id, slot, limit)
				}
				if any != ok {
					t.Fatalf("seed %d: FitsReclaim(%+v) is true anywhere: %v, FindReclaim says %v", seed, sh.needs, any, ok)
				}
			}
		}
	}
	if found < int(2*seeds(100)) {
		t.Fatalf("only %d searches found a node: the test shows nothing", found)
	}
}

// Who goes is the best set of all: of those that make room, the one that spares
// the first, then the second and so on.
func TestDisplaceAgainstBruteForce(t *testing.T) {
	decided := 0
	for seed := range seeds(200) {
		w := newReclaimWorld(t, seed)
		for slot := range uint32(14) {
			hs := w.bands[slot]
			if len(hs) == 0 || len(hs) > 10 || w.nodes[slot] == nil {
				continue
			}
			slices.SortFunc(hs, func(a, b Holding) int { return int(b.Unit) - int(a.Unit) })
			for i := range w.shapes {
				gone := make([]bool, len(hs))
				fit, ok := w.s.Displace(w.shapes[i].id, slot, hs, gone)
				want, wantOK := w.bruteDisplace(&w.shapes[i], slot, hs)
				if ok != wantOK || ok && !slices.Equal(gone, want) {
					t.Fatalf("seed %d: %+v displaces %v of %+v, %v, want %v, %v", seed, w.shapes[i].needs, gone, hs, ok, want, wantOK)
				}
				if ok {
					decided++
					w.checkPlace(&w.shapes[i], fit, hs, gone)
				}
			}
		}
	}
	if decided < int(seeds(200)) {
		t.Fatalf("only %d were decided: the test shows nothing", decided)
	}
}

// bruteDisplace tries all sets.
func (w *reclaimWorld) bruteDisplace(sh *modelShape, slot uint32, hs []Holding) (best []bool, ok bool) {
	for set := range 1 << len(hs) {
		gone := make([]bool, len(hs))
		legal := true
		for i := range hs {
			gone[i] = set>>(len(hs)-1-i)&1 != 0 // the first is the weightiest bit
			for k := range i {
				legal = legal && (hs[i].Unit == 0 || hs[i].Unit != hs[k].Unit || gone[i] == gone[k])
			}
			legal = legal && !(gone[i] && hs[i].Going)
		}
		if legal && w.fitsWithout(sh, slot, hs, gone) {
			return gone, true
		}
	}
	return nil, false
}

func (w *reclaimWorld) fitsWithout(sh *modelShape, slot uint32, hs []Holding, gone []bool) bool {
	i := -1
	n := w.after(slot, func(*Holding) bool { i++; return gone[i] || hs[i].Going })
	if n.cpu < int64(sh.needs.CPU) || n.mem < int64(sh.needs.Memory) || n.cpu < 0 || n.mem < 0 || !n.lends(sh) {
		return false
	}
	for alt := range max(len(sh.needs.GPU.Any), 1) {
		for begin := range n.pools {
			if _, _, ok := w.unitPrefix(sh, alt, n, begin); ok {
				return true
			}
		}
	}
	return false
}

// checkPlace holds the place to what is free once those have gone.
func (w *reclaimWorld) checkPlace(sh *modelShape, fit Fit, hs []Holding, gone []bool) {
	w.t.Helper()
	i := -1
	n := w.after(fit.Node, func(*Holding) bool { i++; return gone[i] || hs[i].Going })
	if bits.OnesCount64(fit.Devices) != int(sh.needs.GPU.Count) {
		w.t.Fatalf("%+v is to have devices %b", sh.needs, fit.Devices)
	}
	for d := range n.free {
		if fit.Devices>>d&1 != 0 && n.free[d] < int(milli(fit.Share)) {
			w.t.Fatalf("device %d has %d milli for %+v", d, n.free[d], sh.needs)
		}
	}
}

// fullLoad is a region of which every device is held, in two bands.
func fullLoad(b *testing.B, nodes int) *load {
	l := newLoad(b, nodes, 400, 0)
	l.fill(nodes, 100)
	one := gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}, CPU: 100}
	id, _ := l.s.AddShape([]byte("one"), one, nil)
	l.s.RetainShape(id)
	for f, ok := l.s.Find(id); ok; f, ok = l.s.Find(id) {
		l.take(f, id)
		l.s.space.Commit()
	}
	by := map[uint32][]Holding{}
	for i, f := range l.held {
		cpu, memory, _ := l.s.Demand(l.of[i])
		by[f.Node] = append(by[f.Node], Holding{Band: Band(pick(l.r, 61, 61, 151)), Devices: f.Devices, CPU: cpu, Memory: memory})
	}
	for n := range uint32(nodes) {
		l.s.SetReclaim(n, by[n])
		l.s.space.Commit()
	}
	return l
}

// BenchmarkReclaim finds the node where a task makes room for itself, of a
// region that is 100 % full.
func BenchmarkReclaim(b *testing.B) {
	for _, nodes := range benchSizes {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			l := fullLoad(b, nodes)
			r := rand.New(rand.NewPCG(3, 4))
			for b.Loop() {
				l.s.FindReclaim(l.shapes[r.IntN(len(l.shapes))], NumBands)
			}
		})
	}
}
