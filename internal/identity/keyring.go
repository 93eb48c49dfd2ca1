package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrKeyring is returned, wrapped with what is wrong, for a keyring that cannot
// be read and for what was not sealed under it.
var ErrKeyring = errors.New("keyring")

const (
	keyringHead  = "gpuai-keyring 1"
	sealVersion  = 1
	keyIDBytes   = 4
	keyBytes     = 32
	nonceBytes   = 12
	sealOverhead = 1 + keyIDBytes + nonceBytes + 16
	maxKeys      = 64
)

// A Keyring holds the keys of a region, under which everything is sealed that
// the replicated state must not hold in clear. Every server has the same; the
// first key seals, all of them open. It is not changed once it is made.
type Keyring struct{ keys []ringKey }

type ringKey struct {
	id   [keyIDBytes]byte
	aead cipher.AEAD
	raw  [keyBytes]byte
}

// NewKeyring returns a keyring with one new key.
func NewKeyring() *Keyring { return (&Keyring{}).Rotate() }

// Rotate returns a keyring that seals with a new key and opens with the old ones
// too.
func (k *Keyring) Rotate() *Keyring {
	var id [keyIDBytes]byte
	var raw [keyBytes]byte
	rand.Read(id[:]) // never fails
	rand.Read(raw[:])
	return &Keyring{keys: append([]ringKey{newRingKey(id, raw)}, k.keys...)}
}

func newRingKey(id [keyIDBytes]byte, raw [keyBytes]byte) ringKey {
	block, err := aes.NewCipher(raw[:])
	if err != nil {
		panic(err) // the key has the size that AES-256 takes
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has the block size that GCM takes
	}
	return ringKey{id, aead, raw}
}

// Seal encrypts plain with AES-256-GCM under the first key. Only Open with equal
// aad, which says what it is and whose, gives it back.
func (k *Keyring) Seal(aad string, plain []byte) []byte {
	key := &k.keys[0]
	out := append([]byte{sealVersion}, key.id[:]...)
	nonce := make([]byte, nonceBytes)
	rand.Read(nonce) // never fails
	out = append(out, nonce...)
	return key.aead.Seal(out, nonce, plain, []byte(aad))
}

// Open gives back what was sealed. Its errors wrap ErrKeyring.
func (k *Keyring) Open(aad string, sealed []byte) ([]byte, error) {
	if len(sealed) < sealOverhead || sealed[0] != sealVersion {
		return nil, fmt.Errorf("%w: this was not sealed under a keyring", ErrKeyring)
	}
	id := sealed[1 : 1+keyIDBytes]
	i := slices.IndexFunc(k.keys, func(key ringKey) bool { return bytes.Equal(key.id[:], id) })
	if i < 0 {
		return nil, fmt.Errorf("%w: it has no key %x, under which this was sealed: give this server the region's key file with --key-file", ErrKeyring, id)
	}
	plain, err := k.keys[i].aead.Open(nil, sealed[1+keyIDBytes:1+keyIDBytes+nonceBytes], sealed[1+keyIDBytes+nonceBytes:], []byte(aad))
	if err != nil {
		return nil, fmt.Errorf("%w: what was sealed under key %x was changed, or is of another place", ErrKeyring, id)
	}
	return plain, nil
}

// KeyIDs returns the names of the keys, the one that seals first.
func (k *Keyring) KeyIDs() (out []string) {
	for i := range k.keys {
		out = append(out, hex.EncodeToString(k.keys[i].id[:]))
	}
	return out
}

// Encode returns the keyring as a file holds it: secret text.
func (k *Keyring) Encode() []byte {
	b := []byte(keyringHead + "\n")
	for i := range k.keys {
		b = fmt.Appendf(b, "%x %s\n", k.keys[i].id, base64.StdEncoding.EncodeToString(k.keys[i].raw[:]))
	}
	return b
}

// ReadKeyring reads what Encode wrote. Its errors wrap ErrKeyring and hold nothing
// of the keys.
func ReadKeyring(b []byte) (*Keyring, error) {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if lines[0] != keyringHead || len(lines) < 2 || len(lines) > 1+maxKeys {
		return nil, fmt.Errorf("%w: it does not begin with %q and a key: is it the right file?", ErrKeyring, keyringHead)
	}
	k := &Keyring{}
	for n, line := range lines[1:] {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		id, err := hex.DecodeString(name)
		raw, err2 := base64.StdEncoding.DecodeString(text)
		if err != nil || err2 != nil || len(id) != keyIDBytes || len(raw) != keyBytes {
			return nil, fmt.Errorf("%w: line %d is no key", ErrKeyring, n+2)
		}
		k.keys = append(k.keys, newRingKey([keyIDBytes]byte(id), [keyBytes]byte(raw)))
	}
	return k, nil
}
