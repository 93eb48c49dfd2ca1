package identity

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// answer is what a server of r says to a request of an identity.
func (r *realm) answer(id gpuai.Identity, change func(*Issue)) Answer {
	r.t.Helper()
	key, csr, err := NewKey(id, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req, err := ReadRequest(csr)
	if err != nil {
		r.t.Fatal(err)
	}
	issue := Issue{Identity: id, Stamp: 2, Now: r.clock.Now(), Also: r.roots}
	if change != nil {
		change(&issue)
	}
	chain, err := r.ca.Issue(req, issue)
	if err != nil {
		r.t.Fatal(err)
	}
	return Answer{Key: key, For: nodeN1, Now: r.clock.Now(), Issued: &gpuai.IssuedCertificate{
		Certificate: ChainText(chain), Trust: string(r.trust().PEM()), Cluster: r.ca.Cluster,
	}}
}

func believes(t *Trust, want ...*x509.Certificate) bool {
	ok := len(t.Roots()) == len(want)
	for _, w := range want {
		ok = ok && t.vouchesFor(w, nil, time.Time{})
	}
	return ok
}

// A server that answers a renewal cannot change whom a node trusts: only a CA that
// is trusted can, by its signature.
func TestRenewalIsJudgedByWhatIsTrusted(t *testing.T) {
	r, evil := newRealm(t, "c1"), newRealm(t, "c1")
	trust := r.trust()
	if c, err := trust.Accept(r.answer(nodeN1, nil)); err != nil || !c.Trust.Equal(trust) || c.Peer.Stamp != 2 {
		t.Fatalf("a renewal: %+v, %v", c, err)
	}
	crossed := r.answer(nodeN1, nil)
	crossed.Issued.Trust += string(evil.trust().PEM())
	if c, err := trust.Accept(crossed); err != nil || !c.Trust.Equal(trust) {
		t.Errorf("a CA that nobody signed is believed: %+v, %v", c, err)
	}
	pretend := evil.answer(nodeN1, nil)
	pretend.Issued.Trust += string(trust.PEM())
	pretend.Issued.Certificate += string(trust.PEM())
	wrongKey := r.answer(nodeN1, nil)
	wrongKey.Key = r.answer(nodeN1, nil).Key
	only := r.answer(nodeN1, nil)
	only.Issued.Trust = string(evil.trust().PEM())
	for name, bad := range map[string]Answer{
		"another CA":                     evil.answer(nodeN1, nil),
		"another CA beside the good one": pretend,
		"a good one, and another CA":     only,
		"another node":                   r.answer(gpuai.Identity{Kind: gpuai.IdentityNode, Name: "n2"}, nil),
		"a server":                       r.answer(gpuai.Identity{Kind: gpuai.IdentityServer, Name: "n1"}, nil),
		"ten years":                      r.answer(nodeN1, func(i *Issue) { i.TTL = AuthorityTTL }),
		"another key":                    wrongKey,
		"another cluster":                newRealm(t, "c2").answer(nodeN1, nil),
	} {
		if c, err := trust.Accept(bad); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// A server whose clock is wrong gives certificates that other servers refuse. They
// take the place of none that is better.
func TestRenewalByAServerWhoseClockIsWrong(t *testing.T) {
	r := newRealm(t, "c1")
	const ttl = 10 * time.Minute
	now := r.clock.Now()
	for name, c := range map[string]struct {
		off   time.Duration // of the server's clock
		until time.Duration // from now: the end of the present certificate
		ttl   time.Duration
		good  bool
	}{
		"true":                            {0, ttl / 2, ttl, true},
		"within the grace, ahead":         {maxSkew - time.Second, ttl / 2, ttl, true},
		"beyond the grace, ahead":         {maxSkew + time.Minute, ttl / 2, ttl, false},
		"an hour ahead":                   {time.Hour, ttl / 2, ttl, false},
		"an hour behind":                  {-time.Hour, ttl / 2, ttl, false},
		"nearly over when it comes":       {-ttl + time.Second, ttl / 2, ttl, false},
		"late, but later than what is":    {-6 * time.Minute, time.Minute, ttl, true},
		"late, and sooner than what is":   {-6 * time.Minute, ttl / 2, ttl, false},
		"shorter, by --certificate-ttl":   {0, 12 * time.Hour, ttl, true},
		"of a day, an hour behind":        {-time.Hour, 12 * time.Hour, 24 * time.Hour, true},
		"of a day, nearly over":           {-23 * time.Hour, 12 * time.Hour, 24 * time.Hour, false},
		"of a day, of a host of no clock": {-50 * 365 * 24 * time.Hour, 12 * time.Hour, 24 * time.Hour, false},
	} {
		a := r.answer(nodeN1, func(i *Issue) { i.TTL, i.Now = c.ttl, now.Add(c.off) })
		a.Until = now.Add(c.until)
		if got, err := r.trust().Accept(a); (err == nil) != c.good || err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// A node follows a CA that is replaced, whether it knows the old one, both, or the
// new one only.
func TestRenewalFollowsTheAuthority(t *testing.T) {
	r := newRealm(t, "c1")
	old := r.ca.Certificate
	onlyOld := r.trust()
	token := NewJoinToken(r.ca.Hash())
	r.rotate()
	both, err := onlyOld.Accept(r.answer(nodeN1, nil))
	if err != nil || !believes(both.Trust, old, r.ca.Certificate) {
		t.Fatalf("who knows the old one: %+v, %v", both, err)
	}
	if c, err := token.Accept(r.answer(nodeN1, nil)); err != nil || !c.Trust.Equal(both.Trust) {
		t.Errorf("who joins with a token of before: %+v, %v", c, err)
	}
	if c, err := NewJoinToken(r.ca.Hash()).Accept(r.answer(nodeN1, nil)); err != nil || !believes(c.Trust, r.ca.Certificate) {
		t.Errorf("who joins with a token of after: %+v, %v", c, err)
	}
	r.roots = r.roots[1:] // the old one is retired
	if c, err := both.Trust.Accept(r.answer(nodeN1, nil)); err != nil || !believes(c.Trust, r.ca.Certificate) {
		t.Errorf("who knows both: %+v, %v", c, err)
	}
	if c, err := onlyOld.Accept(r.answer(nodeN1, nil)); err != nil || !believes(c.Trust, r.ca.Certificate) {
		t.Errorf("who was off meanwhile: %+v, %v", c, err)
	}
	if _, err := token.Accept(r.answer(nodeN1, nil)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "ask for a new token") {
		t.Errorf("a token of a retired CA: %v", err)
	}
}

// Who has seen a server's request gets no keyring with it: only its key opens what
// is sent.
func TestKeyringIsSealedForWhoAsked(t *testing.T) {
	ring := NewKeyring()
	key, csr, err := NewKey(serverA, nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := ReadRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := req.SealRing(ring)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenRing(key, sealed); err != nil || string(got.Encode()) != string(ring.Encode()) {
		t.Errorf("its own: %v, %v", got, err)
	}
	other, _, err := NewKey(serverA, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"sealed for another": sealed, "cut": sealed[:len(sealed)-8], "none": "", "plain": string(ring.Encode())} {
		if got, err := OpenRing(other, text); !errors.Is(err, ErrKeyring) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A connection ends with the certificate that it was made with, after the grace for
// clocks that are behind.
func TestConnectionsEndWithTheirCertificates(t *testing.T) {
	r := newRealm(t, "c1")
	server, node := r.source(serverA, SourceConfig{}), r.source(nodeN1, SourceConfig{})
	cc, _, err, err2 := connect(t, anyServer(server), clientOf(node, Want{}))
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	r.clock.move(24*time.Hour + maxSkew - time.Second)
	server.Sweep()
	if err := echo(cc); err != nil {
		t.Errorf("within the grace: %v", err)
	}
	r.clock.move(2 * time.Second)
	server.Sweep()
	if err := echo(cc); err == nil {
		t.Error("a connection outlives its certificate")
	}
}
