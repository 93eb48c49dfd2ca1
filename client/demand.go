package client

import (
	"context"
	"net/http"

	"github.com/gpuai/gpuai"
)

type demandBody struct {
	Demand gpuai.DemandStatus `json:"demand"`
}

// Demand returns what the packing policy expects.
func (c *Client) Demand(ctx context.Context) (gpuai.DemandStatus, error) {
	out, err := get[demandBody](ctx, c, "/v1/operator/demand", nil)
	return out.Demand, err
}

// SetDemand tells the packing policy what to expect, in place of what it has
// learnt, and returns what it expects then.
func (c *Client) SetDemand(ctx context.Context, d gpuai.Demand) (gpuai.DemandStatus, error) {
	var out demandBody
	err := c.do(ctx, request{method: http.MethodPut, path: "/v1/operator/demand", body: d, key: NewKey()}, decode(&out))
	return out.Demand, err
}
