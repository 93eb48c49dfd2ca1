package probe

import "golang.org/x/sys/unix"

var ioPort = sys(unix.SYS_IOPL, 3)
