package simulate

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai/fsm"
)

// A policy is a setting of the region's own, given to the machine by command.
func TestPoliciesAreTheMachines(t *testing.T) {
	ps, err := ParsePolicies(strings.Join(PolicyNames(), ","))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		w := newWorld(p)
		if err := w.setPolicy(&Config{Policy: p, Jobs: growthJobs()}); err != nil {
			t.Fatal(err)
		}
		if w.m.Policy().Packing != p.packing || w.m.Level() != fsm.MaxLevel {
			t.Errorf("%s: %s at level %d", p.Name, w.m.Policy().Packing, w.m.Level())
		}
	}
}
