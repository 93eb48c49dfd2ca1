package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// CreateSecret leaves a secret in a file that only its owner can read, unless
// there is one; made says which.
func (d *Dir) CreateSecret(name, text string) (made bool, err error) {
	f, err := os.OpenFile(d.Path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err == nil {
		_, err = f.WriteString(text + "\n")
		err = errors.Join(err, f.Sync(), f.Close())
	}
	return err == nil, err
}

// Secret returns what CreateSecret has left; "" when there is none.
func (d *Dir) Secret(name string) (string, error) {
	b, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// RemoveSecret takes a secret away that is of no use any more.
func (d *Dir) RemoveSecret(name string) error {
	if err := os.Remove(d.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// TakeSecret is RemoveSecret, and reports whether this call took the secret away.
func (d *Dir) TakeSecret(name string) (bool, error) {
	err := os.Remove(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// PrivateSecret returns what LeaveSecret has left, and when; "" when there is none.
// It refuses a file that others can read.
func (d *Dir) PrivateSecret(name string) (text string, left time.Time, err error) {
	b, err := ReadPrivate(d.Path(name))
	if err != nil || b == nil {
		return "", left, err
	}
	info, err := os.Lstat(d.Path(name))
	if err != nil {
		return "", left, err
	}
	return strings.TrimSpace(string(b)), info.ModTime(), nil
}

// LeaveSecret writes a secret into the data directory of another process, in place
// of an older one. Only the directory's owner can read it.
func LeaveSecret(dir, name, text string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		err = f.Chown(int(st.Uid), int(st.Gid))
	}
	if err == nil {
		_, err = f.WriteString(text + "\n")
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}
