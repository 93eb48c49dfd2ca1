package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// walkDemand is a demand much like what walks submit.
func walkDemand() []gpuai.DemandClass {
	var out []gpuai.DemandClass
	for i, gpus := range []uint32{0, 1, 1, 2, 3} {
		g := jobSpec("x", 1, gpus).Groups[0]
		g.Resources.CPU = gpuai.MilliCPU(1_000 * (i + 1))
		if i == 2 {
			g.Resources.GPU.Share.Milli = 460
		}
		out = append(out, gpuai.DemandClass{Resources: g.Resources, Tasks: uint64(10 - i)})
	}
	return out
}

func packed(p gpuai.Packing) gpuai.Policy {
	out := gpuai.DefaultPolicy()
	out.Packing = p
	return out
}

// packWalk does a step of a walk under efw, with changes of policy and demand.
func (w *walk) packStep() {
	c := w.command()
	if p, ok := c.(*SetPolicy); ok {
		p.Policy.Packing = gpuai.PackingEFW
	}
	switch w.r.IntN(20) {
	case 0:
		c = &SetPolicy{Policy: packed([]gpuai.Packing{gpuai.PackingEFW, gpuai.PackingEFW, gpuai.PackingBestFit}[w.r.IntN(3)])}
	case 1, 2:
		c = &SetDemand{Demand: walkDemand()[w.r.IntN(3):], Fixed: w.r.IntN(2) == 0}
	}
	w.time = w.time.Add(gpuai.Duration(w.r.IntN(3_000)))
	w.apply(c)
	for _, n := range walkNodes {
		w.incs[n], _, _ = w.m.NodeLive(gpuai.NodeID(n))
	}
}

// Random logs under efw: the invariants hold at each step, a machine that is
// forked and restored at random points decides the same, and when there is no
// backlog nothing waits that could start.
func TestPackingRandomLogs(t *testing.T) {
	t.Parallel()
	packedSteps := 0
	for seed := range uint64(12) {
		w := newWalk(t, 900+seed)
		w.do(&SetFeatureLevel{Level: LevelPlacement})
		w.do(&SetPolicy{Policy: packed(gpuai.PackingEFW)})
		other := restored(t, w.m)
		for range 150 {
			w.packStep()
			switch w.r.IntN(20) {
			case 0:
				other = restored(t, other)
			case 1:
				other = other.Fork()
			}
			if err := other.Apply(w.index, w.term, w.log[len(w.log)-1], &Output{}); err != nil {
				t.Fatal(err)
			}
			if other.Digest() != w.m.Digest() {
				t.Fatalf("seed %d, entry %d: digests differ: %s and %s", seed, w.index, w.m.Digest(), other.Digest())
			}
			if w.m.sched.Packing() == gpuai.PackingEFW {
				packedSteps++
			}
			for b, ok := w.m.bucketSlots.Next(0); ok && !w.m.backlog(); b, ok = w.m.bucketSlots.Next(b + 1) {
				if r := w.m.buckets.Get(b); r.gang == 0 && w.m.sched.MayStart(r.shape) {
					if _, fits := w.m.sched.Find(r.shape); fits {
						t.Fatalf("seed %d, entry %d: a task waits that could start", seed, w.index)
					}
				}
			}
		}
	}
	if packedSteps < 600 {
		t.Fatalf("efw decided at %d steps only", packedSteps)
	}
}

func TestPackingCommandsAreRefused(t *testing.T) {
	r := newRegion(t)
	r.refuse(&SetDemand{Demand: walkDemand()}, gpuai.Conflict)                // below the level
	r.refuse(&SetPolicy{Policy: packed(gpuai.PackingEFW)}, gpuai.InvalidSpec) // so too
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	r.refuse(&SetDemand{Demand: walkDemand()}, gpuai.Conflict) // best fit
	r.refuse(&SetPolicy{Policy: packed(gpuai.PackingFGD)}, gpuai.InvalidSpec)
	r.refuse(&SetPolicy{Policy: packed(99)}, gpuai.InvalidSpec)
	r.do(&SetPolicy{Policy: packed(gpuai.PackingEFW)})
	r.refuse(&SetDemand{Demand: make([]gpuai.DemandClass, MaxDemand+1)}, gpuai.TooLarge)
	bad := walkDemand()
	bad[3].Resources.CPU = -1
	r.refuse(&SetDemand{Demand: bad}, gpuai.InvalidSpec)
	r.do(&SetDemand{Demand: walkDemand()})
	r.do(&SetDemand{}) // forgets

	sim := &region{t: t, m: New(Options{Region: "test", Simulated: true}), term: 1, check: true}
	sim.do(&SetFeatureLevel{Level: LevelPlacement})
	sim.do(&SetPolicy{Policy: packed(gpuai.PackingFGD)})
}

// The index is built over several entries when there are many nodes, and the
// machine asks for a Tick until it is; meanwhile placement is best fit.
func TestPackingIsBuiltInSteps(t *testing.T) {
	w := newRegion(t)
	w.check = false // of each of thousands of entries
	w.do(&SetFeatureLevel{Level: LevelPlacement})
	const nodes = 6_000
	for i := range nodes {
		w.node(fmt.Sprintf("n%05d", i), 1)
	}
	w.do(&SetPolicy{Policy: packed(gpuai.PackingEFW)})
	ticks := 0
	for ; w.m.NextDeadline() <= w.m.Time(); ticks++ {
		if w.m.sched.PackingSettled() || ticks > 10 {
			t.Fatalf("a deadline after %d ticks with the index built: %v", ticks, w.m.sched.PackingSettled())
		}
		w.do(&Tick{})
	}
	if most := nodes/(packStepWork/24) + 2; ticks < 2 || ticks > most {
		t.Fatalf("built in %d ticks, want 2 to %d", ticks, most)
	}
	w.do(&SetDemand{Demand: walkDemand()})
	if w.m.sched.Packing() != gpuai.PackingEFW {
		t.Fatal("the policy is not in effect")
	}
	if err := w.m.Check(); err != nil {
		t.Fatal(err)
	}
}
