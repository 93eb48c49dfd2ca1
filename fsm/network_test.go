package fsm

import (
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// A task that asks for the internet goes to a node whose operator allows it, and
// its agent is told; while that one is full explain names the label.
func TestNetworkGoesToTheNodeThatAllowsIt(t *testing.T) {
	r := newest(t, nil)
	node := func(name string, labels ...string) {
		n := nodeSpec(name, 8, "H100")
		n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes}
		for _, l := range labels {
			n.Labels[l] = gpuai.LabelYes
		}
		r.register(n)
	}
	spec := func(n gpuai.Network) *gpuai.JobSpec {
		s := imageSpec("net")
		s.Groups[0].Resources.Network = n
		s.Defaults()
		return s
	}
	node("closed")
	for _, n := range []gpuai.Network{gpuai.NetworkEgress, gpuai.NetworkHost} {
		r.refuse(&SubmitJob{ID: r.newID(), Spec: spec(n)}, gpuai.Unschedulable)
	}
	node("open", gpuai.LabelEgress)
	node("rdma", gpuai.LabelHostNetwork)
	for n, want := range map[gpuai.Network]gpuai.NodeID{gpuai.NetworkEgress: "open", gpuai.NetworkHost: "rdma"} {
		l := r.wantLive(r.submit(spec(n)), 1)[0]
		for name, m := range map[string]*Machine{"": r.m, "restored": restored(t, r.m)} {
			if a, ok := m.Assignment(l.ID); !ok || l.Node != want || a.Network != n {
				t.Errorf("%s %s: on %s, and the agent is told %s", name, n, l.Node, a.Network)
			}
		}
	}
	s := spec(gpuai.NetworkEgress)
	s.Groups[0].Resources.GPU.Count = 8
	rules := r.ask(r.submit(s)).Groups[0].Rules
	if !slices.ContainsFunc(rules, func(x gpuai.Rule) bool {
		return x.Name == gpuai.LabelPrefix+gpuai.LabelEgress && x.Nodes == 2 && x.Code == gpuai.ConstraintFiltered
	}) {
		t.Errorf("explain says %+v", rules)
	}
}

func TestNetworkNeedsItsLevel(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement - 1})
	r.node("a", 8)
	s := jobSpec("net", 1, 1)
	s.Groups[0].Resources.Network = gpuai.NetworkEgress
	r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.InvalidSpec)
}

// A gang in sandboxes goes to one node, and its members are told the ranks of
// those that are left.
func TestGangInSandboxesIsOnOneNode(t *testing.T) {
	r := newest(t, nil)
	for _, name := range []string{"a", "b"} {
		n := nodeSpec(name, 4, "H100")
		n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes, gpuai.LabelGangNetwork: gpuai.LabelYes}
		r.register(n)
	}
	s := imageSpec("gang")
	g := &s.Groups[0]
	g.Gang, g.Count, g.MinCount, g.Resources.GPU.Count = true, 4, 2, 1
	s.Placement.Same = gpuai.TopologyNode
	s.Defaults()
	if bad := s.Validate(); len(bad) > 0 {
		t.Fatal(bad)
	}
	live := r.wantLive(r.submit(s), 4)
	for _, l := range live {
		if l.Node != live[0].Node {
			t.Errorf("%s and %s", l.Node, live[0].Node)
		}
	}
	if a, _ := r.m.Assignment(live[0].ID); a.Gang == nil || a.Gang.Ranks != nil || len(a.Gang.NodeIPs) != 4 {
		t.Errorf("all four: %+v", a.Gang)
	}
	r.report(live[1], gpuai.ReportFenced, 0)
	r.wantLive(live[0].Job, 3)
	if a, _ := r.m.Assignment(live[0].ID); a.Gang == nil || !slices.Equal(a.Gang.Ranks, []uint32{0, 2, 3}) || len(a.Gang.NodeIPs) != 3 {
		t.Errorf("after a loss: %+v", a.Gang)
	}
}
