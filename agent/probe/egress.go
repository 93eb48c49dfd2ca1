package probe

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reachTime is how long an address is waited for.
const reachTime = 2 * time.Second

// reach connects to an address.
func reach(address string) func() (string, error) {
	return func() (string, error) {
		c, err := net.DialTimeout("tcp", address, reachTime)
		if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
			return "", unix.ETIMEDOUT
		}
		if err == nil {
			c.Close()
		}
		return "", err
	}
}

// Egress returns the probes of a sandbox with egress: in place of those of one
// without any, what no policy lets through, and what more says. Each of more is
// "what it is=address:port", with a "+" in front if it must be reached.
func Egress(more []string) ([]Probe, error) {
	denied := []string{"EHOSTUNREACH", "ETIMEDOUT"}
	all := All()
	kept := all[:0:0]
	for _, p := range all {
		if p.Control != network {
			kept = append(kept, p)
		}
	}
	list := []Probe{
		{"the clouds' metadata", network, denied, reach("169.254.169.254:80")},
		{"Alibaba's metadata", network, denied, reach("100.100.100.200:80")},
		{"Azure's host agent", network, denied, reach("168.63.129.16:80")},
		{"Oracle's old metadata", network, denied, reach("192.0.0.192:80")},
		{"the metadata by IPv6", network, []string{"ENETUNREACH"}, reach("[fd00:ec2::254]:80")},
		{"the internet by IPv6", network, []string{"ENETUNREACH"}, reach("[2001:4860:4860::8888]:53")},
		{"the host's end of the link, HTTP", network, denied, reachGateway(0, 80)},
		{"the host's end of the link, SSH", network, denied, reachGateway(0, 22)},
		{"the next task's address", network, denied, reachGateway(5, 80)},
		{"a private network, 10/8", network, denied, reach("10.0.0.1:22")},
		{"a private network, 172.16/12", network, denied, reach("172.17.0.1:22")},
		{"a private network, 192.168/16", network, denied, reach("192.168.0.1:80")},
		{"a carrier's network, 100.64/10", network, denied, reach("100.64.0.1:80")},
		{"everybody", network, []string{"EACCES", "ENETUNREACH", "EHOSTUNREACH"}, reach("255.255.255.255:80")},
		{"the network's interfaces", network, []string{"eth0 lo"}, interfaces},
	}
	for _, m := range more {
		what, address, ok := strings.Cut(m, "=")
		if _, err := netip.ParseAddrPort(address); !ok || err != nil {
			return nil, fmt.Errorf("%q is not what=address:port", m)
		}
		want := denied
		if name, must := strings.CutPrefix(what, "+"); must {
			what, want = name, []string{"open"}
		}
		list = append(list, Probe{what, network, want, reach(address)})
	}
	return append(list, kept...), nil
}

// reachGateway connects to the default gateway, or to the address that is so many
// behind it.
func reachGateway(behind uint32, port uint16) func() (string, error) {
	return func() (string, error) {
		a, err := defaultGateway()
		if err != nil {
			return "", err
		}
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+behind)
		return reach(netip.AddrPortFrom(netip.AddrFrom4(b), port).String())()
	}
}

// defaultGateway reads where the default route leads, without netlink.
func defaultGateway() (netip.Addr, error) {
	b, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return netip.Addr{}, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != "00000000" {
			continue
		}
		raw, err := hex.DecodeString(f[2])
		if err != nil || len(raw) != 4 {
			return netip.Addr{}, fmt.Errorf("the route %q", line)
		}
		return netip.AddrFrom4([4]byte{raw[3], raw[2], raw[1], raw[0]}), nil // of a little-endian machine
	}
	return netip.Addr{}, errors.New("there is no default route")
}

// dial prints what an address answers, or why not. It tries for a while: who is to
// answer may not be there yet.
func dial(address string) int {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", address, reachTime)
		if err == nil {
			b := make([]byte, 256)
			n, _ := c.Read(b)
			c.Close()
			fmt.Printf("%s answered %q\n", address, b[:n])
			return 0
		}
		if time.Now().After(end) {
			fmt.Println(err)
			return 6
		}
	}
}

// meet has the first member of a gang wait for all others, who ask it.
func meet(getenv func(string) string) int {
	size, err := strconv.Atoi(getenv("GPUAI_NODES"))
	if err != nil {
		fmt.Println("this is no member of a gang:", err)
		return 2
	}
	at := net.JoinHostPort(getenv("MASTER_ADDR"), getenv("MASTER_PORT"))
	if getenv("GPUAI_NODE_RANK") == "0" {
		return listen(at, size-1)
	}
	return dial(at)
}

// listen answers who connects to an address, so many times, with where they are.
func listen(address string, times int) int {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for range times {
		c, err := l.Accept()
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Printf("asked by %s\n", c.RemoteAddr())
		fmt.Fprintf(c, "you are %s", c.RemoteAddr())
		c.Close()
	}
	return 0
}
