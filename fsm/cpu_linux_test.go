package fsm

import (
	"syscall"
	"time"
	"unsafe"
)

// threadTime returns the CPU time of the calling thread. Other programs on the
// machine disturb it less than the time on the wall. Lock the goroutine to its
// thread first.
func threadTime() time.Duration {
	const clockThread = 3 // CLOCK_THREAD_CPUTIME_ID
	var t syscall.Timespec
	if _, _, e := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockThread, uintptr(unsafe.Pointer(&t)), 0); e != 0 {
		return 0
	}
	return time.Duration(t.Nano())
}
