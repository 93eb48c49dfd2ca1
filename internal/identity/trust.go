package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
)

// ErrRefused is wrapped by every refusal of a certificate. The text is a
// sentence that says what to do.
var ErrRefused = errors.New("certificate refused")

func refusal(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// A Trust is the authorities of one cluster that are believed. It is not changed
// once it is made.
type Trust struct {
	Cluster gpuai.ClusterID
	roots   []*x509.Certificate
	pool    *x509.CertPool
}

// NewTrust returns a trust in CAs by their certificates.
func NewTrust(cluster gpuai.ClusterID, roots ...*x509.Certificate) *Trust {
	t := &Trust{Cluster: cluster, roots: roots, pool: x509.NewCertPool()}
	for _, r := range roots {
		t.pool.AddCert(r)
	}
	return t
}

// Equal reports whether t and o are of one cluster and believe the same CAs.
func (t *Trust) Equal(o *Trust) bool {
	return t != nil && o != nil && t.Cluster == o.Cluster && bytes.Equal(t.PEM(), o.PEM())
}

// believes reports whether the key that signed a certificate is that of a CA.
func (t *Trust) believes(issuer [20]byte) bool {
	for _, r := range t.roots {
		if bytes.Equal(r.SubjectKeyId, issuer[:]) {
			return true
		}
	}
	return false
}

// Roots returns the CAs.
func (t *Trust) Roots() []*x509.Certificate { return t.roots }

// PEM returns the CAs' certificates.
func (t *Trust) PEM() []byte {
	var b []byte
	for _, r := range t.roots {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
	}
	return b
}

// ReadTrust reads what PEM wrote.
func ReadTrust(cluster gpuai.ClusterID, text []byte) (*Trust, error) {
	roots, err := readCertificates(text)
	if err != nil {
		return nil, err
	}
	if !gpuai.ValidName(string(cluster)) {
		return nil, fmt.Errorf("the authorities are of a cluster %q, which is no name", cluster)
	}
	for _, r := range roots {
		if !r.IsCA {
			return nil, fmt.Errorf("the certificate of %s is no authority's", r.Subject)
		}
	}
	return NewTrust(cluster, roots...), nil
}

// ReadTrustFile is ReadTrust of a file by itself: the authorities say whose they are.
func ReadTrustFile(text []byte) (*Trust, error) {
	all, err := readCertificates(text)
	if err != nil {
		return nil, err
	}
	cluster, ok := strings.CutPrefix(all[0].Subject.CommonName, authorityName)
	if !ok {
		return nil, fmt.Errorf("the certificate of %s is not that of a region's authority", all[0].Subject)
	}
	return ReadTrust(gpuai.ClusterID(cluster), text)
}

func readCertificates(text []byte) (out []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read a certificate: %w", err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return out, nil
}

// Verify judges a chain that was shown by who has the key of its first
// certificate. Its errors wrap ErrRefused.
func (t *Trust) Verify(chain []*x509.Certificate, now time.Time) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, refusal("none was shown")
	}
	leaf := chain[0]
	p, err := peerOf(leaf)
	if err != nil {
		return Peer{}, refusal("%v", err)
	}
	if p.Cluster != t.Cluster {
		return Peer{}, refusal("it is %s of cluster %s, and this is cluster %s: correct the address, or join this region with a new token", p.Identity, p.Cluster, t.Cluster)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: t.pool, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return p, nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Peer{}, refusal("that of %s was good from %s to %s, and it is %s: correct the clock, or join again with a new token, which 'gpuai token create --join %s --name %s' makes",
			p.Identity, stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now), p.Kind, p.Name)
	}
	return Peer{}, refusal("that of %s is not signed by an authority that this region trusts (%v): join again with a new token", p.Identity, err)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
