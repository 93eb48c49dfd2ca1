package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/gpuai/gpuai"
)

const membersPath = "/v1/operator/members"

// Members returns the region's servers, with what each answers just now. Stale
// is one server's own view, of use when no server leads.
func (c *Client) Members(ctx context.Context, stale bool) (gpuai.MemberList, error) {
	v := url.Values{}
	if stale {
		v.Set("consistency", "stale")
	}
	return get[gpuai.MemberList](ctx, c, membersPath, v)
}

// AddMember adds a server as a non-voter.
func (c *Client) AddMember(ctx context.Context, m gpuai.MemberRequest) (out gpuai.MemberList, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: membersPath, body: m, key: NewKey()}, decode(&out))
	return out, err
}

// PromoteMember makes a non-voter that has caught up a voter.
func (c *Client) PromoteMember(ctx context.Context, id gpuai.ServerID) (gpuai.MemberList, error) {
	return c.changeMember(ctx, id, "promote")
}

// RemoveMember removes a server for ever: its ID is never used again.
func (c *Client) RemoveMember(ctx context.Context, id gpuai.ServerID) (gpuai.MemberList, error) {
	return c.changeMember(ctx, id, "remove")
}

func (c *Client) changeMember(ctx context.Context, id gpuai.ServerID, op string) (out gpuai.MemberList, err error) {
	path := membersPath + "/" + url.PathEscape(string(id)) + "/" + op
	err = c.do(ctx, request{method: http.MethodPost, path: path, key: NewKey()}, decode(&out))
	return out, err
}
