package store

import (
	"errors"
	"io/fs"
	"os"
	"strings"
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
