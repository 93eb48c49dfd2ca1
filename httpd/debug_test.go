package httpd

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// A broken transport reaches nobody.
type broken struct{}

func (broken) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("refused") }

// Any server answers for any other, once.
func TestAnotherServerAnswers(t *testing.T) {
	near, far := newTwin(), newTwin()
	far.status.Server = "s2"
	fs := serve(t, far)
	near.others = map[gpuai.ServerID]http.RoundTripper{"s2": toServer{fs.Listener.Addr().String()}, "s3": broken{}}
	far.others = map[gpuai.ServerID]http.RoundTripper{"s1": broken{}}
	s, doc := serve(t, near), newContract(t)
	for path, want := range map[string]string{
		"/v1/operator/server?server=s2":              `"server":"s2"`,
		"/v1/operator/debug/goroutines?server=s2":    "goroutines of s2 for 1 s",
		"/v1/operator/debug/cpu?server=s2&seconds=3": "cpu of s2 for 3 s",
		"/v1/operator/debug/cpu?server=s1":           "cpu of s1 for 1 s",
	} {
		if resp, body := ask(t, s, "GET", path, ""); resp.StatusCode != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	resp, body := ask(t, s, "GET", "/v1/operator/server?server=s3", "")
	if doc.checkProblem(t, resp, body); resp.StatusCode != 503 || !strings.Contains(body, "server s3 does not answer this server, s1") {
		t.Errorf("a server that is down: %d %s", resp.StatusCode, body)
	}
	// One that was passed on already goes no further.
	if resp, body := ask(t, fs, "GET", "/v1/operator/server?server=s1", "", headerForwarded+": 1"); resp.StatusCode != 503 {
		t.Errorf("passed on twice: %d %s", resp.StatusCode, body)
	}
	if resp, body := ask(t, s, "GET", "/v1/queue?server=s2", ""); resp.StatusCode != 400 {
		t.Errorf("a route that takes no server: %d %s", resp.StatusCode, body)
	}
}

// A quarantined server still says what there is to say of itself: that is when
// somebody wants to know.
func TestQuarantinedServerShowsItself(t *testing.T) {
	b := newTwin()
	b.status.Quarantined = "its digest differs"
	s := serve(t, b)
	for _, path := range []string{
		"/v1/operator/raft", "/v1/operator/server", "/v1/operator/digest", "/v1/operator/debug/logs", "/v1/operator/debug/goroutines",
	} {
		if resp, body := ask(t, s, "GET", path, ""); resp.StatusCode != 200 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, body := ask(t, s, "GET", "/v1/jobs?consistency=stale", ""); resp.StatusCode != 503 {
		t.Errorf("its state: %d %s", resp.StatusCode, body)
	}
}
