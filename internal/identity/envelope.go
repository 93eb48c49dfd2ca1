package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
)

// SealEnvelope encrypts plain with AES-256-GCM under a data key of its own, and
// that key under the keyring: another region key takes over by Reseal, without the
// box being made anew. aad is bound to both, as with Seal.
func (k *Keyring) SealEnvelope(aad string, plain []byte) (seal, box []byte) {
	key := make([]byte, keyBytes)
	rand.Read(key) // never fails
	aead := dataKey(key)
	nonce := make([]byte, nonceBytes)
	rand.Read(nonce) // never fails
	return k.Seal(aad, key), aead.Seal(nonce, nonce, plain, []byte(aad))
}

// OpenEnvelope gives back what was sealed. Its errors wrap ErrKeyring.
func (k *Keyring) OpenEnvelope(aad string, seal, box []byte) ([]byte, error) {
	key, err := k.Open(aad, seal)
	if err != nil {
		return nil, err
	}
	if len(key) != keyBytes || len(box) < nonceBytes {
		return nil, fmt.Errorf("%w: this was not sealed under a data key", ErrKeyring)
	}
	plain, err := dataKey(key).Open(nil, box[:nonceBytes], box[nonceBytes:], []byte(aad))
	if err != nil {
		return nil, fmt.Errorf("%w: what was sealed under a data key was changed, or is of another place", ErrKeyring)
	}
	return plain, nil
}

// Reseal seals a data key under the first region key. Its errors wrap ErrKeyring.
func (k *Keyring) Reseal(aad string, seal []byte) ([]byte, error) {
	key, err := k.Open(aad, seal)
	if err != nil {
		return nil, err
	}
	return k.Seal(aad, key), nil
}

// SealID returns which region key a seal is under.
func SealID(seal []byte) (id [keyIDBytes]byte) {
	if len(seal) >= sealOverhead {
		copy(id[:], seal[1:])
	}
	return id
}

// ActiveID returns the name of the key that seals.
func (k *Keyring) ActiveID() [keyIDBytes]byte { return k.keys[0].id }

func dataKey(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has the size that AES-256 takes
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has the block size that GCM takes
	}
	return aead
}
