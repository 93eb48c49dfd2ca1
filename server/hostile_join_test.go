package server

import (
	"crypto/tls"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
)

// Who has no token that is good adds nothing to the log, nor to the audit but one
// line a minute, on whichever server they try.
func TestMadeUpJoinTokensStayOutOfTheLog(t *testing.T) {
	r := formSecure(t, 3, 0)
	used := r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode})
	if _, err := r.enrol(nodeNamed("first"), used); err != nil {
		t.Fatal(err)
	}
	records := func() (n uint64) {
		m := r.leader()
		if err := m.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.node.View(func(x *fsm.Machine) { n = x.AuditHead().Records })
		return n
	}
	_, csr, err := identity.NewKey(nodeNamed("evil"), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := records()
	for _, m := range r.servers {
		c := m.tlsClient(t, identity.TrustConfig(m.warden.src.Trust()))
		for range 5 {
			_, err := c.Join(t.Context(), gpuai.JoinRequest{Token: identity.NewJoinToken(gpuai.SubjectHash{}).Text(), CSR: csr})
			refusedAs(t, err, gpuai.Unauthenticated)
			_, err = c.Join(t.Context(), gpuai.JoinRequest{Token: used, CSR: csr})
			refusedAs(t, err, gpuai.Unauthenticated)
		}
		m.auditor.mu.Lock()
		if len(m.auditor.folded) == 0 {
			t.Errorf("server %s does not count what it refused", m.cfg.ID)
		}
		m.auditor.mu.Unlock()
	}
	if n := records(); n != before {
		t.Errorf("30 joins without a token that is good made %d records of the audit", n-before)
	}
	// One that the leader has just made is good on every server.
	for _, m := range r.servers {
		token := r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode})
		parsed, err := identity.ParseJoinToken(token)
		if err != nil {
			t.Fatal(err)
		}
		_, csr, err := identity.NewKey(nodeNamed("node-"+string(m.cfg.ID)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.tlsClient(t, identity.JoinConfig(parsed)).Join(t.Context(), gpuai.JoinRequest{Token: token, CSR: csr}); err != nil {
			t.Errorf("a new token at server %s: %v", m.cfg.ID, err)
		}
	}
}

// A certificate that was voided is not renewed, also by a request that was on its
// way when it was.
func TestVoidCertificateIsNotRenewed(t *testing.T) {
	r := formSecure(t, 1, 0)
	m := r.servers[0]
	old := r.joined("gpu-7").Credential().Peer
	renew := func(shown gpuai.Stamp) error {
		_, csr, err := identity.NewKey(nodeNamed("gpu-7"), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx := httpd.WithPrincipal(t.Context(), &gpuai.Principal{Actor: "node/gpu-7", Node: "gpu-7", Stamp: shown})
		_, err = m.Renew(ctx, nodeNamed("gpu-7"), &gpuai.RenewRequest{CSR: csr})
		return err
	}
	if err := renew(old.Stamp); err != nil {
		t.Fatal(err)
	}
	fresh := r.joined("gpu-7").Credential().Peer // the older ones are void
	refusedAs(t, renew(old.Stamp), gpuai.Forbidden)
	refusedAs(t, renew(0), gpuai.Forbidden)
	if err := renew(fresh.Stamp); err != nil {
		t.Errorf("the one who joined anew: %v", err)
	}
}

// tlsClient asks one server, once.
func (m *member) tlsClient(t *testing.T, cfg *tls.Config) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Addrs: []string{"https://" + m.HTTPAddr()}, TLS: cfg, RetryFor: -1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
