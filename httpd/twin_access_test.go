package httpd

import (
	"context"
	"fmt"
	"strings"

	"github.com/gpuai/gpuai"
)

// twinAccess is the twin's part of who may do what.
type twinAccess struct {
	tokens []gpuai.AccessToken
	roles  []gpuai.RoleMapping
	booted bool
}

// twinSecret is the twin's bootstrap secret, twinUser what its provider knows.
const (
	twinSecret = "gpuboot-twin"
	twinUser   = "an-id-token"
)

// tenantOf returns a job's tenant; the caller holds the lock.
func (t *twin) tenantOf(id gpuai.JobID) gpuai.TenantID {
	for i := range t.jobs {
		if t.jobs[i].ID == id {
			return t.jobs[i].Tenant
		}
	}
	return ""
}

func (t *twin) FindJob(ref string, tenant gpuai.TenantID) (gpuai.JobID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.jobs) - 1; i >= 0; i-- {
		j := &t.jobs[i]
		if tenant != "" && j.Tenant != tenant {
			continue
		}
		if j.Name == ref || len(ref) >= 4 && strings.HasPrefix(j.ID.String(), ref) {
			return j.ID, nil
		}
	}
	return gpuai.JobID{}, notThere("job " + ref)
}

func (t *twin) CreateTenant(_ context.Context, r gpuai.TenantRequest) (gpuai.TenantShare, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.tenants {
		if s.ID == r.ID && s.Created != 0 {
			return s, gpuai.NewError(gpuai.Conflict, "this tenant exists already")
		}
	}
	share := gpuai.TenantShare{ID: r.ID, Name: r.Name, Weight: 100, Created: 1}
	t.tenants = append(t.tenants, share)
	t.commit(gpuai.Event{Kind: gpuai.PolicySet})
	return share, nil
}

func (t *twin) mint(a gpuai.AccessToken) gpuai.NewAccessToken {
	a.ID = gpuai.AccessTokenID{9: byte(1 + len(t.access.tokens))}
	t.access.tokens = append(t.access.tokens, a)
	t.commit(gpuai.Event{Kind: gpuai.PolicySet})
	return gpuai.NewAccessToken{Token: a, Text: fmt.Sprintf("%s%s_%s", gpuai.AccessTokenPrefix, a.ID, strings.Repeat("x", 32))}
}

func (t *twin) CreateToken(_ context.Context, r gpuai.TokenRequest) (gpuai.NewAccessToken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mint(gpuai.AccessToken{
		Tenant: r.Tenant, Contributor: r.Contributor, Scopes: r.Scopes, Description: r.Description, CreatedAt: 1, ExpiresAt: 1 + gpuai.WallTime(r.TTL),
	}), nil
}

func (t *twin) RevokeToken(_ context.Context, id gpuai.AccessTokenID, tenant gpuai.TenantID) (gpuai.AccessToken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.access.tokens {
		if a := &t.access.tokens[i]; a.ID == id && (tenant == "" || a.Tenant == tenant) {
			a.Revoked = true
			return *a, nil
		}
	}
	return gpuai.AccessToken{}, gpuai.NewError(gpuai.NotFound, "no access token has this ID")
}

func (t *twin) AccessTokens(p Page) ([]gpuai.AccessToken, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var rows []gpuai.AccessToken
	for _, a := range t.access.tokens {
		if p.Tenant == "" || a.Tenant == p.Tenant {
			rows = append(rows, a)
		}
	}
	return page(rows, p)
}

func (t *twin) Roles() []gpuai.RoleMapping {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.access.roles
}

func (t *twin) SetRole(_ context.Context, r gpuai.RoleMapping) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.access.roles = append(t.access.roles, r)
	return nil
}

func (t *twin) SetNodeOwner(_ context.Context, id gpuai.NodeID, owner gpuai.ContributorID) (gpuai.Node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.nodes {
		if n := &t.nodes[i]; n.ID == id {
			n.Contributor = owner
			n.ModifyIndex = t.commit(gpuai.Event{Kind: gpuai.NodeChanged, Node: id})
			return *n, nil
		}
	}
	return gpuai.Node{}, notThere("node " + string(id))
}

func (t *twin) Bootstrap(_ context.Context, secret string) (gpuai.NewAccessToken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case secret != twinSecret:
		return gpuai.NewAccessToken{}, gpuai.NewError(gpuai.Unauthenticated, "this is not the secret")
	case t.access.booted:
		return gpuai.NewAccessToken{}, gpuai.NewError(gpuai.Conflict, "it was done before")
	}
	t.access.booted = true
	return t.mint(gpuai.AccessToken{Scopes: []gpuai.Scope{gpuai.ScopeOperator}, CreatedAt: 1, ExpiresAt: 2}), nil
}

func (t *twin) LoginInfo() gpuai.LoginInfo {
	return gpuai.LoginInfo{Issuer: "https://id.example", ClientID: "gpuai", Scopes: []string{"openid"}}
}

func (t *twin) Login(_ context.Context, r gpuai.LoginRequest) (gpuai.NewAccessToken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.IDToken != twinUser {
		return gpuai.NewAccessToken{}, gpuai.NewError(gpuai.Unauthenticated, "the identity provider did not make this ID token")
	}
	return t.mint(gpuai.AccessToken{Tenant: "acme", User: "ann", Scopes: []gpuai.Scope{gpuai.ScopeRead}, CreatedAt: 1, ExpiresAt: 2}), nil
}

// accessExchanges are requests about who may do what, in an order in which they
// work on a new twin.
var accessExchanges = []exchange{
	{"POST", "/v1/tenants", `{"id":"acme","name":"Acme Ltd."}`, 201, nil},
	{"POST", "/v1/tenants", `{"id":"acme"}`, 409, nil},
	{"POST", "/v1/tenants", `{"id":"No"}`, 400, nil},
	{"GET", "/v1/tenants", "", 200, nil},
	{"POST", "/v1/tokens", `{"tenant":"acme","scopes":["read","submit"],"description":"ci"}`, 201, nil},
	{"POST", "/v1/tokens", `{"contributor":"carol","scopes":["contributor"],"ttl_ms":60000}`, 201, nil},
	{"POST", "/v1/tokens", `{"scopes":["read"]}`, 400, nil},
	{"POST", "/v1/tokens", `{"tenant":"acme","scopes":["root"]}`, 400, nil},
	{"POST", "/v1/tokens", `{"tenant":"acme","scopes":["read"],"ttl_ms":1}`, 400, nil},
	{"GET", "/v1/tokens", "", 200, nil},
	{"GET", "/v1/tokens?limit=1", "", 200, nil},
	{"POST", "/v1/tokens/" + gpuai.AccessTokenID{9: 1}.String() + "/revoke", "", 200, nil},
	{"POST", "/v1/tokens/none/revoke", "", 404, nil},
	{"PUT", "/v1/roles", `{"claim":"groups","value":"ml","tenant":"acme","scopes":["read"]}`, 200, nil},
	{"PUT", "/v1/roles", `{"claim":"","value":"ml","scopes":[]}`, 400, nil},
	{"GET", "/v1/roles", "", 200, nil},
	{"PUT", "/v1/nodes/gpu-1/contributor", `{"contributor":"carol"}`, 200, nil},
	{"PUT", "/v1/nodes/gpu-1/contributor", `{"contributor":"-"}`, 400, nil},
	{"PUT", "/v1/nodes/gpu-9/contributor", `{"contributor":"carol"}`, 404, nil},
	{"GET", "/v1/whoami", "", 200, nil},
	{"GET", "/v1/login", "", 200, nil},
	{"POST", "/v1/login/oidc", `{"id_token":"` + twinUser + `"}`, 201, nil},
	{"POST", "/v1/login/oidc", `{"id_token":"x"}`, 401, nil},
	{"POST", "/v1/login/oidc", `{}`, 400, nil},
	{"POST", "/v1/operator/bootstrap", `{"secret":"wrong"}`, 401, nil},
	{"POST", "/v1/operator/bootstrap", `{"secret":"` + twinSecret + `"}`, 201, nil},
	{"POST", "/v1/operator/bootstrap", `{"secret":"` + twinSecret + `"}`, 409, nil},
}
