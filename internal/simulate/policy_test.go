package simulate

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A policy is a setting of the region's own, given to the machine by command.
func TestPoliciesAreTheMachines(t *testing.T) {
	w := newWorld(Policy{})
	if err := w.setPolicy(Policy{Name: "x", set: func(p *gpuai.Policy) { p.PriorityBatch = 33 }}); err != nil {
		t.Fatal(err)
	}
	if w.m.Policy().PriorityBatch != 33 || w.m.Level() != fsm.MaxLevel {
		t.Fatalf("%+v at level %d", w.m.Policy(), w.m.Level())
	}
	w = newWorld(Policy{})
	err := w.setPolicy(Policy{Name: "x", set: func(p *gpuai.Policy) { p.PriorityBatch = 200 }})
	if err == nil || !strings.Contains(err.Error(), "policy x: invalid_spec") {
		t.Fatal(err)
	}
}
