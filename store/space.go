package store

import (
	"fmt"
	"syscall"
)

// DiskFree returns how many bytes an unprivileged process may still write on
// the file system of path, and its size.
func DiskFree(path string) (free, total uint64, err error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0, 0, fmt.Errorf("read the free space of %s: %w", path, err)
	}
	unit := uint64(s.Frsize)
	if unit == 0 {
		unit = uint64(s.Bsize)
	}
	return uint64(s.Bavail) * unit, uint64(s.Blocks) * unit, nil
}
