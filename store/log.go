package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	logFile = "raft.db"
	// logCache is how many of the newest entries are kept in memory, for the
	// followers that read them a moment later.
	logCache = 128
	// deleteChunk bounds one deleting transaction: a larger one blocks
	// commits for seconds.
	deleteChunk = 4096
	openTimeout = 2 * time.Second
)

// ErrDamaged is matched by a DamageError.
var ErrDamaged = errors.New("fails its checksum")

// ErrLost is returned, wrapped, when the log and the snapshots end before
// what the server is known to have applied.
var ErrLost = errors.New("this server's log is behind its recorded identity")

// A DamageError says that a log entry cannot be what was written.
type DamageError struct {
	Index uint64 // 0: the file as a whole
	Path  string
	Cause error
}

// Error returns the operator's sentence.
func (e *DamageError) Error() string {
	what := fmt.Sprintf("log entry %d", e.Index)
	if e.Index == 0 {
		what = "the log"
	}
	return fmt.Sprintf("%s fails its checksum (%s: %v): rebuild this server with 'gpuai server rejoin --wipe'", what, e.Path, e.Cause)
}

// Is makes errors.Is(err, ErrDamaged) true.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }

// Unwrap returns the cause.
func (e *DamageError) Unwrap() error { return e.Cause }

// A Log is the Raft log and Raft's stable keys in one bbolt file. Each write
// is on disk before it returns.
//
// Every entry, raft's own configuration entries too, is stored with a CRC32C
// over its index, term, type, data and extensions. The checksum is appended
// to the stored entry's Extensions, which leaves Data (up to 256 KiB) without
// a copy, and is checked and taken off on read; entries on the wire and in
// memory never carry it. AppendedAt is information only and not covered.
//
// Reads and writes may run concurrently, as hraft does it.
type Log struct {
	*hraft.LogCache // outside the chunked DeleteRange of disk
	disk            *diskLog
}

var (
	_ hraft.LogStore    = (*Log)(nil)
	_ hraft.StableStore = (*Log)(nil)
)

// OpenLog opens the log in d, or makes it in a directory whose identity says
// that there was none yet. It returns an error matching ErrLost when the file
// has vanished or is empty, ErrDamaged when it cannot be read.
func OpenLog(d *Dir) (*Log, error) {
	path := d.Path(logFile)
	info, err := os.Stat(path)
	switch id, _ := d.Identity(); {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open log: %w", err)
	case id.Formed && err != nil:
		return nil, lost("%s is missing", path)
	case id.Formed && info.Size() == 0:
		return nil, lost("%s is empty", path)
	}
	bolt, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	disk := &diskLog{bolt: bolt, path: path}
	cache, err := hraft.NewLogCache(logCache, disk)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &Log{LogCache: cache, disk: disk}, nil
}

func lost(format string, args ...any) error {
	return fmt.Errorf("%w: "+format+"; put the file back, or rebuild this server with 'gpuai server rejoin --wipe'",
		append([]any{ErrLost}, args...)...)
}

// openBolt opens the file; bbolt panics where it meets a damaged page.
func openBolt(path string) (bolt *raftboltdb.BoltStore, err error) {
	defer recoverDamage(path, 0, &err)
	if err := walkPages(path); err != nil {
		return nil, err
	}
	bolt, err = raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout:        openTimeout,
			NoFreelistSync: true, // a synced freelist costs 30 times the commit once the log was truncated
			FreelistType:   bbolt.FreelistMapType,
		},
		NoSync:                  false, // never: it loses acknowledged entries at a power cut
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return nil, openError(path, err)
	}
	return bolt, nil
}

// walkPages visits every page of an existing file once, read-only. Opened for
// writing, bbolt does the same walk in a goroutine of its own, where a panic
// over a damaged page would end the process with a stack trace.
func walkPages(path string) (err error) {
	if info, statErr := os.Stat(path); statErr != nil || info.Size() == 0 {
		return nil
	}
	defer recoverDamage(path, 0, &err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: openTimeout})
	if err != nil {
		return openError(path, err)
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return walkBucket(path, b) })
	})
}

// walkBucket checks that the keys grow, which no page met twice can pass.
func walkBucket(path string, b *bbolt.Bucket) error {
	var last []byte
	c := b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if last != nil && bytes.Compare(last, k) >= 0 {
			return &DamageError{Path: path, Cause: fmt.Errorf("key %x follows %x", k, last)}
		}
		last = k
	}
	return nil
}

// openError tells a damaged file from one that cannot be opened now.
func openError(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return &DamageError{Path: path, Cause: err}
}

// recoverDamage turns a panic of bbolt, and a fault in its memory map, into a
// DamageError. Deferred directly.
func recoverDamage(path string, index uint64, err *error) {
	if p := recover(); p != nil {
		*err = &DamageError{Index: index, Path: path, Cause: fmt.Errorf("%v", p)}
	}
}

// StoreLogs stores entries and remembers the newest ones. A failed write is a
// WriteError.
func (l *Log) StoreLogs(entries []*hraft.Log) error {
	err := l.LogCache.StoreLogs(entries)
	if cause := l.disk.stored.Swap(nil); err != nil && cause != nil {
		return *cause // the cache keeps no more of it than its text
	}
	return err
}

// StoreLog is StoreLogs of one entry.
func (l *Log) StoreLog(e *hraft.Log) error { return l.StoreLogs([]*hraft.Log{e}) }

// Set stores a stable key. A failed write is a WriteError.
func (l *Log) Set(key, val []byte) error {
	return l.disk.write(func() error { return l.disk.bolt.Set(key, val) })
}

// Get returns a stable key's value, or an error that reads "not found".
func (l *Log) Get(key []byte) ([]byte, error) { return l.disk.bolt.Get(key) }

// SetUint64 stores a stable number. A failed write is a WriteError.
func (l *Log) SetUint64(key []byte, val uint64) error {
	return l.disk.write(func() error { return l.disk.bolt.SetUint64(key, val) })
}

// GetUint64 returns a stable number, or an error that reads "not found".
func (l *Log) GetUint64(key []byte) (uint64, error) { return l.disk.bolt.GetUint64(key) }

// Path returns the file's path.
func (l *Log) Path() string { return l.disk.path }

// Close closes the file. No other method may run.
func (l *Log) Close() error {
	if err := l.disk.bolt.Close(); err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// diskLog adds checksums and chunked deletion to raft-boltdb.
type diskLog struct {
	bolt   boltStore
	path   string
	broken atomic.Pointer[WriteError] // the file is not written again
	stored atomic.Pointer[error]      // why StoreLogs failed last
}

// boltStore is what is used of raft-boltdb.
type boltStore interface {
	hraft.LogStore
	hraft.StableStore
	Close() error
}

var _ boltStore = (*raftboltdb.BoltStore)(nil)

var _ hraft.LogStore = (*diskLog)(nil)

func (l *diskLog) FirstIndex() (i uint64, err error) {
	defer recoverDamage(l.path, 0, &err)
	return l.bolt.FirstIndex()
}

func (l *diskLog) LastIndex() (i uint64, err error) {
	defer recoverDamage(l.path, 0, &err)
	return l.bolt.LastIndex()
}

// GetLog reads and checks one entry. It returns hraft.ErrLogNotFound for one
// that is not there and a DamageError for one that is not what was written.
func (l *diskLog) GetLog(index uint64, out *hraft.Log) (err error) {
	defer recoverDamage(l.path, index, &err)
	// A page behind the end of a truncated file faults; make that a panic.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	*out = hraft.Log{}
	err = l.bolt.GetLog(index, out)
	if errors.Is(err, hraft.ErrLogNotFound) {
		return err
	}
	if err == nil {
		err = unseal(index, out)
	}
	if err != nil {
		return &DamageError{Index: index, Path: l.path, Cause: err}
	}
	return nil
}

// StoreLog stores one entry.
func (l *diskLog) StoreLog(e *hraft.Log) error { return l.StoreLogs([]*hraft.Log{e}) }

// StoreLogs stores entries in one transaction. They are not changed.
func (l *diskLog) StoreLogs(entries []*hraft.Log) (err error) {
	defer recoverDamage(l.path, 0, &err)
	sealed := make([]hraft.Log, len(entries))
	refs := make([]*hraft.Log, len(entries))
	for i, e := range entries {
		sealed[i] = seal(e)
		refs[i] = &sealed[i]
	}
	err = l.write(func() error { return l.bolt.StoreLogs(refs) })
	if err != nil {
		l.stored.Store(&err)
	}
	return err
}

// DeleteRange deletes min … max in chunks. A crash between two of them must
// leave no hole: the front of the log is deleted upwards, its end downwards.
func (l *diskLog) DeleteRange(lo, hi uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil || last == 0 {
		return err
	}
	lo, hi = max(lo, first), min(hi, last)
	if lo > hi {
		return nil
	}
	for _, c := range chunks(lo, hi, lo > first) {
		if err := l.deleteChunk(c[0], c[1]); err != nil {
			return err
		}
	}
	return nil
}

func (l *diskLog) deleteChunk(lo, hi uint64) (err error) {
	defer recoverDamage(l.path, lo, &err)
	return l.write(func() error { return l.bolt.DeleteRange(lo, hi) })
}

// chunks cuts lo … hi into ranges of at most deleteChunk, in the order in
// which to delete them.
func chunks(lo, hi uint64, downwards bool) [][2]uint64 {
	var out [][2]uint64
	for at := lo; at <= hi; at += deleteChunk {
		out = append(out, [2]uint64{at, min(hi, at+deleteChunk-1)})
	}
	if downwards {
		slices.Reverse(out)
	}
	return out
}

// sealLen is the length of what seal appends: a format byte and the CRC32C.
const (
	sealLen    = 5
	sealFormat = 1
)

// seal returns a copy of e for the disk, which shares Data.
func seal(e *hraft.Log) hraft.Log {
	out := *e
	ext := make([]byte, 0, len(e.Extensions)+sealLen)
	ext = append(append(ext, e.Extensions...), sealFormat)
	out.Extensions = binary.BigEndian.AppendUint32(ext, checksum(e))
	return out
}

// unseal checks the entry read at index and takes its checksum off.
func unseal(index uint64, e *hraft.Log) error {
	n := len(e.Extensions) - sealLen
	if n < 0 || e.Extensions[n] != sealFormat {
		return errors.New("its checksum is missing")
	}
	sum := binary.BigEndian.Uint32(e.Extensions[n+1:])
	if e.Extensions = e.Extensions[:n]; n == 0 {
		e.Extensions = nil
	}
	if e.Index != index {
		return fmt.Errorf("it says that it is entry %d", e.Index)
	}
	if got := checksum(e); got != sum {
		return fmt.Errorf("stored %08x, computed %08x", sum, got)
	}
	return nil
}

func checksum(e *hraft.Log) uint32 {
	var head [25]byte
	binary.BigEndian.PutUint64(head[0:], e.Index)
	binary.BigEndian.PutUint64(head[8:], e.Term)
	head[16] = byte(e.Type)
	binary.BigEndian.PutUint64(head[17:], uint64(len(e.Data))) // keeps Data and Extensions apart
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, e.Data)
	return crc32.Update(sum, castagnoli, e.Extensions)
}
