package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/image"
	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// host looks at the kernel, and at what sandboxes need of it.
func (f *Facts) host(watchdogPath string) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	f.Seccomp = err == nil
	f.MaxUserNS = -1
	if n, err := strconv.ParseInt(readLine("/proc/sys/user/max_user_namespaces"), 10, 64); err == nil {
		f.MaxUserNS = n
	}
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		f.OpenFiles = l.Max
	}
	f.Cgroups, f.CgroupsErr = watchdog.SurveyCgroups()
	f.Watchdog = watchdog.Static(watchdogPath)
	f.RangeUsers = rangeUsers("/")
	if lent, err := os.ReadDir("/run/gpuai/ranges"); err == nil {
		f.RangesLent = len(lent)
	}
	f.mapUsers(watchdogPath)
}

// mapUsers makes the namespaces of a sandbox, and a mount with their users that is
// mounted nowhere. All are gone when it returns.
func (f *Facts) mapUsers(watchdogPath string) {
	if !f.Root || f.Watchdog != nil {
		return
	}
	user, network, err := watchdog.Namespaces(watchdogPath, sandbox.AllRanges.First, sandbox.RangeSize)
	if f.UserNS = err; err != nil {
		return
	}
	defer user.Close()
	defer network.Close()
	f.Data.Mapped, f.Data.MapErr = true, watchdog.TryMapping(f.Data.At, user)
}

// rangeUsers are users, and ranges of users, of the host below root that have a
// number of the tasks' ranges: "alice" or "/etc/subuid: alice".
func rangeUsers(root string) (out []string) {
	lo, hi := uint64(sandbox.AllRanges.First), uint64(sandbox.AllRanges.First)+uint64(sandbox.AllRanges.Size)
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		for _, field := range colons(filepath.Join(root, name)) {
			if first, n := number(field, 1), number(field, 2); n > 0 && first < hi && first+n > lo {
				out = append(out, name+": "+field[0])
			}
		}
	}
	for _, name := range []string{"/etc/passwd", "/etc/group"} {
		for _, field := range colons(filepath.Join(root, name)) {
			if id := number(field, 2); id >= lo && id < hi {
				out = append(out, name+": "+field[0])
			}
		}
	}
	return out
}

// colons returns the fields of a file's lines.
func colons(path string) (out [][]string) {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	for s := bufio.NewScanner(file); s.Scan(); {
		out = append(out, strings.Split(s.Text(), ":"))
	}
	return out
}

func number(field []string, i int) uint64 {
	if i >= len(field) {
		return 0
	}
	n, err := strconv.ParseUint(field[i], 10, 32)
	if err != nil {
		return 0
	}
	return n
}

// findData finds the data directory, or what it will be made in.
func (f *Facts) findData(path string) {
	d := &f.Data
	d.Path = path
	if abs, err := filepath.Abs(path); err == nil {
		d.Path = abs
	}
	_, err := os.Stat(d.Path)
	d.There = err == nil
	for d.At = d.Path; d.At != "/"; d.At = filepath.Dir(d.At) {
		if real, err := filepath.EvalSymlinks(d.At); err == nil {
			d.At = real
			return
		}
	}
}

// data looks at the data directory and its disk.
func (f *Facts) data() {
	d := &f.Data
	if st, err := os.Stat(d.At); err == nil && !st.IsDir() {
		d.Err = fmt.Errorf("%s is no directory", d.At)
		return
	}
	if err := unix.Access(d.At, unix.W_OK|unix.X_OK); err != nil {
		d.Err = fmt.Errorf("%s: %w", d.At, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.At, &st); err != nil {
		d.Err = errors.Join(d.Err, fmt.Errorf("%s: %w", d.At, err))
		return
	}
	d.Size = gpuai.Bytes(st.Blocks) * gpuai.Bytes(st.Bsize)
	d.Free, d.Inodes = gpuai.Bytes(st.Bavail)*gpuai.Bytes(st.Bsize), st.Ffree
	if st.Files == 0 {
		d.Inodes = 1 << 32 // it makes them as they are needed
	}
	d.Kind = fileSystems[int64(st.Type)]
	if d.Kind == "" {
		d.Kind = fmt.Sprintf("of kind %#x", st.Type)
	}
	d.Holder = holder(filepath.Join(d.Path, "journal.db"), "/proc/locks")
}

var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", 0x2fc12fc1: "zfs", 0x65735546: "fuse",
}

// holder returns the process that has a lock of a file, by the kernel's list of
// them: taking the lock to see would keep an agent from it.
func holder(path, locks string) int {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	file, err := os.Open(locks)
	if err != nil {
		return 0
	}
	defer file.Close()
	for s := bufio.NewScanner(file); s.Scan(); {
		if field := strings.Fields(s.Text()); len(field) > 5 && field[5] == want {
			pid, _ := strconv.Atoi(field[4])
			return pid
		}
	}
	return 0
}

// findRuntime looks for the OCI runtime.
func (f *Facts) findRuntime(ctx context.Context) {
	if f.Sandbox == nil {
		return
	}
	f.Runtime, f.RuntimeErr = sandbox.Find(ctx, f.Sandbox.Runtime)
}

// findImages looks at what images and scratch space need.
func (f *Facts) findImages() {
	f.ScratchErr = sandbox.LacksForScratch()
	if f.Sandbox == nil {
		return
	}
	f.Credentials = image.CheckCredentials(f.Sandbox.Images.Credentials)
	for _, dir := range f.Sandbox.Images.Files {
		if st, err := os.Stat(dir); err != nil {
			f.ImageDirs = append(f.ImageDirs, err)
		} else if !st.IsDir() {
			f.ImageDirs = append(f.ImageDirs, fmt.Errorf("%s is no directory", dir))
		}
	}
}

// clocks looks at the host's clocks.
func clocks() (c ClockFacts) {
	c.Source = readLine("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	var t unix.Timex // no mode: it only reads
	state, err := unix.Adjtimex(&t)
	c.SyncErr = err
	c.Synced = err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
	var mono unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) == nil {
		c.Suspended = max(0, time.Duration(watchdog.Boottime()-mono.Nano())).Truncate(time.Second)
	}
	return c
}

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
