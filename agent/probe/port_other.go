//go:build !amd64

package probe

import "golang.org/x/sys/unix"

// Other machines have no ports.
var ioPort = func() (string, error) { return "", unix.EPERM }
