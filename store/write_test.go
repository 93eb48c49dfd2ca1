package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	hraft "github.com/hashicorp/raft"
)

// faulty is the real store with failures before its writes.
type faulty struct {
	boltStore
	before func() error // nil falls through
	writes int
}

func (f *faulty) do(write func() error) error {
	f.writes++
	if f.before != nil {
		if err := f.before(); err != nil {
			return err
		}
	}
	return write()
}

func (f *faulty) StoreLogs(e []*hraft.Log) error {
	return f.do(func() error { return f.boltStore.StoreLogs(e) })
}

func (f *faulty) DeleteRange(lo, hi uint64) error {
	return f.do(func() error { return f.boltStore.DeleteRange(lo, hi) })
}

func (f *faulty) SetUint64(k []byte, v uint64) error {
	return f.do(func() error { return f.boltStore.SetUint64(k, v) })
}

func openFaulty(t *testing.T, d *Dir) (*Log, *faulty) {
	l := openLog(t, d)
	f := &faulty{boltStore: l.disk.bolt}
	l.disk.bolt = f
	return l, f
}

// TestCase8FsyncIsNotRetried is case 8 of the reliability document.
func TestCase8FsyncIsNotRetried(t *testing.T) {
	for name, cause := range map[string]error{
		"fdatasync":              syscall.EIO,
		"fdatasync without room": syscall.ENOSPC,
		"write":                  &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.EIO},
		"sync while growing":     errors.New("file sync error: sync raft.db: input/output error"),
	} {
		t.Run(name, func(t *testing.T) {
			l, f := openFaulty(t, openDir(t, t.TempDir()))
			storeEntries(t, l, 1, 10)
			f.before, f.writes = func() error { return cause }, 0
			err := l.StoreLogs([]*hraft.Log{entry(11)})
			var failed *WriteError
			if !errors.As(err, &failed) || failed.Full || !strings.Contains(err.Error(), l.Path()) || !strings.Contains(err.Error(), "check the disk") {
				t.Fatalf("got %v", err)
			}
			f.before = nil // the disk pretends to be well again
			again := errors.Join(l.SetUint64(keyCurrentTerm, 7), l.DeleteRange(1, 5), l.Set([]byte("k"), []byte("v")))
			for _, err := range []error{l.StoreLogs([]*hraft.Log{entry(11)}), l.StoreLog(entry(11)), again} {
				if !errors.Is(err, failed) {
					t.Errorf("a later write: %v", err)
				}
			}
			if f.writes != 1 {
				t.Errorf("the file was written %d times after the failure", f.writes-1)
			}
			if err := l.GetLog(11, new(hraft.Log)); !errors.Is(err, hraft.ErrLogNotFound) {
				t.Errorf("the entry that was not written reads %v", err)
			}
		})
	}
}

// TestCase7FullDiskIsTriedAgain is the log's part of case 7.
func TestCase7FullDiskIsTriedAgain(t *testing.T) {
	for name, cause := range map[string]error{
		"write": fmt.Errorf("commit: %w", &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}),
		"quota": &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.EDQUOT},
		"grow":  errors.New("file resize error: truncate raft.db: " + syscall.ENOSPC.Error()),
	} {
		t.Run(name, func(t *testing.T) {
			l, f := openFaulty(t, openDir(t, t.TempDir()))
			storeEntries(t, l, 1, 10)
			f.before = func() error { return cause }
			for range 3 {
				var failed *WriteError
				if err := l.StoreLogs([]*hraft.Log{entry(11)}); !errors.As(err, &failed) || !failed.Full || !strings.Contains(err.Error(), "free space") {
					t.Fatalf("got %v", err)
				}
			}
			f.before = nil
			storeEntries(t, l, 11, 11)
			checkRange(t, l, 1, 11)
		})
	}
}

func TestDiskFree(t *testing.T) {
	free, total, err := DiskFree(t.TempDir())
	if err != nil || free == 0 || total < free {
		t.Errorf("%d of %d bytes are free, %v", free, total, err)
	}
	if _, _, err := DiskFree("/nowhere/at/all"); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a path that is not there: %v", err)
	}
}

// checkRange expects exactly the entries first … last, readable.
func checkRange(t *testing.T, l *Log, first, last uint64) {
	t.Helper()
	lo, err := l.FirstIndex()
	hi, err2 := l.LastIndex()
	if lo != first || hi != last || err != nil || err2 != nil {
		t.Fatalf("entries %d … %d (%v, %v), want %d … %d", lo, hi, err, err2, first, last)
	}
	for i := lo; i <= hi; i++ {
		var e hraft.Log
		if err := l.GetLog(i, &e); err != nil || !slices.Equal(e.Data, entry(i).Data) {
			t.Fatalf("entry %d: %q, %v", i, e.Data, err)
		}
	}
}

// TestDeleteRangeCrash stops a deletion between any two of its chunks: what is
// left must have no hole.
func TestDeleteRangeCrash(t *testing.T) {
	const entries = 3*deleteChunk + 100
	errCrash := errors.New("crash")
	cases := []struct {
		name   string
		lo, hi uint64
		left   func(chunks uint64) (first, last uint64) // after so many
	}{
		{"front", 1, entries - 50, func(c uint64) (uint64, uint64) { return 1 + c*deleteChunk, entries }},
		{"end", 51, entries, func(c uint64) (uint64, uint64) {
			if c == 0 {
				return 1, entries
			}
			return 1, 50 + (4-c)*deleteChunk
		}},
	}
	const cached = 100 // written by the log that is deleted from, so that its cache has them
	master := t.TempDir()
	l := openLog(t, openDir(t, master))
	storeEntries(t, l, 1, entries-cached)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(filepath.Join(master, logFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		for stop := range uint64(4) {
			t.Run(fmt.Sprintf("%s after %d", c.name, stop), func(t *testing.T) {
				path := t.TempDir()
				d := openDir(t, path)
				if err := os.WriteFile(filepath.Join(path, logFile), written, 0o600); err != nil {
					t.Fatal(err)
				}
				l, f := openFaulty(t, d)
				storeEntries(t, l, entries-cached+1, entries)
				f.writes = 0
				f.before = func() error {
					if f.writes > int(stop) {
						return errCrash
					}
					return nil
				}
				if err := l.DeleteRange(c.lo, c.hi); !errors.Is(err, errCrash) {
					t.Fatalf("got %v", err)
				}
				first, last := c.left(stop)
				checkRange(t, l, first, last) // through the cache, which may hold nothing deleted
				if err := l.GetLog(last+1, new(hraft.Log)); !errors.Is(err, hraft.ErrLogNotFound) {
					t.Errorf("behind the end: %v", err)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				checkRange(t, openLog(t, d), first, last)
			})
		}
	}
}
