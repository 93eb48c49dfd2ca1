package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// FormatVersion is the version of the data directory's layout that this build
// writes. It reads no newer one.
const FormatVersion = 1

const (
	lockFile     = "LOCK"
	formatFile   = "FORMAT"
	identityFile = "identity"
)

// ErrInUse is returned by OpenDir, wrapped with the holder, when another
// process (or another Dir of this process) holds the directory.
var ErrInUse = errors.New("is already in use")

// ErrNoDir is returned by OpenLook, wrapped, when no server's data is there.
var ErrNoDir = errors.New("there is no data directory")

// ErrFormat is returned by OpenDir, wrapped, when the directory's layout is
// newer than this build or unreadable.
var ErrFormat = errors.New("has a format that this version does not know")

// A Dir is a server's data directory, locked against every other process
// until Close. Its methods are safe for concurrent use.
type Dir struct {
	path string
	lock *os.File

	mu       sync.Mutex // guards below and the identity file
	identity Identity
	known    bool // identity was read or set
	closed   bool
}

// OpenDir creates path where it is missing, locks it, and reads its identity.
// The error is a sentence for the operator.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	lock, err := lockDir(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, lock: lock}
	if err := d.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return d, nil
}

// lockDir takes the lock and writes this process into it. The kernel drops
// the lock with the process, however it ends.
func lockDir(path string) (*os.File, error) {
	name := filepath.Join(path, lockFile)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := os.ReadFile(name)
		f.Close()
		return nil, fmt.Errorf("data directory %s %w by process %s: stop that process, or give this one another directory",
			path, ErrInUse, strings.TrimSpace(string(holder)))
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock data directory %s: %w", path, err)
	}
	return f, nil
}

// load checks the format, writing it into a new directory, and reads the
// identity.
func (d *Dir) load() error {
	if _, err := os.Stat(d.Path(restoreFile)); err == nil {
		return fmt.Errorf("data directory %s %w", d.path, ErrRestoring)
	}
	switch b, err := os.ReadFile(d.Path(formatFile)); {
	case errors.Is(err, fs.ErrNotExist):
		if err := d.create(); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read format of data directory: %w", err)
	default:
		if err := checkFormat(d.path, strings.TrimSpace(string(b))); err != nil {
			return err
		}
	}
	id, err := readIdentity(d.Path(identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	d.identity, d.known = id, err == nil
	return err
}

// create makes d a data directory, unless it holds somebody else's files.
func (d *Dir) create() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("read data directory: %w", err)
	}
	for _, e := range entries {
		if n := e.Name(); n == identityFile || n == logFile || n == snapshotDir {
			return fmt.Errorf("data directory %s %w: it holds %s but no file %s; restore that file or use another directory",
				d.path, ErrFormat, n, formatFile)
		}
	}
	return writeAtomic(d.Path(formatFile), []byte(strconv.Itoa(FormatVersion)+"\n"))
}

func checkFormat(path, text string) error {
	v, err := strconv.Atoi(text)
	switch {
	case err != nil || v < 1:
		return fmt.Errorf("data directory %s %w: its file %s reads %q; is it a data directory of gpuai?", path, ErrFormat, formatFile, text)
	case v > FormatVersion:
		return fmt.Errorf("data directory %s %w: it has format %d and this build knows up to %d; run the newer version of gpuai that wrote it",
			path, ErrFormat, v, FormatVersion)
	}
	return nil
}

// Path returns the path of a file in d.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Identity returns the identity on disk; ok is false in a new directory.
func (d *Dir) Identity() (id Identity, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.identity, d.known
}

// SetIdentity makes id durable before it returns. It refuses, with
// ErrIdentity, to give the directory to another cluster, server or region, or
// to take Applied back.
func (d *Dir) SetIdentity(id Identity) error {
	return d.Update(func(i *Identity) { *i = id })
}

// Update changes the identity by f, which must not call d, under the rules of
// SetIdentity. It writes nothing when f changes nothing.
func (d *Dir) Update(f func(*Identity)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.identity
	f(&id)
	id.FormatVersion = FormatVersion
	if d.known && id == d.identity {
		return nil
	}
	return d.set(id)
}

// A Progress is how far a server has come.
type Progress struct {
	Applied, Term uint64
	Epoch         uint8
	Level         uint32
}

// Advance records that entries up to Applied were applied, and the epoch and
// level of the state. It is a no-op when the identity already says so.
func (d *Dir) Advance(p Progress) error {
	return d.Update(func(id *Identity) {
		id.Epoch, id.Level = max(id.Epoch, p.Epoch), max(id.Level, p.Level)
		if p.Applied > id.Applied {
			id.Formed, id.Applied, id.AppliedTerm = true, p.Applied, p.Term
		}
	})
}

func (d *Dir) set(id Identity) error {
	if d.closed {
		return fmt.Errorf("write identity: %w", fs.ErrClosed)
	}
	if d.known {
		if err := d.identity.allows(id); err != nil {
			return fmt.Errorf("data directory %s: %w", d.path, err)
		}
	}
	if err := writeAtomic(d.Path(identityFile), id.encode()); err != nil {
		return err
	}
	d.identity, d.known = id, true
	return nil
}

// Close unlocks d. The identity can be read afterwards, not written.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.lock.Close()
}
