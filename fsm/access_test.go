package fsm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// accessRegion is a region of the newest level with two tenants.
func accessRegion(t *testing.T) *region {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	r.do(&CreateTenant{Tenant: "acme", Name: "Acme Ltd."})
	r.do(&CreateTenant{Tenant: "beta"})
	return r
}

func tokenID(n int) (id gpuai.AccessTokenID) {
	le.PutUint64(id[:], uint64(n+1))
	return id
}

func aToken(n int) *CreateToken {
	return &CreateToken{ID: tokenID(n), Hash: [32]byte{byte(n), 1}, Tenant: "acme", Scopes: gpuai.ScopesOf(gpuai.ScopeRead), TTL: gpuai.Hour, Description: "ci"}
}

func TestAccessTokens(t *testing.T) {
	r := accessRegion(t)
	r.do(aToken(0))
	r.refuse(aToken(0), gpuai.Conflict)
	for _, bad := range []func(*CreateToken){
		func(c *CreateToken) { c.Scopes = 0 },
		func(c *CreateToken) { c.Scopes = 1 << 7 },
		func(c *CreateToken) { c.TTL = 0 },
		func(c *CreateToken) { c.TTL = -1 },
		func(c *CreateToken) { c.TTL = gpuai.MaxTokenTTL + 1 },
		func(c *CreateToken) { c.Tenant = "" },
		func(c *CreateToken) { c.Tenant = "No" },
		func(c *CreateToken) { c.Contributor = "carol" },
		func(c *CreateToken) { c.Scopes |= gpuai.ScopesOf(gpuai.ScopeContributor) },
		func(c *CreateToken) { c.Description = "two\nlines" },
		func(c *CreateToken) { c.User, c.Login = "cut\xe2\x82", [32]byte{1} },
		func(c *CreateToken) { c.User = "ann" },
		func(c *CreateToken) { c.Login = [32]byte{1} },
		func(c *CreateToken) { c.ID = gpuai.AccessTokenID{} },
		func(c *CreateToken) { c.First = true },
	} {
		c := aToken(1)
		bad(c)
		r.refuse(c, gpuai.InvalidSpec)
	}
	other := aToken(1)
	other.Tenant = "nobody"
	r.refuse(other, gpuai.NotFound)
	h, ok := r.m.AccessToken(tokenID(0))
	if !ok || h.Tenant != "acme" || h.Description != "ci" || h.Expired || h.Revoked || h.UsedAt != 0 || h.ExpiresAt-h.CreatedAt != gpuai.WallTime(gpuai.Hour) {
		t.Fatalf("%+v %v", h, ok)
	}
	r.time = r.time.Add(gpuai.Minute)
	r.do(&TouchTokens{IDs: []gpuai.AccessTokenID{tokenID(0), tokenID(77)}})
	if h, _ = r.m.AccessToken(tokenID(0)); h.UsedAt-h.CreatedAt != gpuai.WallTime(gpuai.Minute) {
		t.Fatalf("used at %d, created at %d", h.UsedAt, h.CreatedAt)
	}
	r.refuse(&RevokeToken{ID: tokenID(0), Tenant: "beta"}, gpuai.NotFound)
	r.refuse(&RevokeToken{ID: tokenID(9)}, gpuai.NotFound)
	r.do(&RevokeToken{ID: tokenID(0), Tenant: "acme"})
	r.do(&RevokeToken{ID: tokenID(0)})
	if h, _ = r.m.AccessToken(tokenID(0)); !h.Revoked {
		t.Fatal("it is not revoked")
	}
}

// Tokens that are over are known for a day, so that their holders learn why they
// are refused, and then make room.
func TestAccessTokensAreForgotten(t *testing.T) {
	r := accessRegion(t)
	for n := range 10 {
		r.do(aToken(n))
	}
	r.do(&RevokeToken{ID: tokenID(3)})
	r.wait(gpuai.Hour + gpuai.Minute)
	if h, ok := r.m.AccessToken(tokenID(4)); !ok || !h.Expired {
		t.Fatalf("%+v %v", h, ok)
	}
	r.wait(gpuai.Day)
	r.do(aToken(20))
	r.do(aToken(21))
	if page, _ := r.m.AccessTokens(0, 100, ""); len(page) != 2 {
		t.Fatalf("%d tokens are kept", len(page))
	}
}

// One tenant cannot take the tokens of all, and what is over makes room.
func TestAccessTokensAreBounded(t *testing.T) {
	r := accessRegion(t)
	cmds := []Command{}
	for n := range MaxTenantTokens {
		if cmds = append(cmds, aToken(n)); len(cmds) == 512 {
			r.apply(cmds...)
			cmds = nil
		}
	}
	more := aToken(MaxTenantTokens)
	r.refuse(more, gpuai.RateLimited)
	more.Tenant = "beta"
	r.do(more)
	r.wait(2 * gpuai.Day)
	r.do(aToken(MaxTenantTokens + 1))
	if n := r.m.tokenSlots.Len(); n != 1 {
		t.Fatalf("%d tokens are kept", n)
	}
}

func TestFirstOperatorTokenIsTheOnly(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: MaxLevel})
	first := &CreateToken{ID: tokenID(0), Scopes: gpuai.ScopesOf(gpuai.ScopeOperator), TTL: gpuai.Hour, First: true}
	r.do(first)
	second := *first
	second.ID = tokenID(1)
	r.refuse(&second, gpuai.Conflict)
	if !r.m.Bootstrapped() || !r.m.HasTenant(gpuai.DefaultTenant) {
		t.Fatal("the region is not bootstrapped")
	}
	r.do(&RevokeToken{ID: tokenID(0)})
	r.wait(3 * gpuai.Day)
	r.refuse(&second, gpuai.Conflict)
	if !restored(t, r.m).Bootstrapped() {
		t.Error("a restored region is not bootstrapped")
	}
}

func TestTenantsAreCreatedOnce(t *testing.T) {
	r := accessRegion(t)
	r.refuse(&CreateTenant{Tenant: "acme"}, gpuai.Conflict)
	r.refuse(&CreateTenant{Tenant: "No"}, gpuai.InvalidSpec)
	r.refuse(&CreateTenant{Tenant: "a", Name: "\x00"}, gpuai.InvalidSpec)
	r.do(&SetTenantWeight{Tenant: "later", Weight: 7})
	if r.m.HasTenant("later") {
		t.Fatal("a weight created a tenant")
	}
	r.do(&CreateTenant{Tenant: "later", Name: "Later"})
	page, _ := r.m.Tenants(0, 10)
	if n := len(page); n != 3 || page[2].Weight != 7 || page[2].Name != "Later" || page[0].Name != "Acme Ltd." || page[0].Created == 0 {
		t.Fatalf("%+v", page)
	}
}

// A submit that asks for it is refused for a tenant that was not created, and one
// that does not ask is taken as ever.
func TestSubmitNeedsItsTenant(t *testing.T) {
	r := accessRegion(t)
	spec := jobSpec("j", 1, 0)
	spec.Tenant = "gamma"
	res := r.refuse(&SubmitJob{ID: r.newID(), Spec: spec, TenantExists: true}, gpuai.InvalidSpec)
	if !strings.Contains(res.Detail, "tenant create") {
		t.Errorf("the refusal is %q", res.Detail)
	}
	r.do(&SubmitJob{ID: r.newID(), Spec: spec, HoldAnyway: true})
	r.do(&CreateTenant{Tenant: "gamma"})
	r.do(&SubmitJob{ID: r.newID(), Spec: spec, HoldAnyway: true, TenantExists: true})
	old := newRegion(t)
	old.refuse(&SubmitJob{ID: old.newID(), Spec: spec, HoldAnyway: true, TenantExists: true}, gpuai.InvalidSpec)
}

func TestRoleMappings(t *testing.T) {
	r := accessRegion(t)
	role := func(value string, scopes ...gpuai.Scope) *SetRole {
		return &SetRole{gpuai.RoleMapping{Claim: "groups", Value: value, Tenant: "acme", Scopes: scopes}}
	}
	r.refuse(role("ml"), gpuai.NotFound)
	r.do(role("ml", gpuai.ScopeRead))
	r.do(role("ml", gpuai.ScopeRead, gpuai.ScopeSubmit))
	r.do(role("boss", gpuai.ScopeTenantAdmin))
	stranger := role("ml", gpuai.ScopeRead)
	stranger.Mapping.Tenant = "nobody"
	r.refuse(stranger, gpuai.NotFound)
	r.refuse(role("", gpuai.ScopeRead), gpuai.InvalidSpec)
	r.refuse(role("x", gpuai.ScopeContributor), gpuai.InvalidSpec)
	if got := fmt.Sprint(r.m.RoleMappings()); got != "[{groups ml acme  [read submit]} {groups boss acme  [tenant-admin]}]" {
		t.Fatal(got)
	}
	r.do(role("ml"))
	if got := len(restored(t, r.m).RoleMappings()); got != 1 {
		t.Fatalf("%d mappings are left", got)
	}
	for n := range MaxRoles - 1 {
		r.do(role(fmt.Sprint("g", n), gpuai.ScopeRead))
	}
	r.refuse(role("one more", gpuai.ScopeRead), gpuai.TooLarge)
}

func TestNodeOwners(t *testing.T) {
	r := accessRegion(t)
	r.node("a", 1)
	r.refuse(&SetNodeOwner{Node: "b", Contributor: "carol"}, gpuai.NotFound)
	r.refuse(&SetNodeOwner{Node: "a", Contributor: "Carol"}, gpuai.InvalidSpec)
	r.do(&SetNodeOwner{Node: "a", Contributor: "carol"})
	m := restored(t, r.m)
	if n, _ := m.Node("a"); n.Contributor != "carol" || m.Digest() != r.m.Digest() {
		t.Fatalf("%+v", n)
	}
	r.do(&SetNodeOwner{Node: "a"})
	if n, _ := r.m.Node("a"); n.Contributor != "" {
		t.Fatalf("%+v", n)
	}
}

// Below the level nothing of it is known, and hostile bytes are refused at any.
func TestAccessBelowItsLevelAndHostile(t *testing.T) {
	all := []Command{
		&CreateTenant{Tenant: "t"}, aToken(1), &RevokeToken{ID: tokenID(0)}, &TouchTokens{IDs: []gpuai.AccessTokenID{tokenID(0)}},
		&SetRole{gpuai.RoleMapping{Claim: "c", Value: "v", Tenant: "acme", Scopes: []gpuai.Scope{gpuai.ScopeRead}}}, &SetNodeOwner{Node: "a", Contributor: "c"},
	}
	old := newRegion(t)
	old.do(&SetFeatureLevel{Level: LevelTenants - 1})
	old.node("a", 1)
	for _, c := range all {
		old.refuse(c, gpuai.InvalidSpec)
	}
	r := accessRegion(t)
	r.do(aToken(0))
	for _, c := range all {
		e, _ := wire.OpenEntry(AppendEntry(nil, Header{}, c.Append(nil, Envelope{})))
		cmd, _ := e.Next()
		typ, whole := cmd.Type, cmd.Body
		for n := 1; n < len(whole); n++ { // of nothing at all, a TouchTokens is one
			r.refuse(&rawBody{typ, whole[:n]}, gpuai.InvalidSpec)
		}
		r.refuse(&rawBody{typ, append(bytes.Clone(whole), 0xff)}, gpuai.InvalidSpec)
	}
	r.refuse(&TouchTokens{IDs: make([]gpuai.AccessTokenID, MaxTouched+1)}, gpuai.InvalidSpec)
}

// A rawBody is a command of any bytes.
type rawBody struct {
	typ  uint8
	body []byte
}

func (c *rawBody) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, c.typ, env, func(b []byte) []byte { return append(b, c.body...) })
}

// accessCommand draws a command about who may do what, right or wrong.
func (w *walk) accessCommand() Command {
	tenant := gpuai.TenantID([]string{"default", "acme", "beta", ""}[w.r.IntN(4)])
	scopes := gpuai.Scopes(w.r.IntN(int(gpuai.AllScopes) + 2))
	contributor := gpuai.ContributorID("")
	if scopes.Has(gpuai.ScopeContributor) {
		contributor = "carol"
	}
	switch w.r.IntN(8) {
	case 0:
		return &CreateTenant{Tenant: tenant, Name: []string{"", "A"}[w.r.IntN(2)]}
	case 1, 2, 3:
		c := &CreateToken{
			ID: tokenID(w.r.IntN(40)), Hash: [32]byte{byte(w.r.IntN(256))}, Tenant: tenant, Contributor: contributor, Scopes: scopes,
			TTL: gpuai.Duration(1+w.r.IntN(100)) * gpuai.Second, First: w.r.IntN(10) == 0, ByOperator: w.r.IntN(2) == 0,
		}
		if n := w.r.IntN(3); n > 0 {
			c.User, c.Login = []string{"ann", "bob"}[w.r.IntN(2)], [32]byte{byte(n)}
		}
		return c
	case 4:
		return &RevokeToken{ID: tokenID(w.r.IntN(40)), Tenant: tenant}
	case 5:
		return &TouchTokens{IDs: []gpuai.AccessTokenID{tokenID(w.r.IntN(40)), tokenID(w.r.IntN(40))}}
	case 6:
		return &SetRole{gpuai.RoleMapping{Claim: "g", Value: []string{"x", "y"}[w.r.IntN(2)], Tenant: tenant, Contributor: contributor, Scopes: scopes.List()}}
	default:
		return &SetNodeOwner{Node: gpuai.NodeID(walkNodes[w.r.IntN(len(walkNodes))]), Contributor: contributor}
	}
}

// recordAccess has operators create tenants and tokens, from the level on that
// knows them; days pass, so that tokens are forgotten.
func recordAccess(w *goldenWalk) {
	w.opens = true
	w.steps(20)
	w.apply(&SetFeatureLevel{Level: LevelTenants})
	w.flush()
	w.steps(80)
	w.time = w.time.Add(2 * gpuai.Day)
	w.steps(40)
	w.line("snapshot level-4-tokens.snap")
	w.steps(40)
}
