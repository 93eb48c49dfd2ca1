package watchdog

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Boottime is CLOCK_BOOTTIME in nanoseconds: it goes on while the host is
// suspended, and no change of the wall clock moves it.
func Boottime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("clock_gettime(CLOCK_BOOTTIME): %v", err)) // Linux 2.6.39 has it
	}
	return ts.Nano()
}

// A timer fires at a time of CLOCK_BOOTTIME. Its file is the kernel's timerfd.
type timer struct {
	fd   int
	file *os.File
}

func newTimer() (*timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create a timer: %w", err)
	}
	return &timer{fd: fd, file: os.NewFile(uintptr(fd), "timerfd")}, nil
}

// set arms the timer for at; a time that has passed fires at once. Not to be
// called after close.
func (t *timer) set(at int64) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(at, 1))}
	if err := unix.TimerfdSettime(t.fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("arm a timer: %w", err)
	}
	return nil
}

// wait blocks until the timer fires; false means that it was closed.
func (t *timer) wait() bool {
	var b [8]byte
	n, err := t.file.Read(b[:])
	return err == nil && n == len(b) && binary.NativeEndian.Uint64(b[:]) > 0
}

func (t *timer) close() { t.file.Close() }
