package gpuai

import (
	"errors"
	"strings"
)

// IdentityKind says what a certificate stands for. Its text is stable.
type IdentityKind uint8

// The kinds of identities.
const (
	IdentityNone IdentityKind = iota
	IdentityNode
	IdentityServer
	numIdentityKinds
)

var identityKindNames = [numIdentityKinds]string{"", "node", "server"}

// Valid reports whether k is a kind that there is.
func (k IdentityKind) Valid() bool { return k > IdentityNone && k < numIdentityKinds }

// String returns the kind's text.
func (k IdentityKind) String() string { return enumName(identityKindNames[:], uint8(k)) }

// MarshalText writes the kind's text.
func (k IdentityKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's text.
func (k *IdentityKind) UnmarshalText(b []byte) error {
	return enumParse(identityKindNames[:], "kind of identity", b, (*uint8)(k))
}

// An Identity is what a region's certificate names: a node or a server.
type Identity struct {
	Kind IdentityKind
	Name string // a NodeID or a ServerID
}

// String returns "node/NAME" or "server/NAME".
func (i Identity) String() string { return i.Kind.String() + "/" + i.Name }

// Valid reports whether i names something.
func (i Identity) Valid() bool { return i.Kind.Valid() && ValidName(i.Name) }

// ParseIdentity reads "node/NAME" or "server/NAME".
func ParseIdentity(s string) (i Identity, err error) {
	kind, name, ok := strings.Cut(s, "/")
	if ok && kind != "" {
		err = i.Kind.UnmarshalText([]byte(kind))
	}
	if i.Name = name; !ok || err != nil || !i.Valid() {
		return Identity{}, errors.New("an identity is node/NAME or server/NAME, such as node/gpu-7")
	}
	return i, nil
}

// A Stamp orders what happens in a region over restores of backups: the epoch in
// the upper 8 bits, the log index in the others. A certificate's serial number
// begins with the stamp at which it was issued.
type Stamp uint64

// StampOf returns the stamp of an index in an epoch.
func StampOf(epoch uint8, index uint64) Stamp { return Stamp(epoch)<<56 | Stamp(index)&(1<<56-1) }

// Epoch returns the epoch of s.
func (s Stamp) Epoch() uint8 { return uint8(s >> 56) }

// Bounds of join tokens and certificates.
const (
	DefaultJoinTTL = 15 * Minute
	MaxJoinTTL     = Hour
	// CertificateTTL is how long a certificate is good for; it is renewed at half of it.
	CertificateTTL = 24 * Hour
)

// A SubjectHash is the SHA-256 of a public key as certificates have it
// (SubjectPublicKeyInfo).
type SubjectHash [32]byte

// A JoinTokenRequest is the body of POST /v1/operator/join-tokens.
type JoinTokenRequest struct {
	Join IdentityKind `json:"join"`
	// TTL is for how long the token is good; absent is DefaultJoinTTL.
	TTL Duration `json:"ttl_ms,omitzero"`
	// Name is the only node or server that may join with it; "" is any that has
	// not joined before.
	Name        string        `json:"name,omitzero"`
	Contributor ContributorID `json:"contributor,omitzero"` // whose node it will be
}

// A JoinToken is the answer to a JoinTokenRequest. Its text is shown once.
type JoinToken struct {
	Token       string        `json:"token"`
	Join        IdentityKind  `json:"join"`
	TTL         Duration      `json:"ttl_ms"`
	Name        string        `json:"name,omitzero"`
	Contributor ContributorID `json:"contributor,omitzero"`
	Index       uint64        `json:"index"`
}

// A JoinRequest is the body of POST /v1/join: a token, and a certificate
// signing request in PEM of a key that never leaves the host.
type JoinRequest struct {
	Token string `json:"token"`
	CSR   string `json:"csr"`
}

// A RenewRequest is the body of POST /v1/agent/certificate. Who asks is told by
// the certificate that the request came with.
type RenewRequest struct {
	CSR string `json:"csr"`
}

// An IssuedCertificate is the answer to both. All of it is PEM.
type IssuedCertificate struct {
	// Certificate is the chain: the certificate itself first.
	Certificate string `json:"certificate"`
	// Trust is every authority of the region that is trusted now.
	Trust string `json:"trust"`
	// Cluster is the name under which the region's certificates are made.
	Cluster ClusterID `json:"cluster"`
	// Keyring holds the region's keys, for servers only: encrypted to the key of
	// the request, as identity.OpenRing reads it.
	Keyring string `json:"keyring,omitzero"`
	// Servers are the Raft addresses of the members, for servers only.
	Servers []string `json:"servers,omitzero"`
}

// An Authority is a CA of a region, without its key.
type Authority struct {
	// Hash is the SHA-256 of its public key, in hexadecimal digits.
	Hash   string `json:"spki_sha256"`
	Active bool   `json:"active"` // it issues; else it is trusted until RetireAt
	// RetireAt is in region time; 0 for the active one.
	RetireAt    Instant `json:"retire_at_ms,omitzero"`
	Certificate string  `json:"certificate"` // PEM
}

// An AuthorityList is a region's CAs.
type AuthorityList struct {
	Authorities []Authority `json:"authorities"`
	Cluster     ClusterID   `json:"cluster"`
	Time        Instant     `json:"region_time_ms"`
	Index       uint64      `json:"index"`
}
