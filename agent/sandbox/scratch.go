package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// Scratches is the scratch space of a node: a file of its full size for each task
// that asks for some, in one directory, named by its lease. So what was promised
// is there, and what a task may write ends with its file system. Safe for
// concurrent use.
type Scratches struct {
	dir  string
	mkfs string
	room gpuai.Bytes

	mu sync.Mutex // guards the directory
}

// keepFree is left of a disk for what else is on it.
const keepFree = 1 << 30

// A NoRoomError is returned by Make when the node cannot give so much scratch
// space now.
type NoRoomError struct{ Detail string }

// Error says how much is asked for and how much there is.
func (e *NoRoomError) Error() string { return e.Detail }

// OpenScratches prepares dir for scratch space of at most room bytes in all; with
// 0 it is half of what is free, see Room. The error says what the host lacks.
func OpenScratches(dir string, room gpuai.Bytes) (*Scratches, error) {
	s := &Scratches{dir: dir, room: room}
	err := LacksForScratch()
	if err != nil {
		return nil, err
	}
	if s.mkfs, err = findMkfs(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the directory of scratch space: %w", err)
	}
	if room == 0 {
		free, err := s.free()
		if err != nil {
			return nil, err
		}
		used, err := s.used()
		if err != nil {
			return nil, err
		}
		s.room = roundDown((free + used) / 2)
	}
	return s, nil
}

// LacksForScratch says what this host lacks for scratch space; nil when it has
// all.
func LacksForScratch() error {
	if _, err := findMkfs(); err != nil {
		return err
	}
	if err := unix.Access("/dev/loop-control", unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("scratch space needs loop devices: /dev/loop-control: %w", err)
	}
	return nil
}

// findMkfs finds what makes an ext4 file system, also where PATH lacks sbin.
func findMkfs() (string, error) {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("scratch space needs mkfs.ext4: install e2fsprogs")
}

// roundDown returns the power of two of GiB at or below n, or 0: nodes that are
// much alike say the same, and are one kind of node to the scheduler.
func roundDown(n gpuai.Bytes) gpuai.Bytes {
	if n < 1<<30 {
		return 0
	}
	p := gpuai.Bytes(1 << 30)
	for p <= n/2 {
		p *= 2
	}
	return p
}

// Room is how much the node lends in all, also what is lent.
func (s *Scratches) Room() gpuai.Bytes { return s.room }

func (s *Scratches) free() (gpuai.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("the room of %s: %w", s.dir, err)
	}
	return gpuai.Bytes(st.Bavail) * gpuai.Bytes(st.Bsize), nil
}

// used is what is lent.
func (s *Scratches) used() (n gpuai.Bytes, err error) {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			n += gpuai.Bytes(fi.Size())
		}
	}
	return n, err
}

// Make makes scratch space of a size for who, and returns its file. A *NoRoomError
// says that there is no room now.
func (s *Scratches) Make(ctx context.Context, who string, size gpuai.Bytes) (string, error) {
	path := filepath.Join(s.dir, who)
	err := s.allocate(path, size)
	if err == nil {
		err = s.format(ctx, path)
	}
	if err != nil {
		_ = os.Remove(path) // Keep does it at the next start
		return "", err
	}
	return path, nil
}

// allocate makes a file whose blocks are its own: a write to it cannot fail for
// want of room, which a file system in it would take for a broken disk.
func (s *Scratches) allocate(path string, size gpuai.Bytes) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	used, err := s.used()
	if err != nil {
		return err
	}
	free, err := s.free()
	if err != nil {
		return err
	}
	if used+size > s.room || size > free-keepFree {
		return &NoRoomError{fmt.Sprintf("scratch: %s are asked for, and of %s that this node lends %s are taken, with %s free on its disk; ask for less resources.scratch, or wait until other tasks end",
			sized(size), sized(s.room), sized(used), sized(max(0, free)))}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
	switch {
	case errors.Is(err, unix.ENOSPC):
		return &NoRoomError{fmt.Sprintf("scratch: the node's disk has no room for %s", sized(size))}
	case err != nil:
		return fmt.Errorf("set %s of scratch space aside (ext4, xfs and btrfs can): %w", sized(size), err)
	}
	return nil
}

// sized writes a size for people.
func sized(n gpuai.Bytes) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.4g GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.4g MiB", float64(n)/(1<<20))
}

// format makes the file system. It has no journal, since nothing outlives the
// task, no blocks for root alone, and reads its tables as zero where they were
// never written.
func (s *Scratches) format(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, s.mkfs, "-q", "-F", "-b", "4096", "-i", "16384", "-m", "0", "-O", "^has_journal,^resize_inode",
		"-E", "lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard", path)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MKE2FS_SYNC=0"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make a file system for scratch space: %w: %s", err, strings.TrimSpace(out.String()))
	}
	return nil
}

// Keep removes the scratch space of those that keep does not want.
func (s *Scratches) Keep(keep func(who string) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if !keep(e.Name()) {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}
