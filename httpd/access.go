package httpd

import (
	"context"
	"net/http"
	"strings"

	"github.com/gpuai/gpuai"
)

// Access is who may do what, as the region keeps it. What changes it is called on
// the leader only, but for Bootstrap and Login.
type Access interface {
	CreateTenant(ctx context.Context, r gpuai.TenantRequest) (gpuai.TenantShare, error)
	// CreateToken takes a request that has passed Validate.
	CreateToken(ctx context.Context, r gpuai.TokenRequest) (gpuai.NewAccessToken, error)
	// RevokeToken ends a token of a tenant; "" = any's. Another's is as unknown as
	// none.
	RevokeToken(ctx context.Context, id gpuai.AccessTokenID, tenant gpuai.TenantID) (gpuai.AccessToken, error)
	AccessTokens(p Page) ([]gpuai.AccessToken, string, error)
	Roles() []gpuai.RoleMapping
	// SetRole takes a mapping that has passed Validate.
	SetRole(ctx context.Context, r gpuai.RoleMapping) error
	SetNodeOwner(ctx context.Context, node gpuai.NodeID, owner gpuai.ContributorID) (gpuai.Node, error)
	// Bootstrap makes the region's first operator token, once, for who knows the
	// secret of the server that formed the region.
	Bootstrap(ctx context.Context, secret string) (gpuai.NewAccessToken, error)
	LoginInfo() gpuai.LoginInfo
	// Login exchanges an ID token of the region's OpenID provider.
	Login(ctx context.Context, r gpuai.LoginRequest) (gpuai.NewAccessToken, error)
}

type tenantReply struct {
	Tenant gpuai.TenantShare `json:"tenant"`
	Index  uint64            `json:"index"`
}

// createTenant answers POST /v1/tenants.
func (c *call) createTenant() error {
	var r gpuai.TenantRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if wrong := r.Validate(); len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong}
	}
	share, err := c.api.backend.CreateTenant(c.r.Context(), r)
	if err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusCreated, &tenantReply{share, c.index})
}

type tokenReply struct {
	Token gpuai.AccessToken `json:"token"`
	Index uint64            `json:"index"`
}

type newTokenReply struct {
	gpuai.NewAccessToken
	Index uint64 `json:"index"`
}

// replyToken answers with a token that was just made: this once its text is told.
func (c *call) replyToken(t gpuai.NewAccessToken, err error) error {
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusCreated, &newTokenReply{t, c.index})
}

// createToken answers POST /v1/tokens.
func (c *call) createToken() error {
	var r gpuai.TokenRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	mine := c.tenant()
	most := gpuai.MaxTokenTTL
	if mine != "" {
		most = c.mostGiven()
	}
	if r.TTL == 0 {
		r.TTL = min(most, gpuai.DefaultTokenTTL)
	}
	r.Defaults()
	if mine != "" {
		if r.Tenant == "" && r.Contributor == "" {
			r.Tenant = mine
		}
		if r.Tenant != mine || r.Contributor != "" || !gpuai.ScopesOf(r.Scopes...).Within(givenByAdmins) {
			return gpuai.NewError(gpuai.Forbidden, "a tenant's administrator makes tokens of tenant "+string(mine)+" with the scopes read, submit and tenant-admin only: ask an operator for others")
		}
	}
	if wrong := r.Validate(); len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong}
	}
	if r.TTL > most {
		return invalid("/ttl_ms", "is at most "+most.String()+" for a token that you make: an operator makes others")
	}
	return c.replyToken(c.api.backend.CreateToken(c.r.Context(), r))
}

// givenByAdmins is what a tenant's administrator may give.
const givenByAdmins gpuai.Scopes = 1<<gpuai.ScopeRead | 1<<gpuai.ScopeSubmit | 1<<gpuai.ScopeTenantAdmin

// mostGiven is for how long the tokens may be good that a tenant's administrator
// makes.
func (c *call) mostGiven() gpuai.Duration {
	if strings.HasPrefix(c.who.Actor, gpuai.ActorUser) {
		return gpuai.MaxGivenLoginTTL
	}
	return gpuai.MaxGivenTTL
}

// listTokens answers GET /v1/tokens.
func (c *call) listTokens() error { return list(c, "tokens", c.api.backend.AccessTokens) }

// revokeToken answers POST /v1/tokens/{token}/revoke.
func (c *call) revokeToken() error {
	text, err := c.variable("token")
	if err != nil {
		return err
	}
	if err := c.noBody(); err != nil {
		return err
	}
	id, err := gpuai.ParseAccessTokenID(text)
	if err != nil {
		return gpuai.NewError(gpuai.NotFound, "no access token has this ID")
	}
	t, err := c.api.backend.RevokeToken(c.r.Context(), id, c.tenant())
	if err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.reply(http.StatusOK, &tokenReply{t, c.index})
}

type rolesReply struct {
	Roles []gpuai.RoleMapping `json:"roles"`
	Index uint64              `json:"index"`
}

// listRoles answers GET /v1/roles.
func (c *call) listRoles() error {
	if err := c.readPoint(); err != nil {
		return err
	}
	return c.replyRoles()
}

func (c *call) replyRoles() error {
	return c.reply(http.StatusOK, &rolesReply{append([]gpuai.RoleMapping{}, c.api.backend.Roles()...), c.index})
}

// putRole answers PUT /v1/roles, which replaces one mapping, or removes it.
func (c *call) putRole() error {
	var r gpuai.RoleMapping
	if err := c.decode(&r); err != nil {
		return err
	}
	if wrong := r.Validate(); len(wrong) > 0 {
		return &gpuai.Error{Code: gpuai.InvalidSpec, Fields: wrong}
	}
	if err := c.api.backend.SetRole(c.r.Context(), r); err != nil {
		return err
	}
	c.setIndex(c.api.backend.Status().Index)
	return c.replyRoles()
}

type ownerBody struct {
	Contributor gpuai.ContributorID `json:"contributor"`
}

// putNodeOwner answers PUT /v1/nodes/{node}/contributor.
func (c *call) putNodeOwner() error {
	id, err := c.node()
	if err != nil {
		return err
	}
	var b ownerBody
	if err := c.decode(&b); err != nil {
		return err
	}
	if b.Contributor != "" && !gpuai.ValidName(string(b.Contributor)) {
		return invalid("/contributor", "is 1 to 63 characters of a-z, 0-9 and '-', or nothing")
	}
	node, err := c.api.backend.SetNodeOwner(c.r.Context(), id, b.Contributor)
	if err != nil {
		return err
	}
	c.setIndex(max(node.ModifyIndex, c.api.backend.Status().Index))
	c.setETag(node.ModifyIndex)
	return c.reply(http.StatusOK, &nodeReply{node, c.index})
}

// whoAmI answers GET /v1/whoami.
func (c *call) whoAmI() error {
	return c.reply(http.StatusOK, &gpuai.WhoAmI{
		Actor: c.who.Actor, Tenant: c.who.Tenant, Contributor: c.who.Contributor, Scopes: c.who.Scopes.List(),
	})
}

// loginInfo answers GET /v1/login.
func (c *call) loginInfo() error {
	info := c.api.backend.LoginInfo()
	info.Insecure = c.api.cfg.Auth == nil
	return c.reply(http.StatusOK, &info)
}

// maxIDToken bounds the ID token of a login.
const maxIDToken = 16 << 10

// login answers POST /v1/login/oidc.
func (c *call) login() error {
	var r gpuai.LoginRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.IDToken == "" || len(r.IDToken) > maxIDToken {
		return invalid("/id_token", "is the ID token that the provider gave, of at most 16 KiB: have the provider put fewer groups into one that is longer")
	}
	return c.replyToken(c.api.backend.Login(c.r.Context(), r))
}

// bootstrap answers POST /v1/operator/bootstrap.
func (c *call) bootstrap() error {
	var r gpuai.BootstrapRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	return c.replyToken(c.api.backend.Bootstrap(c.r.Context(), r.Secret))
}
