//go:build !linux

package fsm

import "time"

var started = time.Now()

// threadTime is the time on the wall where there is no clock of a thread's own.
func threadTime() time.Duration { return time.Since(started) }
