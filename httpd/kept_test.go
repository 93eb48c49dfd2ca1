package httpd

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// A kept connection to the leader breaks while a write is on it, and the leader
// cannot be dialled again: the transport's own second try must not make it
// "surely not done".
func TestForwardedOnAKeptConnection(t *testing.T) {
	var asked atomic.Int32
	var leader *httptest.Server
	leader = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusOK)
			return
		}
		leader.Listener.Close()
		panic(http.ErrAbortHandler)
	}))
	defer leader.Close()
	addr := leader.Listener.Addr().String()
	kept := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}
	follow := newTwin()
	follow.status = Status{Server: "s2", Leader: "s1", Ready: true}
	follow.leader = kept
	s := serve(t, follow)
	for _, want := range []int{http.StatusOK, http.StatusGatewayTimeout} {
		r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/v1/jobs/a/stop", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Idempotency-Key", "k")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s, want %d", resp.Status, want)
		}
	}
}
