package httpd

import (
	"net/http/httptest"
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
