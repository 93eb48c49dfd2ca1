package httpd

import (
	"context"
	"net/http"

	"github.com/gpuai/gpuai"
)

// Members are the region's servers. Changes are called on the leader only; each
// returns once the change is committed, is safe to repeat, and refuses with
// Conflict what would endanger the region.
type Members interface {
	Members(ctx context.Context) gpuai.MemberList
	// AddMember adds a non-voter.
	AddMember(ctx context.Context, id gpuai.ServerID, addr string) error
	PromoteMember(ctx context.Context, id gpuai.ServerID) error
	RemoveMember(ctx context.Context, id gpuai.ServerID) error
}

// listMembers answers GET /v1/operator/members.
func (c *call) listMembers() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.replyMembers()
}

func (c *call) replyMembers() error {
	list := c.api.backend.Members(c.r.Context())
	c.setIndex(list.Index)
	return c.reply(http.StatusOK, &list)
}

// addMember answers POST /v1/operator/members.
func (c *call) addMember() error {
	var r gpuai.MemberRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if err := c.api.backend.AddMember(c.r.Context(), r.Server, r.Address); err != nil {
		return err
	}
	return c.replyMembers()
}

// promoteMember answers POST /v1/operator/members/{server}/promote, removeMember
// its neighbour.
func (c *call) promoteMember() error { return c.changeMember(c.api.backend.PromoteMember) }
func (c *call) removeMember() error  { return c.changeMember(c.api.backend.RemoveMember) }

func (c *call) changeMember(change func(context.Context, gpuai.ServerID) error) error {
	id, err := c.variable("server")
	if err != nil {
		return err
	}
	if err := c.noBody(); err != nil {
		return err
	}
	if err := change(c.r.Context(), gpuai.ServerID(id)); err != nil {
		return err
	}
	return c.replyMembers()
}
