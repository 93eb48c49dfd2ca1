package httpd

import (
	"context"
	"net/http"
	"slices"

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
	return c.replyMembers("")
}

// replyMembers answers with the members. A server that has just removed itself
// may not know it yet: gone is no member any more.
func (c *call) replyMembers(gone gpuai.ServerID) error {
	list := c.api.backend.Members(c.r.Context())
	list.Members = slices.DeleteFunc(list.Members, func(m gpuai.MemberStatus) bool { return m.Server == gone })
	if gone != "" && !slices.Contains(list.Removed, gone) {
		list.Removed = append(list.Removed, gone)
	}
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
	return c.replyMembers("")
}

// promoteMember answers POST /v1/operator/members/{server}/promote.
func (c *call) promoteMember() error {
	if _, err := c.changeMember(c.api.backend.PromoteMember); err != nil {
		return err
	}
	return c.replyMembers("")
}

// removeMember answers POST /v1/operator/members/{server}/remove.
func (c *call) removeMember() error {
	id, err := c.changeMember(c.api.backend.RemoveMember)
	if err != nil {
		return err
	}
	return c.replyMembers(id)
}

func (c *call) changeMember(change func(context.Context, gpuai.ServerID) error) (gpuai.ServerID, error) {
	id, err := c.variable("server")
	if err != nil {
		return "", err
	}
	if err := c.noBody(); err != nil {
		return "", err
	}
	return gpuai.ServerID(id), change(c.r.Context(), gpuai.ServerID(id))
}
