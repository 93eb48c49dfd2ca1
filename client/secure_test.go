package client

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gpuai/gpuai"
)

// What is for a server that proves who it is goes to nobody else: not in clear, and
// not where a server sends it on to.
func TestJoinTokenGoesToNobodyElse(t *testing.T) {
	var heard atomic.Int64
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		heard.Add(int64(len(b)))
	}))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer secure.Close()
	cfg := &tls.Config{InsecureSkipVerify: true} // of the test's server
	if _, err := New(Config{Addrs: []string{plain.URL}, TLS: cfg}); err == nil || !strings.Contains(err.Error(), "use https") {
		t.Errorf("an address without TLS: %v", err)
	}
	c, err := New(Config{Addrs: []string{secure.URL}, TLS: cfg, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), gpuai.JoinRequest{Token: "gpujoin_x", CSR: "x"}); err == nil || heard.Load() > 0 {
		t.Errorf("a redirect: %v, and %d bytes went there", err, heard.Load())
	}
}
