package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// trashDir is where what tasks leave waits to be removed.
const trashDir = "trash"

// A trash removes directories that tasks filled, beside all else: they may be as
// wide and as deep as a disk lets them. Taking one is a rename. Removing takes a
// fixed number of descriptors: what is below a directory is moved up first.
type trash struct {
	dir  string
	log  *slog.Logger
	more chan struct{}
	life string // of names, since earlier lives left some
	n    atomic.Uint64
}

// newTrash makes the directory. What is in it is removed by run.
func newTrash(dir string, log *slog.Logger) (*trash, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the trash of the agent's data directory: %w", err)
	}
	return &trash{dir: dir, log: log, more: make(chan struct{}, 1), life: strconv.FormatInt(time.Now().UnixNano(), 36)}, nil
}

func (t *trash) name() string { return t.life + "-" + strconv.FormatUint(t.n.Add(1), 36) }

// take removes a directory, or a file, from its place. One that is not there is
// no error.
func (t *trash) take(path string) error {
	err := os.Rename(path, filepath.Join(t.dir, t.name()))
	return t.took(err)
}

// takeFrom is take of an entry of a task's directory.
func (t *trash) takeFrom(root *os.Root, name string) error {
	d, err := openListing(root, ".")
	if err != nil {
		return err
	}
	defer d.Close()
	top, err := openTop(t.dir)
	if err != nil {
		return err
	}
	defer top.Close()
	return t.took(unix.Renameat(int(d.Fd()), name, int(top.Fd()), t.name()))
}

func (t *trash) took(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		select {
		case t.more <- struct{}{}:
		default:
		}
	}
	return err
}

// run empties the trash, now and whenever something came.
func (t *trash) run(ctx context.Context) {
	for {
		if err := t.empty(ctx); err != nil && ctx.Err() == nil {
			t.log.Warn("something stays in the agent's trash", "dir", t.dir, "error", err)
		}
		select {
		case <-t.more:
		case <-ctx.Done():
			return
		}
	}
}

// empty removes what is in the trash. An error is the last of those that keep
// something there.
func (t *trash) empty(ctx context.Context) (err error) {
	for again := true; again && ctx.Err() == nil; {
		again, err = t.pass(ctx)
	}
	return err
}

// pass goes once over what is in the trash. It reports whether another may find
// something to do.
func (t *trash) pass(ctx context.Context) (again bool, last error) {
	top, err := openTop(t.dir)
	if err != nil {
		return false, err
	}
	defer top.Close()
	err = eachName(ctx, top, func(name string) {
		done, err := unlink(top, name)
		if !done && err == nil {
			done, err = t.strip(ctx, top, name)
		}
		if again = again || done; err != nil {
			last = fmt.Errorf("%s: %w", name, err)
		}
	})
	return again, errors.Join(last, err)
}

// strip removes what is in a directory of the trash, moves up what it cannot, and
// removes the directory. It reports whether it got further.
func (t *trash) strip(ctx context.Context, top *os.File, name string) (some bool, err error) {
	d, err := openBelow(top, name)
	if err != nil {
		return false, err
	}
	defer d.Close()
	listed := eachName(ctx, d, func(child string) {
		done, e := unlink(d, child)
		if !done && e == nil {
			e = unix.Renameat(int(d.Fd()), child, int(top.Fd()), t.name())
		}
		if some = some || e == nil; e != nil {
			err = fmt.Errorf("%q in it: %w", child, e)
		}
	})
	done, _ := unlink(top, name)
	return some || done, errors.Join(err, listed)
}

// unlink removes a name, unless it is a directory that is not empty.
func unlink(dir *os.File, name string) (done bool, err error) {
	err = unix.Unlinkat(int(dir.Fd()), name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		if err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR); errors.Is(err, unix.ENOTEMPTY) {
			return false, nil
		}
	}
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return err == nil, err
}

// listing is how directories are opened that somebody else may replace: for no
// pipe is waited, and no link followed.
const listing = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

func openTop(path string) (*os.File, error) {
	fd, err := unix.Open(path, listing, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openBelow opens a directory of the trash. Its owner may have shut it to an
// agent that is not root.
func openBelow(top *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(top.Fd()), name, listing, 0)
	if errors.Is(err, unix.EACCES) {
		shut, e := unix.Openat(int(top.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if e != nil {
			return nil, e
		}
		defer unix.Close(shut)
		if e := os.Chmod("/proc/self/fd/"+strconv.Itoa(shut), 0o700); e != nil {
			return nil, e
		}
		fd, err = unix.Openat(int(top.Fd()), name, listing, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openListing opens a directory of a task's.
func openListing(root *os.Root, path string) (*os.File, error) {
	return root.OpenFile(path, listing, 0)
}

// openTaskRoot opens a directory that a task may have replaced.
func openTaskRoot(path string) (*os.Root, error) {
	d, err := openTop(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(d.Fd())))
}

// listBatch is how many names of a directory are read at a time.
const listBatch = 1_000

// eachName calls f for what is in a directory, a batch at a time, until ctx ends.
func eachName(ctx context.Context, d *os.File, f func(name string)) error {
	for {
		names, err := d.Readdirnames(listBatch)
		for _, name := range names {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			f(name)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
