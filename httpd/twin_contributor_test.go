package httpd

import (
	"context"
	"slices"

	"github.com/gpuai/gpuai"
)

func (t *twin) Contributors(p Page) ([]gpuai.ContributorStatus, string, error) {
	all := []gpuai.ContributorStatus{{Contributor: "carol", Day: 1, Month: 2, Total: 3}, {Contributor: "dave", Total: 4}}
	return page(slices.DeleteFunc(all, func(s gpuai.ContributorStatus) bool { return p.Contributor != "" && s.Contributor != p.Contributor }), p)
}

func (t *twin) SetNodeAsk(_ context.Context, id gpuai.NodeID, price gpuai.Micros) error {
	return t.changeNode(id, func(n *gpuai.Node) {
		if n.Ask = nil; price >= 0 {
			n.Ask = &price
		}
	})
}

func (t *twin) SetNodeSchedule(_ context.Context, id gpuai.NodeID, s gpuai.Schedule) error {
	return t.changeNode(id, func(n *gpuai.Node) {
		n.Schedule, n.Outside, n.ScheduleChanges, n.Earned = &s, true, 1_795_996_800_000, 5
	})
}

func (t *twin) changeNode(id gpuai.NodeID, f func(*gpuai.Node)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.nodes {
		if n := &t.nodes[i]; n.ID == id {
			f(n)
			n.ModifyIndex = t.commit(gpuai.Event{Kind: gpuai.NodeChanged, Node: id})
			return nil
		}
	}
	return notThere("node " + string(id))
}

// ownerExchanges are those of contributors.
func ownerExchanges() []exchange {
	return []exchange{
		{"GET", "/v1/contributors", "", 200, nil},
		{"PUT", "/v1/nodes/gpu-1/ask", `{"price_micros_per_gpu_hour": "500000"}`, 200, nil},
		{"PUT", "/v1/nodes/gpu-1/ask", `{"price_micros_per_gpu_hour": "-1"}`, 200, nil},
		{"PUT", "/v1/nodes/gpu-9/ask", `{"price_micros_per_gpu_hour": "500000"}`, 404, nil},
		{"PUT", "/v1/nodes/gpu-1/ask", `{"price_micros_per_gpu_hour": "9000000000000"}`, 400, nil},
		{"PUT", "/v1/nodes/gpu-1/ask", `{"price_micros_per_gpu_hour": "5", "model": "H100"}`, 400, nil},
		{"PUT", "/v1/nodes/gpu-1/schedule", `{"utc_offset_minutes": 60, "windows": [{"from": "mon 20:00", "to": "tue 08:00"}]}`, 200, nil},
		{"PUT", "/v1/nodes/gpu-9/schedule", `{}`, 404, nil},
		{"PUT", "/v1/nodes/gpu-1/schedule", `{"utc_offset_minutes": 900}`, 400, nil},
		{"PUT", "/v1/nodes/gpu-1/schedule", `{"windows": [{"from": "mon 25:00", "to": "tue 08:00"}]}`, 400, nil},
		{"PUT", "/v1/nodes/gpu-1/schedule", `{"windows": [{"from": 5, "to": "tue 08:00"}]}`, 400, nil},
	}
}
