package scheduler

import (
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestExplain(t *testing.T) {
	h100 := NodeInfo{Zone: "a", CPU: 8000, Memory: 64 << 30, Devices: gpus(4, "H100")}
	other := h100
	other.Zone = "b"
	few := h100
	few.Devices = gpus(1, "H100")
	sick := h100
	sick.Devices = gpus(4, "H100")
	for i := range sick.Devices[:3] {
		sick.Devices[i].Usable = false
	}
	small := h100
	small.CPU = 1000
	mixed := h100
	mixed.Devices = append(gpus(2, "A100"), gpus(1, "H100")...)
	bare := h100
	bare.Devices = nil
	s := newState(t, h100, h100, other, few, sick, small, mixed, bare, h100)
	s.Hold(0, 0b0111, 0, 1000, 1)
	s.Hold(1, 0b0111, 0, 1000, 1)
	s.SetOpen(8, false)

	needs := whole(2)
	needs.CPU = 2000
	needs.GPU.Any = []gpuai.GPUAlternative{{Model: "H100"}, {Model: "H100", MemoryMin: 1 << 40}}
	got := s.Explain(shape(t, s, needs, gpuai.Constraint{Attribute: "zone", Op: gpuai.Equal, Values: []string{"a"}}), nil)
	want := []gpuai.Rule{
		{Name: "node.state", Code: gpuai.NodesUnhealthy, Nodes: 1, Alone: 1},
		{Name: "gpu.model", Code: gpuai.ConstraintFiltered, Nodes: 1, Alone: 1},
		{Name: "gpu.count", Code: gpuai.NoSuchDevice, Nodes: 2, Alone: 2},
		{Name: "gpu.health", Code: gpuai.NodesUnhealthy, Nodes: 1, Alone: 1},
		{Name: "gpu.free", Code: gpuai.InsufficientGPUs, Nodes: 2, Alone: 2},
		{Name: "cpu", Code: gpuai.InsufficientCPU, Nodes: 1, Alone: 1},
		{Name: "zone", Code: gpuai.ConstraintFiltered, Nodes: 1, Alone: 1},
	}
	if !slices.Equal(got.Rules, want) {
		t.Errorf("rules\n%+v, want\n%+v", got.Rules, want)
	}
	// Free H100s in zone a on open nodes: 1, 1, 1 of few, 1 that is not sick,
	// 4 of small, 1 of mixed.
	if got.Nodes != 9 || got.Feasible != 0 || got.FreeGPUs != 9 || got.LargestOn != 4 {
		t.Errorf("%+v", got)
	}

	// The two nodes with four devices have one free each: two in all.
	s.RemoveNode(5)
	got = s.Explain(shape(t, s, needs, gpuai.Constraint{Attribute: "zone", Op: gpuai.Equal, Values: []string{"a"}}), nil)
	if i := slices.IndexFunc(got.Rules, func(r gpuai.Rule) bool { return r.Name == "gpu.free" }); i < 0 ||
		got.Rules[i].Code != gpuai.Fragmented || got.LargestOn != 1 {
		t.Errorf("free devices that no node has together: %+v", got)
	}
	if got := s.Explain(shape(t, s, whole(1)), nil); got.Feasible != 6 {
		t.Errorf("one device of any kind: %+v", got)
	}
}

func TestCapacity(t *testing.T) {
	node := NodeInfo{CPU: 8000, Memory: 64 << 30, Devices: gpus(4, "H100")}
	s := newState(t, node, node, NodeInfo{CPU: 3000, Memory: 2 << 30})
	s.Hold(0, 0b0001, 25, 0, 0) // 975 left
	cpu := func(m gpuai.MilliCPU) gpuai.Resources { return gpuai.Resources{CPU: m, Memory: 1} }
	for _, c := range []struct {
		name      string
		needs     gpuai.Resources
		now, ever uint32
	}{
		{"whole devices", whole(1), 7, 8},
		{"pairs", whole(2), 3, 4},
		{"all four", whole(4), 1, 2},
		{"more than a node has", whole(5), 0, 0},
		{"halves", share(500), 15, 16},
		{"what is left of one exactly", share(975), 8, 8},
		{"more than is left of one", share(980), 8, 8}, // the level's upper end: a bound
		{"CPU alone", cpu(3000), 5, 6},
		{"more CPU than any", cpu(8001), 0, 0},
		{"the limit", cpu(1), 100, 100},
	} {
		id := shape(t, s, c.needs)
		if now, ever := s.Capacity(id, 100), s.EverCapacity(id, 100); now != c.now || ever != c.ever {
			t.Errorf("%s: now %d, ever %d; want %d, %d", c.name, now, ever, c.now, c.ever)
		}
		if s.CanEver(id) != (c.ever > 0) {
			t.Errorf("%s: CanEver %v", c.name, s.CanEver(id))
		}
	}
	if !s.HasNodes() || newState(t).HasNodes() {
		t.Error("HasNodes")
	}
}
