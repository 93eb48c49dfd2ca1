package scheduler

import (
	"fmt"
	"math/bits"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

func (w *world) addShape() {
	needs, cs := w.randomNeeds()
	key := fmt.Appendf(nil, "%+v %+v", needs, cs)
	id, known := w.s.FindShape(key)
	if !known {
		var code gpuai.Code
		if id, code = w.s.AddShape(key, needs, cs); code != gpuai.OK {
			w.t.Fatalf("AddShape: %v", code)
		}
	}
	w.s.RetainShape(id)
	w.shapes = append(w.shapes, modelShape{id, needs, cs})
}

// step does one random thing to both.
func (w *world) step() {
	r := w.r
	slot := r.Uint32N(12)
	n := w.nodes[slot]
	switch x := r.IntN(20); {
	case n == nil || x == 0:
		w.setNode(slot)
		w.open(slot, r.IntN(5) > 0)
	case x == 1 && r.IntN(4) == 0:
		w.s.RemoveNode(slot)
		delete(w.nodes, slot)
		w.forgetPools()
		w.endLeases(slot)
	case x == 2:
		w.open(slot, !n.open)
	case x == 3 && len(n.free) > 0:
		d := r.IntN(len(n.free))
		n.info.Devices[d].Usable = !n.info.Devices[d].Usable
		w.s.SetDevice(slot, uint8(d), n.info.Devices[d].Usable)
	case x == 4:
		w.addShape()
	case x == 5 && len(w.shapes) > 0:
		i := r.IntN(len(w.shapes))
		w.s.ReleaseShape(w.shapes[i].id)
		w.shapes[i] = w.shapes[len(w.shapes)-1]
		w.shapes = w.shapes[:len(w.shapes)-1]
	case x < 10 && len(w.leases) > 0:
		i := r.IntN(len(w.leases))
		l := w.leases[i]
		w.s.Give(l.fit.Node, l.fit.Devices, l.fit.Share, l.cpu, l.mem)
		w.s.Lend(l.fit.Node, -l.scratch)
		w.nodes[l.fit.Node].move(l, 1)
		w.leases[i] = w.leases[len(w.leases)-1]
		w.leases = w.leases[:len(w.leases)-1]
	case len(w.shapes) > 0:
		w.place(&w.shapes[r.IntN(len(w.shapes))])
	}
}

func (w *world) open(slot uint32, open bool) {
	w.s.SetOpen(slot, open)
	w.nodes[slot].open = open
}

func (w *world) endLeases(slot uint32) {
	kept := w.leases[:0]
	for _, l := range w.leases {
		if l.fit.Node != slot {
			kept = append(kept, l)
		}
	}
	w.leases = kept
}

// place compares all answers about a shape, and takes what was found.
func (w *world) place(sh *modelShape) {
	w.t.Helper()
	want, wantOK := w.brute(sh, func(uint32) bool { return true })
	got, ok := w.s.Find(sh.id)
	if got != want || ok != wantOK {
		w.t.Fatalf("Find(%+v %+v) = %+v %v, want %+v %v", sh.needs, sh.cs, got, ok, want, wantOK)
	}
	feasible := uint32(0)
	for slot := range uint32(14) {
		on, onOK := w.brute(sh, func(x uint32) bool { return x == slot })
		room, need := w.s.Room(slot), w.s.Need(sh.id)
		if onOK && !room.Covers(&need) {
			w.t.Fatalf("the room of node %d, %+v, does not cover %+v, which fits there: %+v", slot, room, need, sh.needs)
		}
		if got, ok := w.s.FitsOn(sh.id, slot); got != on || ok != onOK {
			w.t.Fatalf("FitsOn(%+v, %d) = %+v %v, want %+v %v", sh.needs, slot, got, ok, on, onOK)
		}
		if onOK {
			feasible++
		}
	}
	if why := w.s.Explain(sh.id, nil); why.Feasible != feasible || why.Nodes != uint32(len(w.nodes)) {
		w.t.Fatalf("Explain(%+v) = %+v, want %d feasible of %d", sh.needs, why, feasible, len(w.nodes))
	}
	if got, want := w.s.CanEver(sh.id), w.ever(sh); got != want || wantOK && !got {
		w.t.Fatalf("CanEver(%+v %+v) = %v, want %v", sh.needs, sh.cs, got, want)
	}
	if most := w.s.EverCapacity(sh.id, 1000); w.ever(sh) != (most > 0) {
		w.t.Fatalf("EverCapacity(%+v) = %d", sh.needs, most)
	}
	w.bound(sh)
	if ok {
		w.s.Take(got, sh.id)
		l := sh.lease(got)
		w.nodes[got.Node].move(l, -1)
		w.leases = append(w.leases, l)
	}
}

// roomAdds verifies that RoomFor is what the nodes have room for, each by itself:
// exactly, unless the task wants a share, or a node has several kinds of devices.
func (w *world) roomAdds(sh *modelShape, limit uint32) {
	w.t.Helper()
	sum, mixed := uint32(0), false
	for slot, n := range w.nodes {
		if n == nil {
			continue
		}
		sum += w.s.RoomIn(Scope{level: gpuai.TopologyNode, at: uint32(slot)}, sh.id, limit)
		for _, p := range n.pools {
			mixed = mixed || p != n.pools[0]
		}
	}
	room, most := w.s.RoomFor(sh.id, limit), w.s.Capacity(sh.id, limit)
	exact := sh.needs.GPU.Share.Milli == 0 && !mixed
	if sum = min(sum, limit); room < sum || room > most || exact && room != sum {
		w.t.Fatalf("RoomFor(%+v, %d) = %d, the nodes add up to %d, Capacity says %d", sh.needs, limit, room, sum, most)
	}
}

// bound verifies that as many tasks start as Capacity allows at the most, and
// that RollbackTo undoes them.
func (w *world) bound(sh *modelShape) {
	if w.r.IntN(10) > 0 {
		return
	}
	const limit = 60
	w.roomAdds(sh, limit)
	room, ever := w.s.Capacity(sh.id, limit), w.s.EverCapacity(sh.id, limit)
	mark, before := w.sp.Mark(), dump(w.s)
	n := uint32(0)
	for ; n < limit; n++ {
		f, ok := w.s.Find(sh.id)
		if !ok {
			break
		}
		w.s.Take(f, sh.id)
	}
	if n > room || n > ever {
		w.t.Fatalf("%d tasks of %+v started, Capacity said %d, EverCapacity %d", n, sh.needs, room, ever)
	}
	w.sp.RollbackTo(mark)
	if after := dump(w.s); after != before {
		w.t.Fatalf("a rollback left\n%s\nof\n%s", after, before)
	}
}

func (w *world) check() {
	w.t.Helper()
	if err := w.s.Check(); err != nil {
		w.t.Fatal(err)
	}
}

// Find, FitsOn, CanEver and Explain say what looking at everything says, at
// each step of many small histories.
func TestAgainstBruteForce(t *testing.T) {
	for seed := range seeds(12) {
		w := newWorld(t, seed)
		for range 400 {
			w.step()
			w.check()
			w.sp.Commit()
		}
	}
}

// What is rolled back leaves no trace; a fork and its origin do not see each
// other; a restored index answers and changes like the original.
func TestRollbackForkRestore(t *testing.T) {
	for seed := range seeds(30) {
		w := newWorld(t, seed)
		for range 120 {
			w.step()
			w.sp.Commit()
		}
		before := dump(w.s)
		sp := w.sp.Fork()
		fork := w.s.Fork(sp)
		saved := *w
		nodes, pools := w.nodes, append([]string(nil), w.pools...)
		w.nodes = map[uint32]*modelNode{}
		for slot, n := range nodes {
			c := *n
			c.free = append([]int(nil), n.free...)
			c.info.Devices = append([]DeviceInfo(nil), n.info.Devices...)
			w.nodes[slot] = &c
		}
		w.shapes, w.leases = append([]modelShape(nil), w.shapes...), append([]modelLease(nil), w.leases...)
		for range 60 {
			w.step()
		}
		w.check()
		if got := dump(fork); got != before {
			t.Fatalf("seed %d: the fork changed with its origin", seed)
		}
		w.sp.RollbackTo(0)
		if got := dump(w.s); got != before {
			t.Fatalf("seed %d: a rollback left\n%s\nof\n%s", seed, got, before)
		}
		w.check()
		w.nodes, w.pools, w.shapes, w.leases = nodes, pools, saved.shapes, saved.leases
		restored := w.restore()
		if got := dump(restored.s); got != before {
			t.Fatalf("seed %d: restored\n%s\nof\n%s", seed, got, before)
		}
		alike(t, seed, []*State{w.s, fork, restored.s}, w)
	}
}

// restore makes a second index of the first one's snapshot and leases.
func (w *world) restore() *world {
	o := newWorld(w.t, 0)
	if err := o.s.RestoreState(w.s.AppendState(nil)); err != nil {
		w.t.Fatal(err)
	}
	for slot := range uint32(12) {
		n := w.nodes[slot]
		if n == nil {
			continue
		}
		if code := o.s.SetNode(slot, &n.info); code != gpuai.OK {
			w.t.Fatalf("SetNode: %v", code)
		}
		for _, l := range w.leases {
			if l.fit.Node == slot {
				o.s.Hold(slot, l.fit.Devices, l.fit.Share, l.cpu, l.mem)
				o.s.Lend(slot, l.scratch)
			}
		}
		o.s.SetOpen(slot, n.open)
	}
	o.sp.Commit()
	o.check()
	return o
}

// alike does the same things to all states and wants the same answers, down
// to the work that they took.
func alike(t *testing.T, seed uint64, all []*State, w *world) {
	for range 200 {
		act := w.randomAct()
		var first string
		for i, s := range all {
			before := s.Work()
			got := fmt.Sprint(act(s), " for ", s.Work()-before)
			s.space.Commit()
			if i == 0 {
				first = got
			} else if got != first {
				t.Fatalf("seed %d: state %d answers %s, the original %s", seed, i, got, first)
			}
		}
	}
	for i, s := range all {
		if err := s.Check(); err != nil {
			t.Fatalf("seed %d: state %d: %v", seed, i, err)
		}
		if dump(s) != dump(all[0]) {
			t.Fatalf("seed %d: state %d is not what the original is", seed, i)
		}
	}
}

// randomAct returns a change that does not depend on the state's model.
func (w *world) randomAct() func(s *State) string {
	slot := w.r.Uint32N(14)
	info := w.randomInfo()
	needs, cs := w.randomNeeds()
	key := fmt.Appendf(nil, "%+v %+v", needs, cs)
	open := w.r.IntN(3) > 0
	switch w.r.IntN(9) {
	case 0:
		return func(s *State) string {
			code := s.SetNode(slot, &info)
			s.SetOpen(slot, open)
			return code.String()
		}
	case 1:
		return func(s *State) string { s.RemoveNode(slot); return "removed" }
	case 3, 4:
		return w.randomGang(key, needs, cs)
	case 2:
		return func(s *State) string { s.SetDevice(slot, uint8(len(key)%8), open); return "set" }
	}
	return func(s *State) string {
		id, ok := s.FindShape(key)
		if !ok {
			id, _ = s.AddShape(key, needs, cs)
		}
		s.RetainShape(id)
		f, found := s.Find(id)
		out := fmt.Sprint(id, ok, f, found, s.CanEver(id), s.Capacity(id, 50), s.EverCapacity(id, 50))
		if found {
			s.Take(f, id)
		}
		if open {
			s.ReleaseShape(id)
		}
		return out
	}
}

// Take and Give are exact inverses, wherever the task goes.
func TestGiveUndoesTake(t *testing.T) {
	w := newWorld(t, 3)
	for range 400 {
		w.step()
	}
	for range 20 {
		w.addShape()
	}
	for i := range w.shapes {
		sh := &w.shapes[i]
		before := dump(w.s)
		f, ok := w.s.Find(sh.id)
		if !ok {
			continue
		}
		w.s.Take(f, sh.id)
		want := sh.needs.GPU.Count
		if uint32(bits.OnesCount64(f.Devices)) != want {
			t.Fatalf("%d devices for %d", bits.OnesCount64(f.Devices), want)
		}
		w.s.Give(f.Node, f.Devices, f.Share, int64(sh.needs.CPU), int64(sh.needs.Memory))
		w.s.Lend(f.Node, -sh.scratch())
		if dump(w.s) != before {
			t.Fatalf("Take and Give of %+v do not cancel out", sh.needs)
		}
	}
	w.check()
}

func gpus(n int, model string) []DeviceInfo {
	var out []DeviceInfo
	for range n {
		out = append(out, DeviceInfo{Vendor: "nvidia", Model: model, Memory: 80 << 30, Usable: true})
	}
	return out
}

func newState(t *testing.T, nodes ...NodeInfo) *State {
	t.Helper()
	sp := mem.NewSpace()
	s := New(sp)
	for i := range nodes {
		if code := s.SetNode(uint32(i), &nodes[i]); code != gpuai.OK {
			t.Fatalf("node %d: %v", i, code)
		}
		s.SetOpen(uint32(i), true)
	}
	sp.Commit()
	return s
}

func shape(t *testing.T, s *State, r gpuai.Resources, cs ...gpuai.Constraint) ShapeID {
	t.Helper()
	id, code := s.AddShape(fmt.Appendf(nil, "%+v %+v", r, cs), r, cs)
	if code != gpuai.OK {
		t.Fatalf("shape %+v: %v", r, code)
	}
	s.RetainShape(id)
	return id
}

func whole(n uint32) gpuai.Resources {
	return gpuai.Resources{GPU: gpuai.GPURequest{Count: n}, CPU: 1000, Memory: 1 << 30}
}

func share(m gpuai.Milli) gpuai.Resources {
	r := whole(1)
	r.GPU.Share.Milli = m
	return r
}

// The tightest place wins: fewest free devices, least remainder, least CPU.
func TestOrder(t *testing.T) {
	node := NodeInfo{CPU: 64_000, Memory: 1 << 40, Devices: gpus(4, "H100")}
	small := node
	small.CPU = 32_000
	s := newState(t, node, node, small, node)
	s.Hold(1, 0b0011, 0, 1000, 1)
	s.Hold(3, 0b0001, 460, 1000, 1)
	for _, c := range []struct {
		name  string
		needs gpuai.Resources
		want  Fit
	}{
		{"fewest free devices", whole(2), Fit{Node: 1, Devices: 0b1100}},
		{"the next class", whole(3), Fit{Node: 3, Devices: 0b1110}},
		{"least free CPU within a class", whole(4), Fit{Node: 2, Devices: 0b1111}},
		{"the remainder that fits exactly", share(540), Fit{Node: 3, Devices: 1, Share: 540}},
		{"a larger share opens the tightest node's device", share(541), Fit{Node: 1, Devices: 0b0100, Share: 541}},
		{"a task without devices goes where fewest are free", whole(0), Fit{Node: 1}},
	} {
		got, ok := s.Find(shape(t, s, c.needs))
		if c.want.Devices == 0 && c.needs.GPU.Count > 0 || !ok || got != c.want {
			t.Errorf("%s: %+v %v, want %+v", c.name, got, ok, c.want)
		}
	}
}

// An earlier alternative is tried everywhere before a later one.
func TestAlternativesInOrder(t *testing.T) {
	s := newState(t, NodeInfo{CPU: 64_000, Memory: 1 << 40, Devices: gpus(1, "A100")},
		NodeInfo{CPU: 64_000, Memory: 1 << 40, Devices: gpus(8, "H100")})
	needs := whole(1)
	needs.GPU.Any = []gpuai.GPUAlternative{{Model: "H100"}, {Model: "A100"}}
	id := shape(t, s, needs)
	for i := range 9 {
		f, ok := s.Find(id)
		if want := uint8(i / 8); !ok || f.Alt != want || f.Node != 1-uint32(want) {
			t.Fatalf("task %d goes to %+v %v", i, f, ok)
		}
		s.Take(f, id)
	}
	if f, ok := s.Find(id); ok {
		t.Fatalf("a tenth fits at %+v", f)
	}
}

// Of two equally tight pools the one of the lower price tier wins.
func TestCheaperFirst(t *testing.T) {
	dear := NodeInfo{CPU: 64_000, Memory: 1 << 40, Devices: gpus(8, "H100"), Price: 2_500_000}
	cheap := dear
	cheap.Price = 1_800_000
	s := newState(t, dear, cheap)
	if f, ok := s.Find(shape(t, s, whole(1))); !ok || f.Node != 1 {
		t.Fatalf("%+v %v", f, ok)
	}
}

func TestPriceTier(t *testing.T) {
	last := uint8(0)
	for p := gpuai.Micros(-1); p < 1<<40; p += p/16 + 1 {
		tier := priceTier(p)
		if tier < last || tier >= numTiers || p < 1<<15 && tier != 0 {
			t.Fatalf("price %d has tier %d after %d", p, tier, last)
		}
		last = tier
	}
	if a, b := priceTier(1<<63-1), uint8(numTiers-1); a != b {
		t.Fatalf("the highest price has tier %d, want %d", a, b)
	}
}

// A node that came back smaller than what runs on it takes nothing until
// enough of that has ended.
func TestOvercommittedNodeIsLeftOut(t *testing.T) {
	s := newState(t, NodeInfo{CPU: 4000, Memory: 4 << 30, Devices: gpus(4, "H100")})
	if code := s.SetNode(0, &NodeInfo{CPU: 1000, Memory: 4 << 30, Devices: gpus(4, "H100")}); code != gpuai.OK {
		t.Fatal(code)
	}
	s.Hold(0, 1, 0, 3000, 1)
	s.SetOpen(0, true)
	id := shape(t, s, whole(1))
	zero := shape(t, s, gpuai.Resources{})
	for _, x := range []ShapeID{id, zero} {
		if f, ok := s.Find(x); ok {
			t.Errorf("a task fits at %+v", f)
		}
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	s.Give(0, 1, 0, 3000, 1)
	if f, ok := s.Find(id); !ok || f.Devices != 1 {
		t.Errorf("nothing fits once the lease ended: %+v %v", f, ok)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}
