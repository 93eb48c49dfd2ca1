package identity

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/gpuai/gpuai"
)

// A Credential is a certificate with its key, and what its holder trusts.
type Credential struct {
	Peer  Peer
	Trust *Trust
	key   *ecdsa.PrivateKey
	cert  *tls.Certificate
}

// NewCredential puts together what a join or a renewal has given. It refuses
// what does not fit together.
func NewCredential(key *ecdsa.PrivateKey, chain [][]byte, trust *Trust) (*Credential, error) {
	if len(chain) == 0 {
		return nil, errors.New("a credential needs a certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("read a certificate: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is of another key than this host's")
	}
	p, err := peerOf(leaf)
	if err != nil {
		return nil, err
	}
	if p.Cluster != trust.Cluster {
		return nil, fmt.Errorf("the certificate is of cluster %s, and its authorities are of %s", p.Cluster, trust.Cluster)
	}
	return &Credential{
		Peer: p, Trust: trust, key: key,
		cert: &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf},
	}, nil
}

// CredentialOf reads the answer to a join or a renewal of key. It believes it:
// Trust.Accept and JoinToken.Accept do not.
func CredentialOf(key *ecdsa.PrivateKey, a *gpuai.IssuedCertificate) (*Credential, error) {
	trust, err := ReadTrust(a.Cluster, []byte(a.Trust))
	if err != nil {
		return nil, err
	}
	chain, err := readCertificates([]byte(a.Certificate))
	if err != nil {
		return nil, err
	}
	var der [][]byte
	for _, c := range chain {
		der = append(der, c.Raw)
	}
	return NewCredential(key, der, trust)
}

// NotAfter returns until when c is good.
func (c *Credential) NotAfter() time.Time { return c.cert.Leaf.NotAfter }

// NotBefore returns from when on c is good.
func (c *Credential) NotBefore() time.Time { return c.cert.Leaf.NotBefore }

// life is for how long c is good, by the clock of who issued it.
func (c *Credential) life() time.Duration {
	return c.NotAfter().Sub(c.cert.Leaf.NotBefore) - maxSkew
}

// ChainPEM returns the certificate and what leads to its authority.
func (c *Credential) ChainPEM() []byte { return chainPEM(c.cert.Certificate) }

func chainPEM(chain [][]byte) (b []byte) {
	for _, der := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return b
}

// ChainText returns a chain in PEM.
func ChainText(chain [][]byte) string { return string(chainPEM(chain)) }

// Blocks of a credential's file.
const (
	blockKey    = "PRIVATE KEY"
	blockSealed = "GPUAI SEALED PRIVATE KEY"
	blockTrust  = "GPUAI TRUSTED CERTIFICATE"
	blockChain  = "CERTIFICATE"

	headCluster = "Cluster"
	keyAAD      = "certificate key"
)

// Encode returns c as a file holds it, for its owner only. Under a keyring its
// key is sealed.
func (c *Credential) Encode(ring *Keyring) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	key := &pem.Block{Type: blockKey, Bytes: der}
	if ring != nil {
		key = &pem.Block{Type: blockSealed, Bytes: ring.Seal(keyAAD, der)}
	}
	b := pem.EncodeToMemory(key)
	b = append(b, chainPEM(c.cert.Certificate)...)
	for _, r := range c.Trust.roots {
		b = append(b, pem.EncodeToMemory(&pem.Block{
			Type: blockTrust, Headers: map[string]string{headCluster: string(c.Trust.Cluster)}, Bytes: r.Raw,
		})...)
	}
	return b, nil
}

// ReadCredential reads what Encode wrote. A sealed key needs its keyring.
func ReadCredential(text []byte, ring *Keyring) (*Credential, error) {
	var chain [][]byte
	var roots []*x509.Certificate
	var cluster gpuai.ClusterID
	var key *ecdsa.PrivateKey
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		var err error
		switch block.Type {
		case blockKey:
			key, err = parseKey(block.Bytes)
		case blockSealed:
			key, err = openKey(block.Bytes, ring)
		case blockChain:
			chain = append(chain, block.Bytes)
		case blockTrust:
			var c *x509.Certificate
			c, err = x509.ParseCertificate(block.Bytes)
			roots, cluster = append(roots, c), gpuai.ClusterID(block.Headers[headCluster])
		}
		if err != nil {
			return nil, err
		}
	}
	if key == nil || len(chain) == 0 || len(roots) == 0 {
		return nil, errors.New("the file has not a key, a certificate and an authority: it is damaged, or no credential of gpuai")
	}
	return NewCredential(key, chain, NewTrust(cluster, roots...))
}

func openKey(sealed []byte, ring *Keyring) (*ecdsa.PrivateKey, error) {
	if ring == nil {
		return nil, fmt.Errorf("%w: the key is sealed, and there is no key file: name it with --key-file", ErrKeyring)
	}
	der, err := ring.Open(keyAAD, sealed)
	if err != nil {
		return nil, err
	}
	return parseKey(der)
}
