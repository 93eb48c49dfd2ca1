package main

import (
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestTopologyRows(t *testing.T) {
	n := gpuai.Node{}
	for i := range 8 {
		n.Devices = append(n.Devices, gpuai.Device{DevicePlace: gpuai.DevicePlace{NUMA: gpuai.NUMAOf(int32(i / 4)), LinkIsland: uint8(i%2 + 1)}})
	}
	n.Devices[7].DevicePlace = gpuai.DevicePlace{PCIeGroup: 1}
	want := [][]string{{"links", "island 1: 0,2,4,6; island 2: 1,3,5"}, {"PCIe", "group 1: 7"}, {"NUMA", "node 0: 0-3; node 1: 4-6"}}
	if got := topologyRows(&n); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := placeText(n.Devices[5].DevicePlace); got != "numa 1, link 2" {
		t.Error(got)
	}
	if got := topologyRows(&gpuai.Node{NodeSpec: gpuai.NodeSpec{Devices: make([]gpuai.Device, 2)}}); got != nil {
		t.Errorf("a node that says nothing has %q", got)
	}
}
