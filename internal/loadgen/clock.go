package loadgen

import "golang.org/x/sys/unix"

// monotonic returns CLOCK_MONOTONIC in nanoseconds.
func monotonic() int64 { return clock(unix.CLOCK_MONOTONIC) }

// boottime returns CLOCK_BOOTTIME in nanoseconds: what agents stamp beats with.
func boottime() int64 { return clock(unix.CLOCK_BOOTTIME) }

func clock(id int32) int64 {
	var t unix.Timespec
	if unix.ClockGettime(id, &t) != nil {
		return 0
	}
	return t.Nano()
}
