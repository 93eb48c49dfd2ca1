package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

var levels = []gpuai.Topology{gpuai.TopologyNode, gpuai.TopologyNVLink, gpuai.TopologyRack, gpuai.TopologyZone}

// randomGang places a gang within a domain and near, and takes it back or not.
func (w *world) randomGang(key []byte, needs gpuai.Resources, cs []gpuai.Constraint) func(s *State) string {
	n, level, near, keep := 1+w.r.Uint32N(6), pick(w.r, levels...), pick(w.r, levels...), w.r.IntN(2) == 0
	least := 1 + w.r.Uint32N(n)
	return func(s *State) string {
		id, ok := s.FindShape(key)
		if !ok {
			id, _ = s.AddShape(key, needs, cs)
		}
		out := fmt.Sprint(id, s.EverHolds(level, []Members{{id, n, least}}))
		x := Search{Level: level, Needs: []Members{{id, n, least}}}
		for range 4 {
			sc, ok := s.Next(&x)
			if !ok {
				break
			}
			mark, placed := s.space.Mark(), uint32(0)
			p := Picker{Scope: sc, Near: near}
			for ; placed < n; placed++ {
				f, ok := s.Pick(&p, id, n-placed)
				if !ok {
					break
				}
				out += fmt.Sprint(" ", f)
				s.Take(f, id)
			}
			if keep && placed >= least {
				break
			}
			s.space.RollbackTo(mark)
		}
		return out
	}
}

// domain names the domain of a level that a node of the model is in.
func (w *world) domain(level gpuai.Topology, slot uint32) string {
	n := &w.nodes[slot].info
	zone := cmp.Or(n.Zone, "default")
	name := map[gpuai.Topology]string{gpuai.TopologyNVLink: n.NVLinkDomain, gpuai.TopologyRack: n.Rack, gpuai.TopologyZone: "zone"}[level]
	if name == "" {
		return fmt.Sprint("node ", slot)
	}
	return zone + "/" + name
}

// domains returns the nodes of each domain of a level, by its name.
func (w *world) domains(level gpuai.Topology) map[string][]uint32 {
	of := map[string][]uint32{}
	for slot := range w.nodes {
		of[w.domain(level, slot)] = append(of[w.domain(level, slot)], slot)
	}
	return of
}

// room counts the tasks that the model's nodes take, one after the other.
func (w *world) room(sh *modelShape, limit int, on func(uint32) bool) (n int) {
	saved := map[uint32]modelNode{}
	for slot, x := range w.nodes {
		saved[slot] = *x
		x.free = slices.Clone(x.free)
	}
	for ; n < limit; n++ {
		f, ok := w.brute(sh, on)
		if !ok {
			break
		}
		w.nodes[f.Node].move(sh.lease(f), -1)
	}
	for slot, x := range saved {
		*w.nodes[slot] = x
	}
	return n
}

// gang compares what the index says of one gang with looking at everything.
func (w *world) gang(sh *modelShape) {
	w.t.Helper()
	n, level, near := 1+w.r.Uint32N(5), pick(w.r, levels...), pick(w.r, levels...)
	most := 0
	for _, slots := range w.domains(level) {
		room := w.room(sh, int(n), func(x uint32) bool { return slices.Contains(slots, x) })
		if level != gpuai.TopologyZone {
			if got := w.s.RoomIn(w.s.ScopeOf(level, slots[0]), sh.id, n); got != uint32(room) {
				w.t.Fatalf("RoomIn(%s %v, %+v) = %d of %d, want %d", level, slots, sh.needs, got, n, room)
			}
		}
		most = max(most, room)
	}
	least := 1 + w.r.Uint32N(n)
	x := Search{Level: level, Needs: []Members{{sh.id, n, least}}}
	sc, ok := w.s.Next(&x)
	single := level == gpuai.TopologyNode && w.kinds() // its room is on devices of one kind
	if want := most >= int(least); ok != want && !single && level != gpuai.TopologyZone {
		w.t.Fatalf("Next(%s, %d..%d of %+v) = %+v %v, the roomiest has %d", level, least, n, sh.needs, sc, ok, most)
	}
	if got, ever := w.s.EverHolds(level, x.Needs), ok; ever && !got {
		w.t.Fatalf("EverHolds(%s, %d of %+v) = %v, it can now", level, least, sh.needs, got)
	}
	if !ok {
		return
	}
	w.pickAll(sh, Picker{Scope: sc, Near: near}, level, n, least, most)
}

// kinds reports whether any node has devices of several kinds.
func (w *world) kinds() bool {
	for _, n := range w.nodes {
		for _, p := range n.pools {
			if p != n.pools[0] {
				return true
			}
		}
	}
	return false
}

func (w *world) pickAll(sh *modelShape, p Picker, level gpuai.Topology, n, least uint32, most int) {
	w.t.Helper()
	mark, seen, placed := w.sp.Mark(), map[string]bool{}, uint32(0)
	where := map[string]bool{}
	for ; placed < n; placed++ {
		f, ok := w.s.Pick(&p, sh.id, n-placed)
		if !ok {
			break
		}
		seen[w.domain(level, f.Node)] = true
		where[w.domain(p.Near, f.Node)] = true
		w.s.Take(f, sh.id)
	}
	w.check()
	w.sp.RollbackTo(mark)
	if len(seen) > 1 || placed < least && level != gpuai.TopologyZone {
		w.t.Fatalf("%d of %d..%d tasks of %+v were placed in %v (%+v), the roomiest has %d", placed, least, n, sh.needs, slices.Sorted(maps.Keys(seen)), p, most)
	}
}

// The index knows of each domain what looking at its nodes says, and places
// gangs where they fit, in one domain.
func TestGangsAgainstBruteForce(t *testing.T) {
	for seed := range seeds(8) {
		w := newWorld(t, 500+seed)
		for range 300 {
			w.step()
			w.check()
			for i := range w.shapes {
				if sh := &w.shapes[i]; sh.needs.GPU.Share.Milli == 0 && w.r.IntN(4) == 0 {
					w.gang(sh)
				}
			}
			w.sp.Commit()
		}
	}
}

// racks returns an index of racks, of which each has nodes with so many free
// GPUs.
func racks(tb testing.TB, free ...[]int) *State {
	tb.Helper()
	sp := mem.NewSpace()
	s := New(sp)
	slot := uint32(0)
	for i, nodes := range free {
		for _, g := range nodes {
			n := NodeInfo{CPU: 96_000, Memory: 768 << 30, Rack: fmt.Sprint("r", i), Devices: gpus(8, "H100")}
			if code := s.SetNode(slot, &n); code != gpuai.OK {
				tb.Fatal(code)
			}
			s.Hold(slot, 1<<(8-g)-1, 0, 0, 0)
			s.SetOpen(slot, true)
			slot++
		}
	}
	sp.Commit()
	return s
}

func rackOf(s *State, f Fit) uint32 { return s.topo[levelRack].domainOf(f.Node) - 1 }

func TestGangTakesTheTightestRack(t *testing.T) {
	for _, c := range []struct {
		name        string
		free        [][]int
		count, min  uint32
		want, tasks uint32
	}{
		{"fewest free GPUs that hold it", [][]int{{8, 8, 8}, {8, 8}, {8, 8, 8, 8}}, 2, 2, 1, 2},
		{"in pieces too small it does not count", [][]int{{4, 4, 4, 4}, {8, 8, 8}}, 2, 2, 1, 2},
		{"equal ones by number", [][]int{{8}, {8, 8}, {8, 8}}, 2, 2, 1, 2},
		{"whole before tight", [][]int{{8, 8}, {8, 8, 8}}, 3, 2, 1, 3},
		{"the roomiest when none holds all", [][]int{{8, 8}, {8, 8, 8}}, 5, 2, 1, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := racks(t, c.free...)
			id := shape(t, s, whole(8))
			sc, ok := s.Next(&Search{Level: gpuai.TopologyRack, Needs: []Members{{id, c.count, c.min}}})
			if !ok {
				t.Fatal("no rack")
			}
			p, n := Picker{Scope: sc}, uint32(0)
			for ; n < c.count; n++ {
				f, ok := s.Pick(&p, id, c.count-n)
				if !ok {
					break
				}
				if rackOf(s, f) != c.want {
					t.Fatalf("task %d in rack %d, want %d", n, rackOf(s, f), c.want)
				}
				s.Take(f, id)
			}
			if n != c.tasks {
				t.Fatalf("%d tasks, want %d", n, c.tasks)
			}
		})
	}
}

// A gang without GPUs goes where its CPU and memory are, and there to the racks
// that have the fewest free GPUs, none too.
func TestGangWithoutGPUs(t *testing.T) {
	for _, c := range []struct {
		name       string
		free       [][]int
		level      gpuai.Topology
		count, min uint32
		rack, node uint32
		tasks      uint32
	}{
		{"the rack without free GPUs", [][]int{{8, 8}, {0, 0}}, gpuai.TopologyRack, 3, 3, 1, 2, 3},
		{"too little CPU in it", [][]int{{0}, {8, 8}}, gpuai.TopologyRack, 3, 3, 1, 1, 3},
		{"one node for all", [][]int{{8, 4}, {0, 0}}, gpuai.TopologyRack, 2, 2, 1, 2, 2},
		{"no rack", [][]int{{8, 8}, {0, 0}}, gpuai.TopologyRack, 5, 5, 0, 0, 0},
		{"the one with the most room", [][]int{{8}, {0, 0, 0}, {0, 0}}, gpuai.TopologyRack, 9, 2, 1, 1, 6},
		{"one node", [][]int{{8, 0}, {0}}, gpuai.TopologyNode, 2, 2, 0, 1, 2},
		{"as many as one node holds", [][]int{{8, 0}, {0}}, gpuai.TopologyNode, 50_000, 1, 0, 1, 2},
		{"no node", [][]int{{8, 0}}, gpuai.TopologyNode, 3, 3, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := racks(t, c.free...)
			id := shape(t, s, gpuai.Resources{CPU: 40_000, Memory: 1 << 30})
			sc, ok := s.Next(&Search{Level: c.level, Needs: []Members{{id, c.count, c.min}}})
			if ok != (c.tasks > 0) {
				t.Fatalf("%+v %v", sc, ok)
			}
			p, n := Picker{Scope: sc}, uint32(0)
			for ; ok && n < c.count; n++ {
				f, fits := s.Pick(&p, id, c.count-n)
				if !fits {
					break
				}
				if rackOf(s, f) != c.rack || n == 0 && f.Node != c.node || f.Devices != 0 {
					t.Fatalf("task %d at %+v in rack %d, want node %d of rack %d", n, f, rackOf(s, f), c.node, c.rack)
				}
				s.Take(f, id)
			}
			if n != c.tasks {
				t.Errorf("%d tasks, want %d", n, c.tasks)
			}
		})
	}
}

// Near keeps a gang without GPUs together too: in the rack that holds all, or
// else in the roomiest.
func TestNearWithoutGPUs(t *testing.T) {
	for _, c := range []struct {
		near  gpuai.Topology
		count uint32
		want  []uint32 // nodes in order
	}{
		{gpuai.TopologyRack, 3, []uint32{2, 3}},
		{gpuai.TopologyRack, 5, []uint32{4, 5, 6}},
		{gpuai.TopologyRack, 7, []uint32{4, 5, 6, 2}},
		{gpuai.TopologyNode, 2, []uint32{2}},
		{gpuai.TopologyNode, 5, []uint32{2, 3, 4}},
	} {
		s := racks(t, []int{8, 8}, []int{0, 0}, []int{4, 4, 4})
		id := shape(t, s, gpuai.Resources{CPU: 40_000, Memory: 1 << 30})
		p := Picker{Near: c.near}
		var got []uint32
		for n := range c.count {
			f, ok := s.Pick(&p, id, c.count-n)
			if !ok {
				t.Fatalf("near %s: task %d of %d has no place", c.near, n, c.count)
			}
			if len(got) == 0 || got[len(got)-1] != f.Node {
				got = append(got, f.Node)
			}
			s.Take(f, id)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("near %s: %d tasks on nodes %v, want %v", c.near, c.count, got, c.want)
		}
	}
}

func TestNearTakesTheFewestRacks(t *testing.T) {
	for _, c := range []struct {
		name  string
		free  [][]int
		count uint32
		want  []uint32 // racks in order
	}{
		{"one that holds all, the tightest", [][]int{{8, 8, 8, 8}, {8, 8, 8}, {8, 8}}, 3, []uint32{1}},
		{"the roomiest, then the tightest for the rest", [][]int{{8}, {8, 8, 8}, {8, 8}}, 4, []uint32{1, 0}},
		{"as many as it takes", [][]int{{8}, {8, 8}, {8}}, 4, []uint32{1, 0, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := racks(t, c.free...)
			id := shape(t, s, whole(8))
			p := Picker{Near: gpuai.TopologyRack}
			var got []uint32
			for n := range c.count {
				f, ok := s.Pick(&p, id, c.count-n)
				if !ok {
					t.Fatalf("task %d has no place", n)
				}
				if r := rackOf(s, f); len(got) == 0 || got[len(got)-1] != r {
					got = append(got, r)
				}
				s.Take(f, id)
			}
			if !slices.Equal(got, c.want) {
				t.Fatalf("racks %v, want %v", got, c.want)
			}
		})
	}
}

func TestMaxDomains(t *testing.T) {
	sp := mem.NewSpace()
	s := New(sp)
	for i := range uint32(MaxDomains) {
		if code := s.SetNode(i, &NodeInfo{NVLinkDomain: fmt.Sprint("n", i)}); code != gpuai.OK {
			t.Fatal(i, code)
		}
		sp.Commit()
	}
	if code := s.SetNode(MaxDomains, &NodeInfo{NVLinkDomain: "one-more"}); code != gpuai.TooLarge || s.Known(MaxDomains) {
		t.Fatalf("one domain too many: %v", code)
	}
	for i := range uint32(MaxDomainNodes) {
		if code := s.SetNode(MaxDomains+i, &NodeInfo{Rack: "r"}); code != gpuai.OK {
			t.Fatal(i, code)
		}
		sp.Commit()
	}
	if code := s.SetNode(MaxDomains+MaxDomainNodes, &NodeInfo{Rack: "r"}); code != gpuai.TooLarge {
		t.Fatalf("one node of a rack too many: %v", code)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}
