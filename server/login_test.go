package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
)

// openID starts an OpenID provider with one client and its users; id1 logs in with
// test-user@127.0.0.1.
func openID(t *testing.T, clients ...string) (issuer string) {
	t.Helper()
	l := listen(t)
	issuer = "http://" + l.Addr().String()
	for _, id := range clients {
		storage.RegisterClients(storage.NativeClient(id, "http://127.0.0.1/callback"))
	}
	op := exampleop.SetupServer(issuer, storage.NewStorage(storage.NewUserStore(issuer)), slog.New(slog.DiscardHandler), false)
	srv := &http.Server{Handler: op}
	go func() { _ = srv.Serve(l) }() // until it is closed
	t.Cleanup(func() { srv.Close() })
	return issuer
}

// logIn is a user in a browser.
func logIn(t *testing.T, issuer, clientID string) string {
	t.Helper()
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar}
	flow := identity.Login{Issuer: issuer, Client: clientID, Scopes: []string{"profile", "email", "groups"}, Open: func(at string) error {
		go func() { // as a browser is another process
			page, err := browser.Get(at)
			if err != nil {
				return
			}
			page.Body.Close()
			form := url.Values{"id": {page.Request.URL.Query().Get("authRequestID")}, "username": {"test-user@127.0.0.1"}, "password": {"verysecure"}}
			done, err := browser.PostForm(issuer+"/login/username", form)
			if err == nil {
				_, _ = io.Copy(io.Discard, done.Body)
				done.Body.Close()
			}
		}()
		return nil
	}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	id, err := flow.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return id.Reveal()
}

// A user logs in at a real OpenID provider, with PKCE and a loopback redirect, and
// gets what the mappings give to what it says of them.
func TestLoginWithAnOpenIDProvider(t *testing.T) {
	issuer := openID(t, "gpuai", "another")
	r := startRegionWith(t, 1, func(c *Config) { c.Authenticate, c.OIDCIssuer, c.OIDCClientID = true, issuer, "gpuai" })
	m, ctx := r.servers[0], t.Context()
	first, err := m.as(t, "").Bootstrap(ctx, gpuai.NewSecret(secretOf(t, m)))
	if err != nil {
		t.Fatal(err)
	}
	op := m.as(t, first.Text)
	info, err := m.as(t, "").LoginInfo(ctx)
	if err != nil || info.Issuer != issuer || info.ClientID != "gpuai" || info.Insecure {
		t.Fatalf("%+v %v", info, err)
	}
	id := logIn(t, issuer, "gpuai")
	login := func(tenant gpuai.TenantID, token string) (gpuai.NewAccessToken, error) {
		return m.as(t, "").Login(ctx, gpuai.LoginRequest{IDToken: token, Tenant: tenant})
	}
	_, err = login("", id)
	refusedAs(t, err, gpuai.Forbidden) // nothing is mapped yet
	for _, tenant := range []gpuai.TenantID{"acme", "beta"} {
		if _, err := op.CreateTenant(ctx, gpuai.TenantRequest{ID: tenant}); err != nil {
			t.Fatal(err)
		}
	}
	set := func(value string, tenant gpuai.TenantID, scopes ...gpuai.Scope) {
		if _, err := op.SetRole(ctx, gpuai.RoleMapping{Claim: "sub", Value: value, Tenant: tenant, Scopes: scopes}); err != nil {
			t.Fatal(err)
		}
	}
	set("id1", "acme", gpuai.ScopeRead)
	set("id2", "beta", gpuai.ScopeRead)
	made, err := login("", id)
	if err != nil || made.Token.Tenant != "acme" || made.Token.User == "" || made.Token.ExpiresAt-made.Token.CreatedAt != gpuai.WallTime(loginTTL) {
		t.Fatalf("%+v %v", made.Token, err)
	}
	if who, err := m.as(t, made.Text).WhoAmI(ctx); err != nil || !strings.HasPrefix(who.Actor, "user/") || len(who.Scopes) != 1 {
		t.Fatalf("%+v %v", who, err)
	}
	if _, _, err := m.as(t, made.Text).Jobs(ctx, client.JobQuery{}); err != nil {
		t.Fatal(err)
	}
	set("id1", "beta", gpuai.ScopeSubmit)
	_, err = login("", id)
	refusedAs(t, err, gpuai.InvalidSpec) // which of two tenants?
	if made, err = login("beta", id); err != nil || made.Token.Tenant != "beta" || made.Token.Scopes[0] != gpuai.ScopeSubmit {
		t.Fatalf("%+v %v", made.Token, err)
	}
	_, err = login("gamma", id)
	refusedAs(t, err, gpuai.Forbidden)
	for what, bad := range map[string]string{
		"another client's": logIn(t, issuer, "another"), "cut": id[:len(id)-8], "changed": strings.Replace(id, ".", ".e30", 1), "none": "x", "unsigned": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJpZDEifQ.",
	} {
		if _, err := login("acme", bad); !errors.Is(err, &gpuai.Error{Code: gpuai.Unauthenticated}) {
			t.Errorf("%s ID token: %v", what, err)
		}
	}
}
