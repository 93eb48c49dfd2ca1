package httpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gpuai/gpuai"
)

// doorman knows principals by their tokens, until they are revoked.
type doorman struct {
	mu      sync.Mutex // guards below
	byToken map[string]*gpuai.Principal
	revoked map[string]bool
	came    chan struct{} // takes one for each who was let in, while there is room
}

var _ Authenticator = (*doorman)(nil)

func (d *doorman) Bearer(_ context.Context, text string) (*gpuai.Principal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.byToken[text]; p != nil && !d.revoked[p.Actor] {
		select {
		case d.came <- struct{}{}:
		default:
		}
		return p, nil
	}
	return nil, gpuai.NewError(gpuai.Unauthenticated, "the token is not known here")
}

func (d *doorman) Again(_ context.Context, p *gpuai.Principal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.revoked[p.Actor] {
		return gpuai.NewError(gpuai.Unauthenticated, "the token was revoked")
	}
	return nil
}

func (d *doorman) revoke(actor string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.revoked[actor] = true
}

// roleTokens are the roles of the tests: a token of each scope, each of tenant
// acme or contributor carol.
var roleTokens = map[string]gpuai.Principal{
	"read":         {Actor: "token/read", Tenant: "acme", Scopes: gpuai.ScopesOf(gpuai.ScopeRead)},
	"submit":       {Actor: "token/submit", Tenant: "acme", Scopes: gpuai.ScopesOf(gpuai.ScopeSubmit)},
	"tenant-admin": {Actor: "token/admin", Tenant: "acme", Scopes: gpuai.ScopesOf(gpuai.ScopeTenantAdmin)},
	"contributor":  {Actor: "token/carol", Contributor: "carol", Scopes: gpuai.ScopesOf(gpuai.ScopeContributor)},
	"operator":     {Actor: "token/op", Scopes: gpuai.ScopesOf(gpuai.ScopeOperator)},
	"beta":         {Actor: "token/beta", Tenant: "beta", Scopes: gpuai.ScopesOf(gpuai.ScopeRead, gpuai.ScopeSubmit)},
}

var roleBits = map[string]roles{
	"nobody": 0, "read": reader, "submit": submitter, "tenant-admin": tenantAdmin, "contributor": contributor,
	"operator": operator, "node": node, "server": server,
}

// A secured is a twin behind the door.
type secured struct {
	b    *twin
	h    http.Handler
	door *doorman
	logs *bytes.Buffer
}

func newSecured(change ...func(*Config)) *secured {
	s := &secured{b: newTwin(), door: &doorman{byToken: map[string]*gpuai.Principal{}, revoked: map[string]bool{}, came: make(chan struct{}, 1)}, logs: new(bytes.Buffer)}
	for name, p := range roleTokens {
		s.door.byToken["T-"+name] = &p
	}
	cfg := testConfig(s.b)
	cfg.Auth = s.door
	cfg.Logger = slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.PeerOf = func(st tls.ConnectionState) (gpuai.Identity, gpuai.Stamp, bool) {
		id, err := gpuai.ParseIdentity(st.ServerName)
		return id, 7, err == nil
	}
	for _, f := range change {
		f(&cfg)
	}
	s.h = New(cfg)
	s.b.nodes[0].Contributor, s.b.nodes[1].Contributor = "carol", "dave"
	return s
}

// as makes a request as a role; the body is of one that would do for any route.
func (s *secured) as(role, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	switch role {
	case "nobody":
	case "node", "server":
		r.TLS = &tls.ConnectionState{ServerName: role + "/x1"}
	default:
		r.Header.Set("Authorization", "Bearer T-"+role)
	}
	return s.do(r)
}

func (s *secured) do(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	return w
}

// target is a route's path with something in place of its variables.
func (rt *route) target() string {
	return strings.NewReplacer("{job}", "j", "{lease}", "7", "{node}", "gpu-0", "{tenant}", "acme", "{server}", "s1", "{what}", "logs", "{token}", "x", "{secret}", "x").Replace(rt.path)
}

// Each route lets those in whom the table names, and nobody else.
func TestScopes(t *testing.T) {
	s := newSecured()
	for i := range routes {
		rt := &routes[i]
		if rt.who == 0 {
			t.Errorf("%s %s is for nobody: say who it is for in the table", rt.method, rt.path)
		}
		for name, role := range roleBits {
			t.Run(rt.method+" "+rt.path+" "+name, func(t *testing.T) {
				r := httptest.NewRequest(rt.method, rt.target(), nil)
				switch name {
				case "nobody":
				case "node", "server":
					r.TLS = &tls.ConnectionState{ServerName: name + "/x1"}
				default:
					r.Header.Set("Authorization", "Bearer T-"+name)
				}
				if rt.class == classStream || rt.class == classSession { // the door is before all that waits
					ctx, cancel := context.WithCancel(t.Context())
					cancel()
					r = r.WithContext(ctx)
				}
				w := s.do(r)
				refused := w.Code == http.StatusUnauthorized || w.Code == http.StatusForbidden && strings.Contains(w.Body.String(), "may not do this")
				in := rt.who&anyone != 0 || rt.who&role != 0
				if refused == in {
					t.Fatalf("%d: %s", w.Code, w.Body)
				}
				if name == "nobody" && !in && (w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "") {
					t.Fatalf("%d %v", w.Code, w.Header())
				}
				if name != "nobody" && !in && w.Code != http.StatusForbidden {
					t.Fatalf("%d: %s", w.Code, w.Body)
				}
			})
		}
	}
}

// Scopes count for who has what they are about; a principal without is nobody.
func TestScopesNeedATenant(t *testing.T) {
	for _, p := range []gpuai.Principal{
		{Actor: "x"}, {Actor: "x", Scopes: gpuai.ScopesOf(gpuai.ScopeRead, gpuai.ScopeSubmit, gpuai.ScopeTenantAdmin, gpuai.ScopeContributor)},
	} {
		if r := rolesOf(&p); r != 0 {
			t.Errorf("%+v is %s", p, r)
		}
	}
}

// same replaces what must differ between two answers: what was asked for, and the
// number of the request.
func same(w *httptest.ResponseRecorder, ref string) string {
	text := strings.ReplaceAll(w.Body.String(), ref, "REF")
	text = regexp.MustCompile(`"request_id":"[^"]*"`).ReplaceAllString(text, "")
	return http.StatusText(w.Code) + " " + text
}

// twoTenants has a job of each tenant, of one name.
func twoTenants(t *testing.T, s *secured) (mine, foreign gpuai.Submitted) {
	t.Helper()
	for _, x := range []struct {
		role string
		out  *gpuai.Submitted
	}{{"submit", &mine}, {"beta", &foreign}} {
		w := s.as(x.role, "POST", "/v1/jobs", spec("same", 1, 1))
		if w.Code != http.StatusCreated {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if err := json.Unmarshal(w.Body.Bytes(), x.out); err != nil {
			t.Fatal(err)
		}
	}
	if mine.Job.Tenant != "acme" || foreign.Job.Tenant != "beta" {
		t.Fatalf("jobs of %s and %s", mine.Job.Tenant, foreign.Job.Tenant)
	}
	return mine, foreign
}

// What is another tenant's is answered as what never was, to the letter.
func TestForeignIDsAreUnknown(t *testing.T) {
	s := newSecured()
	mine, foreign := twoTenants(t, s)
	never := gpuai.JobID{0: 3, 9: 9}.String()
	theirs := foreign.Job.ID.String()
	for _, c := range []struct{ role, method, path string }{
		{"read", "GET", "/v1/jobs/REF"},
		{"read", "GET", "/v1/jobs/REF?consistency=stale"},
		{"read", "GET", "/v1/jobs/REF?index=1&wait=1ms"},
		{"read", "GET", "/v1/jobs/REF/tasks"},
		{"read", "GET", "/v1/jobs/REF/leases"},
		{"read", "GET", "/v1/jobs/REF/events"},
		{"read", "GET", "/v1/jobs/REF/checkpoints"},
		{"read", "GET", "/v1/jobs/REF/explain"},
		{"read", "GET", "/v1/jobs/REF/logs"},
		{"read", "GET", "/v1/leases?job=REF"},
		{"read", "GET", "/v1/events?job=REF"},
		{"submit", "POST", "/v1/jobs/REF/stop"},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			a := same(s.as(c.role, c.method, strings.ReplaceAll(c.path, "REF", theirs), ""), theirs)
			b := same(s.as(c.role, c.method, strings.ReplaceAll(c.path, "REF", never), ""), never)
			if a != b || !strings.HasPrefix(a, "Not Found ") {
				t.Fatalf("foreign: %s\nunknown: %s", a, b)
			}
		})
	}
	t.Run("exec", func(t *testing.T) {
		for _, ref := range []string{theirs, never} {
			r := httptest.NewRequest("GET", "/v1/jobs/"+ref+"/exec", nil)
			r.Header.Set("Sec-WebSocket-Protocol", gpuai.ExecProtocol)
			r.Header.Set("Authorization", "Bearer T-submit")
			if got := same(s.do(r), ref); !strings.HasPrefix(got, "Not Found ") {
				t.Fatal(got)
			}
		}
	})
	t.Run("lease", func(t *testing.T) {
		lease, none := foreign.Leases[0].ID.String(), gpuai.MakeToken(0, 1<<30, 3).String()
		a, b := same(s.as("read", "GET", "/v1/leases/"+lease, ""), lease), same(s.as("read", "GET", "/v1/leases/"+none, ""), none)
		if a != b || !strings.HasPrefix(a, "Not Found ") {
			t.Fatalf("foreign: %s\nunknown: %s", a, b)
		}
		if w := s.as("read", "GET", "/v1/leases/"+mine.Leases[0].ID.String(), ""); w.Code != http.StatusOK {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
	t.Run("name", func(t *testing.T) { // beta's is newer, and of the same name
		w := s.as("read", "GET", "/v1/jobs/same", "")
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), mine.Job.ID.String()) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

// So are the nodes of other contributors, and the tokens of other tenants.
func TestForeignNodesAndTokensAreUnknown(t *testing.T) {
	s := newSecured()
	t.Run("node", func(t *testing.T) {
		for _, path := range []string{"/v1/nodes/REF", "/v1/leases?node=REF"} {
			a := same(s.as("contributor", "GET", strings.ReplaceAll(path, "REF", "gpu-1"), ""), "gpu-1")
			b := same(s.as("contributor", "GET", strings.ReplaceAll(path, "REF", "gpu-9"), ""), "gpu-9")
			if a != b || !strings.HasPrefix(a, "Not Found ") {
				t.Fatalf("foreign: %s\nunknown: %s", a, b)
			}
		}
		a := same(s.as("contributor", "POST", "/v1/nodes/gpu-1/drain", ""), "gpu-1")
		b := same(s.as("contributor", "POST", "/v1/nodes/gpu-9/drain", ""), "gpu-9")
		if a != b || !strings.HasPrefix(a, "Not Found ") || s.b.nodes[1].Drained {
			t.Fatalf("foreign: %s\nunknown: %s", a, b)
		}
	})
	t.Run("token", func(t *testing.T) {
		s.as("operator", "POST", "/v1/tokens", `{"tenant":"beta","scopes":["read"]}`)
		id, none := s.b.access.tokens[0].ID.String(), gpuai.AccessTokenID{0: 9}.String()
		a := same(s.as("tenant-admin", "POST", "/v1/tokens/"+id+"/revoke", ""), id)
		b := same(s.as("tenant-admin", "POST", "/v1/tokens/"+none+"/revoke", ""), none)
		if a != b || !strings.HasPrefix(a, "Not Found ") || s.b.access.tokens[0].Revoked {
			t.Fatalf("foreign: %s\nunknown: %s", a, b)
		}
	})
}

// Lists hold what is the caller's, and nothing of others.
func TestListsAreOnesOwn(t *testing.T) {
	s := newSecured()
	mine, foreign := twoTenants(t, s)
	for range 3 { // until jobs of both wait
		s.as("submit", "POST", "/v1/jobs", spec("waits", 1, 2))
		s.as("beta", "POST", "/v1/jobs", spec("beta-waits", 1, 2))
	}
	s.b.mu.Lock()
	s.b.leases[0].PreemptedBy = foreign.Job.ID
	s.b.tenants = []gpuai.TenantShare{{ID: "acme", Weight: 1}, {ID: "beta", Weight: 1}}
	s.b.access.tokens = []gpuai.AccessToken{{ID: gpuai.AccessTokenID{1}, Tenant: "acme"}, {ID: gpuai.AccessTokenID{2}, Tenant: "beta"}, {ID: gpuai.AccessTokenID{3}}}
	s.b.mu.Unlock()
	for path, role := range map[string]string{
		"/v1/jobs": "read", "/v1/leases": "read", "/v1/queue/pending": "read", "/v1/queue": "read", "/v1/tenants": "read", "/v1/tokens": "tenant-admin",
		"/v1/jobs?archived=true": "read",
	} {
		w := s.as(role, "GET", path, "")
		text := w.Body.String()
		if w.Code != http.StatusOK || strings.Contains(text, "beta") || strings.Contains(text, foreign.Job.ID.String()) {
			t.Errorf("%s: %d %s", path, w.Code, text)
		}
		if path != "/v1/queue" && !strings.Contains(text, "acme") {
			t.Errorf("%s holds nothing: %s", path, text)
		}
	}
	if w := s.as("operator", "GET", "/v1/jobs", ""); !strings.Contains(w.Body.String(), foreign.Job.ID.String()) || !strings.Contains(w.Body.String(), mine.Job.ID.String()) {
		t.Errorf("an operator sees %s", w.Body)
	}
	w := s.as("contributor", "GET", "/v1/nodes", "")
	if text := w.Body.String(); !strings.Contains(text, "gpu-0") || strings.Contains(text, "gpu-1") || strings.Contains(text, "gpu-2") {
		t.Errorf("a contributor sees %s", text)
	}
	w = s.as("contributor", "GET", "/v1/leases?node=gpu-0", "")
	text := w.Body.String()
	if !strings.Contains(text, mine.Leases[0].ID.String()) || strings.Contains(text, "acme") || strings.Contains(text, "beta") ||
		strings.Contains(text, mine.Job.ID.String()) || strings.Contains(text, foreign.Job.ID.String()) {
		t.Errorf("a contributor sees %s", text)
	}
	if w := s.as("contributor", "GET", "/v1/leases", ""); w.Code != http.StatusForbidden {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A stream tells a tenant of its own jobs, and ends when its token is revoked.
func TestEventsAreOnesOwnUntilRevoked(t *testing.T) {
	s := newSecured()
	mine, foreign := twoTenants(t, s)
	srv := httptest.NewServer(s.h)
	defer srv.Close()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/v1/events?index=1", nil)
	req.Header.Set("Authorization", "Bearer T-read")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || !strings.Contains(lines.Text(), mine.Job.ID.String()) {
		t.Fatalf("%d %s", resp.StatusCode, lines.Text())
	}
	s.door.revoke("token/read")
	for lines.Scan() { // it ends by itself, within about a second
		if strings.Contains(lines.Text(), foreign.Job.ID.String()) {
			t.Fatalf("a foreign event: %s", lines.Text())
		}
	}
	if t.Context().Err() != nil {
		t.Fatal("the stream went on")
	}
}

// A job is the token's tenant's; another's is refused, wherever a job is given.
func TestJobsAreOfTheTokensTenant(t *testing.T) {
	s := newSecured()
	of := func(tenant string) string { return strings.Replace(spec("j", 1, 1), "{", `{"tenant":"`+tenant+`",`, 1) }
	for path, body := range map[string]string{
		"/v1/jobs": of("beta"), "/v1/jobs:plan": of("beta"), "/v1/jobs:batch": `{"jobs":[` + of("acme") + `,` + of("beta") + `]}`, "/v1/plan": `{"submit":[` + of("beta") + `]}`,
	} {
		if w := s.as("submit", "POST", path, body); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "acme") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	for _, body := range []string{`{"drain":["gpu-0"]}`, `{"policy":{"flap_limit":4}}`, `{"lose":["gpu-0"]}`, `{"add":[{"count":1,"like":"gpu-1"}]}`, `{"undrain":["gpu-0"]}`} {
		if w := s.as("submit", "POST", "/v1/plan", body); w.Code != http.StatusForbidden {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	if w := s.as("operator", "POST", "/v1/jobs", of("beta")); w.Code != http.StatusCreated {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A tenant's administrator gives no more than a tenant's scopes, in its tenant.
func TestAdministratorsGiveWhatIsTheirs(t *testing.T) {
	s := newSecured()
	for body, want := range map[string]int{
		`{"scopes":["read"]}`:                                     201,
		`{"scopes":["read","submit","tenant-admin"]}`:             201,
		`{"tenant":"acme","scopes":["read"]}`:                     201,
		`{"tenant":"beta","scopes":["read"]}`:                     403,
		`{"scopes":["operator"]}`:                                 403,
		`{"scopes":["read","operator"]}`:                          403,
		`{"contributor":"carol","scopes":["contributor"]}`:        403,
		`{"contributor":"carol","scopes":["read","contributor"]}`: 403,
	} {
		if w := s.as("tenant-admin", "POST", "/v1/tokens", body); w.Code != want {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	for _, a := range s.b.access.tokens {
		if a.Tenant != "acme" {
			t.Errorf("a token of %q was made", a.Tenant)
		}
	}
}

// A token in a URL is refused, and is neither answered nor logged.
func TestCase37TokensInURLs(t *testing.T) {
	s := newSecured()
	token := gpuai.AccessTokenPrefix + gpuai.AccessTokenID{5}.String() + "_hunter2hunter2"
	for _, target := range []string{
		"/v1/jobs?token=" + token, "/v1/jobs?access_token=hunter2", "/v1/jobs?filter=" + token, "/v1/jobs/" + token, "/v1/" + token,
		"/v1/jobs?x=%67pu_" + strings.TrimPrefix(token, "gpu_"), "/healthz?token=hunter2", "/v1/jobs?" + token, "/v1/jobs?Token=hunter2",
		"/v1/jobs?join=gpujoin_abc_hunter2_def", "/v1/jobs?x=gpuboot-hunter2HUNTER2", "/v1/gpuboot-hunter2HUNTER2", "/v1/events?index=1&authorization=hunter2",
	} {
		w := s.as("read", "GET", target, "")
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "must not be in a URL") || strings.Contains(w.Body.String(), "hunter2") {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
	if strings.Contains(s.logs.String(), "hunter2") {
		t.Errorf("the log holds it: %s", s.logs)
	}
}

// Paths that mean another one to some servers lead nowhere here.
func TestPathTricks(t *testing.T) {
	s := newSecured()
	for _, path := range []string{
		"//v1/operator/policy", "/v1//operator/policy", "/v1/jobs/../operator/policy", "/v1/jobs/%2e%2e/operator/policy", "/v1/jobs%2f..%2foperator%2fpolicy",
		"/v1/operator%2fpolicy", "/./v1/operator/policy", "/v1/operator/policy/", "/v1/operator/policy/.", "/V1/operator/policy", "/v1/jobs/x%2f..%2f..%2foperator%2fpolicy",
		"/healthz/../v1/operator/policy", "/healthz%2f..%2fv1/operator/policy", "/v1/operator/policy%00", "/v1/operator/policy;x=1", "/v1/openapi.json/../operator/policy",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RequestURI = path
		u, err := r.URL.Parse(path)
		if strings.HasPrefix(path, "//") {
			u, err = r.URL.Parse("http://h/" + path[1:])
		}
		if err != nil {
			continue
		}
		r.URL = u
		r.URL.Scheme, r.URL.Host = "", ""
		r.Header.Set("Authorization", "Bearer T-read")
		if w := s.do(r); w.Code != http.StatusNotFound && w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), `"policy":`) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// Who a forwarded request comes from is believed of the region's servers only.
func TestPrincipalsAreForwardedByServersOnly(t *testing.T) {
	s := newSecured()
	told := `{"Actor":"token/op","Scopes":16,"From":"10.0.0.1"}`
	r := httptest.NewRequest("GET", "/v1/operator/policy", nil)
	r.Header.Set(headerPrincipal, told)
	if w := s.do(r); w.Code != http.StatusUnauthorized {
		t.Fatalf("from anywhere: %d %s", w.Code, w.Body)
	}
	r = httptest.NewRequest("GET", "/v1/whoami", nil)
	r.Header.Set(headerPrincipal, told)
	r.Header.Set("Authorization", "Bearer T-read")
	if w := s.do(r); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "token/read") {
		t.Fatalf("from anywhere, with a token: %d %s", w.Code, w.Body)
	}
	public := s.h
	s.h = FromServers(public)
	r = httptest.NewRequest("GET", "/v1/operator/policy", nil)
	r.Header.Set(headerPrincipal, told)
	if w := s.do(r); w.Code != http.StatusOK {
		t.Fatalf("from a server: %d %s", w.Code, w.Body)
	}
	s.door.revoke("token/op")
	if w := s.do(r.Clone(t.Context())); w.Code != http.StatusUnauthorized {
		t.Fatalf("from a server, revoked meanwhile: %d %s", w.Code, w.Body)
	}
	for _, bad := range []string{"{", `{"Actor":1}`, `{"Root":true}`, `null`, `{}`} {
		r := httptest.NewRequest("GET", "/v1/operator/policy", nil)
		r.Header.Set(headerPrincipal, bad)
		if w := s.do(r); w.Code != http.StatusUnauthorized {
			t.Fatalf("%s: %d %s", bad, w.Code, w.Body)
		}
	}
}

// A follower passes on who asks, and not the token.
func TestForwardingPassesThePrincipal(t *testing.T) {
	leader := newSecured()
	var seen http.Header
	follower := newSecured()
	follower.b.status.IsLeader = false
	follower.b.leader = roundTrip(func(r *http.Request) (*http.Response, error) {
		seen = r.Header.Clone()
		w := httptest.NewRecorder()
		FromServers(leader.h).ServeHTTP(w, r)
		return w.Result(), nil
	})
	w := follower.as("submit", "POST", "/v1/jobs", spec("j", 1, 1))
	if w.Code != http.StatusCreated || leader.b.jobs[0].Tenant != "acme" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if seen.Get("Authorization") != "" || !strings.Contains(seen.Get(headerPrincipal), "token/submit") {
		t.Fatalf("%v", seen)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Case 33: what is wrong with a token is not told by the answer.
func TestCase33ExpiredRevokedForeignTokensAndGuessedIDs(t *testing.T) {
	s := newSecured()
	for _, auth := range []string{"Bearer T-unknown", "Bearer", "Bearer ", "bearer  ", "Basic YTpi", "T-read", "Bearer T-read x"} {
		r := httptest.NewRequest("GET", "/v1/jobs", nil)
		r.Header.Set("Authorization", auth)
		if w := s.do(r); w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%q: %d %s", auth, w.Code, w.Body)
		}
	}
	r := httptest.NewRequest("GET", "/v1/jobs", nil)
	r.Header["Authorization"] = []string{"Bearer T-read", "Bearer T-operator"}
	if w := s.do(r); w.Code != http.StatusUnauthorized {
		t.Errorf("two tokens: %d %s", w.Code, w.Body)
	}
	if w := s.as("read", "POST", "/v1/jobs", spec("j", 1, 1)); w.Code != http.StatusForbidden {
		t.Errorf("a token for reading submits: %d %s", w.Code, w.Body)
	}
	s.door.revoke("token/read")
	if w := s.as("read", "GET", "/v1/jobs", ""); w.Code != http.StatusUnauthorized {
		t.Errorf("a revoked token: %d %s", w.Code, w.Body)
	}
}

// Metrics are anybody's, or the operators' where that is wanted.
func TestPrivateMetrics(t *testing.T) {
	open, private := newSecured(), newSecured(func(c *Config) { c.PrivateMetrics = true })
	for _, c := range []struct {
		s    *secured
		role string
		want int
	}{{open, "nobody", 200}, {private, "nobody", 401}, {private, "read", 403}, {private, "operator", 200}} {
		if w := c.s.as(c.role, "GET", "/metrics", ""); w.Code != c.want {
			t.Errorf("%s: %d, want %d", c.role, w.Code, c.want)
		}
	}
	if w := private.as("nobody", "GET", "/healthz", ""); w.Code != 200 {
		t.Errorf("healthz: %d", w.Code)
	}
}

// A blocking query that has waited judges the caller again.
func TestWaitingIsJudgedAgain(t *testing.T) {
	s := newSecured()
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- s.as("read", "GET", "/v1/jobs?index=10&wait=1m", "") }()
	<-s.door.came // it is in, and is judged again whenever it goes on
	s.door.revoke("token/read")
	s.as("submit", "POST", "/v1/jobs", spec("j", 1, 1))
	if w := <-done; w.Code != http.StatusUnauthorized {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}

// The document's table of who may call what is that of the routes. With
// GPUAI_REWRITE=1 it is written anew.
func TestScopesDocument(t *testing.T) {
	const path, begin, end = "../docs/access.md", "<!-- routes: begin -->\n", "<!-- routes: end -->"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(doc)
	from, to := strings.Index(text, begin), strings.Index(text, end)
	if from < 0 || to < from {
		t.Fatalf("%s has no table of routes", path)
	}
	want := "| route | for |\n|---|---|\n"
	list := Routes()
	slices.SortFunc(list, func(a, b RouteInfo) int { return strings.Compare(a.String(), b.String()) })
	for _, rt := range list {
		want += "| `" + rt.String() + "` | " + rt.For + " |\n"
	}
	if text[from+len(begin):to] == want {
		return
	}
	if os.Getenv("GPUAI_REWRITE") == "" {
		t.Fatalf("%s does not say whom each route is for: run this test with GPUAI_REWRITE=1", path)
	}
	if err := os.WriteFile(path, []byte(text[:from+len(begin)]+want+text[to:]), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What a contributor says is of its own nodes only.
func TestContributorsGovernTheirOwn(t *testing.T) {
	s := newSecured()
	for path, body := range map[string]string{
		"/v1/nodes/REF/ask": `{"price_micros_per_gpu_hour":"5"}`, "/v1/nodes/REF/schedule": `{"windows":[{"from":"mon 20:00","to":"tue 08:00"}]}`,
	} {
		if w := s.as("contributor", "PUT", strings.ReplaceAll(path, "REF", "gpu-0"), body); w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		a := same(s.as("contributor", "PUT", strings.ReplaceAll(path, "REF", "gpu-1"), body), "gpu-1")
		b := same(s.as("contributor", "PUT", strings.ReplaceAll(path, "REF", "gpu-9"), body), "gpu-9")
		if a != b || !strings.HasPrefix(a, "Not Found ") || s.b.nodes[1].Ask != nil || s.b.nodes[1].Schedule != nil {
			t.Errorf("foreign: %s\nunknown: %s", a, b)
		}
	}
	if w := s.as("contributor", "GET", "/v1/contributors", ""); w.Code != http.StatusOK || strings.Contains(w.Body.String(), "dave") || !strings.Contains(w.Body.String(), "carol") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := s.as("operator", "GET", "/v1/contributors", ""); !strings.Contains(w.Body.String(), "dave") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A value that is not there is nothing to a filter, whatever its type.
func TestFilterOfWhatIsAbsent(t *testing.T) {
	if u := project(&gpuai.TenantUsage{Tenant: "t"}); fmt.Sprint(u["tenant"]) != "t" {
		t.Errorf("%v", u)
	}
	if n := project(&gpuai.Node{}); n["ask_micros_per_gpu_hour"] == nil {
		t.Errorf("%v", n)
	}
}
