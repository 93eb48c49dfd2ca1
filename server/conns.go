package server

import "syscall"

// Bounds of the connections that wait or are worked for, agents' sessions and
// streams aside: those have bounds of their own.
const (
	leastConns = 256
	mostConns  = 1 << 17
)

// maxConns is half of the descriptors that this process may have.
func maxConns() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return leastConns
	}
	return int(max(leastConns, min(mostConns, l.Cur/2)))
}
