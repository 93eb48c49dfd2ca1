package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai/agent/decide"

	"github.com/gpuai/gpuai/plugins"
)

const (
	// roomFile keeps what a task's checkpoint directory may take, over the agent's lives.
	roomFile = "checkpoint-room"
	// diskEvery is how often the disk's free space is looked at, usageEvery how
	// often what a task takes, and at most a tenth of the time.
	diskEvery, usageEvery = time.Second, 5 * time.Second
	// maxTop bounds what is directly in a checkpoint directory, maxInodes what is
	// in it at all, and maxDepth its nesting.
	maxTop, maxInodes, maxDepth = 1_000, 400_000, 100
	// inodeBytes is the least that a file counts.
	inodeBytes = 4 << 10
	// blamable is the least that a task must take to be ended for a full disk.
	blamable = 64 << 20
	// maxReserve bounds the free space that is the node's own.
	maxReserve = 1 << 30
)

// diskRoom returns what is free on a directory's disk, and the reserve: of that a
// hundredth, at most maxReserve, is not for tasks' checkpoints.
func diskRoom(dir string) (free, reserve int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, min(maxReserve, int64(st.Blocks)*st.Bsize/100), nil
}

// roomOf is what a task's checkpoint directory may take: half of what was free when
// it was made.
func (w *worker) roomOf(dir string) int64 {
	file := filepath.Join(w.a.taskDir(w.lease.ID), roomFile)
	if data, err := os.ReadFile(file); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && n > 0 {
			return n
		}
	}
	free, _, err := diskRoom(dir)
	room := free / 2
	if err == nil {
		err = plugins.ReplaceFile(file, []byte(strconv.FormatInt(room, 10)+"\n"))
	}
	if err != nil {
		w.a.log.Warn("what a task's checkpoints may take is not noted", "lease", w.lease.ID, "error", err)
	}
	return room
}

// watchRoom ends a task that takes more of the node's disk than it may, or that
// takes the most when the disk is full. It runs beside what stores checkpoints.
func (s *saver) watchRoom() {
	defer close(s.watched)
	var next time.Time
	for pause(s.ctx, diskEvery) {
		free, reserve, err := diskRoom(s.dir)
		full := err == nil && free < reserve
		if !full && time.Now().Before(next) {
			continue
		}
		began := time.Now()
		n, why := usage(s.ctx, s.root)
		next = time.Now().Add(max(usageEvery, 10*time.Since(began)))
		s.used.Store(n)
		switch {
		case s.ctx.Err() != nil:
			return
		case why != "":
			s.overrun("its checkpoint directory " + why)
		case n > s.maxBytes:
			s.overrun(fmt.Sprintf("its checkpoint directory takes %d MiB, half of what the node had free is %d MiB: publish smaller or fewer checkpoints at a time", n>>20, s.maxBytes>>20))
		case full && s.largest():
			s.overrun(fmt.Sprintf("the node's disk is full, and its checkpoint directory takes the most of all, %d MiB: publish smaller or fewer checkpoints at a time", n>>20))
		}
	}
}

func (s *saver) overrun(why string) { s.w.tell(decide.DiskOverrun{Lease: s.w.lease.ID, Reason: why}) }

// largest reports whether no other task's checkpoint directory takes more.
func (s *saver) largest() bool {
	mine := s.used.Load()
	is := mine >= blamable
	s.w.a.savers.Range(func(k, _ any) bool {
		other, ok := k.(*saver)
		if n := other.used.Load(); !ok || n > mine || n == mine && other.w.lease.ID < s.w.lease.ID {
			is = false
		}
		return is
	})
	return is
}

// A spot is a directory on the way of usage.
type spot struct {
	up    *spot
	name  string
	depth int
}

func (p *spot) path() string {
	if p.up == nil {
		return p.name
	}
	return p.up.path() + "/" + p.name
}

// usage is what is below a task's directory, and why that is too much whatever
// its size; "" when it is not. What goes while it is looked at does not count.
func usage(ctx context.Context, root *os.Root) (bytes int64, why string) {
	todo, inodes := []*spot{{name: "."}}, 0
	for len(todo) > 0 && why == "" && ctx.Err() == nil {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d, err := openListing(root, at.path())
		if gone(err) {
			continue
		}
		if err != nil {
			return bytes, "cannot be looked at: " + err.Error()
		}
		look, cancel := context.WithCancel(ctx)
		err = eachName(look, d, func(name string) {
			var st unix.Stat_t
			if unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				return // gone
			}
			bytes += max(st.Blocks*512, inodeBytes)
			if inodes++; inodes > maxInodes {
				why = fmt.Sprintf("has more than %d files", maxInodes)
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				todo = append(todo, &spot{at, name, at.depth + 1})
				if at.depth >= maxDepth {
					why = fmt.Sprintf("has directories in each other, more than %d deep", maxDepth)
				}
			}
			if why != "" {
				cancel()
			}
		})
		cancel()
		if err = errors.Join(ignoreCancel(err), d.Close()); err != nil && why == "" {
			why = "cannot be looked at: " + err.Error()
		}
	}
	return bytes, why
}

func ignoreCancel(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// gone reports whether what is to be opened is not there, or no directory, any more.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}
