package nursery

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

// FreePorts returns the first of n successive ports of loopback on which nobody
// listens. They are below those that the kernel gives to outgoing connections,
// so that none is taken while a killed server is down.
func FreePorts(n int) (int, error) {
	const lowest = 10_000
	highest := 32_768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(b), &highest); err != nil {
			return 0, fmt.Errorf("read the range of outgoing ports: %w", err)
		}
	}
	if highest-n <= lowest {
		return 0, fmt.Errorf("the ports of outgoing connections start at %d: %d free ones are needed between %d and there", highest, n, lowest)
	}
	for range 200 {
		first := lowest + rand.IntN(highest-n-lowest)
		if free(first, n) {
			return first, nil
		}
	}
	return 0, errors.New("found no successive free ports")
}

// free reports whether all n ports from first on can be listened on.
func free(first, n int) bool {
	for p := first; p < first+n; p++ {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(p))
		if err != nil {
			return false
		}
		defer l.Close()
	}
	return true
}
