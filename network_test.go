package gpuai_test

import (
	"fmt"
	"reflect"
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
		"gang":    {gang, []string{gpuai.LabelOCI, gpuai.LabelMesh}},
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

func on(label string, op gpuai.Op, values ...string) gpuai.Constraint {
	return gpuai.Constraint{Attribute: gpuai.LabelPrefix + label, Op: op, Values: values}
}

func boxed(change func(*gpuai.Group)) *gpuai.JobSpec {
	s := &gpuai.JobSpec{Name: "a", Groups: []gpuai.Group{{Task: gpuai.TaskSpec{Image: "x"}}}}
	change(&s.Groups[0])
	s.Defaults()
	return s
}

// A spec that was read back and changed has the constraints of what it is now.
func TestImpliedConstraintsFollowTheSpec(t *testing.T) {
	s := boxed(func(g *gpuai.Group) { g.Resources.Scratch, g.Resources.Network = 10<<30, gpuai.NetworkEgress })
	g := &s.Groups[0]
	before := slices.Clone(g.Constraints)
	old := g.Constraints
	g.Resources.Scratch, g.Resources.Network = 20<<30, gpuai.NetworkHost
	g.Constraints = append(g.Constraints, on("disk", gpuai.Equal, "ssd"))
	s.Defaults()
	want := []gpuai.Constraint{
		on("disk", gpuai.Equal, "ssd"), on(gpuai.LabelOCI, gpuai.Equal, "yes"),
		on(gpuai.LabelHostNetwork, gpuai.Equal, "yes"), on(gpuai.LabelScratch, gpuai.AtLeast, "21474836480"),
	}
	if !reflect.DeepEqual(g.Constraints, want) {
		t.Errorf("%+v", g.Constraints)
	}
	if !reflect.DeepEqual(old, before) {
		t.Errorf("the caller's list is written to: %+v", old)
	}
	g.Resources.Scratch, g.Resources.Network = 0, gpuai.NetworkNone
	s.Defaults()
	if !reflect.DeepEqual(g.Constraints, want[:2]) {
		t.Errorf("%+v", g.Constraints)
	}
}

// Nobody goes past what a node's operator allows with a constraint of its own.
func TestOwnConstraintDoesNotWeakenWhatASandboxNeeds(t *testing.T) {
	for name, c := range map[string]struct {
		own  gpuai.Constraint
		net  gpuai.Network
		want bool // the implied one, beside it
	}{
		"host":                {on(gpuai.LabelHostNetwork, gpuai.NotEqual, "maybe"), gpuai.NetworkHost, true},
		"host in":             {on(gpuai.LabelHostNetwork, gpuai.In, "yes", "", "no"), gpuai.NetworkHost, true},
		"egress":              {on(gpuai.LabelEgress, gpuai.NotEqual, "maybe"), gpuai.NetworkEgress, true},
		"egress in more":      {on(gpuai.LabelEgress, gpuai.In, "yes", "listed", ""), gpuai.NetworkEgress, true},
		"egress not in":       {on(gpuai.LabelEgress, gpuai.NotIn, "yes", "listed"), gpuai.NetworkEgress, true},
		"egress, what it may": {on(gpuai.LabelEgress, gpuai.In, "yes", "listed"), gpuai.NetworkEgress, false},
	} {
		s := boxed(func(g *gpuai.Group) { g.Resources.Network, g.Constraints = c.net, []gpuai.Constraint{c.own} })
		label := map[gpuai.Network]string{gpuai.NetworkHost: gpuai.LabelHostNetwork, gpuai.NetworkEgress: gpuai.LabelEgress}[c.net]
		got := slices.ContainsFunc(s.Groups[0].Constraints, func(x gpuai.Constraint) bool { return reflect.DeepEqual(x, on(label, gpuai.Equal, "yes")) })
		if got != c.want || !reflect.DeepEqual(s.Groups[0].Constraints[0], c.own) {
			t.Errorf("%s: %+v", name, s.Groups[0].Constraints)
		}
	}
}

// What a sandbox implies does not count against what a user may say.
func TestImpliedConstraintsAreBesideTheLimit(t *testing.T) {
	for _, n := range []int{gpuai.MaxOwnConstraints, gpuai.MaxOwnConstraints + 1} {
		s := boxed(func(g *gpuai.Group) {
			g.Gang, g.Count, g.Resources.Scratch, g.Resources.Network = true, 2, 1<<30, gpuai.NetworkEgress
			for i := range n {
				g.Constraints = append(g.Constraints, on(fmt.Sprint("k", i), gpuai.Equal, "x"))
			}
		})
		if got := len(s.Groups[0].Constraints); got != n+4 {
			t.Errorf("%d constraints", got)
		}
		if bad := s.Validate(); (len(bad) > 0) != (n > gpuai.MaxOwnConstraints) {
			t.Errorf("%d of its own: %+v", n, bad)
		}
	}
	plain := gpuai.JobSpec{Name: "a", Groups: []gpuai.Group{{Task: gpuai.TaskSpec{Command: []string{"x"}}}}}
	for range gpuai.MaxOwnConstraints + 1 {
		plain.Groups[0].Constraints = append(plain.Groups[0].Constraints, on(gpuai.LabelOCI, gpuai.Equal, "yes"))
	}
	if plain.Defaults(); len(plain.Validate()) == 0 {
		t.Error("a plain process has more constraints than it may")
	}
}

// A gang whose sandboxes are on one node needs no mesh, and one on several is bounded.
func TestGangOnOneNodeNeedsNoMesh(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*gpuai.JobSpec, *gpuai.Group)
		mesh   bool
		wrong  string
	}{
		"anywhere": {func(*gpuai.JobSpec, *gpuai.Group) {}, true, ""},
		"one node": {func(s *gpuai.JobSpec, g *gpuai.Group) {
			s.Placement.Same, g.Resources.GPU.Count = gpuai.TopologyNode, 1
		}, false, ""},
		"one rack": {func(s *gpuai.JobSpec, g *gpuai.Group) {
			s.Placement.Same, g.Resources.GPU.Count = gpuai.TopologyRack, 1
		}, true, ""},
		"alone":    {func(_ *gpuai.JobSpec, g *gpuai.Group) { g.Count = 1 }, false, ""},
		"host":     {func(_ *gpuai.JobSpec, g *gpuai.Group) { g.Resources.Network = gpuai.NetworkHost }, false, ""},
		"the most": {func(_ *gpuai.JobSpec, g *gpuai.Group) { g.Count = gpuai.MaxMeshTasks }, true, ""},
		"too many": {func(_ *gpuai.JobSpec, g *gpuai.Group) { g.Count = gpuai.MaxMeshTasks + 1 }, true, "/groups/0/count"},
	} {
		s := &gpuai.JobSpec{Name: "a", Groups: []gpuai.Group{{Task: gpuai.TaskSpec{Image: "x"}, Gang: true, Count: 2}}}
		c.change(s, &s.Groups[0])
		s.Defaults()
		got := slices.ContainsFunc(s.Groups[0].Constraints, func(x gpuai.Constraint) bool { return reflect.DeepEqual(x, on(gpuai.LabelMesh, gpuai.Equal, "yes")) })
		if got != c.mesh {
			t.Errorf("%s: %+v", name, s.Groups[0].Constraints)
		}
		switch bad := s.Validate(); {
		case c.wrong == "" && len(bad) > 0, c.wrong != "" && (len(bad) != 1 || bad[0].Pointer != c.wrong):
			t.Errorf("%s: %+v", name, bad)
		}
	}
}

func TestMeshKeyText(t *testing.T) {
	k, again := gpuai.MeshKey{0xab, 31: 1}, gpuai.MeshKey{}
	if err := again.UnmarshalText([]byte(k.String())); err != nil || again != k || k.String()[:2] != "ab" {
		t.Errorf("%s: %v, %v", k, again, err)
	}
	for _, bad := range []string{"", "ab", k.String()[1:] + "g", k.String() + "0"} {
		if err := again.UnmarshalText([]byte(bad)); err == nil || again != k {
			t.Errorf("%q is read as %s", bad, again)
		}
	}
}
