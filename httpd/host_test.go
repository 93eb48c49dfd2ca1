package httpd

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// testHosts are the names under which tests ask servers without authentication.
var testHosts = []string{"example.com", "x"}

// A page whose name was made to lead to this server cannot use it with the user's
// browser.
func TestRebindingIsRefused(t *testing.T) {
	b := newTwin()
	cfg := testConfig(b)
	cfg.Hosts = []string{"GPU-a.example", "gpu-a"}
	h := New(cfg)
	ask := func(h http.Handler, method, path, host string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(spec("x", 1, 1)))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Origin", "http://"+host)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	for _, host := range []string{"evil.example:7470", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:7470", "127.evil", "", ":7470"} {
		for _, c := range [][2]string{{"POST", "/v1/jobs"}, {"GET", "/v1/jobs"}, {"GET", "/metrics"}, {"GET", "/v1/nothing"}} {
			if w := ask(h, c[0], c[1], host); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "--host") {
				t.Errorf("%s %s of %q: %d %s", c[0], c[1], host, w.Code, w.Body)
			}
		}
		if w := ask(h, "GET", "/readyz", host); w.Code != http.StatusOK {
			t.Errorf("a probe of %q: %d", host, w.Code)
		}
		if w := ask(FromServers(h), "GET", "/v1/jobs", host); w.Code != http.StatusOK {
			t.Errorf("another server, for %q: %d %s", host, w.Code, w.Body)
		}
	}
	if len(b.jobs) > 0 {
		t.Errorf("%d jobs were submitted", len(b.jobs))
	}
	for _, host := range []string{"127.0.0.1:7470", "[::1]:7470", "10.1.2.3", "[fe80::1%25eth0]:80", "LOCALHOST:7470", "localhost.", "gpu-a.example:7470", "GPU-A"} {
		if w := ask(h, "GET", "/v1/jobs", host); w.Code != http.StatusOK {
			t.Errorf("%q: %d %s", host, w.Code, w.Body)
		}
	}
	// Where tokens are asked for, a page has none to show.
	if w := ask(newSecured().h, "GET", "/v1/jobs", "evil.example"); w.Code != http.StatusUnauthorized {
		t.Errorf("with authentication: %d", w.Code)
	}
}
