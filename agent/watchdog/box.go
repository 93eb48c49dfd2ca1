package watchdog

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// holdArg makes the watchdog's binary a process that only keeps its user
// namespace until it has been opened.
const holdArg = "--hold-namespace"

// hold waits until stdin ends.
func hold() int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// enter gives this thread a mount namespace with the box's root in it. The
// caller has locked the thread, and execs on it.
func (b *Box) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make its mounts private: %w", err)
	}
	ns, err := userNamespace(b.Base, b.Size)
	if err != nil {
		return err
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, b.Root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open %s: %w", b.Root, err)
	}
	defer unix.Close(tree)
	err = mapTree(tree, ns)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("the kernel, or the file system of %s, cannot map its users (Linux 5.12 and ext4, xfs or btrfs can): %w", b.Root, err)
	case err != nil:
		return fmt.Errorf("map the users of %s: %w", b.Root, err)
	}
	if err := b.layer(tree); err != nil {
		return err
	}
	return b.pin()
}

// pin binds the box's namespaces below its target, in the mount namespace that
// this process and the runtime alone have.
func (b *Box) pin() error {
	for _, name := range slices.Sorted(maps.Keys(b.Pins)) {
		at := filepath.Join(b.Target, name)
		if err := os.WriteFile(at, nil, 0o600); err != nil {
			return fmt.Errorf("keep the namespace %s: %w", name, err)
		}
		if err := unix.Mount(b.Pins[name], at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the namespace %s: %w", name, err)
		}
	}
	return nil
}

// Directories below a box's target. The image is the lower layer of RootDir; the
// upper one takes only the mount points that the image lacks, since the runtime
// makes the root read-only before the task starts.
const (
	RootDir  = "root"
	lowerDir = "lower"
	upperDir = "upper"
	ownDir   = "own" // overlayfs's
	NodesDir = "nodes"
	// upperBytes is the room for mount points.
	upperBytes = "size=4m"
)

// layer mounts the tree of an image, which is its only user, below the target.
func (b *Box) layer(tree int) error {
	if err := unix.Mount("tmpfs", b.Target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711,"+upperBytes); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", b.Target, err)
	}
	at := func(dir string) string { return filepath.Join(b.Target, dir) }
	for _, dir := range []string{RootDir, lowerDir, upperDir, ownDir} {
		if err := os.Mkdir(at(dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chown(at(upperDir), int(b.Base), int(b.Base)); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at(lowerDir), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount it at %s: %w", at(lowerDir), err)
	}
	layers := "lowerdir=" + at(lowerDir) + ",upperdir=" + at(upperDir) + ",workdir=" + at(ownDir)
	if err := unix.Mount("overlay", at(RootDir), "overlay", unix.MS_NOSUID|unix.MS_NODEV, layers); err != nil {
		return fmt.Errorf("lay it under an overlay (Linux 5.19 can): %w", err)
	}
	if b.Scratch != nil {
		if err := b.Scratch.mount(b.Target); err != nil {
			return err
		}
	}
	if err := b.makeSecrets(); err != nil {
		return err
	}
	return b.makeNodes()
}

// makeNodes makes the task's own device files, in a file system where they can be
// opened: the host's may be open to root or to a group alone, which no user of
// the task's range is. What may be opened is for the control groups to say.
func (b *Box) makeNodes() error {
	if len(b.Nodes) == 0 {
		return nil
	}
	dir := filepath.Join(b.Target, NodesDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=711,"+upperBytes); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
	}
	for i, n := range b.Nodes {
		path, kind := filepath.Join(dir, strconv.Itoa(i)), uint32(unix.S_IFCHR)
		if n.Block {
			kind = unix.S_IFBLK
		}
		if err := unix.Mknod(path, kind|0o666, int(unix.Mkdev(n.Major, n.Minor))); err != nil {
			return fmt.Errorf("make the device file %d:%d: %w", n.Major, n.Minor, err)
		}
		if err := errors.Join(os.Chmod(path, 0o666), os.Chown(path, int(b.Base), int(b.Base))); err != nil { // whatever the umask is
			return fmt.Errorf("make the device file %d:%d: %w", n.Major, n.Minor, err)
		}
	}
	return nil
}

// userNamespace returns a user namespace whose users 0 to size-1 are the
// host's from base on.
func userNamespace(base, size uint32) (*os.File, error) {
	all, err := makeNamespaces("/proc/self/exe", syscall.SysProcIDMap{HostID: int(base), Size: int(size)}, "user")
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// Namespaces returns a user namespace whose users 0 to size-1 are the host's from
// base on, and a network namespace that belongs to it, with nothing in it. exe is
// the watchdog's binary.
func Namespaces(exe string, base, size uint32) (user, network *os.File, err error) {
	all, err := makeNamespaces(exe, syscall.SysProcIDMap{HostID: int(base), Size: int(size)}, "user", "net")
	if err != nil {
		return nil, nil, err
	}
	return all[0], all[1], nil
}

// cloneFlags are the namespaces that are made, by their names in /proc.
var cloneFlags = map[string]uintptr{"user": syscall.CLONE_NEWUSER, "net": syscall.CLONE_NEWNET}

// makeNamespaces makes the named namespaces, which need a process to be made by.
func makeNamespaces(exe string, users syscall.SysProcIDMap, names ...string) ([]*os.File, error) {
	var flags uintptr
	for _, name := range names {
		flags |= cloneFlags[name]
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	defer r.Close()
	ids := []syscall.SysProcIDMap{users}
	pid, err := syscall.ForkExec(exe, []string{"gpuai-task", holdArg}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{r.Fd()},
		Sys: &syscall.SysProcAttr{Cloneflags: flags, UidMappings: ids, GidMappings: ids, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	all := make([]*os.File, len(names))
	for i, name := range names {
		var e error
		all[i], e = os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
		err = errors.Join(err, e)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for {
		if _, wait := syscall.Wait4(pid, nil, 0, nil); !errors.Is(wait, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		for _, f := range all {
			_ = f.Close() // nil where it was not opened
		}
		return nil, fmt.Errorf("open a user namespace: %w", err)
	}
	return all, nil
}
