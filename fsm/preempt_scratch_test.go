package fsm

import (
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// diskSpec is a job of tasks of one GPU that ask for so many GiB of scratch space.
func diskSpec(name string, p gpuai.Priority, tasks uint32, gib gpuai.Bytes) *gpuai.JobSpec {
	s := at(scratchSpec(name, tasks), p)
	s.Groups[0].Resources.GPU.Count, s.Groups[0].Resources.Scratch = 1, gib<<30
	if gib == 0 {
		s.Groups[0].Constraints = nil
	}
	s.Defaults()
	return s
}

// A diskHolder is a task of one GPU and some scratch space that runs on a node.
type diskHolder struct {
	node gpuai.NodeID
	p    gpuai.Priority
	gib  gpuai.Bytes
}

// diskHolders registers the holders' nodes, of 100 GiB each, and has them run there.
func (r *region) diskHolders(devices int, holders []diskHolder) (ids []gpuai.JobID) {
	r.t.Helper()
	last := gpuai.NodeID("")
	for _, h := range holders { // by node
		if h.node != last {
			n := nodeSpec(string(h.node), devices, "H100")
			n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes, gpuai.LabelScratch: "107374182400"}
			r.register(n)
			last = h.node
		}
		id := r.submit(diskSpec("holder", h.p, 1, h.gib))
		if l := r.wantLive(id, 1); l[0].Node != h.node {
			r.t.Fatalf("a holder is on %s", l[0].Node)
		}
		ids = append(ids, id)
	}
	return ids
}

// Who has to go is whoever holds the scratch space that lacks, and nobody goes where
// it would lack all the same.
func TestPreemptionCountsScratch(t *testing.T) {
	type holder = diskHolder
	for _, c := range []struct {
		name    string
		level   uint32
		devices int // of each node; the holders have one each
		holders []holder
		gib     gpuai.Bytes // that a task of priority 50 asks for
		gone    []int       // holders
		on      gpuai.NodeID
	}{
		{"the disk is full, GPUs are free", MaxLevel, 8, []holder{{"a", 0, 80}}, 40, []int{0}, "a"},
		{"who holds little is spared", MaxLevel, 8, []holder{{"a", 0, 10}, {"a", 0, 85}}, 40, []int{1}, "a"},
		{"all must go", MaxLevel, 8, []holder{{"a", 0, 40}, {"a", 0, 55}}, 90, []int{0, 1}, "a"},
		{"nobody goes for what others hold", MaxLevel, 8, []holder{{"a", 90, 70}, {"a", 0, 20}}, 40, nil, ""},
		{"GPUs alone do not do", MaxLevel, 2, []holder{{"a", 90, 70}, {"a", 0, 0}}, 40, nil, ""},
		{"another node does", MaxLevel, 2, []holder{{"a", 90, 70}, {"a", 0, 0}, {"b", 0, 70}, {"b", 0, 0}}, 40, []int{2}, "b"},
		{"GPU and disk of two", MaxLevel, 2, []holder{{"a", 10, 0}, {"a", 0, 80}}, 40, []int{1}, "a"},
		{"level 3 knows free space only", LevelPlacement, 8, []holder{{"a", 0, 80}}, 40, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegion(t)
			r.do(&SetFeatureLevel{Level: c.level})
			p := gpuai.DefaultPolicy()
			p.PreemptionProtect = 0
			r.do(&SetPolicy{Policy: p})
			ids := r.diskHolders(c.devices, c.holders)
			id := r.submit(diskSpec("high", 50, 1, c.gib))
			r.wantLive(id, 0)
			var gone []int
			for i := range ids {
				if len(r.revoking(ids[i])) > 0 {
					gone = append(gone, i)
				}
			}
			if !slices.Equal(gone, c.gone) {
				t.Fatalf("holders %v go, want %v", gone, c.gone)
			}
			r.m = restored(t, r.m)
			for k, i := range gone {
				r.report(r.revoking(ids[i])[0], gpuai.ReportStopped, 0)
				want := 0
				if k == len(gone)-1 {
					want = 1
				}
				if ls := r.wantLive(id, want); want > 0 && ls[0].Node != c.on {
					t.Errorf("it runs on %s", ls[0].Node)
				}
			}
		})
	}
}

// A gang has room made of scratch space for each of its tasks.
func TestPreemptingGangCountsScratch(t *testing.T) {
	r := newest(t, nil)
	r.lender("a", "107374182400")
	r.lender("b", "107374182400")
	low := r.submit(diskSpec("low", 0, 2, 60))
	r.wantLive(low, 2)
	s := gangOf(diskSpec("gang", 50, 3, 45))
	s.Groups[0].Resources.Network = gpuai.NetworkHost
	s.Groups[0].Constraints = slices.DeleteFunc(s.Groups[0].Constraints, func(c gpuai.Constraint) bool {
		return c.Attribute != gpuai.LabelPrefix+gpuai.LabelScratch
	})
	id := r.submit(s)
	gone := r.revoking(low)
	if len(gone) != 2 {
		t.Fatalf("%d of two go", len(gone))
	}
	for _, l := range gone {
		r.wantLive(id, 0)
		r.report(l, gpuai.ReportStopped, 0)
	}
	r.wantLive(id, 3)
}

// With the level that counts it, scratch space counts for whoever was listed before, as on
// a machine that is restored.
func TestLevelCountsScratchOfThoseListed(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	p := gpuai.DefaultPolicy()
	p.PreemptionProtect = 0
	r.do(&SetPolicy{Policy: p})
	ids := r.diskHolders(8, []diskHolder{{"a", 0, 80}})
	r.wantLive(r.submit(diskSpec("high", 50, 1, 40)), 0) // it has the holder be listed
	r.do(&SetFeatureLevel{Level: LevelTenants})
	if len(r.revoking(ids[0])) != 1 {
		t.Error("nobody goes for scratch space with the level that counts it")
	}
	other := *r
	other.m = restored(t, r.m)
	for _, x := range []*region{r, &other} {
		x.submit(diskSpec("higher", 60, 1, 50))
	}
	if r.m.Digest() != other.m.Digest() {
		t.Error("a restored machine decides otherwise")
	}
}
