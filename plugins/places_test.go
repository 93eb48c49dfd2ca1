package plugins

import (
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
)

// The groups of a node are counted over all drivers, whatever order they tell in.
func TestPlace(t *testing.T) {
	var ds []gpuai.Device
	for _, id := range []gpuai.DeviceID{"a", "b", "c", "d", "e", "f"} {
		ds = append(ds, gpuai.Device{ID: id, DevicePlace: gpuai.DevicePlace{LinkIsland: 9}})
	}
	Place(ds, []Snapshot{
		{
			Links:   []Link{{A: "c", B: "f", Kind: LinkXGMI}, {A: "d", B: "z", Kind: LinkXGMI}, {A: "d", B: "e", Kind: LinkSystem}},
			Details: []Device{{ID: "c", NUMANode: 1}, {ID: "d", NUMANode: -1}, {ID: "f", NUMANode: 255}, {ID: "z", NUMANode: 1}},
		},
		{
			Links:   []Link{{A: "b", B: "e", Kind: LinkNVLink}, {A: "a", B: "e", Kind: LinkNVLink}, {A: "a", B: "d", Kind: LinkPCIeSwitch}, {A: "c", B: "d", Kind: LinkPCIeMultiSwitch}},
			Details: []Device{{ID: "a", NUMANode: 0}},
		},
	})
	want := []gpuai.DevicePlace{
		{NUMA: 1, LinkIsland: 1, PCIeGroup: 1}, {LinkIsland: 1}, {NUMA: 2, LinkIsland: 2, PCIeGroup: 1},
		{PCIeGroup: 1}, {LinkIsland: 1}, {LinkIsland: 2},
	}
	for i := range ds {
		if !reflect.DeepEqual(ds[i].DevicePlace, want[i]) {
			t.Errorf("%s is at %+v, want %+v", ds[i].ID, ds[i].DevicePlace, want[i])
		}
	}
	Place(nil, nil)
}
