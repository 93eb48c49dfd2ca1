package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gpuai/gpuai"
)

// A PlanRequest is what a plan supposes. Policy holds the settings that change
// and their values; the others stay as they are.
type PlanRequest struct {
	Policy     map[string]any       `json:"policy,omitempty"`
	Quotas     []gpuai.TenantQuota  `json:"quotas,omitempty"`
	Budgets    []gpuai.TenantBudget `json:"budgets,omitempty"`
	Prices     *gpuai.Prices        `json:"prices,omitempty"`
	NodePrices []gpuai.NodePrice    `json:"node_prices,omitempty"`
	NodeAsks   []gpuai.NodePrice    `json:"node_asks,omitempty"`
	Schedules  []gpuai.NodeSchedule `json:"node_schedules,omitempty"`
	Add        []gpuai.PlanNodes    `json:"add,omitempty"`
	Undrain    []gpuai.NodeID       `json:"undrain,omitempty"`
	Drain      []gpuai.NodeID       `json:"drain,omitempty"`
	Lose       []gpuai.NodeID       `json:"lose,omitempty"`
	Submit     []*gpuai.JobSpec     `json:"submit,omitempty"`
}

// Suppose says what would follow from several things at once. Nothing is stored.
func (c *Client) Suppose(ctx context.Context, r *PlanRequest) (out gpuai.Plan, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/plan", body: r}, decode(&out))
	return out, err
}

// Explain says why a job's tasks wait or are where they are: at a past index, or
// now for 0.
func (c *Client) Explain(ctx context.Context, ref string, index uint64) (gpuai.Explanation, error) {
	v := url.Values{}
	if index > 0 {
		v.Set("index", strconv.FormatUint(index, 10))
	}
	return get[gpuai.Explanation](ctx, c, jobPath(ref)+"/explain", v)
}

// JobAndStart is Job with an estimate of when it starts, while a task of it
// waits; nil else.
func (c *Client) JobAndStart(ctx context.Context, ref string) (gpuai.Job, *gpuai.StartEstimate, error) {
	out, err := get[struct {
		Job      gpuai.Job            `json:"job"`
		Estimate *gpuai.StartEstimate `json:"start_estimate"`
	}](ctx, c, jobPath(ref), url.Values{"estimate": {"true"}})
	return out.Job, out.Estimate, err
}
