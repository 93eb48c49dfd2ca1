package identity

import (
	"encoding/hex"
	"fmt"
	"slices"
)

// A KeyID names a key of a keyring.
type KeyID = [keyIDBytes]byte

// ParseKeyID reads the name of a key as KeyIDs and key files have it.
func ParseKeyID(s string) (id KeyID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("a region key's name is %d hexadecimal digits, such as 1f00c3a9, not %q", 2*len(id), s)
	}
	return KeyID(b), nil
}

// Add returns a keyring with a new key behind those of k, which goes on sealing
// with its first.
func (k *Keyring) Add() (*Keyring, KeyID) {
	next := NewKeyring()
	for next.ActiveID() == (KeyID{}) || k.Has(next.ActiveID()) {
		next = NewKeyring() // one in four thousand million
	}
	return k.Take(next), next.ActiveID()
}

func (k *Keyring) at(id KeyID) int {
	return slices.IndexFunc(k.keys, func(key ringKey) bool { return key.id == id })
}

// Has reports whether k has a key.
func (k *Keyring) Has(id KeyID) bool { return k.at(id) >= 0 }

// Take returns k with the keys of o behind its own that it does not have.
func (k *Keyring) Take(o *Keyring) *Keyring {
	out := &Keyring{keys: slices.Clone(k.keys)}
	for _, key := range o.keys {
		if len(out.keys) < maxKeys && !out.Has(key.id) {
			out.keys = append(out.keys, key)
		}
	}
	return out
}

// Only returns those of k's keys that are named; nil where it has none of them.
func (k *Keyring) Only(ids []KeyID) *Keyring {
	out := &Keyring{}
	for _, id := range ids {
		if i := k.at(id); i >= 0 && !out.Has(id) {
			out.keys = append(out.keys, k.keys[i])
		}
	}
	if len(out.keys) == 0 {
		return nil
	}
	return out
}

// Activate returns k with a key that it has as the one that seals.
func (k *Keyring) Activate(id KeyID) *Keyring {
	i := k.at(id)
	if i <= 0 {
		return k
	}
	out := &Keyring{keys: []ringKey{k.keys[i]}}
	out.keys = append(out.keys, k.keys[:i]...)
	out.keys = append(out.keys, k.keys[i+1:]...)
	return out
}

// Without returns k without a key; k itself where it lacks it, or seals with it.
func (k *Keyring) Without(id KeyID) *Keyring {
	i := k.at(id)
	if i <= 0 {
		return k
	}
	return &Keyring{keys: slices.Delete(slices.Clone(k.keys), i, i+1)}
}
