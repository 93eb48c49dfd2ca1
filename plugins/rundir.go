package plugins

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A runDir is the directory of one driver: SocketDir/<name>, locked by the host
// that uses it.
//
//	lock    the lock, with the holder's pid
//	run     sockets; emptied when the directory is opened and closed
//	state   the driver's own; never touched
type runDir struct {
	path   string
	marker string
	lock   *os.File
}

// openRunDir locks the directory, kills what an earlier host left running in
// it and removes its sockets.
func openRunDir(socketDir, name string) (*runDir, error) {
	path, err := filepath.Abs(filepath.Join(socketDir, name))
	if err != nil {
		return nil, fmt.Errorf("driver %s: locating its directory: %w", name, err)
	}
	for _, p := range []string{path, filepath.Join(path, "state")} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			return nil, fmt.Errorf("driver %s: creating its directory: %w", name, err)
		}
	}
	mark, err := marker(path)
	if err != nil {
		return nil, fmt.Errorf("driver %s: %w", name, err)
	}
	lock, err := lockFile(filepath.Join(path, "lock"))
	if err != nil {
		return nil, fmt.Errorf("driver %s: %w", name, err)
	}
	d := &runDir{path: path, marker: mark, lock: lock}
	if err := d.reset(); err != nil {
		return nil, errors.Join(fmt.Errorf("driver %s: %w", name, err), lock.Close())
	}
	return d, nil
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening its lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 20)
		n, _ := f.ReadAt(holder, 0)
		return nil, errors.Join(fmt.Errorf("directory %s is in use by process %s: stop the other agent or give this one a data directory of its own",
			filepath.Dir(path), holder[:n]), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("writing its lock: %w", err), f.Close())
	}
	if _, err := fmt.Fprintf(f, "%d", os.Getpid()); err != nil {
		return nil, errors.Join(fmt.Errorf("writing its lock: %w", err), f.Close())
	}
	return f, nil
}

// marker is in the environment of the driver and of all it starts. It finds
// those that left the driver's process group. The inode is part of it: agents in
// containers may see one another's processes, and have directories of one name.
func marker(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("looking at %s: %w", path, err)
	}
	return fmt.Sprintf("GPUAI_DRIVER_DIR=%s@%x:%d", path, st.Dev, st.Ino), nil
}

func (d *runDir) run() string   { return filepath.Join(d.path, "run") }
func (d *runDir) state() string { return filepath.Join(d.path, "state") }

// reset kills strays and empties the run directory.
func (d *runDir) reset() error {
	if err := killMarked(d.marker); err != nil {
		return err
	}
	if err := os.RemoveAll(d.run()); err != nil {
		return fmt.Errorf("removing old sockets: %w", err)
	}
	if err := os.Mkdir(d.run(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("creating the socket directory: %w", err)
	}
	return nil
}

// close kills strays, removes the sockets and gives the lock up.
func (d *runDir) close() error {
	return errors.Join(d.reset(), d.lock.Close())
}
