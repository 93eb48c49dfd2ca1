package server

import (
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
)

// BenchmarkAuthenticate is one request of a small read through the handler, plain
// and with a token that the machine holds: the difference is what it costs to know
// who asks.
func BenchmarkAuthenticate(b *testing.B) {
	s, err := Open(Config{ID: "s1", DataDir: b.TempDir(), HTTPAddr: "127.0.0.1:0", RaftAddr: "127.0.0.1:0", Bootstrap: true})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	go func() { _ = s.Run(b.Context()) }()
	if err := s.awaitTenants(b.Context()); err != nil {
		b.Fatal(err)
	}
	id, text, err := mintToken()
	if err != nil {
		b.Fatal(err)
	}
	c := fsm.CreateToken{ID: id, Hash: sha256.Sum256([]byte(text)), Scopes: gpuai.ScopesOf(gpuai.ScopeOperator), TTL: gpuai.Hour}
	if _, err := s.propose(b.Context(), c.Append(nil, fsm.Envelope{})); err != nil {
		b.Fatal(err)
	}
	for _, x := range []struct {
		name string
		auth httpd.Authenticator
	}{{"plain", nil}, {"token", s.keeper}} {
		h := httpd.New(httpd.Config{Backend: s, Auth: x.auth, Hosts: []string{"example.com"}})
		b.Run(x.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequestWithContext(b.Context(), "GET", "/v1/whoami", nil)
				r.Header.Set("Authorization", "Bearer "+text)
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
		})
	}
	b.Run("bearer-alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.keeper.Bearer(b.Context(), text); err != nil {
				b.Fatal(err)
			}
		}
	})
}
