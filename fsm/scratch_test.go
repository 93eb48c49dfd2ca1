package fsm

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// lender registers a node that lends so many bytes of scratch space.
func (r *region) lender(name, bytes string) {
	n := nodeSpec(name, 8, "H100")
	n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes, gpuai.LabelScratch: bytes}
	r.register(n)
}

// scratchSpec is a job of tasks that ask for 40 GiB each.
func scratchSpec(name string, tasks uint32) *gpuai.JobSpec {
	s := imageSpec(name)
	s.Groups[0].Count, s.Groups[0].Resources.Scratch = tasks, 40<<30
	s.Defaults()
	return s
}

// No node lends more scratch space than it has, also after a restore; who waits
// for some is told so, and starts when it comes free.
func TestScratchIsCounted(t *testing.T) {
	r := newest(t, nil)
	r.lender("a", "107374182400") // 100 GiB
	id := r.submit(scratchSpec("big", 3))
	two := r.wantLive(id, 2)
	r.m = restored(t, r.m)
	x, _ := r.m.Fork().Explain(id)
	said := false
	for _, reason := range x.Reasons {
		said = said || reason.Code == gpuai.InsufficientScratch && strings.Contains(reason.Message, "1 of 1 nodes fail scratch, 1 of them nothing else")
	}
	if !said {
		t.Errorf("why it waits: %+v", x.Reasons)
	}
	r.wantLive(r.submit(jobSpec("none", 1, 1)), 1) // the others are not concerned
	r.report(two[0], gpuai.ReportDone, 0)
	r.wantLive(id, 2)
	r.lender("b", "85899345920") // 80 GiB
	r.wantLive(r.submit(scratchSpec("more", 2)), 2)
	r.wantLive(r.submit(scratchSpec("again", 1)), 0)
}

// A gang finds out before anything is written, and goes where the space is.
func TestGangCountsScratch(t *testing.T) {
	r := newest(t, nil)
	r.lender("a", "107374182400")
	s := scratchSpec("gang", 3)
	s.Groups[0].Gang, s.Groups[0].Resources.Network, s.Placement.Same = true, gpuai.NetworkNone, gpuai.TopologyNode
	s.Defaults()
	for i := range s.Groups[0].Constraints {
		if c := &s.Groups[0].Constraints[i]; strings.HasSuffix(c.Attribute, gpuai.LabelGangNetwork) {
			s.Groups[0].Constraints = append(s.Groups[0].Constraints[:i:i], s.Groups[0].Constraints[i+1:]...)
			break
		}
	}
	r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.Unschedulable)
	r.lender("b", "128849018880") // 120 GiB
	for _, l := range r.wantLive(r.submit(s), 3) {
		if l.Node != "b" {
			t.Errorf("a member is on %s", l.Node)
		}
	}
}

// A node that comes back with less lends nothing more; one that no longer says how
// much is not counted.
func TestScratchOfANodeThatShrinks(t *testing.T) {
	r := newest(t, nil)
	r.lender("a", "107374182400")
	id := r.submit(scratchSpec("big", 2))
	r.wantLive(id, 2)
	slot, _ := r.m.nodeSlot("a")
	n := nodeSpec("a", 8, "H100")
	n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes, gpuai.LabelScratch: "42949672960"}
	inc, _, _ := r.m.NodeLive("a")
	c := &RegisterNode{Spec: n, BootID: "boot-1", Nonce: "nonce-2", Replaces: inc}
	for _, l := range r.live(id) {
		c.Held = append(c.Held, gpuai.HeldLease{Lease: l.ID, BootID: "boot-1"})
	}
	r.do(c)
	r.wantLive(id, 2)
	if lent, of := r.m.sched.Lent(slot); lent != 80<<30 || of != 40<<30 {
		t.Errorf("it lends %d of %d", lent, of)
	}
	r.wantLive(r.submit(scratchSpec("more", 1)), 0)
}

// Below the level nothing is counted; what runs then is counted from it on.
func TestScratchIsCountedFromItsLevel(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement - 1})
	r.lender("a", "100")
	s := jobSpec("old", 3, 1)
	s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: gpuai.LabelPrefix + gpuai.LabelScratch, Op: gpuai.AtLeast, Values: []string{"60"}}}
	id := r.submit(s)
	r.wantLive(id, 3)
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	slot, _ := r.m.nodeSlot("a")
	if lent, of := r.m.sched.Lent(slot); lent != 180 || of != 100 {
		t.Errorf("it lends %d of %d", lent, of)
	}
	r.wantLive(r.submit(s), 0)
	r.m = restored(t, r.m)
	r.wantLive(r.submit(s), 0)
}
