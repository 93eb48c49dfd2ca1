package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	hraft "github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// A Look is a data directory opened for examination: locked against a server,
// and nothing in it is changed.
type Look struct {
	path string
	lock *os.File
}

// OpenLook opens the data directory of a stopped server. It returns an error
// matching ErrInUse while a server has it, ErrNoDir when it is none of ours,
// ErrFormat when it is of a newer layout.
func OpenLook(path string) (*Look, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(path, formatFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, noDataDir(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read format of data directory: %w", err)
	}
	lock, err := lockToLook(path)
	if err != nil {
		return nil, err
	}
	if err := checkFormat(path, strings.TrimSpace(string(b))); err != nil {
		lock.Close()
		return nil, err
	}
	return &Look{path: path, lock: lock}, nil
}

// noDataDir says what is at a path instead of a data directory.
func noDataDir(path string) error {
	const next = "name the --data that 'gpuai server run' was started with"
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w at %s, nothing is there: %s", ErrNoDir, path, next)
	case err == nil && !info.IsDir():
		return fmt.Errorf("%w at %s, it is a file: %s", ErrNoDir, path, next)
	}
	return fmt.Errorf("%w at %s, it has no file %s: %s", ErrNoDir, path, formatFile, next)
}

// lockToLook takes the lock and leaves the file as it is.
func lockToLook(path string) (*os.File, error) {
	name := filepath.Join(path, lockFile)
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := os.ReadFile(name)
		f.Close()
		return nil, fmt.Errorf("data directory %s %w by process %s: stop that server first", path, ErrInUse, strings.TrimSpace(string(holder)))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock data directory %s: %w", path, err)
	}
	return f, nil
}

// Close unlocks the directory.
func (k *Look) Close() error { return k.lock.Close() }

// Path returns the path of a file in the directory.
func (k *Look) Path(elem ...string) string {
	return filepath.Join(append([]string{k.path}, elem...)...)
}

// Identity reads the identity; the error wraps fs.ErrNotExist when there is
// none yet, ErrIdentity when it is damaged.
func (k *Look) Identity() (Identity, error) { return readIdentity(k.Path(identityFile)) }

// An Entry is an entry of the log. Command says that Data is for the machine,
// and not Raft's own.
type Entry struct {
	Index, Term uint64
	Command     bool
	Data        []byte
}

// A LogLook reads a log that nobody writes.
type LogLook struct {
	disk        *diskLog
	First, Last uint64 // 0: the log is empty
	Term        uint64 // Raft's current term
}

// OpenLog opens the log for reading and visits every page of it. The error
// wraps fs.ErrNotExist when there is none, and matches ErrDamaged when it
// cannot be read.
func (k *Look) OpenLog() (l *LogLook, err error) {
	path := k.Path(logFile)
	defer recoverDamage(path, 0, &err)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if info.Size() == 0 {
		return nil, &DamageError{Path: path, Cause: errors.New("the file is empty")}
	}
	if err := walkPages(path); err != nil {
		return nil, err
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path: path, BoltOptions: &bbolt.Options{ReadOnly: true, Timeout: openTimeout}, MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return nil, openError(path, err)
	}
	l = &LogLook{disk: &diskLog{bolt: bolt, path: path}}
	if l.First, err = l.disk.FirstIndex(); err == nil {
		l.Last, err = l.disk.LastIndex()
	}
	if err == nil {
		if l.Term, err = bolt.GetUint64(keyCurrentTerm); err != nil && err.Error() == "not found" {
			err = nil
		}
	}
	if err != nil {
		bolt.Close()
		return nil, err
	}
	return l, nil
}

// Read reads an entry and checks it against its checksum. The error matches
// ErrDamaged, or wraps fs.ErrNotExist for an entry that is not there.
func (l *LogLook) Read(index uint64) (Entry, error) {
	var e hraft.Log
	err := l.disk.GetLog(index, &e)
	if errors.Is(err, hraft.ErrLogNotFound) {
		return Entry{}, fmt.Errorf("log entry %d: %w", index, fs.ErrNotExist)
	}
	return Entry{Index: e.Index, Term: e.Term, Command: e.Type == hraft.LogCommand, Data: e.Data}, err
}

// Close closes the log.
func (l *LogLook) Close() error { return l.disk.bolt.Close() }

// A SnapshotLook is one snapshot of a directory.
type SnapshotLook struct {
	Name        string // of its directory
	Path        string // of the state
	Index, Term uint64
	size        int64
	crc         []byte
	err         error // its description cannot be read
}

// Snapshots returns the snapshots, newest first by their names: those whose
// description is damaged, too.
func (k *Look) Snapshots() ([]SnapshotLook, error) {
	entries, err := os.ReadDir(k.Path(snapshotDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var out []SnapshotLook
	for _, e := range entries {
		if index, ok := nameIndex(e); ok {
			s := k.snapshot(e.Name())
			if s.err != nil {
				s.Index = index
			}
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b SnapshotLook) int {
		return int(min(1, max(-1, int64(b.Index)-int64(a.Index))))
	})
	return out, nil
}

func (k *Look) snapshot(name string) SnapshotLook {
	s := SnapshotLook{Name: name, Path: k.Path(snapshotDir, name, "state.bin")}
	var meta struct {
		hraft.SnapshotMeta
		CRC []byte
	}
	b, err := os.ReadFile(k.Path(snapshotDir, name, "meta.json"))
	if err == nil {
		err = json.Unmarshal(b, &meta)
	}
	if err == nil && (meta.Version < hraft.SnapshotVersionMin || meta.Version > hraft.SnapshotVersionMax) {
		err = fmt.Errorf("it has version %d", meta.Version)
	}
	if err != nil {
		s.err = fmt.Errorf("its description meta.json cannot be read: %w", err)
	}
	s.Index, s.Term, s.size, s.crc = meta.Index, meta.Term, meta.Size, meta.CRC
	return s
}

// Check reads the state through and compares it with the size and the checksum
// in its description.
func (s *SnapshotLook) Check() error {
	if s.err != nil {
		return s.err
	}
	f, err := os.Open(s.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := crc64.New(crc64.MakeTable(crc64.ECMA))
	n, err := io.Copy(h, f)
	switch {
	case err != nil:
		return err
	case n != s.size:
		return fmt.Errorf("it has %d bytes and should have %d", n, s.size)
	case !slices.Equal(h.Sum(nil), s.crc):
		return errors.New("it fails its checksum")
	}
	return nil
}

// Path returns the log's file.
func (l *LogLook) Path() string { return l.disk.path }
