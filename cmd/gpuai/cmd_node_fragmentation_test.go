package main

import (
	"testing"

	"github.com/gpuai/gpuai"
)

func TestCountFreeLeavesOutWhatTakesNoLease(t *testing.T) {
	node := func(n *gpuai.Node, free ...gpuai.Milli) *gpuai.Node {
		for _, f := range free {
			n.Devices = append(n.Devices, gpuai.Device{Model: "H100", Free: f})
		}
		return n
	}
	sick := node(&gpuai.Node{}, 1000, 1000, 1000)
	sick.Devices[1].Health = gpuai.DeviceLost
	sick.Devices[2].Model = "A100"
	gpus, blocks := map[string]uint32{}, map[string]*gpuai.FreeBlocks{}
	for _, n := range []*gpuai.Node{
		node(&gpuai.Node{}, 1000, 1000, 1000, 540, 0), sick,
		node(&gpuai.Node{Drained: true}, 1000, 1000), node(&gpuai.Node{State: gpuai.NodeSuspect}, 1000),
	} {
		countFree(n, gpus, blocks)
	}
	if b := blocks["H100"]; gpus["H100"] != 10 || b.Free != 4 || b.Largest != 3 || b.Usable[0] != 2 || b.Usable[1] != 0 {
		t.Errorf("%d GPUs, %+v", gpus["H100"], *b)
	}
	if b := blocks["A100"]; gpus["A100"] != 1 || b.Free != 1 {
		t.Errorf("%+v", *b)
	}
}
