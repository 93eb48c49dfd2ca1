package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/identity"
)

// issue gives an identity a certificate of ca by a clock that is wrong by off.
func issue(t *testing.T, ca *identity.Authority, text string, id gpuai.Identity, off time.Duration) *gpuai.IssuedCertificate {
	t.Helper()
	req, err := identity.ReadRequest(text)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.Issue(req, identity.Issue{Identity: id, Stamp: 2, Now: time.Now().Add(off), TTL: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return &gpuai.IssuedCertificate{
		Certificate: identity.ChainText(chain), Trust: string(identity.NewTrust(ca.Cluster, ca.Certificate).PEM()), Cluster: ca.Cluster,
	}
}

// sourceOf is an identity with a certificate of ca.
func sourceOf(t *testing.T, ca *identity.Authority, id gpuai.Identity) *identity.Source {
	t.Helper()
	key, csr, err := identity.NewKey(id, []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := identity.CredentialOf(key, issue(t, ca, csr, id, 0))
	if err != nil {
		t.Fatal(err)
	}
	src := identity.NewSource(identity.SourceConfig{})
	src.Set(c)
	return src
}

// issuer is a server that renews certificates by a clock that is wrong by off, or
// refuses to.
func issuer(t *testing.T, ca *identity.Authority, off time.Duration, refuses bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	src := sourceOf(t, ca, gpuai.Identity{Kind: gpuai.IdentityServer, Name: "s"})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q gpuai.RenewRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || refuses {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(issue(t, ca, q.CSR, gpuai.Identity{Kind: gpuai.IdentityNode, Name: "n1"}, off))
	})}
	go func() { _ = srv.Serve(src.Listener(l, identity.Want{})) }() // until it is closed
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String()
}

// A server with a wrong clock gives a certificate that others refuse, and one that is
// behind may refuse to give any: the node asks the next, and keeps the one that it has
// while none gives a good one.
func TestRenewalAsksAnotherServer(t *testing.T) {
	ca, err := identity.NewAuthority("c1", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	src := sourceOf(t, ca, gpuai.Identity{Kind: gpuai.IdentityNode, Name: "n1"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	bad := []string{
		issuer(t, ca, time.Hour, false), issuer(t, ca, -time.Hour, false), issuer(t, ca, -6*time.Minute, false), issuer(t, ca, 0, true),
	}
	if c, err := renewAtAny(ctx, bad, src); !errors.Is(err, identity.ErrRefused) {
		t.Errorf("of servers with wrong clocks: %+v, %v", c, err)
	}
	c, err := renewAtAny(ctx, append(bad, issuer(t, ca, 0, false)), src)
	if err != nil || c.NotAfter().Before(src.Credential().NotAfter()) {
		t.Errorf("with one that is right: %+v, %v", c, err)
	}
}
