package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/gpuai/gpuai/internal/identity"
)

// openKeyring reads a region's keys from a file that its owner alone may read. It
// makes the file where there is none.
func openKeyring(path string) (*identity.Keyring, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return readKeyring(path)
	}
	if err != nil {
		return nil, fmt.Errorf("the key file: %w", err)
	}
	ring := identity.NewKeyring()
	_, err = f.Write(ring.Encode())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("the key file: %w", err), os.Remove(path))
	}
	return ring, nil
}

func readKeyring(path string) (*identity.Keyring, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("the key file: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key file %s can be read by others than its owner (%s): run chmod 600 %s, and rotate its keys if others may have read them", path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the key file: %w", err)
	}
	ring, err := identity.ReadKeyring(b)
	if err != nil {
		return nil, fmt.Errorf("the key file %s: %w", path, err)
	}
	return ring, nil
}
