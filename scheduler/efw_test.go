package scheduler

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// A packWorld is a world whose packing is compared with looking at everything.
type packWorld struct{ *world }

func newPackWorld(t *testing.T, seed uint64, p gpuai.Packing) packWorld {
	w := packWorld{newWorld(t, seed)}
	w.lends = false // what asks for scratch space is placed by best fit
	w.s.SetPacking(p)
	w.s.scratch().narrow = 1 + 3*uint32(seed%2) // so that heaps have to be widened
	w.sp.Commit()
	return w
}

// naiveValue is V of a state by its definition, without views or memory.
func (w packWorld) naiveValue(t packState) int64 {
	s := w.s
	type class struct {
		need   packNeed
		weight int64
		passes bool
	}
	var classes []class
	var all, frag int64
	for i, ok := s.demandSlots.Next(0); ok; i, ok = s.demandSlots.Next(i + 1) {
		if d := s.demand.Get(i); d.weight > 0 {
			r := s.shapes.Get(d.shape.id())
			c := class{r.needOf(), int64(d.weight), s.passesAny(r, uint32(t.pool))}
			classes = append(classes, c)
			all += c.weight
			frag += c.weight * naiveLost(t, c.need, c.passes)
		}
	}
	if t.used() || len(classes) == 0 {
		return 0
	}
	seed, waste := uint64(s.packing.Get().epoch), int64(0)
	for range packSequences {
		u := t
		for range packDraws {
			x := int64(splitmix64(&seed) % uint64(all))
			i := 0
			for ; x >= classes[i].weight; i++ {
				x -= classes[i].weight
			}
			if c := classes[i]; c.passes && u.room(&c.need) {
				u.take(&c.need)
			}
		}
		waste += u.idle()
	}
	return fragWeight*frag + wasteWeight*waste*(1<<weightBits/packSequences)
}

// naiveLost is what of a state's idle devices a task cannot use.
func naiveLost(t packState, n packNeed, passes bool) int64 {
	if !passes || n.count == 0 || !t.room(&n) || !t.serves(&n) {
		return t.idle()
	}
	if n.share == 0 {
		return t.idle() - 1000*int64(t.whole)
	}
	lost := int64(0)
	for _, p := range t.parts {
		if p < n.share {
			lost += int64(p)
		}
	}
	return lost
}

// serves reports whether the state has the devices for a task.
func (s *packState) serves(n *packNeed) bool {
	if n.share == 0 || s.whole > 0 {
		return s.whole >= n.count
	}
	for _, p := range s.parts {
		if p >= n.share {
			return true
		}
	}
	return false
}

// naivePrices returns the prices as they must become with the next search.
func (w packWorld) naivePrices() []slotRec {
	s := w.s
	var out []slotRec
	var idle int64
	for slot := range w.nodes {
		if t, ok := w.stateOf(slot); ok {
			idle += t.idle()
		}
	}
	for j := range s.packing.Get().slots {
		r := *s.slotClasses.Get(j)
		var slots int64
		for slot := range w.nodes {
			if t, ok := w.stateOf(slot); ok && s.passesAny(s.shapes.Get(s.demand.Get(r.class).shape.id()), uint32(t.pool)) {
				slots += r.on(t.whole, t.cpu)
			}
		}
		r.lambda = r.price(idle, slots)
		out = append(out, r)
	}
	return out
}

// stateOf returns the state of a node by the model, if packing sees it.
func (w packWorld) stateOf(slot uint32) (packState, bool) {
	n := w.nodes[slot]
	if !n.open || n.cpu < 0 || n.mem < 0 {
		return packState{}, false
	}
	t := packState{
		cpu: uint32(n.cpu / cpuGrid * cpuGrid), mem: uint32(n.mem >> 30 << 10), pool: uint16(n.pools[0]),
	}
	parts := 0
	for d := range n.free {
		if n.pools[d] != n.pools[0] {
			return packState{}, false
		}
		switch f := n.free[d]; {
		case !n.info.Devices[d].Usable || f <= 0:
		case f == 1000:
			t.whole++
		default:
			if parts++; parts > maxParts {
				return packState{}, false
			}
			t.put(uint16(f))
		}
	}
	return t, true
}

// naiveBest is Place by looking at every node that packing sees.
func (w packWorld) naiveBest(sh *modelShape) (Fit, bool) {
	s, prices := w.s, w.naivePrices()
	r := s.shapes.Get(uint32(sh.id))
	n := r.needOf()
	price := func(a, b packState) int64 {
		var most int64
		for _, p := range prices {
			if s.passesAny(s.shapes.Get(s.demand.Get(p.class).shape.id()), uint32(a.pool)) {
				most = max(most, int64(p.lambda)*(p.on(a.whole, a.cpu)-p.on(b.whole, b.cpu))*int64(p.count))
			}
		}
		return most * priceUnit
	}
	for alt := range r.alts {
		var best heapEntry
		node, found := uint32(0), false
		for slot := range uint32(14) {
			if w.nodes[slot] == nil {
				continue
			}
			t, ok := w.stateOf(slot)
			if !ok || !t.room(&n) || !s.passes(r, alt, uint32(t.pool)) {
				continue
			}
			for _, left := range w.choices(t, n) {
				to := without(t, n, left)
				e := heapEntry{key: t.key(), left: left, score: w.naiveValue(t) - w.naiveValue(to) - price(t, to)}
				if !found || e.before(&best) {
					best, node, found = e, slot, true
				}
			}
		}
		if found {
			return w.fitOf(node, n, best.left, alt), true
		}
	}
	return Fit{}, false
}

// choices returns the remainders on which a task could go; 0 for whole devices.
func (w packWorld) choices(t packState, n packNeed) (out []uint16) {
	for _, p := range t.parts {
		if n.share > 0 && p >= n.share {
			out = append(out, p)
		}
	}
	if t.whole >= n.count && (n.share == 0 || t.parts[maxParts-1] == 0 && t.whole > 0) {
		out = append(out, 0)
	}
	return out
}

func without(t packState, n packNeed, left uint16) packState {
	t.cpu = (t.cpu - n.cpu) / cpuGrid * cpuGrid
	t.mem = (t.mem - n.mem) / memGrid * memGrid
	switch {
	case n.share == 0:
		t.whole -= n.count
	case left == 0:
		t.whole--
		t.put(1000 - n.share)
	default:
		for i := range t.parts {
			if t.parts[i] == left {
				t.cut(i)
				break
			}
		}
		t.put(left - n.share)
	}
	return t
}

func (w packWorld) fitOf(slot uint32, n packNeed, left uint16, alt uint8) Fit {
	f := Fit{Node: slot, Share: n.share, Alt: alt}
	x := w.nodes[slot]
	want, count := 1000, int(n.count)
	if left > 0 {
		want = int(left)
	}
	for d := range x.free {
		if count > 0 && x.info.Devices[d].Usable && x.free[d] == want {
			f.Devices |= 1 << d
			count--
		}
	}
	return f
}

// packPlace compares Place with looking at everything, and takes what it found.
func (w packWorld) packPlace(sh *modelShape) {
	w.t.Helper()
	var want Fit
	wantOK := false
	if w.s.Packing() == gpuai.PackingEFW {
		want, wantOK = w.naiveBest(sh)
	}
	if !wantOK { // what packing does not see is for best fit
		want, wantOK = w.brute(sh, func(uint32) bool { return true })
	}
	got, ok := w.s.Place(sh.id)
	if got != want || ok != wantOK {
		w.t.Fatalf("Place(%+v %+v) = %+v %v, want %+v %v", sh.needs, sh.cs, got, ok, want, wantOK)
	}
	if ok {
		w.s.Take(got, sh.id)
		l := sh.lease(got)
		w.nodes[got.Node].move(l, -1)
		w.leases = append(w.leases, l)
	}
}

// packStep does one random thing with packing in it.
func (w packWorld) packStep() {
	r := w.r
	switch x := r.IntN(40); {
	case x == 0 && len(w.shapes) > 0:
		var d []Demand
		for _, sh := range w.shapes {
			d = append(d, Demand{sh.id, 1 + r.Uint64N(50)})
		}
		w.s.SeedDemand(d, r.IntN(2) == 0)
	case x == 1:
		w.s.SetPacking(pick(r, gpuai.PackingBestFit, gpuai.PackingEFW, gpuai.PackingEFW, gpuai.PackingEFW))
	case x < 8:
		w.s.PackStep(int64(r.IntN(5)) * workPackNode)
	case x < 24 && len(w.shapes) > 0:
		sh := &w.shapes[r.IntN(len(w.shapes))]
		w.s.Arrived(sh.id, 1+r.Uint32N(3))
		w.packPlace(sh)
	default:
		w.step()
	}
}

// Place says what looking at every node says, ties included, at each step of
// many small histories with changes of policy and demand.
func TestPackingAgainstBruteForce(t *testing.T) {
	packed := 0
	for seed := range seeds(8) {
		w := newPackWorld(t, seed, gpuai.PackingEFW)
		for range 400 {
			w.packStep()
			w.check()
			w.sp.Commit()
			if w.s.Packing() == gpuai.PackingEFW {
				packed++
			}
		}
	}
	if packed < 80*int(seeds(8)) {
		t.Fatalf("packing decided at %d steps only", packed)
	}
}

// A rolled back, a forked and a restored index decide as the original does,
// whatever is in their heaps.
func TestPackingRollbackForkRestore(t *testing.T) {
	for seed := range uint64(24) {
		w := newPackWorld(t, 2*seed+1, gpuai.PackingEFW)
		for range 200 {
			w.packStep()
			w.sp.Commit()
		}
		before := dump(w.s)
		fork := w.s.Fork(w.sp.Fork())
		for range 20 { // searches and failed gangs that leave nothing
			if len(w.shapes) == 0 {
				break
			}
			sh := &w.shapes[w.r.IntN(len(w.shapes))]
			if f, ok := w.s.Place(sh.id); ok {
				w.s.Take(f, sh.id)
			}
			if w.r.IntN(3) == 0 {
				w.s.Arrived(sh.id, 1000)
			}
		}
		w.sp.RollbackTo(0)
		if after := dump(w.s); after != before {
			t.Fatalf("seed %d: a rollback left\n%s\nof\n%s", seed, after, before)
		}
		w.check()
		restored := w.restore()
		if got := dump(restored.s); got != before {
			t.Fatalf("seed %d: restored\n%s\nof\n%s", seed, got, before)
		}
		packAlike(t, w, []*State{w.s, fork, restored.s})
	}
}

// packAlike places the same tasks in all.
func packAlike(t *testing.T, w packWorld, all []*State) {
	t.Helper()
	for range 60 {
		if len(w.shapes) == 0 {
			return
		}
		id := w.shapes[w.r.IntN(len(w.shapes))].id
		want := ""
		for i, s := range all {
			s.Arrived(id, 3)
			from := s.Work()
			f, ok := s.Place(id)
			if ok {
				s.Take(f, id)
			}
			got := fmt.Sprint(f, ok, s.Work()-from)
			s.space.Commit()
			if got += dump(s); i > 0 && got != want {
				t.Fatalf("index %d: %s\nwant %s", i, got, want)
			}
			want = got
		}
	}
}

// setPlain registers a node of one kind.
func (w packWorld) setPlain(slot uint32, cpu int64, gpus int, model string) {
	info := NodeInfo{CPU: cpu, Memory: 64 << 30}
	n := &modelNode{cpu: cpu, mem: info.Memory, open: true}
	for range gpus {
		info.Devices = append(info.Devices, DeviceInfo{Vendor: "nvidia", Model: model, Memory: 80, Usable: true})
		n.free = append(n.free, 1000)
	}
	n.info = info
	if code := w.s.SetNode(slot, &info); code != gpuai.OK {
		w.t.Fatalf("SetNode: %v", code)
	}
	for i := range max(gpus, 1) {
		var d *DeviceInfo
		if gpus > 0 {
			d = &info.Devices[i]
		}
		n.pools = append(n.pools, w.modelPool(&info, d))
	}
	w.nodes[slot] = n
	w.s.SetOpen(slot, true)
}

// addPlain adds a shape.
func (w packWorld) addPlain(cpu, gpus, share uint32, cs ...gpuai.Constraint) *modelShape {
	needs := gpuai.Resources{CPU: gpuai.MilliCPU(cpu), Memory: 1 << 30}
	needs.GPU.Count, needs.GPU.Share.Milli = gpus, gpuai.Milli(share)
	id, code := w.s.AddShape(fmt.Appendf(nil, "%+v %+v", needs, cs), needs, cs)
	if code != gpuai.OK {
		w.t.Fatalf("AddShape: %v", code)
	}
	w.s.RetainShape(id)
	w.shapes = append(w.shapes, modelShape{id, needs, cs})
	return &w.shapes[len(w.shapes)-1]
}

// steady is a world whose demand stays, so that heaps live long.
func steady(t *testing.T, seed uint64) packWorld {
	w := newPackWorld(t, 2*seed+1, gpuai.PackingEFW)
	for slot := range uint32(13) {
		w.setPlain(slot, int64(4+4*(slot%3))*1000, int([]uint32{8, 4, 2, 0}[slot%4]), []string{"H100", "A100"}[slot%2])
	}
	only := gpuai.Constraint{Attribute: "gpu.model", Op: gpuai.Equal, Values: []string{"A100"}}
	var d []Demand
	for _, x := range []struct{ cpu, gpus, share, tasks uint32 }{
		{4000, 8, 0, 1}, {2000, 4, 0, 2}, {500, 2, 0, 2}, {500, 1, 0, 10}, {300, 1, 460, 20}, {200, 1, 230, 10}, {1000, 0, 0, 5},
	} {
		d = append(d, Demand{w.addPlain(x.cpu, x.gpus, x.share).id, uint64(x.tasks)})
	}
	d = append(d, Demand{w.addPlain(400, 1, 0, only).id, 3}, Demand{w.addPlain(400, 1, 333, only).id, 3})
	w.s.SeedDemand(d, true)
	w.sp.Commit()
	return w
}

// churn places or ends a task; the world is nearly full in the mean.
func (w packWorld) churn(of int) {
	if r := w.r; len(w.leases) > 0 && r.IntN(of) == 0 {
		i := r.IntN(len(w.leases))
		l := w.leases[i]
		w.s.Give(l.fit.Node, l.fit.Devices, l.fit.Share, l.cpu, l.mem)
		w.nodes[l.fit.Node].move(l, 1)
		w.leases[i] = w.leases[len(w.leases)-1]
		w.leases = w.leases[:len(w.leases)-1]
		return
	}
	w.packPlace(&w.shapes[w.r.IntN(len(w.shapes))])
}

// Scores that stay in heaps while prices move are those of the prices of now.
func TestPackingPricesAgainstBruteForce(t *testing.T) {
	var prices uint64
	for seed := range seeds(4) {
		w := steady(t, seed)
		for i := range 500 {
			w.churn(2 + i/40%2)
			w.check()
			w.sp.Commit()
		}
		prices += w.s.packSums.Get().prices
	}
	if prices < 35*seeds(4) {
		t.Fatalf("prices moved %d times only", prices)
	}
}

// A price stays while it is not far off, so that scores need not be made anew,
// and is a power of two.
func TestPriceHysteresis(t *testing.T) {
	r := slotRec{count: 8, share: 1 << 15, used: true} // half of the demand
	idle := int64(1_000_000)                           // 1,000 devices: 95.75 slots are needed
	for _, c := range []struct {
		slots     int64
		old, want uint32
	}{
		{0, 0, 512},      // none is left
		{96, 0, 128},     // ratio 254/256: p* 252
		{96, 256, 256},   // 252 ≥ 0.75 × 256
		{96, 128, 128},   // 252 < 2.5 × 128
		{96, 64, 128},    // 252 ≥ 2.5 × 64
		{111, 256, 128},  // p* 189 < 192
		{110, 256, 256},  // p* 193
		{800, 0, 0},      // p* 3: too little to ask for
		{800, 4, 4},      // but enough to stay
		{1_000, 4, 0},    // p* 2
		{-1, 0, 512},     // an impossible supply is none
		{1 << 40, 64, 0}, // plenty
	} {
		if r.lambda = c.old; r.price(idle, c.slots) != c.want {
			t.Errorf("%d slots, price was %d: now %d, want %d", c.slots, c.old, r.price(idle, c.slots), c.want)
		}
	}
}

// The demand is frozen at fixed numbers of arrivals, and not when it is much
// the same as it was.
func TestDemandIsFrozenAtFixedCounts(t *testing.T) {
	w := newPackWorld(t, 1, gpuai.PackingEFW)
	a, b := w.addPlain(100, 1, 0).id, w.addPlain(200, 2, 0).id
	var frozen []uint64
	for n := uint64(1); n <= 5*freezeEvery; n++ {
		id := a
		if n > 3*freezeEvery || n < 200 && n%2 == 0 {
			id = b
		}
		epoch := w.s.packing.Get().epoch
		w.s.Arrived(id, 1)
		if w.s.packing.Get().epoch != epoch {
			frozen = append(frozen, n)
		}
		w.sp.Commit()
	}
	w.check()
	// Between 8,192 and 3 × 8,192 next to nothing changes.
	if got, want := fmt.Sprint(frozen), fmt.Sprint([]uint64{128, 256, 512, 1024, 2048, 8192, 4 * freezeEvery, 5 * freezeEvery}); got != want {
		t.Fatalf("frozen at %s, want %s", got, want)
	}
	w.s.SeedDemand([]Demand{{a, 1}}, true)
	epoch := w.s.packing.Get().epoch
	for range 2 * freezeEvery {
		w.s.Arrived(b, 1)
	}
	if got := w.s.packing.Get().epoch; got != epoch {
		t.Fatal("a demand that is fixed was learnt")
	}
}

// A change of policy leaves nothing behind: neither records nor hash.
func TestPackingIsDroppedWhole(t *testing.T) {
	w := steady(t, 3)
	for range 100 {
		w.churn(3)
	}
	w.sp.Commit()
	plain := newWorld(t, 0)
	plain.s.AddShape([]byte("x"), gpuai.Resources{CPU: 1}, nil)
	w.s.SetPacking(gpuai.PackingBestFit)
	steps := 0
	for ; !w.s.PackingSettled(); steps++ {
		if used := w.s.PackStep(3 * workPackNode); used > 3*workPackNode {
			t.Fatalf("a step used %d units of %d", used, 3*workPackNode)
		}
		w.check()
	}
	w.sp.Commit()
	if steps < 4 || w.s.packing.Sum()+w.s.demand.Sum()+w.s.slotClasses.Sum()+w.s.seen.Sum() != 0 || w.s.packSlots.Len() != 0 {
		t.Fatalf("after %d steps %d buckets are left, %+v", steps, w.s.packSlots.Len(), *w.s.packing.Get())
	}
	if tail := w.s.appendPacking(nil); len(tail) != 0 {
		t.Fatalf("a snapshot still has %d bytes of it", len(tail))
	}
}

// Keys give back their states and order them.
func TestPackKey(t *testing.T) {
	w := newWorld(t, 4)
	last := packState{}
	for range 2_000 {
		s := packState{cpu: w.r.Uint32N(1 << 31), mem: w.r.Uint32(), pool: uint16(w.r.IntN(MaxPools)), whole: uint8(w.r.IntN(65))}
		for range w.r.IntN(maxParts + 1) {
			s.put(uint16(1 + w.r.IntN(999)))
		}
		k, l := s.key(), last.key()
		if k.state() != s {
			t.Fatalf("%+v comes back as %+v", s, k.state())
		}
		if s.whole != last.whole && k.before(&l) != (s.whole < last.whole) {
			t.Fatalf("%+v and %+v are in the wrong order", s, last)
		}
		last = s
	}
}

// When the store of heaps is full they are forgotten, and nothing changes.
func TestHeapsAreForgottenWhenFull(t *testing.T) {
	w, o := steady(t, 5), steady(t, 5)
	for i := range 200 {
		if i%7 == 0 {
			o.s.packSums.Mut().heaps.top = maxHeapEntries
			for k := range o.s.packSums.Get().heaps.free {
				o.s.packSums.Mut().heaps.free[k] = 0
			}
		}
		w.churn(3)
		o.churn(3)
		if a, b := dump(w.s), dump(o.s); a != b {
			t.Fatalf("step %d:\n%s\nwant\n%s", i, b, a)
		}
	}
	if o.s.packSums.Get().heaps.era < 5 {
		t.Fatal("the store was never full")
	}
}
