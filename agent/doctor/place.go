package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gpuai/gpuai/agent/sandbox"
	"github.com/gpuai/gpuai/agent/watchdog"
)

// Names of what the probes take of the host. They are always the same, so that
// the next run finds what one that was killed has left.
const (
	owner     = "gpuai-doctor" // of the range of users, and the image's directory
	placeDir  = "/run/" + owner
	rangesDir = "/run/gpuai/ranges"
)

// lockTime is how long a run of the probes waits for another one.
const lockTime = 2 * time.Minute

// A place is what one run of the probes at a time has of the host.
type place struct {
	// lock is held by the run, and says which directory it has. The kernel gives
	// it up when the process is gone.
	lock *os.File
	dir  string // the watchdog's, and the image
}

// run is where the sandbox's root is mounted.
func (p *place) run() string { return filepath.Join(placeDir, "box") }

// errBusy is returned while another run has the place.
var errBusy = errors.New("another doctor probes this host")

// tryPlace takes the place, or says errBusy.
func tryPlace(dataDir string) (*place, error) {
	if err := os.MkdirAll(placeDir, 0o711); err != nil {
		return nil, err
	}
	if err := os.Chmod(placeDir, 0o711); err != nil { // whatever the umask is
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(placeDir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return &place{lock: f, dir: filepath.Join(diskOf(dataDir), owner)}, nil
}

// openPlace waits for the place and empties it.
func openPlace(ctx context.Context, dataDir string) (*place, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		p, err := tryPlace(dataDir)
		if err == nil {
			if err = p.empty(); err != nil {
				p.lock.Close()
				return nil, fmt.Errorf("what an earlier doctor left: %w", err)
			}
			return p, nil
		}
		if !errors.Is(err, errBusy) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errBusy, ctx.Err())
		case <-again.C:
		}
	}
}

// Clear ends and takes away what a run of the probes left that was killed: its
// sandbox, its watchdog, its range of users and its directories, that in dataDir
// too. It leaves a run alone that goes on.
func Clear(dataDir string) error {
	if !there(placeDir) && !there(filepath.Join(diskOf(dataDir), owner)) {
		return nil // none has been here
	}
	p, err := tryPlace(dataDir)
	if errors.Is(err, errBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.lock.Close()
	return p.empty()
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// diskOf is where the image is put: on the disk of the tasks' images.
func diskOf(dataDir string) string {
	if st, err := os.Stat(dataDir); err == nil && st.IsDir() {
		if abs, err := filepath.Abs(dataDir); err == nil {
			return abs
		}
	}
	return "/var/tmp"
}

// make makes the directories, having noted which. Others may write where dir is,
// so it must be new.
func (p *place) make() error {
	if err := p.note(p.dir); err != nil {
		return err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(p.run(), 0o711); err != nil {
		return err
	}
	return os.Chmod(p.run(), 0o711)
}

// note writes down which directory is in use; "" is none.
func (p *place) note(dir string) error {
	if err := p.lock.Truncate(0); err != nil {
		return err
	}
	_, err := p.lock.WriteAt([]byte(dir), 0)
	return err
}

// noted is the directory that a run before noted, or "".
func (p *place) noted() (string, error) {
	b, err := os.ReadFile(p.lock.Name())
	if err == nil && len(b) > 0 && filepath.Base(string(b)) != owner {
		err = fmt.Errorf("%s does not name a directory of doctor's: remove it", p.lock.Name())
	}
	return string(b), err
}

// empty ends what runs, and then gives back what it had: a range of users is
// another's only when nothing runs as them.
func (p *place) empty() error {
	before, err := p.noted()
	if err != nil {
		return err
	}
	if before != "" {
		if err := end(before); err != nil {
			return err
		}
	}
	ranges, err := sandbox.OpenRanges(rangesDir, owner)
	if err != nil {
		return err
	}
	err = ranges.Return(func(string) bool { return false })
	for _, dir := range []string{p.run(), p.dir, before} {
		if dir != "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err != nil {
		return err
	}
	return p.note("")
}

// end ends the watchdog of dir, if it has one, and its sandbox.
func end(dir string) error {
	st, err := os.Lstat(dir)
	if err != nil || !st.IsDir() || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
		return nil // never made, or by somebody else
	}
	wd, err := watchdog.Dial(dir)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return nil // there is none, and its tasks do not outlive it
	} else if err != nil {
		return err
	}
	defer wd.Close()
	if _, _, err := wd.Hello(1); err != nil {
		return err
	}
	if !wd.End(probeLease, 10*time.Second) {
		return errors.New("the watchdog of the probes does not end; it does so by itself in 10 minutes")
	}
	return nil
}
