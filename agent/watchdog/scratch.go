package watchdog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Scratch is a file with an ext4 file system, mounted at ScratchDir below a
// box's target. Its size is the bound of what the task may write to it.
type Scratch struct {
	Image string `json:"image"`
	// User and Group own its directory WorkDir, on the host.
	User  uint32 `json:"user"`
	Group uint32 `json:"group"`
}

// Directories of a box's scratch space.
const (
	ScratchDir = "scratch"
	WorkDir    = "work" // the task's user's alone
	TmpDir     = "tmp"  // everybody's
)

// mount mounts the file system below a box's target, and makes its directories.
func (s *Scratch) mount(target string) error {
	dir := filepath.Join(target, ScratchDir)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	loop, err := attach(s.Image)
	if err != nil {
		return fmt.Errorf("the task's scratch space: %w", err)
	}
	defer loop.Close() // the mount keeps the device, and frees it at its end
	// What is freed in it stays the file's: its room on the disk was promised.
	if err := unix.Mount(loop.Name(), dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV, "noinit_itable,nodiscard"); err != nil {
		return fmt.Errorf("mount the task's scratch space: %w", err)
	}
	work, tmp := filepath.Join(dir, WorkDir), filepath.Join(dir, TmpDir)
	return errors.Join(
		os.Mkdir(work, 0o700), os.Chown(work, int(s.User), int(s.Group)),
		os.Mkdir(tmp, 0o777), unix.Chmod(tmp, 0o1777), // whatever the umask is
	)
}

// attachTries bounds how often a free loop device is asked for, which another
// process may take first.
const attachTries = 64

// attach gives a file a loop device, which is freed when nobody has it open or
// mounted any more.
func attach(image string) (*os.File, error) {
	back, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
	for range attachTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("loop devices: %w", err)
		}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s to a loop device (Linux 5.8 can): %w", image, err)
		}
	}
	return nil, errors.New("there is no free loop device")
}
