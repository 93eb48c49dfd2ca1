package server

import (
	"crypto/sha256"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// An ID token is exchanged once, and the logins of one user take some places in
// the table of tokens only, of which operators have the last.
func TestLoginsLeaveRoom(t *testing.T) {
	issuer := openID(t, "gpuai")
	r := startRegionWith(t, 1, func(c *Config) { c.Authenticate, c.OIDCIssuer, c.OIDCClientID = true, issuer, "gpuai" })
	m, ctx := r.servers[0], t.Context()
	first, err := m.as(t, "").Bootstrap(ctx, gpuai.NewSecret(secretOf(t, m)))
	if err != nil {
		t.Fatal(err)
	}
	op := m.as(t, first.Text)
	if _, err := op.CreateTenant(ctx, gpuai.TenantRequest{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	if _, err := op.SetRole(ctx, gpuai.RoleMapping{Claim: "sub", Value: "id1", Tenant: "acme", Scopes: []gpuai.Scope{gpuai.ScopeTenantAdmin}}); err != nil {
		t.Fatal(err)
	}
	login := func(id string) (gpuai.NewAccessToken, error) {
		return m.as(t, "").Login(ctx, gpuai.LoginRequest{IDToken: id})
	}
	id := logIn(t, issuer, "gpuai")
	made, err := login(id)
	if err != nil {
		t.Fatal(err)
	}
	_, err = login(id)
	refusedAs(t, err, gpuai.Unauthenticated)
	outlastsNoLogin(t, m.as(t, made.Text))
	fill := func(n int, user string, login [32]byte) {
		cmds := make([][]byte, n)
		for i := range cmds {
			id, _, err := mintToken()
			if err != nil {
				t.Fatal(err)
			}
			c := fsm.CreateToken{ID: id, Hash: [32]byte{1}, Tenant: "acme", Scopes: gpuai.ScopesOf(gpuai.ScopeRead), TTL: gpuai.Hour, User: user, Login: login}
			cmds[i] = c.Append(nil, fsm.Envelope{})
		}
		out, err := m.node.ProposeAll(ctx, cmds)
		if err != nil || out[n-1].Result.Code != gpuai.OK {
			t.Fatal(err, out[n-1].Result)
		}
	}
	// Beside one another as many are let in as there is room for, whichever server
	// they come by.
	ids := make(chan string, 4)
	for range cap(ids) {
		ids <- logIn(t, issuer, "gpuai")
	}
	user := loginHash(issuer, "id1")
	fill(fsm.MaxUserLogins-3, made.Token.User, user)
	let := letIn(t, cap(ids), func() error {
		_, err := login(<-ids)
		return err
	})
	if let != 2 {
		t.Errorf("%d of 4 logins beside one another were let in, where there was room for 2", let)
	}
	if _, err := op.CreateToken(ctx, gpuai.TokenRequest{Tenant: "acme", Scopes: []gpuai.Scope{gpuai.ScopeRead}}); err != nil {
		t.Errorf("an operator beside them: %v", err)
	}
	fill(1, "another", [32]byte{1})
}

// letIn counts how many of some calls beside one another are let in; the others are
// refused for want of room.
func letIn(t *testing.T, n int, f func() error) (let int) {
	t.Helper()
	results := make(chan error, n)
	for range n {
		go func() { results <- f() }()
	}
	for range n {
		if err := <-results; err == nil {
			let++
		} else {
			refusedAs(t, err, gpuai.RateLimited)
		}
	}
	return let
}

// outlastsNoLogin: who has logged in makes no token that outlasts the login by years.
func outlastsNoLogin(t *testing.T, admin *client.Client) {
	t.Helper()
	_, err := admin.CreateToken(t.Context(), gpuai.TokenRequest{Scopes: []gpuai.Scope{gpuai.ScopeRead}, TTL: gpuai.MaxGivenLoginTTL + gpuai.Second})
	refusedAs(t, err, gpuai.InvalidSpec)
	given, err := admin.CreateToken(t.Context(), gpuai.TokenRequest{Scopes: []gpuai.Scope{gpuai.ScopeRead}})
	if err != nil || given.Token.ExpiresAt-given.Token.CreatedAt != gpuai.WallTime(gpuai.MaxGivenLoginTTL) {
		t.Errorf("%+v %v", given.Token, err)
	}
}

// loginHash is how the region knows a user for good.
func loginHash(issuer, subject string) [32]byte {
	return sha256.Sum256([]byte(issuer + "\x00" + subject))
}

// A token that is an operator's too is no business of the administrators of its
// tenant.
func TestOperatorsTokensAreNotTheTenants(t *testing.T) {
	r := startRegionWith(t, 1, func(c *Config) { c.Authenticate = true })
	m, ctx := r.servers[0], t.Context()
	first, err := m.as(t, "").Bootstrap(ctx, gpuai.NewSecret(secretOf(t, m)))
	if err != nil {
		t.Fatal(err)
	}
	op := m.as(t, first.Text)
	both, err := op.CreateToken(ctx, gpuai.TokenRequest{Tenant: gpuai.DefaultTenant, Scopes: []gpuai.Scope{gpuai.ScopeRead, gpuai.ScopeOperator}})
	if err != nil {
		t.Fatal(err)
	}
	made, err := op.CreateToken(ctx, gpuai.TokenRequest{Tenant: gpuai.DefaultTenant, Scopes: []gpuai.Scope{gpuai.ScopeTenantAdmin}})
	if err != nil {
		t.Fatal(err)
	}
	admin := m.as(t, made.Text)
	_, err = admin.RevokeToken(ctx, both.Token.ID)
	refusedAs(t, err, gpuai.NotFound)
	_, err = admin.RevokeToken(ctx, gpuai.AccessTokenID{1})
	refusedAs(t, err, gpuai.NotFound)
	for token, want := range map[string]int{made.Text: 1, first.Text: 3} {
		all, _, err := m.as(t, token).AccessTokens(ctx, client.Page{})
		if err != nil || len(all) != want {
			t.Errorf("%d tokens are listed, want %d: %v", len(all), want, err)
		}
	}
	if _, err := op.RevokeToken(ctx, both.Token.ID); err != nil {
		t.Fatal(err)
	}
}
