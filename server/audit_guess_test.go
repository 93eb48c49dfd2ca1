package server

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// Case 33: who comes with a token that is expired, revoked or of another region, with
// one that may not, or guesses IDs, is in the audit, by who, route and answer.
func TestCase33RefusalsAreAudited(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	m, ctx, s := r.leader(), t.Context(), &stage{r: r, tokens: map[string]gpuai.NewAccessToken{}}
	all := []gpuai.Scope{gpuai.ScopeRead}
	for _, name := range []string{"good", "revoked", "expired"} {
		s.token(name, gpuai.TokenRequest{Tenant: gpuai.DefaultTenant, Scopes: all})
	}
	if _, err := m.RevokeToken(ctx, s.tokens["revoked"].Token.ID, ""); err != nil {
		t.Fatal(err)
	}
	short, err := m.CreateToken(ctx, gpuai.TokenRequest{Tenant: gpuai.DefaultTenant, Scopes: all, TTL: gpuai.Second})
	if err != nil {
		t.Fatal(err)
	}
	s.tokens["expired"] = short
	w := newWalk(t, m)
	ask := func(token, path string) int {
		return w.ask(&foreigner{token: token}, refQuestion{method: "GET", path: path}, "").status
	}
	eventually(t, "the token's end", func() bool { return ask(short.Text, "/v1/jobs") == 401 })
	foreign := gpuai.AccessTokenPrefix + gpuai.AccessTokenID{7}.String() + "_0123456789"
	for _, c := range []struct {
		token, path string
		status      int
	}{
		{s.tokens["revoked"].Text, "/v1/jobs", 401}, {foreign, "/v1/jobs", 401}, {s.tokens["good"].Text + "x", "/v1/jobs", 401}, {"", "/v1/jobs", 401},
		{s.tokens["good"].Text, "/v1/operator/policy", 403}, {s.tokens["good"].Text, "/v1/jobs/01J00000000000000000000000", 404}, {s.tokens["good"].Text, "/v1/leases/1", 404},
	} {
		for range 3 {
			if got := ask(c.token, c.path); got != c.status {
				t.Fatalf("%s is answered %d, want %d", c.path, got, c.status)
			}
		}
	}
	m.auditor.flush(ctx)
	counted := map[string]uint32{}
	eventually(t, "refusals in the audit", func() bool {
		clear(counted)
		records, _ := m.auditOf(t)
		for _, x := range records {
			counted[x.Actor+" "+x.Request+" "+x.Code.String()] += x.Count
		}
		return len(counted) > 0
	})
	good := "token/" + s.tokens["good"].Token.ID.String() + "@127.0.0.1 "
	for what, n := range map[string]uint32{
		good + "GET /v1/operator/policy forbidden": 3, good + "GET /v1/jobs/{job} not_found": 3, good + "GET /v1/leases/{lease} not_found": 3,
	} {
		if counted[what] != n {
			t.Errorf("%s is counted %d times, want %d: %v", what, counted[what], n, counted)
		}
	}
	if n := counted["anonymous@127.0.0.1 GET /v1/jobs unauthenticated"]; n < 12+1 { // the expired ones came more than once, perhaps
		t.Errorf("%d refusals of who is not known, want 13 or more: %v", n, counted)
	}
}
