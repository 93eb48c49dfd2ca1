package httpd

import (
	"context"
	"net/http"

	"github.com/gpuai/gpuai"
)

// Owners is what contributors see of their earnings and say of their nodes. What
// changes it is called on the leader only, with what has passed Validate.
type Owners interface {
	// Contributors lists those who were paid; of Page.Contributor, that one in any
	// case.
	Contributors(p Page) ([]gpuai.ContributorStatus, string, error)
	// SetNodeAsk gives a node the price that its contributor asks; below 0 none.
	SetNodeAsk(ctx context.Context, id gpuai.NodeID, price gpuai.Micros) error
	// SetNodeSchedule says when a node may be used; without windows always.
	SetNodeSchedule(ctx context.Context, id gpuai.NodeID, s gpuai.Schedule) error
}

// listContributors answers GET /v1/contributors: a contributor with itself.
func (c *call) listContributors() error {
	return list(c, "contributors", c.api.backend.Contributors)
}

// ownNode returns the node that a path names: another contributor's is as unknown as
// none.
func (c *call) ownNode() (gpuai.NodeID, error) {
	id, err := c.node()
	if mine := c.owner(); err == nil && mine != "" {
		_, err = c.api.backend.Node(id, mine)
	}
	return id, err
}

// replyNode answers with a node that was just changed.
func (c *call) replyNode(id gpuai.NodeID) error {
	n, err := c.api.backend.Node(id, c.owner())
	if err != nil {
		return err
	}
	c.setIndex(max(n.ModifyIndex, c.api.backend.Status().Index))
	c.setETag(n.ModifyIndex)
	return c.reply(http.StatusOK, &nodeReply{n, c.index})
}

// putNodeAsk answers PUT /v1/nodes/{node}/ask.
func (c *call) putNodeAsk() error {
	id, err := c.ownNode()
	if err != nil {
		return err
	}
	var body nodePriceBody
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Price > gpuai.MaxPrice {
		return invalid("/price_micros_per_gpu_hour", "must be at most "+gpuai.MaxPrice.String())
	}
	if err := c.api.backend.SetNodeAsk(c.r.Context(), id, body.Price); err != nil {
		return err
	}
	return c.replyNode(id)
}

// putNodeSchedule answers PUT /v1/nodes/{node}/schedule, which replaces it whole.
func (c *call) putNodeSchedule() error {
	id, err := c.ownNode()
	if err != nil {
		return err
	}
	var s gpuai.Schedule
	if err := c.decodeValid(&s); err != nil {
		return err
	}
	if err := c.api.backend.SetNodeSchedule(c.r.Context(), id, s); err != nil {
		return err
	}
	return c.replyNode(id)
}
