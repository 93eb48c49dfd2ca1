// Package loopfs makes file systems that can lose their power: ext4 on a loop
// device over a file. What was written and not synced when the power goes is
// lost, as far as the page cache held it; what a disk's own cache would lose on
// top of that is not simulated.
package loopfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ioctlShutdown is EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32).
	ioctlShutdown = 0x8004587d
	// withoutLogFlush is EXT4_GOING_FLAGS_NOLOGFLUSH: the journal keeps only
	// what an fsync has put there.
	withoutLogFlush = 2
)

// A Volume is one mounted file system.
type Volume struct {
	Dir   string // where it is mounted
	image string // the file below it
}

// Available returns why volumes cannot be made here; nil means that they can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("power cuts need root, to mount a loop device")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("power cuts need the program %s", tool)
		}
	}
	if out, err := exec.Command("losetup", "-f").CombinedOutput(); err != nil {
		return fmt.Errorf("power cuts need a loop device: %s", strings.TrimSpace(string(out)))
	}
	return nil
}

// New makes a file system of so many bytes in the file image, and mounts it on
// dir, which it makes.
func New(image, dir string, bytes int64) (*Volume, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a volume: %w", err)
	}
	f, err := os.Create(image)
	if err != nil {
		return nil, fmt.Errorf("make a volume: %w", err)
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, fmt.Errorf("make a volume: %w", err)
	}
	if err := tool("mkfs.ext4", "-q", "-F", image); err != nil {
		return nil, err
	}
	v := &Volume{Dir: dir, image: image}
	return v, v.Mount()
}

// Mount mounts the volume, again perhaps: the journal is replayed.
func (v *Volume) Mount() error { return tool("mount", "-o", "loop", v.image, v.Dir) }

// Cut takes the power away: from now on every access fails, and nothing that
// was not synced is on the disk. The volume stays mounted.
func (v *Volume) Cut() error {
	d, err := os.Open(v.Dir)
	if err != nil {
		return fmt.Errorf("cut the power of %s: %w", v.Dir, err)
	}
	defer d.Close()
	if err := unix.IoctlSetPointerInt(int(d.Fd()), ioctlShutdown, withoutLogFlush); err != nil {
		return fmt.Errorf("cut the power of %s: %w", v.Dir, err)
	}
	return nil
}

// Unmount unmounts the volume; processes that were just killed may still hold
// it for a moment.
func (v *Volume) Unmount() error {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = tool("umount", v.Dir); err == nil {
			return nil
		}
	}
	return err
}

func tool(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
