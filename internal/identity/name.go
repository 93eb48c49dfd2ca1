package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
)

// A Peer is who a certificate says that it is.
type Peer struct {
	gpuai.Identity
	Cluster gpuai.ClusterID
	// Stamp is when the certificate was issued.
	Stamp gpuai.Stamp
	// NotAfter is until when the certificate is good.
	NotAfter time.Time
	// Issuer identifies the authority's key that signed it.
	Issuer [20]byte
}

// URI returns the name of an identity of a cluster.
func URI(cluster gpuai.ClusterID, id gpuai.Identity) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: string(cluster), Path: "/" + id.String()}
}

// peerOf reads a certificate; it proves nothing.
func peerOf(c *x509.Certificate) (p Peer, err error) {
	if len(c.URIs) != 1 {
		return p, errors.New("the certificate is of no region of gpuai: it has not one name")
	}
	u := c.URIs[0]
	p.Identity, err = gpuai.ParseIdentity(strings.TrimPrefix(u.Path, "/"))
	if err != nil || u.Scheme != "spiffe" || !gpuai.ValidName(u.Host) || u.String() != URI(gpuai.ClusterID(u.Host), p.Identity).String() {
		return Peer{}, fmt.Errorf("the certificate is of no region of gpuai: its name is %.100q", u)
	}
	p.Cluster = gpuai.ClusterID(u.Host)
	if p.Stamp, err = stampOf(c.SerialNumber); err != nil {
		return Peer{}, err
	}
	copy(p.Issuer[:], c.AuthorityKeyId)
	p.NotAfter = c.NotAfter
	return p, nil
}

// PeerOf returns who is at the other end of a connection that a Source has made
// or accepted: such connections exist only with certificates that were good when
// they were made. ok is false where no certificate was shown.
func PeerOf(state tls.ConnectionState) (kind, id string, ok bool) {
	who, _, ok := CertificateOf(state)
	if !ok {
		return "", "", false
	}
	return who.Kind.String(), who.Name, true
}

// CertificateOf is PeerOf with the stamp at which the certificate was issued.
func CertificateOf(state tls.ConnectionState) (id gpuai.Identity, issued gpuai.Stamp, ok bool) {
	if len(state.PeerCertificates) == 0 {
		return id, 0, false
	}
	p, err := peerOf(state.PeerCertificates[0])
	return p.Identity, p.Stamp, err == nil
}

// serialBytes is the length of a serial number: one that keeps it positive, the
// stamp, and what makes it unique.
const serialBytes = 1 + 8 + 8

// newSerial returns the serial number of a certificate that is issued at a stamp.
func newSerial(at gpuai.Stamp) *big.Int {
	b := binary.BigEndian.AppendUint64([]byte{1}, uint64(at))
	var unique [8]byte
	rand.Read(unique[:]) // never fails
	return new(big.Int).SetBytes(append(b, unique[:]...))
}

func stampOf(serial *big.Int) (gpuai.Stamp, error) {
	b := serial.Bytes()
	if len(b) != serialBytes || b[0] != 1 {
		return 0, errors.New("the certificate is of no region of gpuai: its serial number has no stamp")
	}
	return gpuai.Stamp(binary.BigEndian.Uint64(b[1:])), nil
}

// HashOf returns the hash of a certificate's public key.
func HashOf(c *x509.Certificate) gpuai.SubjectHash { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
