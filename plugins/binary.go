package plugins

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrBinary is returned when the file given as a driver cannot be one: it is
// missing, not executable, or not the one whose checksum is configured.
var ErrBinary = errors.New("unusable driver binary")

// checkBinary returns the absolute path of the driver's binary once it looks
// as configured. The sum is of the file as it is now: the file must not be
// writable by anybody whom the agent does not trust.
func checkBinary(cfg HostConfig) (string, error) {
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return "", fmt.Errorf("%w: driver %s: %w", ErrBinary, cfg.Name, err)
	}
	st, err := os.Stat(path)
	switch {
	case cfg.Path == "":
		return "", fmt.Errorf("%w: driver %s has no path: set the path of its binary", ErrBinary, cfg.Name)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: driver %s: there is no file %s: install it or correct the driver's path", ErrBinary, cfg.Name, path)
	case err != nil:
		return "", fmt.Errorf("%w: driver %s: %w", ErrBinary, cfg.Name, err)
	case !st.Mode().IsRegular():
		return "", fmt.Errorf("%w: driver %s: %s is not a file: correct the driver's path", ErrBinary, cfg.Name, path)
	case st.Mode()&0o111 == 0:
		return "", fmt.Errorf("%w: driver %s: %s is not executable: run chmod +x on it", ErrBinary, cfg.Name, path)
	case cfg.SHA256 == "":
		return path, nil
	}
	sum, err := fileSum(path)
	if err != nil {
		return "", fmt.Errorf("%w: driver %s: %w", ErrBinary, cfg.Name, err)
	}
	if sum != strings.ToLower(cfg.SHA256) {
		return "", fmt.Errorf("%w: driver %s: %s has the SHA-256 %s, configured is %s: install the right binary, or correct the checksum if you trust this one",
			ErrBinary, cfg.Name, path, sum, cfg.SHA256)
	}
	return path, nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("opening it for its checksum: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading it for its checksum: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
