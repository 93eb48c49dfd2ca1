package plugins

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// strayTimeout bounds the wait for killed processes to go. A process in an
// uninterruptible call (a hung GPU ioctl) can take longer, or for ever.
const strayTimeout = 2 * time.Second

// killMarked kills every process of this user that has marker in its
// environment, until none is left: those that a driver forked and put into
// sessions of their own. A process that erased its environment escapes; only a
// cgroup would hold it, which an agent without root does not have.
func killMarked(marker string) error {
	deadline := time.Now().Add(strayTimeout)
	for {
		left, err := signalMarked(marker)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of an earlier driver do not end after SIGKILL: see what they wait for in /proc/PID/stack, a reboot frees the device", left)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// signalMarked sends SIGKILL to the marked processes and returns their pids.
func signalMarked(marker string) ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for processes of an earlier driver: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("looking for processes of an earlier driver: %w", err)
	}
	var left []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		if killIfMarked(pid, marker) {
			left = append(left, pid)
		}
	}
	return left, nil
}

// killIfMarked holds a pidfd while it looks, so that a pid that is used again
// in between is not hit.
func killIfMarked(pid int, marker string) bool {
	if !marked(pid, marker) {
		return false // cheap first look: most processes end here
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if !marked(pid, marker) {
		return false
	}
	err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	return !errors.Is(err, unix.ESRCH)
}

// marked is false for a zombie, whose environment is gone.
func marked(pid int, marker string) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(e []byte) bool {
		return string(e) == marker
	})
}
