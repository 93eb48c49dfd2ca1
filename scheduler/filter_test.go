package scheduler

import (
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestConstraints(t *testing.T) {
	node := NodeInfo{
		Zone: "eu-1", CPU: 1000, Memory: 1 << 30, Devices: gpus(1, "H100"),
		Labels: map[string]string{"rack": "r7", "gen": "10", "empty": "", "big": "9223372036854775808"},
	}
	plain := NodeInfo{CPU: 1000, Memory: 1 << 30}
	for _, c := range []struct {
		attribute   string
		op          gpuai.Op
		values      []string
		node, plain bool
	}{
		{"zone", gpuai.Equal, []string{"eu-1"}, true, false},
		{"zone", gpuai.Equal, []string{"default"}, false, true},
		{"zone", gpuai.NotIn, []string{"eu-1", "eu-2"}, false, true},
		{"zone", gpuai.In, []string{"eu-2", "eu-1"}, true, false},
		{"gpu.vendor", gpuai.Equal, []string{"nvidia"}, true, false},
		{"gpu.vendor", gpuai.NotEqual, []string{"nvidia"}, false, true},
		{"gpu.model", gpuai.NotEqual, []string{"A100"}, true, true},
		{"gpu.memory_bytes", gpuai.Equal, []string{"85899345920"}, true, false},
		{"gpu.memory_bytes", gpuai.AtLeast, []string{"85899345920"}, true, false},
		{"gpu.memory_bytes", gpuai.Greater, []string{"85899345920"}, false, false},
		{"gpu.memory_bytes", gpuai.Less, []string{"85899345921"}, true, false},
		{"label.rack", gpuai.Equal, []string{"r7"}, true, false},
		{"label.rack", gpuai.NotEqual, []string{"r7"}, false, true},
		{"label.rack", gpuai.Less, []string{"9"}, false, false},
		{"label.gen", gpuai.Less, []string{"9"}, false, false},
		{"label.gen", gpuai.Greater, []string{"9"}, true, false},
		{"label.gen", gpuai.AtMost, []string{"10"}, true, false},
		{"label.gen", gpuai.AtMost, []string{"x"}, false, false},
		{"label.gen", gpuai.Less, nil, false, false},
		{"label.big", gpuai.Greater, []string{"1"}, false, false},
		{"label.empty", gpuai.Equal, []string{""}, true, false},
		{"label.empty", gpuai.NotIn, []string{"x"}, true, true},
		{"label.ge", gpuai.In, []string{"10"}, false, false},
		{"label.gen", gpuai.Op(200), []string{"10"}, false, false},
		{"nonsense", gpuai.Equal, []string{"x"}, false, false},
		{"nonsense", gpuai.NotEqual, []string{"x"}, true, true},
	} {
		s := newState(t, node, plain)
		needs := gpuai.Resources{CPU: 1000}
		id := shape(t, s, needs, gpuai.Constraint{Attribute: c.attribute, Op: c.op, Values: c.values})
		_, onNode := s.FitsOn(id, 0)
		_, onPlain := s.FitsOn(id, 1)
		if onNode != c.node || onPlain != c.plain {
			t.Errorf("%s %s %q: %v on the node, %v on the plain one, want %v, %v",
				c.attribute, c.op, c.values, onNode, onPlain, c.node, c.plain)
		}
	}
}

// A pool that comes after a filter is judged by it too, also under a number
// that another pool had.
func TestFilterSeesLaterPools(t *testing.T) {
	s := newState(t, NodeInfo{Zone: "a", CPU: 1000, Memory: 1})
	id := shape(t, s, gpuai.Resources{CPU: 1}, gpuai.Constraint{Attribute: "zone", Op: gpuai.Equal, Values: []string{"b"}})
	if _, ok := s.Find(id); ok || s.CanEver(id) {
		t.Fatal("zone a passes for b")
	}
	for _, zone := range []string{"b", "c", "b"} {
		if code := s.SetNode(0, &NodeInfo{Zone: zone, CPU: 1000, Memory: 1}); code != gpuai.OK {
			t.Fatal(code)
		}
		s.SetOpen(0, true)
		if _, ok := s.Find(id); ok != (zone == "b") {
			t.Fatalf("zone %s: found %v", zone, ok)
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestShapeOfGivesBackWhatWasAdded(t *testing.T) {
	s := newState(t)
	needs := gpuai.Resources{
		GPU: gpuai.GPURequest{Count: 1, Share: gpuai.Share{Milli: 333}, Any: []gpuai.GPUAlternative{
			{Vendor: "nvidia", MemoryMin: 40, MemoryMax: 80}, {Model: "MI300X"},
		}},
		CPU: 1500, Memory: 7,
	}
	cs := []gpuai.Constraint{
		{Attribute: "zone", Op: gpuai.NotIn, Values: []string{"a", "b"}},
		{Attribute: "label.rack", Op: gpuai.Less, Values: []string{"3"}},
	}
	got, gotCS := s.ShapeOf(shape(t, s, needs, cs...))
	if !reflect.DeepEqual(got, needs) || !reflect.DeepEqual(gotCS, cs) {
		t.Errorf("%+v %+v, want %+v %+v", got, gotCS, needs, cs)
	}
}
