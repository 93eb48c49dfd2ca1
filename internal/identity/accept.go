package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"time"

	"github.com/gpuai/gpuai"
)

// An Answer is what a server gave to who asked for a certificate. Nothing of it is
// believed because a server said it: see Trust.Accept.
type Answer struct {
	Key    *ecdsa.PrivateKey // of the request
	For    gpuai.Identity    // whom the request was for
	Issued *gpuai.IssuedCertificate
	Now    time.Time
	Until  time.Time // when the present certificate ends; zero where there is none
}

// Accept judges the answer to a renewal by what is trusted now, and returns the
// credential that takes the place of the present one. The certificate must lead to
// an authority that t believes, be of the same cluster and identity, and last no
// longer than certificates do; one that has less than half of its time left is taken
// only where it ends later than the present one. Of the authorities in the answer those are believed
// that t believes, and the one that a trusted one has signed as its successor; others
// are left out, so that no server can name one of its own. Errors wrap ErrRefused.
func (t *Trust) Accept(a Answer) (*Credential, error) {
	c, err := CredentialOf(a.Key, a.Issued)
	if err != nil {
		return nil, refusal("%v", err)
	}
	chain, err := readCertificates([]byte(a.Issued.Certificate))
	if err != nil {
		return nil, refusal("%v", err)
	}
	if _, err := t.Verify(chain, a.Now); err != nil {
		return nil, err
	}
	most := a.Now.Add(time.Duration(gpuai.CertificateTTL)*time.Millisecond + maxSkew)
	switch {
	case c.Peer.Identity != a.For:
		return nil, refusal("it is that of %s, and one of %s was asked for", c.Peer.Identity, a.For)
	case c.NotAfter().After(most):
		return nil, refusal("it is good until %s, and none lasts beyond %s: correct the clock of this host or of the server", stamp(c.NotAfter()), stamp(most))
	case c.NotAfter().Before(a.Until) && 2*c.NotAfter().Sub(a.Now) < c.life():
		return nil, refusal("it is good until %s only, of %s, and the present one until %s: correct the clock of this host or of the server", stamp(c.NotAfter()), c.life(), stamp(a.Until))
	}
	var roots []*x509.Certificate
	for _, r := range c.Trust.roots {
		if t.vouchesFor(r, chain[1:], a.Now) {
			roots = append(roots, r)
		}
	}
	c.Trust = NewTrust(t.Cluster, roots...)
	_, err = c.Trust.Verify(chain, a.Now)
	return c, err
}

// vouchesFor reports whether a CA is believed, or a certificate of its key was
// signed by one that is.
func (t *Trust) vouchesFor(ca *x509.Certificate, crosses []*x509.Certificate, now time.Time) bool {
	for _, r := range t.roots {
		if r.Equal(ca) {
			return true
		}
	}
	for _, c := range crosses {
		if !c.IsCA || HashOf(c) != HashOf(ca) {
			continue
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: t.pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
			return true
		}
	}
	return false
}

// Accept is Trust.Accept of the answer to a join: what is trusted before is the CA
// that the token names.
func (t JoinToken) Accept(a Answer) (*Credential, error) {
	trust, err := ReadTrust(a.Issued.Cluster, []byte(a.Issued.Trust))
	if err != nil {
		return nil, refusal("%v", err)
	}
	for _, r := range trust.roots {
		if t.names(HashOf(r)) {
			return NewTrust(trust.Cluster, r).Accept(a)
		}
	}
	return nil, refusal("the authority that the join token names is not among those of the region: ask for a new token")
}
