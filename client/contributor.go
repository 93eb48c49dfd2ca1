package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/gpuai/gpuai"
)

type contributorList struct {
	Contributors []gpuai.ContributorStatus `json:"contributors"`
	Next         string                    `json:"next_cursor"`
}

// Contributors returns a page of what contributors have earned, and the cursor of the
// next page. A contributor sees itself.
func (c *Client) Contributors(ctx context.Context, p Page) ([]gpuai.ContributorStatus, string, error) {
	out, err := get[contributorList](ctx, c, "/v1/contributors", p.values())
	return out.Contributors, out.Next, err
}

// SetNodeAsk says what a node's contributor asks for a GPU of it and hour; below 0 it
// asks nothing of its own.
func (c *Client) SetNodeAsk(ctx context.Context, id gpuai.NodeID, price gpuai.Micros) (gpuai.Node, error) {
	return c.putNode(ctx, id, "/ask", map[string]gpuai.Micros{"price_micros_per_gpu_hour": price})
}

// SetNodeSchedule says at which hours of the week a node may be used; without windows
// always.
func (c *Client) SetNodeSchedule(ctx context.Context, id gpuai.NodeID, s gpuai.Schedule) (gpuai.Node, error) {
	return c.putNode(ctx, id, "/schedule", s)
}

func (c *Client) putNode(ctx context.Context, id gpuai.NodeID, what string, body any) (gpuai.Node, error) {
	var out struct {
		Node gpuai.Node `json:"node"`
	}
	err := c.do(ctx, request{method: http.MethodPut, path: "/v1/nodes/" + url.PathEscape(string(id)) + what, body: body, key: NewKey()}, decode(&out))
	return out.Node, err
}
