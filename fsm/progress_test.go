package fsm

import (
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

// settles applies Ticks until nothing is left to do, and fails when that takes
// more than most of them: what costs more than the budget of an entry must not
// begin anew in the next one.
func (r *region) settles(most int) {
	r.t.Helper()
	for range most {
		if r.m.NextDeadline() > r.m.Time() {
			return
		}
		r.apply(&Tick{})
	}
	r.t.Fatalf("there is still something to do after %d ticks", most)
}

// togetherOf is a job of groups that start together in one domain.
func togetherOf(name string, same gpuai.Topology, groups int, one func(g *gpuai.Group, i int)) *gpuai.JobSpec {
	s := gangOf(at(jobSpec(name, 1, 1), 60))
	group := s.Groups[0]
	s.Placement.Same, s.Together, s.Groups = same, true, nil
	for i := range groups {
		x := group
		x.Name = fmt.Sprint("g", i)
		one(&x, i)
		s.Groups = append(s.Groups, x)
	}
	return s
}

// Two groups of a thousand tasks fit into each rack one by one, and not both: the
// tries cost more than an entry has, and end all the same.
func TestCostlyTriesEnd(t *testing.T) {
	lengthy(t)
	r := newest(t, nil)
	r.check = false
	for i := range 16 * 256 {
		s := nodeSpec(fmt.Sprintf("n%05d", i), 8, "H100")
		s.Rack = fmt.Sprint("r", i/256)
		r.register(s)
	}
	gang := r.submit(togetherOf("gang", gpuai.TopologyRack, 2, func(g *gpuai.Group, i int) {
		g.Count, g.Resources.CPU = 1_000, gpuai.MilliCPU(15_000+i)
	}))
	small := r.submit(jobSpec("small", 1, 1))
	r.settles(10)
	if len(r.leases(gang)) != 0 || len(r.leases(small)) != 1 {
		t.Fatalf("the job behind it has %d leases", len(r.leases(small)))
	}
}

// 300 different jobs wait for a rack that none of them can have whole. The end of
// one lease asks no more of them than an entry may, and others start.
func TestManyWholesAreAskedInPart(t *testing.T) {
	lengthy(t)
	r := newest(t, nil)
	r.check = false
	const nodes = 64
	name := func(i int) string { return fmt.Sprintf("n%03d", i) }
	for i := range 2 * nodes {
		s := nodeSpec(name(i), 2, "H100")
		s.Rack, s.Labels = fmt.Sprint("r", i/nodes), map[string]string{"host": name(i)}
		r.register(s)
	}
	for _, i := range []int{0, 1, nodes, nodes + 1} {
		s := firm(jobSpec("stays", 1, 2))
		s.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "label.host", Op: gpuai.In, Values: []string{name(i)}}}
		r.submit(s)
	}
	low := map[int]gpuai.JobID{}
	for i := range 2 * nodes {
		if i%nodes > 1 {
			low[i] = r.on("low", 10, 2, name(i))[0]
		}
	}
	for k := range 300 {
		r.submit(togetherOf("gang", gpuai.TopologyRack, 16, func(g *gpuai.Group, _ int) {
			g.Count, g.Resources.CPU, g.Resources.GPU.Count = 4, gpuai.MilliCPU(1_000+k), 2
		}))
	}
	r.settles(2_000)
	free := nodes + 5 // in the rack that is not reserved
	if n, ok := r.m.reserved.Next(0); ok && n >= nodes {
		free = 5
	}
	other := r.submit(at(jobSpec("other", 1, 1), 10))
	r.report(r.leases(low[free])[0], gpuai.ReportDone, 0)
	r.settles(20)
	if len(r.leases(other)) != 1 {
		t.Fatal("a job that fits waits")
	}
}

// The end of a lease on a reserved node of a large region has those looked at who
// start as a whole, once.
func TestEndOnAReservedNodeIsLookedAtOnce(t *testing.T) {
	lengthy(t)
	r := newest(t, nil)
	r.check = false
	const nodes = 15_000
	for i := range nodes {
		r.register(nodeSpec(fmt.Sprintf("n%05d", i), 32, "H100"))
	}
	s := firm(jobSpec("stays", nodes, 17))
	s.Groups[0].Resources.CPU = 40_000
	r.submit(s)
	s = at(jobSpec("low", nodes, 15), 10)
	s.Groups[0].Resources.CPU = 20_000
	low := r.submit(s)
	r.settles(2_000)
	r.wait(2 * gpuai.Hour)
	for _, groups := range []int{16, 4} {
		r.submit(togetherOf("gang", gpuai.TopologyNode, groups, func(g *gpuai.Group, _ int) {
			g.Gang, g.Count = false, uint32(16/groups)+1
		}))
		r.settles(10)
	}
	n, ok := r.m.reserved.Next(0)
	if !ok {
		t.Fatal("nothing is reserved")
	}
	for _, l := range r.leases(low) {
		if node, _ := r.m.nodeSlot(l.Node); node == n {
			r.report(l, gpuai.ReportDone, 0)
		}
	}
	r.settles(10)
}
