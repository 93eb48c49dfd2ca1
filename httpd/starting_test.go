package httpd

import (
	"net/http"
	"testing"
)

// A server that has just started says no stale answer is to be had of it, as
// its contact with the leader is fresh and its state is not.
func TestStaleReadsWaitForTheStart(t *testing.T) {
	b := newTwin()
	s := serve(t, b)
	b.mu.Lock()
	b.status.Starting = true
	b.mu.Unlock()
	for _, path := range []string{"/v1/jobs", "/v1/nodes", "/v1/queue"} {
		resp, body := ask(t, s, "GET", path+"?consistency=stale", "")
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
		if resp, body := ask(t, s, "GET", path, ""); resp.StatusCode != http.StatusOK {
			t.Errorf("%s, linearizable: %d %s", path, resp.StatusCode, body)
		}
	}
}
