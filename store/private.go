package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Names of files beside a server's or an agent's data that prove who it is.
const (
	CredentialFile = "credential.pem" // certificate, key and trusted authorities
	KeyringFile    = "keyring"        // of a server: the region's keys
	TrustFile      = "ca.pem"         // of a server: what clients trust; no secret
	JoinFile       = "join"           // of a server: Raft addresses of those that it joins, a line each
)

// maxPrivate bounds the file that ReadPrivate reads.
const maxPrivate = 1 << 20

// ReadPrivate reads a file that nobody but its owner may read; nil where there is
// none. It refuses one that others can read.
func ReadPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	switch {
	case !info.Mode().IsRegular() || info.Size() > maxPrivate:
		return nil, fmt.Errorf("%s is no file of keys", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s can be read by others than its owner (%s): it holds keys; run chmod 600 %s, and rotate them if others may have read it", path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// WritePrivate replaces a file such that a crash leaves the old or the new
// content, and only its owner can read it. Missing directories are made.
func WritePrivate(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeAtomic(path, data)
}

// WritePublic replaces a file of no secrets, which all can read, in the same way.
func WritePublic(path string, data []byte) error { return writeMode(path, data, 0o644) }
