package server

import (
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/gpuai/gpuai"
)

// The rate of a tenant's quota stands before what the server was told, and is in force
// without a restart.
func TestQuotaSetsTheRateOfRequests(t *testing.T) {
	r := startRegionWith(t, 1, func(c *Config) { c.Authenticate, c.TenantRate = true, 2 })
	ctx, m := t.Context(), r.servers[0]
	op, err := m.as(t, "").Bootstrap(ctx, gpuai.NewSecret(secretOf(t, m)))
	if err != nil {
		t.Fatal(err)
	}
	operator := m.as(t, op.Text)
	token := map[gpuai.TenantID]string{}
	for _, tenant := range []gpuai.TenantID{"acme", "beta"} {
		if _, err := operator.CreateTenant(ctx, gpuai.TenantRequest{ID: tenant}); err != nil {
			t.Fatal(err)
		}
		made, err := operator.CreateToken(ctx, gpuai.TokenRequest{Tenant: tenant, Scopes: []gpuai.Scope{gpuai.ScopeRead}})
		if err != nil {
			t.Fatal(err)
		}
		token[tenant] = made.Text
	}
	rate := func(n uint32) {
		t.Helper()
		if _, err := operator.SetQuota(ctx, "acme", gpuai.Quota{RequestsPerSecond: &n}); err != nil {
			t.Fatal(err)
		}
	}
	// flood sends up to so many requests, and reports whether one was refused.
	flood := func(tenant gpuai.TenantID, n int) bool {
		t.Helper()
		for range n {
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+m.HTTPAddr()+"/v1/jobs?consistency=stale", nil)
			req.Header.Set("Authorization", "Bearer "+token[tenant])
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			switch resp.StatusCode {
			case http.StatusOK:
			case http.StatusTooManyRequests:
				if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || s < 1 {
					t.Fatalf("Retry-After is %q", resp.Header.Get("Retry-After"))
				}
				return true
			default:
				t.Fatal(resp.Status)
			}
		}
		return false
	}
	rate(1_000_000)
	if flood("acme", 60) {
		t.Error("a request was refused within the quota")
	}
	if !flood("beta", 60) {
		t.Error("nothing was refused beyond what the server was told")
	}
	rate(0)
	if !flood("acme", 60) {
		t.Error("nothing was refused beyond the quota")
	}
	if _, err := operator.SetQuota(ctx, "acme", gpuai.Quota{}); err != nil {
		t.Fatal(err)
	}
	if got := m.tenantRate("acme"); got != 2 {
		t.Errorf("without a quota the rate is %d, want the server's", got)
	}
}
