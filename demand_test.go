package gpuai

import (
	"strings"
	"testing"
)

func TestDemandValidate(t *testing.T) {
	good := func() Demand {
		return Demand{Classes: []DemandClass{{Tasks: 1}, {Tasks: MaxDemandTasks, Resources: Resources{GPU: GPURequest{Count: 8}}}}}
	}
	for name, c := range map[string]struct {
		change  func(d *Demand)
		pointer string
	}{
		"as it is":        {func(*Demand) {}, ""},
		"no classes":      {func(d *Demand) { d.Classes = nil }, ""},
		"no tasks":        {func(d *Demand) { d.Classes[1].Tasks = 0 }, "/classes/1/tasks"},
		"too many tasks":  {func(d *Demand) { d.Classes[1].Tasks++ }, "/classes/1/tasks"},
		"too many GPUs":   {func(d *Demand) { d.Classes[0].Resources.GPU.Count = MaxGPUs + 1 }, "/classes/0/resources/gpu/count"},
		"negative memory": {func(d *Demand) { d.Classes[0].Resources.Memory = -1 }, "/classes/0/resources/memory_bytes"},
		"no such attribute": {func(d *Demand) {
			d.Classes[1].Constraints = []Constraint{{Attribute: "colour", Values: []string{"red"}}}
		}, "/classes/1/constraints/0/attribute"},
		"too many classes": {func(d *Demand) { d.Classes = make([]DemandClass, MaxDemand+1) }, "/classes"},
		"too many bytes": {func(d *Demand) {
			long := Constraint{Attribute: "label.a", Op: In}
			for range MaxValues {
				long.Values = append(long.Values, strings.Repeat("x", MaxTextLen))
			}
			for range 20 {
				d.Classes = append(d.Classes, DemandClass{Tasks: 1, Constraints: []Constraint{long}})
			}
		}, "/classes"},
	} {
		d := good()
		c.change(&d)
		d.Defaults()
		wrong := d.Validate()
		found := c.pointer == "" && len(wrong) == 0
		for _, w := range wrong {
			found = found || w.Pointer == c.pointer
		}
		if !found {
			t.Errorf("%s: %+v, want %q", name, wrong, c.pointer)
		}
	}
}
