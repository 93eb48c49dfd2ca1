package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// quarantineFile says that the snapshots in the directory may be of a state that
// differs from the other servers'.
const quarantineFile = "quarantine"

// SetQuarantine makes it durable that this server's state is not to be trusted.
func (d *Dir) SetQuarantine(reason string) error {
	return writeAtomic(d.Path(quarantineFile), []byte(reason+"\n"))
}

// Quarantine returns why this server's state is not to be trusted; "" when it is.
func (d *Dir) Quarantine() (string, error) {
	b, err := os.ReadFile(d.Path(quarantineFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the quarantine: %w", err)
	}
	if reason := strings.TrimSpace(string(b)); reason != "" {
		return reason, nil
	}
	return "its state differed from the others'", nil
}

// ClearQuarantine ends it.
func (d *Dir) ClearQuarantine() error {
	err := os.Remove(d.Path(quarantineFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end the quarantine: %w", err)
	}
	return syncDir(d.Path())
}

// DropSnapshot deletes one snapshot. One that is not there is no error.
func DropSnapshot(d *Dir, id string) error {
	if id == "" || id != filepath.Base(id) {
		return fmt.Errorf("delete a snapshot: %q is no snapshot's ID", id)
	}
	if err := os.RemoveAll(d.Path(snapshotDir, id)); err != nil {
		return fmt.Errorf("delete a snapshot: %w", err)
	}
	return syncDir(d.Path(snapshotDir))
}
