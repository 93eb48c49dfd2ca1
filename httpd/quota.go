package httpd

import (
	"net/http"

	"github.com/gpuai/gpuai"
)

type quotaReply struct {
	Quota gpuai.QuotaStatus `json:"quota"`
	Index uint64            `json:"index"`
}

type usageReply struct {
	Usage gpuai.TenantUsage `json:"usage"`
	Index uint64            `json:"index"`
}

type pricesReply struct {
	Prices gpuai.Prices `json:"prices"`
	Index  uint64       `json:"index"`
}

type nodePriceBody struct {
	Price gpuai.Micros `json:"price_micros_per_gpu_hour"`
}

// tenantOfPath returns the tenant that a path names: another than the caller's is not
// known to it, whether there is one or not.
func (c *call) tenantOfPath() (gpuai.TenantID, error) {
	id, err := c.variable("tenant")
	if err == nil && !gpuai.ValidName(id) {
		err = gpuai.NewError(gpuai.InvalidSpec, "a tenant's name is 1 to 63 characters of a-z, 0-9 and '-'")
	}
	if mine := c.tenant(); err == nil && mine != "" && mine != gpuai.TenantID(id) {
		err = gpuai.NewError(gpuai.NotFound, "no such tenant")
	}
	return gpuai.TenantID(id), err
}

// getQuota answers GET /v1/tenants/{tenant}/quota.
func (c *call) getQuota() error {
	id, err := c.tenantOfPath()
	if err == nil {
		err = c.readPoint()
	}
	if err != nil {
		return err
	}
	q, err := c.api.backend.Quota(id)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, &quotaReply{q, c.index})
}

// putQuota answers PUT /v1/tenants/{tenant}/quota, which replaces the quota whole.
func (c *call) putQuota() error {
	id, err := c.tenantOfPath()
	if err != nil {
		return err
	}
	var q gpuai.Quota
	if err := c.decodeValid(&q); err != nil {
		return err
	}
	if err := c.api.backend.SetQuota(c.r.Context(), id, q); err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	st, err := c.api.backend.Quota(id)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, &quotaReply{st, c.index})
}

// putBudget answers PUT /v1/tenants/{tenant}/budget, which replaces the budget whole.
func (c *call) putBudget() error {
	id, err := c.tenantOfPath()
	if err != nil {
		return err
	}
	var b gpuai.Budget
	if err := c.decodeValid(&b); err != nil {
		return err
	}
	if err := c.api.backend.SetBudget(c.r.Context(), id, b); err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.replyUsage(id)
}

// getUsage answers GET /v1/tenants/{tenant}/usage.
func (c *call) getUsage() error {
	id, err := c.tenantOfPath()
	if err == nil {
		err = c.readPoint()
	}
	if err != nil {
		return err
	}
	return c.replyUsage(id)
}

func (c *call) replyUsage(id gpuai.TenantID) error {
	u, err := c.api.backend.Usage(id)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, &usageReply{u, c.index})
}

// listUsage answers GET /v1/usage.
func (c *call) listUsage() error { return list(c, "usage", c.api.backend.Usages) }

// getPrices answers GET /v1/operator/prices.
func (c *call) getPrices() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.reply(http.StatusOK, &pricesReply{c.api.backend.Prices(), c.index})
}

// putPrices answers PUT /v1/operator/prices, which replaces the list whole.
func (c *call) putPrices() error {
	var p gpuai.Prices
	if err := c.decodeValid(&p); err != nil {
		return err
	}
	if err := c.api.backend.SetPrices(c.r.Context(), p); err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusOK, &pricesReply{c.api.backend.Prices(), c.index})
}

// putNodePrice answers PUT /v1/nodes/{node}/price.
func (c *call) putNodePrice() error {
	id, err := c.variable("node")
	if err != nil {
		return err
	}
	var body nodePriceBody
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Price > gpuai.MaxPrice {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: []gpuai.FieldError{{Pointer: "/price_micros_per_gpu_hour", Detail: "must be at most " + gpuai.MaxPrice.String()}}}
	}
	if err := c.api.backend.SetNodePrice(c.r.Context(), gpuai.NodeID(id), body.Price); err != nil {
		return err
	}
	n, err := c.api.backend.Node(gpuai.NodeID(id), "")
	if err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusOK, &nodeReply{n, c.index})
}
