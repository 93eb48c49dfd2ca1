package main

import (
	"fmt"

	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/store"
)

// openKeyring reads a region's keys from a file that its owner alone may read. It
// makes the file where there is none.
func openKeyring(path string) (*identity.Keyring, error) {
	text, err := store.ReadPrivate(path)
	if err != nil {
		return nil, err
	}
	if text == nil {
		ring := identity.NewKeyring()
		return ring, store.WritePrivate(path, ring.Encode())
	}
	ring, err := identity.ReadKeyring(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ring, nil
}
