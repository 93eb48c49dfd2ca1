package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// A modelFragmentation is what node list --fragmentation tells of one model.
type modelFragmentation struct {
	Model   string `json:"model"`
	GPUs    uint32 `json:"gpus"`      // of all nodes, healthy or not
	Free    uint32 `json:"free_gpus"` // whole, healthy, on nodes that take leases
	Largest uint32 `json:"largest_block"`
	// Ratio is the part of the free GPUs that tasks of so many cannot use.
	Ratio map[string]float64 `json:"fragmentation_ratio"`
}

// fragmentation shows how the free devices of all nodes that the filter takes
// are spread, by model.
func (a *app) fragmentation(ctx context.Context, q client.Page) error {
	gpus, blocks := map[string]uint32{}, map[string]*gpuai.FreeBlocks{}
	for {
		nodes, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.Node, error) {
			page, next, err := c.Nodes(ctx, q)
			q.Cursor = next
			return page, err
		})
		if err != nil {
			return err
		}
		for i := range nodes {
			countFree(&nodes[i], gpus, blocks)
		}
		if q.Cursor == "" {
			break
		}
	}
	v := &view{head: []string{"MODEL", "GPUS", "FREE", "LARGEST"}}
	for _, k := range gpuai.GangSizes {
		v.head = append(v.head, fmt.Sprintf("LOST TO %d", k))
	}
	out := []modelFragmentation{}
	for _, model := range slices.Sorted(maps.Keys(blocks)) {
		b := blocks[model]
		m := modelFragmentation{Model: model, GPUs: gpus[model], Free: b.Free, Largest: b.Largest, Ratio: map[string]float64{}}
		cells := []string{model, num(m.GPUs), num(m.Free), num(m.Largest)}
		for i, k := range gpuai.GangSizes {
			ratio := float64(b.Ratio(i)) / float64(gpuai.WholeDevice)
			m.Ratio[fmt.Sprint(k)] = ratio
			cells = append(cells, fmt.Sprintf("%.1f%%", 100*ratio))
		}
		v.row(model, cells...)
		out = append(out, m)
	}
	return a.showObject(ctx, out, v)
}

// countFree adds a node's devices to the sums of their models.
func countFree(n *gpuai.Node, gpus map[string]uint32, blocks map[string]*gpuai.FreeBlocks) {
	free := map[string]uint32{}
	for i := range n.Devices {
		d := &n.Devices[i]
		gpus[d.Model]++
		if blocks[d.Model] == nil {
			blocks[d.Model] = &gpuai.FreeBlocks{}
		}
		if n.State == gpuai.NodeReady && !n.Drained && n.Refuses == nil && d.Health == gpuai.DeviceHealthy && d.Free == gpuai.WholeDevice {
			free[d.Model]++
		}
	}
	for model, k := range free {
		blocks[model].Add(k)
	}
}
