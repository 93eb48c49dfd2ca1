package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/gpuai/gpuai"
)

type quotaBody struct {
	Quota gpuai.QuotaStatus `json:"quota"`
}

type usageBody struct {
	Usage gpuai.TenantUsage `json:"usage"`
}

type pricesBody struct {
	Prices gpuai.Prices `json:"prices"`
}

func tenantPath(id gpuai.TenantID, what string) string {
	return "/v1/tenants/" + url.PathEscape(string(id)) + "/" + what
}

// Quota returns a tenant's quota and what it uses of it; NotFound when it has none.
func (c *Client) Quota(ctx context.Context, id gpuai.TenantID) (gpuai.QuotaStatus, error) {
	out, err := get[quotaBody](ctx, c, tenantPath(id, "quota"), nil)
	return out.Quota, err
}

// SetQuota replaces a tenant's quota whole.
func (c *Client) SetQuota(ctx context.Context, id gpuai.TenantID, q gpuai.Quota) (gpuai.QuotaStatus, error) {
	var out quotaBody
	err := c.do(ctx, request{method: http.MethodPut, path: tenantPath(id, "quota"), body: q, key: NewKey()}, decode(&out))
	return out.Quota, err
}

// Usage returns what a tenant has spent, and its budget.
func (c *Client) Usage(ctx context.Context, id gpuai.TenantID) (gpuai.TenantUsage, error) {
	out, err := get[usageBody](ctx, c, tenantPath(id, "usage"), nil)
	return out.Usage, err
}

// SetBudget replaces a tenant's budget whole.
func (c *Client) SetBudget(ctx context.Context, id gpuai.TenantID, b gpuai.Budget) (gpuai.TenantUsage, error) {
	var out usageBody
	err := c.do(ctx, request{method: http.MethodPut, path: tenantPath(id, "budget"), body: b, key: NewKey()}, decode(&out))
	return out.Usage, err
}

// Usages returns a page of what tenants have spent.
func (c *Client) Usages(ctx context.Context, p Page) ([]gpuai.TenantUsage, string, error) {
	out, err := get[struct {
		Usage []gpuai.TenantUsage `json:"usage"`
		Next  string              `json:"next_cursor"`
	}](ctx, c, "/v1/usage", p.values())
	return out.Usage, out.Next, err
}

// Prices returns the price list.
func (c *Client) Prices(ctx context.Context) (gpuai.Prices, error) {
	out, err := get[pricesBody](ctx, c, "/v1/operator/prices", nil)
	return out.Prices, err
}

// SetPrices replaces the price list whole.
func (c *Client) SetPrices(ctx context.Context, p gpuai.Prices) error {
	return c.do(ctx, request{method: http.MethodPut, path: "/v1/operator/prices", body: p, key: NewKey()},
		func(*http.Response) error { return nil })
}

// SetNodePrice gives a node a price of its own; below 0 it has none any more.
func (c *Client) SetNodePrice(ctx context.Context, id gpuai.NodeID, price gpuai.Micros) error {
	body := map[string]gpuai.Micros{"price_micros_per_gpu_hour": price}
	return c.do(ctx, request{method: http.MethodPut, path: "/v1/nodes/" + url.PathEscape(string(id)) + "/price", body: body, key: NewKey()},
		func(*http.Response) error { return nil })
}
