package identity

import (
	"crypto/ecdsa"
	"crypto/hpke"
	"encoding/base64"
	"fmt"
)

// ringInfo binds what is sealed to its purpose.
var ringInfo = []byte("gpuai keyring for a server that joins")

// SealRing encrypts a keyring for who has the key of a request (HPKE, RFC 9180, of
// P-256, HKDF-SHA256 and AES-256-GCM). A request is no secret, and proves no key to
// who is sent it a second time: what is sealed is of no use to anybody else.
func (r *Request) SealRing(k *Keyring) (string, error) {
	pub, err := r.csr.PublicKey.(*ecdsa.PublicKey).ECDH()
	if err != nil {
		return "", fmt.Errorf("seal a keyring: %w", err)
	}
	to, err := hpke.NewDHKEMPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("seal a keyring: %w", err)
	}
	sealed, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), ringInfo, k.Encode())
	if err != nil {
		return "", fmt.Errorf("seal a keyring: %w", err)
	}
	return base64.StdEncoding.EncodeToString(sealed), nil
}

// OpenRing reads what SealRing wrote for a request of key. Its errors wrap
// ErrKeyring.
func OpenRing(key *ecdsa.PrivateKey, text string) (*Keyring, error) {
	sealed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: the server's answer holds none: %w", ErrKeyring, err)
	}
	priv, err := key.ECDH()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyring, err)
	}
	own, err := hpke.NewDHKEMPrivateKey(priv)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyring, err)
	}
	plain, err := hpke.Open(own, hpke.HKDFSHA256(), hpke.AES256GCM(), ringInfo, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: the one in the answer is for another key than this server's", ErrKeyring)
	}
	return ReadKeyring(plain)
}
