package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/gpuai/gpuai"
)

// CreateTenant creates a tenant.
func (c *Client) CreateTenant(ctx context.Context, r gpuai.TenantRequest) (gpuai.TenantShare, error) {
	var out struct {
		Tenant gpuai.TenantShare `json:"tenant"`
	}
	err := c.do(ctx, request{method: http.MethodPost, path: "/v1/tenants", body: r, key: NewKey()}, decode(&out))
	return out.Tenant, err
}

// AccessTokens returns a page of the tokens that the caller may see.
func (c *Client) AccessTokens(ctx context.Context, p Page) ([]gpuai.AccessToken, string, error) {
	out, err := get[struct {
		Tokens []gpuai.AccessToken `json:"tokens"`
		Next   string              `json:"next_cursor"`
	}](ctx, c, "/v1/tokens", p.values())
	return out.Tokens, out.Next, err
}

// CreateToken makes an access token. It is not sent twice: an answer that is lost
// leaves a token that nobody knows, which AccessTokens shows.
func (c *Client) CreateToken(ctx context.Context, r gpuai.TokenRequest) (out gpuai.NewAccessToken, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/tokens", body: r, key: NewKey()}, decode(&out))
	return out, err
}

// RevokeToken ends an access token, at once and for good.
func (c *Client) RevokeToken(ctx context.Context, id gpuai.AccessTokenID) (gpuai.AccessToken, error) {
	var out struct {
		Token gpuai.AccessToken `json:"token"`
	}
	err := c.do(ctx, request{method: http.MethodPost, path: "/v1/tokens/" + id.String() + "/revoke"}, decode(&out))
	return out.Token, err
}

type roleList struct {
	Roles []gpuai.RoleMapping `json:"roles"`
}

// Roles returns what claims of users give.
func (c *Client) Roles(ctx context.Context) ([]gpuai.RoleMapping, error) {
	out, err := get[roleList](ctx, c, "/v1/roles", url.Values{})
	return out.Roles, err
}

// SetRole says what a claim's value gives; no scopes remove the mapping.
func (c *Client) SetRole(ctx context.Context, r gpuai.RoleMapping) ([]gpuai.RoleMapping, error) {
	var out roleList
	if r.Scopes == nil {
		r.Scopes = []gpuai.Scope{}
	}
	err := c.do(ctx, request{method: http.MethodPut, path: "/v1/roles", body: r}, decode(&out))
	return out.Roles, err
}

// SetNodeOwner says whose a node is; "" is nobody's but the region's.
func (c *Client) SetNodeOwner(ctx context.Context, id gpuai.NodeID, owner gpuai.ContributorID) (gpuai.Node, error) {
	var out struct {
		Node gpuai.Node `json:"node"`
	}
	body := map[string]gpuai.ContributorID{"contributor": owner}
	err := c.do(ctx, request{method: http.MethodPut, path: "/v1/nodes/" + url.PathEscape(string(id)) + "/contributor", body: body}, decode(&out))
	return out.Node, err
}

// WhoAmI returns who the client's requests come from.
func (c *Client) WhoAmI(ctx context.Context) (gpuai.WhoAmI, error) {
	return get[gpuai.WhoAmI](ctx, c, "/v1/whoami", url.Values{})
}

// LoginInfo returns how users log in.
func (c *Client) LoginInfo(ctx context.Context) (gpuai.LoginInfo, error) {
	return get[gpuai.LoginInfo](ctx, c, "/v1/login", url.Values{})
}

// Login exchanges an ID token of the region's OpenID provider for an access token.
func (c *Client) Login(ctx context.Context, r gpuai.LoginRequest) (out gpuai.NewAccessToken, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/login/oidc", body: r, key: NewKey()}, decode(&out))
	return out, err
}

// Bootstrap makes the region's first operator token, with the secret of the server
// that formed the region.
func (c *Client) Bootstrap(ctx context.Context, secret gpuai.Secret) (out gpuai.NewAccessToken, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: "/v1/operator/bootstrap", body: gpuai.BootstrapRequest{Secret: secret.Reveal()}, key: NewKey()}, decode(&out))
	return out, err
}
