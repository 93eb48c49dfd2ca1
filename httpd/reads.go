package httpd

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/gpuai/gpuai"
)

type leaseReply struct {
	Lease gpuai.Lease `json:"lease"`
	Index uint64      `json:"index"`
}

type nodeReply struct {
	Node  gpuai.Node `json:"node"`
	Index uint64     `json:"index"`
}

type policyReply struct {
	Policy gpuai.Policy `json:"policy"`
	Index  uint64       `json:"index"`
}

// linearize waits for the leader's linearizable point, not for ever.
func (c *call) linearize() error {
	ctx, cancel := context.WithTimeout(c.r.Context(), readTimeout)
	defer cancel()
	err := c.api.backend.ReadIndex(ctx)
	if err != nil && errors.Is(err, context.DeadlineExceeded) && c.r.Context().Err() == nil {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "no majority of the servers answered within " + readTimeout.String() + ": retry, or read with ?consistency=stale",
		}
	}
	return err
}

// getLease answers GET /v1/leases/{lease}.
func (c *call) getLease() error {
	text, err := c.variable("lease")
	if err != nil {
		return err
	}
	var token gpuai.Token
	if token.UnmarshalText([]byte(text)) != nil {
		return gpuai.NewError(gpuai.NotFound, "a lease's ID is a decimal number: see GET /v1/leases")
	}
	if err := c.await(func() (uint64, error) {
		l, err := c.api.backend.Lease(token, c.tenant())
		return l.ModifyIndex, err
	}); err != nil {
		return err
	}
	lease, err := c.api.backend.Lease(token, c.tenant())
	if err != nil {
		return err
	}
	c.discreet(&lease)
	c.setETag(lease.ModifyIndex)
	return c.reply(http.StatusOK, &leaseReply{lease, c.index})
}

// getNode answers GET /v1/nodes/{node}.
func (c *call) getNode() error {
	id, err := c.node()
	if err != nil {
		return err
	}
	if err := c.await(func() (uint64, error) {
		n, err := c.api.backend.Node(id, c.owner())
		return n.ModifyIndex, err
	}); err != nil {
		return err
	}
	node, err := c.api.backend.Node(id, c.owner())
	if err != nil {
		return err
	}
	c.setETag(node.ModifyIndex)
	return c.reply(http.StatusOK, &nodeReply{node, c.index})
}

func (c *call) node() (gpuai.NodeID, error) {
	id, err := c.variable("node")
	return gpuai.NodeID(id), err
}

// drain answers POST /v1/nodes/{node}/drain, undrain its opposite.
func (c *call) drain() error   { return c.setDrained(true) }
func (c *call) undrain() error { return c.setDrained(false) }

func (c *call) setDrained(drained bool) error {
	id, err := c.ownNode()
	if err != nil {
		return err
	}
	if err := c.noBody(); err != nil {
		return err
	}
	node, err := c.api.backend.SetDrained(c.r.Context(), id, drained)
	if err != nil {
		return err
	}
	c.setIndex(max(node.ModifyIndex, c.api.backend.Status().Index))
	c.setETag(node.ModifyIndex)
	return c.reply(http.StatusOK, &nodeReply{node, c.index})
}

// queue answers GET /v1/queue.
func (c *call) queue() error {
	if err := c.await(nil); err != nil {
		return err
	}
	q := c.api.backend.Queue(c.tenant())
	return c.reply(http.StatusOK, &q)
}

type weightBody struct {
	Weight uint32 `json:"weight"`
}

type weightReply struct {
	Tenant gpuai.TenantID `json:"tenant"`
	Weight uint32         `json:"weight"`
	Index  uint64         `json:"index"`
}

// putWeight answers PUT /v1/tenants/{tenant}/weight.
func (c *call) putWeight() error {
	id, err := c.variable("tenant")
	if err != nil {
		return err
	}
	var body weightBody
	if err := c.decode(&body); err != nil {
		return err
	}
	if !gpuai.ValidName(id) {
		return gpuai.NewError(gpuai.InvalidSpec, "a tenant's name is 1 to 63 characters of a-z, 0-9 and '-'")
	}
	if body.Weight < 1 || body.Weight > gpuai.MaxTenantWeight {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: []gpuai.FieldError{{Pointer: "/weight", Detail: "must be between 1 and " + strconv.Itoa(gpuai.MaxTenantWeight)}}}
	}
	if err := c.api.backend.SetTenantWeight(c.r.Context(), gpuai.TenantID(id), body.Weight); err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusOK, &weightReply{gpuai.TenantID(id), body.Weight, c.index})
}

// getPolicy answers GET /v1/operator/policy.
func (c *call) getPolicy() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.reply(http.StatusOK, &policyReply{c.api.backend.Policy(), c.index})
}

// putPolicy answers PUT /v1/operator/policy, which replaces the policy whole.
func (c *call) putPolicy() error {
	p := gpuai.PolicyUnsaid()
	if err := c.decode(&p); err != nil {
		return err
	}
	if wrong := p.Validate(); len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong}
	}
	if err := c.api.backend.SetPolicy(c.r.Context(), p); err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusOK, &policyReply{p, c.index})
}
