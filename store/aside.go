package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
)

// asidePrefix begins the name of what a wipe keeps within the directory.
const asidePrefix = "wiped-"

// OpenDirToWipe opens a data directory that is to be given to a new server. The
// identity may be damaged, which is what damaged says then: that is a reason to
// wipe it. It makes no directory.
func OpenDirToWipe(path string) (d *Dir, damaged, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open data directory: %w", err)
	}
	if !isDataDir(path) {
		return nil, nil, fmt.Errorf("%s holds no server's data: name the --data of the server that is to be rebuilt", path)
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, nil, err
	}
	d = &Dir{path: path, lock: lock}
	id, err := readIdentity(d.Path(identityFile))
	switch {
	case err == nil:
		d.identity, d.known = id, true
	case errors.Is(err, fs.ErrNotExist):
		damaged = fmt.Errorf("%s is missing", d.Path(identityFile))
	default:
		damaged = err
	}
	return d, damaged, nil
}

func isDataDir(path string) bool {
	for _, name := range []string{formatFile, identityFile, logFile} {
		if _, err := os.Stat(filepath.Join(path, name)); err == nil {
			return true
		}
	}
	return false
}

// Wipe gives the directory to the server next. All that it held is kept within
// it until DiscardAside, at the path returned. After a crash in between the
// directory is the old server's still, or refuses to start and is wiped again.
func (d *Dir) Wipe(next Identity) (aside string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return "", fmt.Errorf("wipe data directory: %w", err)
	}
	aside, err = os.MkdirTemp(d.path, asidePrefix+time.Now().UTC().Format("20060102T150405")+"-*")
	if err != nil {
		return "", fmt.Errorf("wipe data directory: %w", err)
	}
	if b, err := os.ReadFile(d.Path(identityFile)); err == nil {
		if err := writeAtomic(filepath.Join(aside, identityFile), b); err != nil {
			return "", err
		}
	}
	for _, e := range entries {
		if n := e.Name(); n == lockFile || n == formatFile || n == identityFile || strings.HasPrefix(n, asidePrefix) {
			continue
		}
		if err := os.Rename(d.Path(e.Name()), filepath.Join(aside, e.Name())); err != nil {
			return "", fmt.Errorf("wipe data directory: %w", err)
		}
	}
	if err := errors.Join(syncDir(aside), syncDir(d.path)); err != nil {
		return "", err
	}
	next.FormatVersion = FormatVersion
	if err := writeAtomic(d.Path(formatFile), fmt.Appendf(nil, "%d\n", FormatVersion)); err != nil {
		return "", err
	}
	if err := writeAtomic(d.Path(identityFile), next.encode()); err != nil {
		return "", err
	}
	d.identity, d.known = next, true
	return aside, nil
}

// DiscardAside deletes what wipes have kept, and returns the paths.
func (d *Dir) DiscardAside() (gone []string, err error) {
	kept, err := filepath.Glob(d.Path(asidePrefix + "*"))
	if err != nil {
		return nil, err
	}
	for _, path := range kept {
		if err := os.RemoveAll(path); err != nil {
			return gone, fmt.Errorf("delete what a wipe has kept: %w", err)
		}
		gone = append(gone, path)
	}
	return gone, nil
}

// ServerOf returns whose data directory a path is; "" for none's. It takes no
// lock.
func ServerOf(path string) (gpuai.ServerID, error) {
	id, err := readIdentity(filepath.Join(path, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return id.Server, err
}
