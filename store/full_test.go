package store

import (
	"errors"
	"syscall"
	"testing"

	hraft "github.com/hashicorp/raft"
)

// TestCase7RealFullDisk fills a small file system, makes it larger, and goes
// on: what the kernel and bbolt say is what the tests with faults believe.
func TestCase7RealFullDisk(t *testing.T) {
	path := t.TempDir()
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, "size=512k"); err != nil {
		t.Skipf("a file system of its own needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l := openLog(t, openDir(t, path))
	t.Cleanup(func() { l.Close() }) // before it is unmounted
	full := func(index uint64) *hraft.Log { return &hraft.Log{Index: index, Term: 1, Data: make([]byte, 16<<10)} }
	last := uint64(0)
	var failed *WriteError
	for err := error(nil); err == nil; last++ {
		if last > 100 {
			t.Fatal("a file system of 512 KiB takes 100 entries of 16 KiB")
		}
		err = l.StoreLogs([]*hraft.Log{full(last + 1)})
		if err != nil && (!errors.As(err, &failed) || !failed.Full) {
			t.Fatalf("entry %d: %v", last+1, err)
		}
	}
	t.Logf("entry %d: %v", last, failed)
	if err := l.StoreLog(full(last)); !errors.As(err, &failed) || !failed.Full {
		t.Errorf("a second try: %v", err)
	}
	if free, total, err := DiskFree(path); err != nil || free > total/4 {
		t.Errorf("%d of %d bytes are free, %v", free, total, err)
	}
	if err := syscall.Mount("tmpfs", path, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	for i := last; i < last+20; i++ {
		if err := l.StoreLog(full(i)); err != nil {
			t.Fatalf("with room again, entry %d: %v", i, err)
		}
	}
	for i := uint64(1); i < last+20; i++ {
		if err := l.GetLog(i, new(hraft.Log)); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
}
