package server

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A claimant is an OpenID provider that says whatever it is told to say of a user.
type claimant struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newClaimant(t *testing.T) *claimant {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &claimant{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":%[1]q,"token_endpoint":%[1]q,"jwks_uri":%q,"id_token_signing_alg_values_supported":["RS256"]}`, p.URL, p.URL+"/keys")
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		n, e := raw64(key.N.Bytes()), raw64(big.NewInt(int64(key.E)).Bytes())
		fmt.Fprintf(w, `{"keys":[{"kty":"RSA","alg":"RS256","use":"sig","kid":"1","n":%q,"e":%q}]}`, n, e)
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

func raw64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// token signs an ID token of a subject with more claims, as JSON without braces.
func (p *claimant) token(t *testing.T, sub, more string) string {
	t.Helper()
	now := time.Now().Unix()
	claims := fmt.Sprintf(`{"iss":%q,"aud":"gpuai","sub":%s,"iat":%d,"exp":%d%s}`, p.URL, sub, now, now+600, more)
	if !json.Valid([]byte(claims)) {
		t.Fatalf("not JSON: %.200s", claims)
	}
	text := raw64([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + raw64([]byte(claims))
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, p.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + raw64(sig)
}

// A claimShape is what a provider says of a user and what comes of it.
type claimShape struct {
	sub, claims string // as JSON; no sub is one of its own
	code        gpuai.Code
	says        string
}

func claimShapes() map[string]claimShape {
	many := strings.Repeat(`"g",`, 2000)
	return map[string]claimShape{
		"a text":                     {"", `"groups":"ml"`, gpuai.OK, ""},
		"a list":                     {"", `"groups":["x","ml"]`, gpuai.OK, ""},
		"the last of many":           {"", `"groups":[` + many + `"ml"]`, gpuai.OK, ""},
		"a list of all sorts":        {"", `"groups":[1,null,{},["ml"],"ml"]`, gpuai.OK, ""},
		"true":                       {"", `"admin":true`, gpuai.OK, ""},
		"true as a text":             {"", `"admin":"true"`, gpuai.OK, ""},
		"a verified address":         {"", `"email":"a@example.com","email_verified":true`, gpuai.OK, ""},
		"another claim of no use":    {"", `"groups":7,"admin":true`, gpuai.OK, ""},
		"nothing":                    {"", `"x":1`, gpuai.Forbidden, "an operator maps one"},
		"other groups":               {"", `"groups":["x","ML"]`, gpuai.Forbidden, "an operator maps one"},
		"groups in one text":         {"", `"groups":"x,ml"`, gpuai.Forbidden, "an operator maps one"},
		"a name in another case":     {"", `"Groups":"ml"`, gpuai.Forbidden, "an operator maps one"},
		"a number":                   {"", `"groups":1000`, gpuai.Forbidden, "the claim groups is a number"},
		"null":                       {"", `"groups":null`, gpuai.Forbidden, "the claim groups is null"},
		"an empty text":              {"", `"groups":""`, gpuai.Forbidden, "the claim groups is empty"},
		"an empty list":              {"", `"groups":[]`, gpuai.Forbidden, "the claim groups is an empty list"},
		"a list of numbers":          {"", `"groups":[1,2]`, gpuai.Forbidden, "2 of 2 values are no texts"},
		"a list of lists":            {"", `"groups":[["ml"]]`, gpuai.Forbidden, "1 of 1 values are no texts"},
		"an object":                  {"", `"roles":{"realm_access":["ml"]}`, gpuai.Forbidden, "the claim roles is an object: have the provider"},
		"a path":                     {"", `"realm_access":{"roles":["ml"]},"realm_access.roles":7`, gpuai.Forbidden, "an operator maps one"},
		"too many to be sent":        {"", `"_claim_names":{"groups":"src1"},"_claim_sources":{"src1":{"endpoint":"https://x"}}`, gpuai.Forbidden, "too long: have it send fewer"},
		"claim names of no shape":    {"", `"_claim_names":[1]`, gpuai.Unauthenticated, "log in again"},
		"an address of anybody's":    {"", `"email":"a@example.com","email_verified":"no"`, gpuai.Forbidden, "has not verified"},
		"false":                      {"", `"admin":false`, gpuai.Forbidden, "an operator maps one"},
		"two of no use":              {"", `"groups":1,"admin":null`, gpuai.Forbidden, "the claim admin is null; the claim groups is a number"},
		"a name twice, the last one": {"", `"groups":"x","groups":"ml"`, gpuai.OK, ""},
		"huge":                       {"", `"groups":["` + strings.Repeat("g", 16<<10) + `"]`, gpuai.InvalidSpec, "have the provider put fewer groups"},
		"a name with a bell":         {"", `"preferred_username":"ann\u0007\n` + strings.Repeat("x", 9000) + `"`, gpuai.Forbidden, "ann__xxx"},
		"a subject of none":          {`""`, `"groups":"ml"`, gpuai.Unauthenticated, "log in again"},
		"a number for a subject":     {`7`, `"groups":"ml"`, gpuai.Unauthenticated, "log in again"},
		"a tenant of nobody's":       {`"t"`, `"groups":7,"admin":true`, gpuai.Forbidden, "no role in tenant beta"},
	}
}

// Whatever a provider says of a user's groups maps to the roles that it names, or is
// refused with a sentence that says what is wrong with it.
func TestClaimsOfEveryShape(t *testing.T) {
	p := newClaimant(t)
	r := startRegionWith(t, 1, func(c *Config) { c.Authenticate, c.OIDCIssuer, c.OIDCClientID = true, p.URL, "gpuai" })
	m, ctx := r.servers[0], t.Context()
	eventually(t, "feature level", func() bool { return m.level() >= fsm.LevelTenants })
	if _, err := m.CreateTenant(ctx, gpuai.TenantRequest{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	for claim, value := range map[string]string{"groups": "ml", "admin": "true", "email": "a@example.com", "roles": "realm_access"} {
		if err := m.SetRole(ctx, gpuai.RoleMapping{Claim: claim, Value: value, Tenant: "acme", Scopes: []gpuai.Scope{gpuai.ScopeRead}}); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range claimShapes() {
		t.Run(name, func(t *testing.T) {
			sub, q := c.sub, gpuai.LoginRequest{}
			if sub == "" {
				sub = fmt.Sprintf("%q", name)
			}
			if sub == `"t"` {
				q.Tenant = "beta"
			}
			q.IDToken = p.token(t, sub, ","+c.claims)
			made, err := m.as(t, "").Login(ctx, q)
			if c.code == gpuai.OK {
				if err != nil || made.Token.Tenant != "acme" || len(made.Token.Scopes) != 1 {
					t.Fatalf("%+v %v", made.Token, err)
				}
				return
			}
			refusedAs(t, err, c.code)
			if text := err.Error(); !strings.Contains(text, c.says) || len(text) > 700 || strings.ContainsAny(text, "\a\n") {
				t.Errorf("it is refused with %q, which does not say %q", text, c.says)
			}
		})
	}
}
