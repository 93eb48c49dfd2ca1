package httpd

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// FuzzDoor has anything at all for a path, a query, an Authorization and a
// principal: nobody comes in by it, and nothing panics.
func FuzzDoor(f *testing.F) {
	for _, s := range [][4]string{
		{"/v1/jobs", "", "Bearer gpu_0000000000000000_x", ""}, {"/v1/operator/policy", "token=x", "", `{"Actor":"x","Scopes":16}`},
		{"/v1/jobs/%2e%2e/operator/policy", "%zz", "Basic eA==", "null"}, {"//v1/jobs", "gpu_", "Bearer ", `{"Scopes":[]}`}, {"/v1/jobs/gpujoin_x", "", "", ""},
	} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	s := newSecured()
	f.Fuzz(func(t *testing.T, path, query, auth, principal string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path, r.URL.RawPath, r.URL.RawQuery = path, "", query
		if !strings.HasPrefix(auth, "Bearer T-") {
			r.Header.Set("Authorization", auth)
		}
		r.Header.Set(headerPrincipal, principal)
		w := s.do(r)
		if strings.Contains(w.Body.String(), `"policy":`) || strings.Contains(w.Body.String(), `"jobs":`) {
			t.Fatalf("%q %q %q %q → %d %s", path, query, auth, principal, w.Code, w.Body)
		}
	})
}

// FuzzHeaders has anything at all for the host, and for a header: nobody comes in by
// it, and nothing of it comes out in a header of the answer but for a request's ID.
func FuzzHeaders(f *testing.F) {
	for _, s := range [][3]string{
		{"x", "X-Request-Id", "a\r\nX-A: b"}, {"[::1]:7470", "Origin", "https://other.example"}, {"h.example.", "Sec-Fetch-Site", "cross-site"},
		{"a:b:c", "Last-Event-ID", "-1"}, {"", "Accept", "text/event-stream;q=,"}, {"%", "Idempotency-Key", "\x00"}, {"x", "Content-Type", "application/json; charset="},
		{"x", "Forwarded", "for=127.0.0.1"}, {"x", "X-Gpuai-Forwarded", "1"}, {"x", "Sec-Websocket-Protocol", "gpuai.session.v1,,"}, {"x", "Authorization", "Bearer \xff"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	s := newSecured()
	open := New(testConfig(newTwin()))
	f.Fuzz(func(t *testing.T, host, name, value string) {
		if strings.Contains(value, "T-") {
			return // a token
		}
		for _, target := range []string{"/v1/operator/policy", "/v1/jobs", "/v1/agent/session", "/healthz"} {
			r := httptest.NewRequest("GET", target, nil)
			r.Host = host
			r.Header.Set(name, value)
			w := s.do(r)
			if (w.Code < 400) != (target == "/healthz") && w.Code != http.StatusForbidden {
				t.Fatalf("%s with %q: %q: %d %s", target, name, value, w.Code, w.Body)
			}
			if id := w.Header().Get(headerRequestID); id == "" || len(id) > 64 || strings.IndexFunc(id, notID) >= 0 {
				t.Fatalf("the request's ID is %q", id)
			}
		}
		r := httptest.NewRequest("GET", "/v1/operator/policy", nil) // where nobody has to say who they are
		r.Host = host
		if w := httptest.NewRecorder(); r.Host != "" {
			open.ServeHTTP(w, r)
			if _, err := netip.ParseAddr(hostName(host)); w.Code == http.StatusOK && err != nil && hostName(host) != "localhost" && !slices.Contains(testHosts, hostName(host)) {
				t.Fatalf("under the name %q: %d", host, w.Code)
			}
		}
	})
}

// FuzzSplitAccessToken: what is split is what it was.
func FuzzSplitAccessToken(f *testing.F) {
	f.Add("gpu_0123456789abcdef_secret")
	f.Add("gpu_0123456789ABCDEF_s")
	f.Fuzz(func(t *testing.T, text string) {
		id, ok := gpuai.SplitAccessToken(text)
		if ok && !strings.EqualFold(text[len(gpuai.AccessTokenPrefix):][:gpuai.AccessTokenIDLen], id.String()) {
			t.Fatalf("%q has the ID %s", text, id)
		}
	})
}
