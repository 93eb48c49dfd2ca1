package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/gpuai/gpuai"
)

// Limits of a certificate signing request.
const (
	maxRequest = 8 << 10 // bytes of PEM
	maxHosts   = 32
)

// A Request is a certificate signing request: a public key whose private one
// its sender has, and what it wishes to be.
type Request struct {
	csr *x509.CertificateRequest
	// Identity is what the sender wishes to be. It proves nothing.
	Identity gpuai.Identity
}

// NewKey returns a private key, which never leaves this host, and a request in
// PEM for a certificate of it. Hosts are names and addresses at which a server
// is reached.
func NewKey(id gpuai.Identity, hosts []string) (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	csr, err := RequestFor(key, id, hosts)
	return key, csr, err
}

// RequestFor returns a request in PEM for a certificate of a key.
func RequestFor(key *ecdsa.PrivateKey, id gpuai.Identity, hosts []string) (string, error) {
	t := &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.String()}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if h != "" {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return "", fmt.Errorf("make a certificate signing request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// ReadRequest reads a request and checks that its sender has the key. Its errors
// are sentences for the sender.
func ReadRequest(text string) (*Request, error) {
	if len(text) > maxRequest {
		return nil, fmt.Errorf("a certificate signing request is at most %d bytes", maxRequest)
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		return nil, errors.New("csr is not one certificate signing request in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("csr is no certificate signing request: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("csr is of another kind of key than ECDSA P-256")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("csr is not signed by its own key")
	}
	if len(csr.DNSNames)+len(csr.IPAddresses) > maxHosts || slices.ContainsFunc(csr.DNSNames, func(h string) bool { return len(h) > 253 }) {
		return nil, fmt.Errorf("csr has more than %d host names and addresses, or too long ones", maxHosts)
	}
	id, err := gpuai.ParseIdentity(csr.Subject.CommonName)
	if err != nil {
		return nil, fmt.Errorf("csr is for %q: %w", csr.Subject.CommonName, err)
	}
	return &Request{csr: csr, Identity: id}, nil
}

// Hash returns the hash of the request's public key.
func (r *Request) Hash() gpuai.SubjectHash { return sha256.Sum256(r.csr.RawSubjectPublicKeyInfo) }
