package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// A WriteError says that a write of the Raft log failed.
//
// A full disk is found out before anything is synced: the write may be tried
// again. After any other failure, a failed fsync above all, what is on disk is
// not known: the kernel may have dropped the pages and marked them clean, so
// that a second fsync would succeed over lost data. The Log refuses every later
// write with the same error; the process has to end.
type WriteError struct {
	Path  string
	Cause error
	Full  bool // the disk, or a quota, is full; the write may be tried again
}

// Error returns the operator's sentence.
func (e *WriteError) Error() string {
	if e.Full {
		return fmt.Sprintf("the disk of %s is full (%v): free space on it; this server goes on by itself", e.Path, e.Cause)
	}
	return fmt.Sprintf("a write of %s failed (%v) and is not tried again, since what is on disk is not known now: "+
		"check the disk, then start this server again, or rebuild it with 'gpuai server rejoin --wipe'", e.Path, e.Cause)
}

// Unwrap returns the cause.
func (e *WriteError) Unwrap() error { return e.Cause }

// write does one writing transaction, unless one has failed before.
func (l *diskLog) write(transaction func() error) error {
	if e := l.broken.Load(); e != nil {
		return e
	}
	err := transaction()
	if err == nil || !failedIO(err) {
		return err
	}
	e := &WriteError{Path: l.path, Cause: err, Full: full(err)}
	if !e.Full {
		l.broken.CompareAndSwap(nil, e)
	}
	return e
}

// What bbolt says, without its cause, when it makes its file longer.
const (
	resizeFailed = "file resize error: "
	syncFailed   = "file sync error: "
)

// failedIO tells the failures of the file from bbolt's other errors.
func failedIO(err error) bool {
	var path *fs.PathError
	var errno syscall.Errno
	return errors.As(err, &path) || errors.As(err, &errno) ||
		strings.HasPrefix(err.Error(), resizeFailed) || strings.HasPrefix(err.Error(), syncFailed)
}

// full reports whether there was no space, in a write or when the file was to
// grow. The same answer from a sync comes too late to try again.
func full(err error) bool {
	var path *fs.PathError
	if errors.As(err, &path) && path.Op == "write" {
		return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	}
	text := err.Error()
	return strings.HasPrefix(text, resizeFailed) &&
		(strings.HasSuffix(text, syscall.ENOSPC.Error()) || strings.HasSuffix(text, syscall.EDQUOT.Error()))
}
