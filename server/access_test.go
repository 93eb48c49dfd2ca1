package server

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

// as returns a client of one server with a token.
func (m *member) as(t *testing.T, token string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Addrs: []string{"http://" + m.HTTPAddr()}, Token: gpuai.NewSecret(token), RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func secretOf(t *testing.T, m *member) string {
	t.Helper()
	path := filepath.Join(m.cfg.DataDir, BootstrapFile)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// refusedAs fails unless err has a code.
func refusedAs(t *testing.T, err error, code gpuai.Code) {
	t.Helper()
	if !errors.Is(err, &gpuai.Error{Code: code}) {
		t.Fatalf("%v, want %s", err, code)
	}
}

// authenticated is a region of three servers whose requests need tokens, with its
// first operator's.
func authenticated(t *testing.T) (r *region, op string) {
	t.Helper()
	r = startRegionWith(t, 3, func(c *Config) { c.Authenticate = true })
	ctx := t.Context()
	_, err := r.servers[0].as(t, "").Bootstrap(ctx, gpuai.NewSecret("gpuboot-wrong"))
	refusedAs(t, err, gpuai.Unauthenticated)
	first, err := r.servers[1].as(t, "").Bootstrap(ctx, gpuai.NewSecret(secretOf(t, r.servers[1])))
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.servers[2].as(t, "").Bootstrap(ctx, gpuai.NewSecret(secretOf(t, r.servers[2])))
	refusedAs(t, err, gpuai.Conflict)
	for _, m := range r.servers[1:] { // of no use any more
		if _, err := os.Stat(filepath.Join(m.cfg.DataDir, BootstrapFile)); !os.IsNotExist(err) {
			t.Errorf("server %s keeps its secret: %v", m.cfg.ID, err)
		}
	}
	_, err = r.servers[1].as(t, "").Bootstrap(ctx, gpuai.NewSecret("anything"))
	refusedAs(t, err, gpuai.Conflict)
	return r, first.Text
}

// Tokens are made once, are good on every server at once, and are refused on every
// server once they are revoked.
func TestAccessTokensOnEveryServer(t *testing.T) {
	r, op := authenticated(t)
	ctx := t.Context()
	operator := r.servers[0].as(t, op)
	for _, tenant := range []gpuai.TenantID{"acme", "beta"} {
		if _, err := operator.CreateTenant(ctx, gpuai.TenantRequest{ID: tenant}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := operator.CreateToken(ctx, gpuai.TokenRequest{Tenant: "gamma", Scopes: []gpuai.Scope{gpuai.ScopeRead}})
	refusedAs(t, err, gpuai.NotFound)
	for i := range 6 { // each is used at once where it may not have come to yet
		made, err := r.servers[i%3].as(t, op).CreateToken(ctx, gpuai.TokenRequest{Tenant: "acme", Scopes: []gpuai.Scope{gpuai.ScopeRead, gpuai.ScopeSubmit}})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range r.servers {
			who, err := m.as(t, made.Text).WhoAmI(ctx)
			if err != nil || who.Tenant != "acme" || who.Actor != "token/"+made.Token.ID.String() {
				t.Fatalf("server %s: %+v %v", m.cfg.ID, who, err)
			}
			_, err = m.as(t, made.Text+"x").WhoAmI(ctx)
			refusedAs(t, err, gpuai.Unauthenticated)
		}
		if _, err := r.servers[i%3].as(t, op).RevokeToken(ctx, made.Token.ID); err != nil {
			t.Fatal(err)
		}
		for _, m := range r.servers { // a follower within its lag
			eventually(t, "refusal on server "+string(m.cfg.ID), func() bool {
				_, err := m.as(t, made.Text).WhoAmI(ctx)
				return errors.Is(err, &gpuai.Error{Code: gpuai.Unauthenticated}) && strings.Contains(err.Error(), "revoked")
			})
			_, _, err := m.as(t, made.Text).Jobs(ctx, client.JobQuery{})
			refusedAs(t, err, gpuai.Unauthenticated)
		}
	}
}

// Case 33: a token that expired is refused with what to do, on every server, also
// while the region applies nothing.
func TestCase33ExpiredTokensOnEveryServer(t *testing.T) {
	r, op := authenticated(t)
	ctx := t.Context()
	if _, err := r.servers[0].as(t, op).CreateTenant(ctx, gpuai.TenantRequest{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	made, err := r.servers[0].as(t, op).CreateToken(ctx, gpuai.TokenRequest{Tenant: "acme", Scopes: []gpuai.Scope{gpuai.ScopeRead}, TTL: gpuai.Second})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.servers {
		eventually(t, "expiry on server "+string(m.cfg.ID), func() bool {
			_, err := m.as(t, made.Text).WhoAmI(ctx)
			return errors.Is(err, &gpuai.Error{Code: gpuai.Unauthenticated}) && strings.Contains(err.Error(), "gpuai login")
		})
	}
}

// Tenants are apart: jobs of one name, IDs of others, and a tenant that nobody
// created.
func TestTenantsAreApart(t *testing.T) {
	r, op := authenticated(t)
	ctx := t.Context()
	operator := r.servers[0].as(t, op)
	token := map[gpuai.TenantID]string{}
	for _, tenant := range []gpuai.TenantID{"acme", "beta"} {
		if _, err := operator.CreateTenant(ctx, gpuai.TenantRequest{ID: tenant}); err != nil {
			t.Fatal(err)
		}
		made, err := operator.CreateToken(ctx, gpuai.TokenRequest{Tenant: tenant, Scopes: []gpuai.Scope{gpuai.ScopeRead, gpuai.ScopeSubmit}})
		if err != nil {
			t.Fatal(err)
		}
		token[tenant] = made.Text
	}
	ids := map[gpuai.TenantID]gpuai.JobID{}
	for i, tenant := range []gpuai.TenantID{"acme", "beta"} {
		spec := jobSpec("same", 1)
		spec.Tenant = ""
		sub, err := r.servers[i+1].as(t, token[tenant]).Submit(ctx, client.SubmitRequest{Spec: spec})
		if err != nil || sub.Job.Tenant != tenant {
			t.Fatalf("%+v %v", sub.Job, err)
		}
		ids[tenant] = sub.Job.ID
	}
	for _, m := range r.servers {
		c := m.as(t, token["acme"])
		if j, err := c.Job(ctx, "same"); err != nil || j.ID != ids["acme"] {
			t.Fatalf("%+v %v", j, err)
		}
		_, err := c.Job(ctx, ids["beta"].String())
		refusedAs(t, err, gpuai.NotFound)
		jobs, _, err := c.Jobs(ctx, client.JobQuery{})
		if err != nil || len(jobs) != 1 || jobs[0].ID != ids["acme"] {
			t.Fatalf("%+v %v", jobs, err)
		}
		_, err = c.StopJob(ctx, ids["beta"].String(), "")
		refusedAs(t, err, gpuai.NotFound)
		_, err = c.CreateToken(ctx, gpuai.TokenRequest{Scopes: []gpuai.Scope{gpuai.ScopeRead}})
		refusedAs(t, err, gpuai.Forbidden)
	}
	spec := jobSpec("j", 1)
	spec.Tenant = "nobody"
	_, err := operator.Submit(ctx, client.SubmitRequest{Spec: spec})
	refusedAs(t, err, gpuai.InvalidSpec)
	x, err := r.servers[1].as(t, token["beta"]).Explain(ctx, "same", 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Ahead) != 1 || !x.Ahead[0].Job.IsZero() || x.Ahead[0].Tenant != "" {
		t.Fatalf("what is ahead of beta's job is told as %+v", x.Ahead)
	}
}

// The uses of tokens come to the machine by one small command of the leader's.
func TestUsesAreNoted(t *testing.T) {
	r, op := authenticated(t)
	ctx := t.Context()
	id, _ := gpuai.SplitAccessToken(op)
	for _, m := range r.servers {
		if _, err := m.as(t, op).WhoAmI(ctx); err != nil {
			t.Fatal(err)
		}
	}
	leader := r.leader()
	for _, m := range slices.Clone(r.servers) {
		if m != leader {
			m.keeper.tell(ctx)
		}
	}
	before := leader.node.AppliedIndex()
	leader.keeper.tell(ctx)
	var h fsm.HeldToken
	leader.node.View(func(m *fsm.Machine) { h, _ = m.AccessToken(id) })
	if h.UsedAt == 0 || leader.node.AppliedIndex() == before {
		t.Fatalf("%+v", h)
	}
}

// The header that carries a principal is worth nothing on the public port.
func TestPrincipalHeaderOnThePublicPort(t *testing.T) {
	r, _ := authenticated(t)
	for _, m := range r.servers {
		req, _ := http.NewRequestWithContext(context.Background(), "GET", "http://"+m.HTTPAddr()+"/v1/operator/policy", nil)
		req.Header.Set("X-GPUAI-Principal", `{"Actor":"token/x","Scopes":16}`)
		req.Header.Set("X-GPUAI-Forwarded", "1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Fatalf("server %s: %s", m.cfg.ID, resp.Status)
		}
	}
}

// A server that was started again and has applied nothing yet does not know the
// tokens that others forward to it as the leader that it was, nor can it ask: that
// refuses nobody, the client tries again. Found by power cuts of a leader.
func TestForwardedTokensAtAServerThatCannotTell(t *testing.T) {
	r, op := authenticated(t)
	id, _ := gpuai.SplitAccessToken(op)
	for _, m := range r.servers {
		r.halt(m)
	}
	alone := r.servers[0]
	alone.cfg.HTTP, alone.cfg.Raft = listen(t), nil
	alone.cfg.RaftAddr = alone.cfg.Peers[0].Addr
	r.start(alone)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := alone.keeper.Again(ctx, &gpuai.Principal{Token: id})
	refusedAs(t, err, gpuai.NoLeader)
}
