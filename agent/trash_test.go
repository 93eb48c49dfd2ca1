package agent

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// nest makes depth directories in each other, deeper than any path can name.
func nest(t *testing.T, dir string, depth int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := openTop(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(int(d.Fd()), "d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknodat(int(d.Fd()), "pipe", unix.S_IFIFO|0o600, 0); err != nil {
			t.Fatal(err)
		}
		next, err := openBelow(d, "d")
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		d = next
	}
	d.Close()
}

// What is deeper than the agent has descriptors is removed all the same.
func TestDeepDirectoryIsRemoved(t *testing.T) {
	dir := t.TempDir()
	bin, err := newTrash(filepath.Join(dir, trashDir), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	nest(t, filepath.Join(dir, "task"), 1_500)
	if err := os.Symlink("/etc", filepath.Join(dir, "task/link")); err != nil {
		t.Fatal(err)
	}
	if err := bin.take(filepath.Join(dir, "task")); err != nil {
		t.Fatal(err)
	}
	if err := bin.take(filepath.Join(dir, "nothing")); err != nil {
		t.Errorf("what is not there: %v", err)
	}
	lessDescriptors(t)
	if err := bin.empty(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(bin.dir); err != nil || len(left) > 0 {
		t.Errorf("%d are left, %v", len(left), err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

// lessDescriptors leaves this process 100 descriptors for the rest of a test.
func lessDescriptors(t *testing.T) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	most := uint64(0)
	for _, e := range open {
		if n, err := strconv.ParseUint(e.Name(), 10, 32); err == nil {
			most = max(most, n)
		}
	}
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: min(was.Max, most+100), Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
}
