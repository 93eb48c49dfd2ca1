package server

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
)

// A shiftedClock is a host's that is wrong by so much.
type shiftedClock struct {
	mu sync.Mutex // guards below
	by time.Duration
}

func (c *shiftedClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *shiftedClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

func (c *shiftedClock) set(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by = by
}

// shifted is n1 on a host whose clock is wrong by so much.
func shifted(src *identity.Source, by time.Duration) *identity.Source {
	out := identity.NewSource(identity.SourceConfig{Clock: &shiftedClock{by: by}})
	out.Set(src.Credential())
	return out
}

// raw dials TLS with whatever certificate, without judging the server's.
func rawTLS(t *testing.T, addr string, cert *tls.Certificate) error {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return cert, nil
	}})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// A join token is of no use once its time in the region's clock is over.
func TestExpiredJoinTokenIsRefused(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	token := r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode, TTL: gpuai.Second})
	ends := time.Now().Add(1100 * time.Millisecond)
	eventually(t, "the end of the token's time", func() bool { return time.Now().After(ends) })
	if _, err := r.enrol(nodeNamed("n1"), token); !isCode(err, gpuai.Unauthenticated) {
		t.Errorf("an expired join token: %v", err)
	}
}

// Who has made a certificate for itself is refused at both ports, with the names
// of a node and of a server.
func TestSelfSignedCertificatesAreRefused(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	m := r.servers[0]
	own, err := identity.NewAuthority(m.cluster(), time.Now()) // of the right name, with another key
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []gpuai.Identity{nodeNamed("n1"), {Kind: gpuai.IdentityServer, Name: "s1"}} {
		key, csr, err := identity.NewKey(id, nil)
		if err != nil {
			t.Fatal(err)
		}
		req, err := identity.ReadRequest(csr)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := own.Issue(req, identity.Issue{Identity: id, Stamp: 1, Now: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range []string{m.HTTPAddr(), m.RaftAddr()} {
			if rawTLS(t, addr, &tls.Certificate{Certificate: chain, PrivateKey: key}) == nil {
				t.Errorf("%s, signed by itself, is let in at %s", id, addr)
			}
		}
	}
}

// Who sits between a host that joins and the region, and ends TLS itself, does not
// get to see the token: the host refuses its key.
func TestManInTheMiddleAtJoinGetsNoToken(t *testing.T) {
	t.Parallel()
	r, other := formSecure(t, 1, 0), formSecure(t, 1, 0)
	token := r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityNode})
	parsed, err := identity.ParseJoinToken(token)
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	middle := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { heard <- req.URL.Path })}
	l := listen(t)
	go middle.Serve(other.servers[0].source().Listener(l, identity.Want{}))
	t.Cleanup(func() { middle.Close() })
	_, csr, err := identity.NewKey(nodeNamed("n1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Addrs: []string{"https://" + l.Addr().String()}, TLS: identity.JoinConfig(parsed)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Join(t.Context(), gpuai.JoinRequest{Token: token, CSR: csr})
	if !isCode(err, gpuai.Unauthenticated) || !strings.Contains(err.Error(), "not of the region that the join token is for") {
		t.Errorf("joined by way of somebody else: %v", err)
	}
	select {
	case path := <-heard:
		t.Errorf("somebody else was sent a request to %s", path)
	default:
	}
	if _, err := r.enrol(nodeNamed("n1"), token); err != nil {
		t.Errorf("the token is not good any more: %v", err)
	}
}

// An agent whose clock is a few minutes off has sessions; one whose clock is days
// off is told both times, and one whose certificate has ended is refused by the
// server, whose clock counts there.
func TestClockSkewOfAnAgent(t *testing.T) {
	t.Parallel()
	clock := &shiftedClock{}
	r := formSecureWith(t, 1, func(c *Config) { c.Clock = clock })
	url := r.urls()[0]
	n1 := r.joined("n1")
	for _, by := range []time.Duration{-4 * time.Minute, time.Hour} {
		r.mustWelcome(shifted(n1, by), url, "n1")
	}
	for _, by := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		_, _, err := r.hello(shifted(n1, by), url, "n1")
		if err == nil || !strings.Contains(err.Error(), "correct the clock") {
			t.Errorf("an agent whose clock is %s off: %v", by, err)
		}
	}
	clock.set(23 * time.Hour) // the certificate is nearly over, at the server
	r.mustWelcome(n1, url, "n1")
	clock.set(25 * time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	blind := n1.ClientConfig()
	blind.VerifyConnection = nil // its own clock would refuse the server
	if _, err := r.client(blind).Raft(ctx); !isCode(err, gpuai.Unauthenticated) {
		t.Errorf("case 34: an expired certificate: %v", err)
	}
}

// A server whose clock jumps ahead, and back, signs itself a certificate that is not
// good yet: others would refuse it for as long as the jump was.
func TestServerReplacesACertificateOfTheFuture(t *testing.T) {
	t.Parallel()
	clock := &shiftedClock{}
	r := formSecureWith(t, 1, func(c *Config) { c.Clock = clock })
	src := r.servers[0].source()
	first := src.Credential().NotAfter()
	clock.set(13 * time.Hour)
	eventually(t, "a certificate of the wrong time", func() bool { return src.Credential().NotAfter().After(first.Add(12 * time.Hour)) })
	clock.set(0)
	eventually(t, "a certificate that is good now", func() bool { return !src.Credential().NotBefore().After(time.Now()) })
	r.mustWelcome(r.joined("n1"), r.urls()[0], "n1")
}

// A server of a region with authentication is rebuilt: the region hears it by its
// old certificate, and the new one joins with a token, which gets it its own
// certificate and the region's keys.
func TestRejoinInASecureRegion(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 3, 0)
	old := r.followers()[0]
	r.halt(old)
	cfg := RejoinConfig{DataDir: old.cfg.DataDir, Join: []string{r.leader().RaftAddr()}, KeyFile: t.TempDir() + "/none"}
	if _, err := Rejoin(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "--key-file") {
		t.Fatalf("without the key file: %v", err)
	}
	cfg.KeyFile = ""
	out, err := Rejoin(t.Context(), cfg)
	if err != nil || !out.Secure || out.New == old.cfg.ID {
		t.Fatalf("%+v, %v", out, err)
	}
	next := &member{cfg: Config{
		ID: out.New, DataDir: old.cfg.DataDir, HTTP: listen(t), Raft: listen(t), Secure: true, Logger: testLogger(t),
		Join:      []string{r.leader().HTTPAddr()},
		JoinToken: r.token(gpuai.JoinTokenRequest{Join: gpuai.IdentityServer, Name: string(out.New)}),
	}}
	r.start(next)
	eventually(t, "the new server's vote", func() bool { m, ok := r.leader().node.Member(out.New); return ok && m.Voter })
	if a, b := next.ringOf(t).KeyIDs(), r.leader().ringOf(t).KeyIDs(); a[0] != b[0] || len(a) != len(b) {
		t.Errorf("its keys are %v, the region's %v", a, b)
	}
	if c := next.source().Credential(); c.Peer.Name != string(out.New) {
		t.Errorf("its certificate is that of %s", c.Peer.Identity)
	}
	if _, err := r.leader().askKeys(t.Context(), out.New, nil); err != nil {
		t.Error(err)
	}
}

// A request for a renewal that was on its way while the name was joined anew, or
// revoked, gets no certificate: the one that it shows is void.
func TestVoidCertificateDoesNotRenewItself(t *testing.T) {
	t.Parallel()
	r := formSecure(t, 1, 0)
	m := r.servers[0]
	old := r.joined("gpu-7").Credential().Peer.Stamp
	now := r.joined("gpu-7").Credential().Peer.Stamp // with a token that names it
	_, csr, err := identity.NewKey(nodeNamed("gpu-7"), nil)
	if err != nil {
		t.Fatal(err)
	}
	renew := func(shown gpuai.Stamp) error {
		ctx := httpd.WithPrincipal(t.Context(), &gpuai.Principal{Node: "gpu-7", Stamp: shown})
		_, err := m.Renew(ctx, nodeNamed("gpu-7"), &gpuai.RenewRequest{CSR: csr})
		return err
	}
	if err := renew(old); !isCode(err, gpuai.Forbidden) {
		t.Errorf("a certificate of before: %v", err)
	}
	if err := renew(now); err != nil {
		t.Errorf("the present one: %v", err)
	}
	r.write(func(m *member) error { return m.RevokeIdentity(t.Context(), nodeNamed("gpu-7")) })
	if err := renew(now); !isCode(err, gpuai.Forbidden) {
		t.Errorf("a revoked one: %v", err)
	}
}
