package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai/integration/chaos/netns"
	"github.com/gpuai/gpuai/integration/nursery"
)

// A run's directory, and the beginning of its namespaces' names. While a run
// is alive its lock file is locked.
const (
	runPrefix = "gpuai-chaos-"
	lockName  = "lock"
)

// newRunDir makes a directory and locks it until this process ends.
func newRunDir() (string, error) {
	dir, err := os.MkdirTemp("", runPrefix)
	if err != nil {
		return "", err
	}
	f, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	held = append(held, f)
	return dir, os.Chmod(dir, 0o755)
}

// held keeps locks from being collected, and so closed.
var held []*os.File

// lockDir takes a run's lock, or says that the run is alive.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// clearLeftovers removes everything of runs that are no longer alive.
func clearLeftovers(say func(who, format string, args ...any)) error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), runPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		f, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
			continue // it is alive, or another user's
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		say("chaos", "clearing %s, which an earlier run has left", dir)
		errs = append(errs, clearRun(dir), f.Close(), os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// clearRun ends all that a run has: processes, mounts, loop devices and network
// namespaces. Its directory stays.
func clearRun(dir string) error {
	errs := []error{nursery.KillNaming(dir, patience), unmountBelow(dir), detachBelow(dir), netns.Remove(nsPrefix(dir))}
	return errors.Join(errs...)
}

// nsPrefix begins the names of a run's namespaces.
func nsPrefix(dir string) string { return filepath.Base(dir) + "-" }

// unmountBelow unmounts everything below a directory, last first.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var errs []error
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			errs = append(errs, unix.Unmount(f[1], unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// detachBelow frees the loop devices over files below a directory.
func detachBelow(dir string) error {
	out, err := exec.Command("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").Output()
	if err != nil {
		return nil // without the program there are none of ours
	}
	var errs []error
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[1], dir+"/") {
			continue
		}
		if out, err := exec.Command("losetup", "--detach", f[0]).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w: %s", f[0], err, out))
		}
	}
	return errors.Join(errs...)
}
