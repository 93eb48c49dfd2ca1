package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/gpuai/gpuai"
)

// AuthorityTTL is how long a CA's certificate is good for. It is replaced by
// rotation long before.
const AuthorityTTL = 10 * 365 * 24 * time.Hour

// authorityName begins the common name of a CA, which ends in its cluster.
const authorityName = "gpuai "

// maxSkew is how much a certificate is dated back, for hosts whose clocks are
// behind.
const maxSkew = 5 * time.Minute

// An Authority is a CA with its key.
type Authority struct {
	Cluster gpuai.ClusterID
	// Certificate is its own, signed by itself.
	Certificate *x509.Certificate
	// Cross is of the same key, signed by the authority that it replaced; nil
	// for the first. Who trusts only that one follows it.
	Cross *x509.Certificate
	key   *ecdsa.PrivateKey
}

// NewAuthority makes a CA of a cluster.
func NewAuthority(cluster gpuai.ClusterID, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a CA's key: %w", err)
	}
	t := authorityTemplate(cluster, now)
	cert, err := sign(t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &Authority{Cluster: cluster, Certificate: cert, key: key}, nil
}

func authorityTemplate(cluster gpuai.ClusterID, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(randomBytes(16)),
		Subject:      pkix.Name{CommonName: authorityName + string(cluster), SerialNumber: fmt.Sprintf("%x", randomBytes(4))},
		NotBefore:    now.Add(-maxSkew), NotAfter: now.Add(AuthorityTTL),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// Next makes the CA that replaces a.
func (a *Authority) Next(now time.Time) (*Authority, error) {
	next, err := NewAuthority(a.Cluster, now)
	if err != nil {
		return nil, err
	}
	t := authorityTemplate(a.Cluster, now)
	t.Subject, t.MaxPathLen, t.MaxPathLenZero = next.Certificate.Subject, 0, true
	t.SubjectKeyId = next.Certificate.SubjectKeyId
	if t.NotAfter.After(a.Certificate.NotAfter) {
		t.NotAfter = a.Certificate.NotAfter
	}
	if next.Cross, err = sign(t, a.Certificate, &next.key.PublicKey, a.key); err != nil {
		return nil, err
	}
	return next, nil
}

// sign makes a certificate of a template.
func sign(t, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// Hash returns the hash of a's public key.
func (a *Authority) Hash() gpuai.SubjectHash { return HashOf(a.Certificate) }

// Issued reports whether a has signed the certificate of c.
func (a *Authority) Issued(c *Credential) bool {
	return string(c.Peer.Issuer[:]) == string(a.Certificate.SubjectKeyId)
}

// Key returns a's private key, for nobody but a keyring that seals it.
func (a *Authority) Key() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("encode a CA's key: %w", err)
	}
	return der, nil
}

// OpenAuthority returns the CA of a certificate, a cross certificate (empty for
// none) and a private key.
func OpenAuthority(cluster gpuai.ClusterID, cert, cross, key []byte) (*Authority, error) {
	a := &Authority{Cluster: cluster}
	var err error
	if a.Certificate, err = x509.ParseCertificate(cert); err != nil {
		return nil, fmt.Errorf("read a CA's certificate: %w", err)
	}
	if len(cross) > 0 {
		if a.Cross, err = x509.ParseCertificate(cross); err != nil {
			return nil, fmt.Errorf("read a CA's cross certificate: %w", err)
		}
	}
	if a.key, err = parseKey(key); err != nil {
		return nil, err
	}
	if !a.key.PublicKey.Equal(a.Certificate.PublicKey) {
		return nil, fmt.Errorf("the key is not that of the CA %s", a.Certificate.Subject)
	}
	return a, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("read a private key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("a private key of the kind %T: gpuai uses ECDSA P-256", k)
	}
	return key, nil
}

// An Issue says what a certificate is to be like.
type Issue struct {
	Identity gpuai.Identity
	Stamp    gpuai.Stamp
	Now      time.Time
	TTL      time.Duration // 0 is gpuai.CertificateTTL
	// Also are the authorities that are trusted beside the one that issues. A
	// server shows them, for who knows no more than the hash of one.
	Also []*x509.Certificate
}

// Issue signs the request of an identity. Of a server it takes the host names
// and addresses over that it wishes to be reached at, of a node none. The chain
// is in DER: what leads to the authority that was replaced, and the authority
// itself, are in it.
func (a *Authority) Issue(r *Request, i Issue) (chain [][]byte, err error) {
	if !i.Identity.Valid() {
		return nil, fmt.Errorf("%s cannot have a certificate", i.Identity)
	}
	ttl := i.TTL
	if ttl <= 0 {
		ttl = time.Duration(gpuai.CertificateTTL) * time.Millisecond
	}
	t := &x509.Certificate{
		SerialNumber: newSerial(i.Stamp),
		Subject:      pkix.Name{CommonName: i.Identity.String()},
		URIs:         []*url.URL{URI(a.Cluster, i.Identity)},
		NotBefore:    i.Now.Add(-maxSkew), NotAfter: i.Now.Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if i.Identity.Kind == gpuai.IdentityServer {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		t.DNSNames, t.IPAddresses = r.csr.DNSNames, r.csr.IPAddresses
	}
	leaf, err := sign(t, a.Certificate, r.csr.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	chain = [][]byte{leaf.Raw}
	if a.Cross != nil {
		chain = append(chain, a.Cross.Raw)
	}
	chain = append(chain, a.Certificate.Raw)
	for _, c := range i.Also {
		if i.Identity.Kind == gpuai.IdentityServer && !c.Equal(a.Certificate) {
			chain = append(chain, c.Raw)
		}
	}
	return chain, nil
}
