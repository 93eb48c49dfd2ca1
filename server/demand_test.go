package server

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// A demand is told through a server and read again; nonsense is refused.
func TestDemandIsToldToTheRegion(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	s := r.leader().Server
	join(t, s, helloOf("n1", 2)).awaitLeases(0)
	told := gpuai.Demand{Fixed: true, Classes: []gpuai.DemandClass{
		{Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 2}}, Tasks: 3}, {Resources: gpuai.Resources{GPU: gpuai.GPURequest{Count: 1}}, Tasks: 1},
	}}
	told.Defaults()
	if err := s.SetDemand(t.Context(), told); !isCode(err, gpuai.Conflict) {
		t.Fatalf("best fit was told a demand: %v", err)
	}
	p := s.Policy()
	p.Packing = gpuai.PackingEFW
	if err := s.SetPolicy(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := s.SetDemand(t.Context(), gpuai.Demand{Classes: []gpuai.DemandClass{{Tasks: 0}}}); !isCode(err, gpuai.InvalidSpec) {
		t.Fatalf("a demand of no tasks: %v", err)
	}
	if err := s.SetDemand(t.Context(), told); err != nil {
		t.Fatal(err)
	}
	d := s.Demand()
	if d.Active != gpuai.PackingEFW || !d.Fixed || len(d.Classes) != 2 || d.Classes[0].WeightPPM != 750_000 {
		t.Errorf("%+v", d)
	}
}
