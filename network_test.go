package gpuai_test

import (
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestNetworkIsAConstraintOfPlacement(t *testing.T) {
	gang := func(g *gpuai.Group) { g.Gang, g.Count = true, 2 }
	for name, c := range map[string]struct {
		change func(*gpuai.Group)
		want   []string
	}{
		"none":    {func(g *gpuai.Group) {}, []string{gpuai.LabelOCI}},
		"egress":  {func(g *gpuai.Group) { g.Resources.Network = gpuai.NetworkEgress }, []string{gpuai.LabelOCI, gpuai.LabelEgress}},
		"host":    {func(g *gpuai.Group) { g.Resources.Network = gpuai.NetworkHost }, []string{gpuai.LabelOCI, gpuai.LabelHostNetwork}},
		"gang":    {gang, []string{gpuai.LabelOCI, gpuai.LabelGangNetwork}},
		"process": {func(g *gpuai.Group) { gang(g); g.Task = gpuai.TaskSpec{Command: []string{"x"}} }, nil},
		"gang in the host's": {func(g *gpuai.Group) { gang(g); g.Resources.Network = gpuai.NetworkHost },
			[]string{gpuai.LabelOCI, gpuai.LabelHostNetwork}},
	} {
		s := gpuai.JobSpec{Name: "a", Groups: []gpuai.Group{{Task: gpuai.TaskSpec{Image: "x"}}}}
		c.change(&s.Groups[0])
		s.Defaults()
		s.Defaults() // again: nothing is added twice
		var got []string
		for _, k := range s.Groups[0].Constraints {
			got = append(got, k.Attribute[len(gpuai.LabelPrefix):])
			if k.Op != gpuai.Equal || !slices.Equal(k.Values, []string{gpuai.LabelYes}) {
				t.Errorf("%s: %+v", name, k)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: constraints on %q, want %q", name, got, c.want)
		}
	}
}

// Who knows what a node's operator lists says so in a constraint of its own.
func TestOwnConstraintOnANetworkStands(t *testing.T) {
	own := gpuai.Constraint{Attribute: gpuai.LabelPrefix + gpuai.LabelEgress, Op: gpuai.Equal, Values: []string{gpuai.LabelListed}}
	s := gpuai.JobSpec{Name: "a", Groups: []gpuai.Group{{
		Task: gpuai.TaskSpec{Image: "x"}, Resources: gpuai.Resources{Network: gpuai.NetworkEgress}, Constraints: []gpuai.Constraint{own},
	}}}
	s.Defaults()
	if got := s.Groups[0].Constraints; len(got) != 2 || got[0].Values[0] != gpuai.LabelListed {
		t.Errorf("%+v", got)
	}
}
