package fsm

import (
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
)

// What was told is read as it was told, with its weights; what is submitted is
// learnt beside it, unless the demand is fixed.
func TestDemandIsReadAsTold(t *testing.T) {
	r := newRegion(t)
	if d := r.m.Demand(); d.Packing != gpuai.PackingBestFit || len(d.Classes) > 0 {
		t.Fatalf("%+v", d)
	}
	r.do(&SetFeatureLevel{Level: LevelPlacement})
	r.do(&SetPolicy{Policy: packed(gpuai.PackingEFW)})
	if d := r.m.Demand(); d.Active != gpuai.PackingBestFit || d.NextFreeze != 128 {
		t.Fatalf("nothing is expected, and %+v", d)
	}
	told := []gpuai.DemandClass{
		{Resources: jobSpec("x", 1, 8).Groups[0].Resources, Tasks: 30},
		{Resources: jobSpec("x", 1, 1).Groups[0].Resources, Tasks: 10, Constraints: []gpuai.Constraint{
			// In the order of shapes.
			{Attribute: "zone", Op: gpuai.Equal, Values: []string{"z1"}}, {Attribute: "gpu.model", Op: gpuai.In, Values: []string{"A100", "H100"}},
		}},
	}
	told[1].Resources.GPU.Share.Milli = 250
	told[0].Resources.GPU.Any = []gpuai.GPUAlternative{{Model: "H100"}, {Vendor: "amd", MemoryMin: 1 << 36}}
	read := func() (out []gpuai.DemandClass, d gpuai.DemandStatus) {
		d = restored(t, r.m).Demand()
		for _, c := range d.Classes {
			out = append(out, c.DemandClass)
		}
		return out, d
	}
	for _, fixed := range []bool{true, false} {
		r.do(&SetDemand{Demand: told, Fixed: fixed})
		got, d := read()
		if !reflect.DeepEqual(got, told) || d.Active != gpuai.PackingEFW || d.Fixed != fixed || d.Epoch == 0 ||
			d.Classes[0].WeightPPM != 750_000 || d.Classes[1].WeightPPM != 250_000 || fixed != (d.NextFreeze == 0) {
			t.Fatalf("told %+v, is %+v", told, d)
		}
		r.submit(jobSpec("x", 7, 3))
		if _, d := read(); fixed && len(d.Classes) != 2 || !fixed && (len(d.Classes) != 3 || d.Classes[2].Tasks != 7 || d.Groups != 1) {
			t.Fatalf("fixed %v, after a submit: %+v", fixed, d)
		}
	}
	r.do(&SetDemand{})
	if d := r.m.Demand(); len(d.Classes) > 0 || d.Active != gpuai.PackingBestFit {
		t.Fatalf("forgotten, and %+v", d)
	}
}
