package watchdog

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits are what a task needs to be limited in by control groups, "cpu",
// "memory" and "pids".
func Limits() []string { return slices.Clone(wanted) }

// A CgroupSurvey says what a host's control groups can do for tasks.
type CgroupSurvey struct {
	Version string   // "1", "hybrid" or "2"
	Limits  []string // those of Limits that can be set, in their order
	Why     []string // what keeps others from being set
}

// SurveyCgroups looks at the control groups of this process, and changes nothing.
func SurveyCgroups() (CgroupSurvey, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return CgroupSurvey{}, err
	}
	return survey(mounts), nil
}

func survey(mounts []cgroupMount) (out CgroupSurvey) {
	var have []string
	one, two := false, false
	for _, m := range mounts {
		one, two = one || !m.v2, two || m.v2
		controllers := m.controllers
		if m.v2 {
			b, err := os.ReadFile(filepath.Join(m.top(), "cgroup.controllers"))
			if err != nil {
				out.Why = append(out.Why, err.Error())
			}
			controllers = strings.Fields(string(b))
		}
		if len(controllers) == 0 {
			continue
		}
		if err := unix.Access(m.top(), unix.W_OK); err != nil {
			out.Why = append(out.Why, fmt.Sprintf("%s cannot be written to: %v", m.top(), err))
			continue
		}
		have = append(have, controllers...)
	}
	switch {
	case one && two:
		out.Version = "hybrid"
	case two:
		out.Version = "2"
	default:
		out.Version = "1"
	}
	for _, c := range wanted {
		if slices.Contains(have, c) {
			out.Limits = append(out.Limits, c)
		}
	}
	return out
}

// TryMapping maps the users of a directory as a user namespace has them, in a mount
// that is mounted nowhere and gone when it returns.
func TryMapping(dir string, ns *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(tree)
	if err := mapTree(tree, ns); err != nil {
		return fmt.Errorf("map the users of %s (Linux 5.12 and ext4, xfs or btrfs can): %w", dir, err)
	}
	return nil
}

// mapTree makes a mount read-only, with its users mapped as ns has them.
func mapTree(tree int, ns *os.File) error {
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Userns_fd: uint64(ns.Fd()),
	})
}

// Static reports whether a watchdog's binary, a sandbox's first process, needs no
// library of the host.
func Static(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("the watchdog's binary: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s needs the host's libraries, and is a sandbox's first process: build it with CGO_ENABLED=0", path)
		}
	}
	return nil
}
