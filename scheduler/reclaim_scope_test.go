package scheduler

import (
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// bruteTaking is TakingIn of one need by looking at everything.
func (w *reclaimWorld) bruteTaking(nodes []uint32, n Members, limit Band) (Taking, bool) {
	var now uint32
	for i, band := range []Band{0, 3, 4, 61, 62, 500} {
		if i > 0 && band >= limit {
			break
		}
		room := uint32(0)
		for _, slot := range nodes {
			if !w.nodes[slot].open {
				continue
			}
			var f Free
			w.s.FreeOf(slot, &f)
			for _, h := range w.bands[slot] {
				if i > 0 && h.Band <= band {
					f.Give(h.Devices, h.Share, h.CPU, h.Memory)
					f.Lend(-h.Scratch)
				}
			}
			room += w.s.TasksIn(n.Shape, slot, &f)
		}
		if i == 0 {
			now = room
		}
		if room >= n.Min {
			return Taking{band, n.Min - min(now, n.Min)}, true
		}
	}
	return Taking{}, false
}

// TakingIn says what looking at everything says, of shapes of whole devices.
func TestTakingAgainstBruteForce(t *testing.T) {
	var taken, hopeless int
	for seed := range uint64(120) {
		w := newReclaimWorld(t, 7000+seed)
		var nodes []uint32
		for slot := range w.nodes {
			if w.r.IntN(3) > 0 {
				nodes = append(nodes, slot)
			}
		}
		slices.Sort(nodes)
		for i := range w.shapes {
			if w.shapes[i].needs.GPU.Share.Milli != 0 {
				continue
			}
			n := Members{Shape: w.shapes[i].id, Count: 9, Min: 1 + w.r.Uint32N(9)}
			for _, limit := range []Band{3, 4, 62, 63, NumBands} {
				want, wantOK := w.bruteTaking(nodes, n, limit)
				got, ok := w.s.TakingIn(nodes, []Members{n}, limit)
				if got != want || ok != wantOK {
					t.Fatalf("seed %d: %d tasks of shape %d take %+v, %v below %d; want %+v, %v", seed, n.Min, i, got, ok, limit, want, wantOK)
				}
				if !ok {
					hopeless++
				} else if got.Band > 0 {
					taken++
				}
			}
		}
	}
	if taken < 100 || hopeless < 100 {
		t.Errorf("%d can take something, %d nothing: the test shows nothing", taken, hopeless)
	}
}

// NodesIn lists each node in exactly one domain of a level, and Zones all zones.
func TestDomainsListTheirNodes(t *testing.T) {
	for seed := range uint64(20) {
		w := newReclaimWorld(t, 9000+seed)
		for _, level := range []gpuai.Topology{gpuai.TopologyNVLink, gpuai.TopologyRack} {
			seen := map[uint32]int{}
			for d := range w.s.NumDomains(level) {
				sc, ok := w.s.DomainAt(level, d, nil)
				if !ok { // free, or without a device
					continue
				}
				for _, n := range w.s.NodesIn(sc, nil) {
					if seen[n]++; w.s.ScopeOf(level, n) != sc {
						t.Fatalf("seed %d: node %d is listed in another domain than its own", seed, n)
					}
				}
			}
			for n := range w.nodes {
				sc := w.s.ScopeOf(level, n)
				if _, alone := sc.Node(); alone {
					seen[n]++
				}
				if len(w.nodes[n].info.Devices) > 0 && seen[n] != 1 || !slices.Contains(w.s.NodesIn(sc, nil), n) {
					t.Fatalf("seed %d: node %d is listed %d times", seed, n, seen[n])
				}
				if z := w.s.ScopeOf(gpuai.TopologyZone, n); !slices.Contains(w.s.Zones(nil), z) {
					t.Fatalf("seed %d: the zone of node %d is not listed", seed, n)
				}
			}
		}
	}
}
