// Package nettest plays the internet, in network namespaces, for the tests of what
// tasks reach.
package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai/agent/network/netspace"
)

// Addresses of the world: a host with an uplink of public addresses and a LAN.
const (
	Internet = "8.8.4.4"
	Metadata = "169.254.169.254"
	Uplink   = "52.1.1.2"
	Gateway  = "52.1.1.1"
	NextDoor = "52.1.1.9"
	LANHost  = "10.9.0.1"
	LANOther = "10.9.0.2"
	Resolver = "9.9.9.9"
)

// A World is a host in a namespace of its own, and one more that plays all that
// is beyond its links.
type World struct {
	t testing.TB
	// Host and Beyond are their namespaces.
	Host, Beyond *os.File
}

// New makes a world, or skips the test where there can be none; with
// GPUAI_NEED_SANDBOX=1 it fails.
func New(t testing.TB) *World {
	t.Helper()
	skip := t.Skip
	if os.Getenv("GPUAI_NEED_SANDBOX") == "1" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("a network is made by root")
	}
	w := &World{t: t}
	w.Host, w.Beyond = w.Space(), w.Space()
	if err := netspace.Within(w.Host, func() error { return exec.Command("nft", "list", "ruleset").Run() }); err != nil {
		skip("there is no filter to test: ", err)
	}
	w.wire("up0", Uplink+"/24", Gateway+"/24", NextDoor+"/24", Metadata+"/16", Internet+"/32", Resolver+"/32",
		"100.100.100.200/32", "168.63.129.16/32", "100.64.0.9/32", "192.0.0.192/32")
	w.wire("lan0", LANHost+"/24", LANOther+"/24")
	w.must(netspace.Within(w.Host, func() error {
		return errors.Join(netspace.Set("ipv4/ip_forward", "1"), netspace.Set("ipv4/icmp_ratemask", "0"), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(Gateway)}))
	}))
	for _, s := range []*os.File{w.Host, w.Beyond} {
		for _, port := range []string{":80", ":53"} {
			w.Listen(s, port)
		}
	}
	return w
}

func (w *World) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// Space makes a namespace that reaches itself.
func (w *World) Space() *os.File {
	w.t.Helper()
	s, err := netspace.New()
	w.must(err)
	w.t.Cleanup(func() { s.Close() })
	w.must(netspace.Settle(s))
	return s
}

// wire links the host to what is beyond, with the addresses of both ends.
func (w *World) wire(name, at string, there ...string) {
	w.t.Helper()
	w.must(netspace.Within(w.Host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = name, 100+len(name) // else as its other end, which the kernel turns on late
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = name, netlink.NsFd(w.Beyond.Fd())
		return errors.Join(netlink.LinkAdd(veth), netspace.Bring(name, netip.MustParsePrefix(at)))
	}))
	w.must(netspace.Within(w.Beyond, func() (err error) {
		for _, a := range there {
			err = errors.Join(err, netspace.Bring(name, netip.MustParsePrefix(a)))
		}
		return err
	}))
}

// Listen takes connections in a namespace and says from where they are.
func (w *World) Listen(space *os.File, addr string) {
	w.t.Helper()
	var l net.Listener
	w.must(netspace.Within(space, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprint(c, host)
			c.Close()
		}
	}()
}

// Dial says as whom a namespace reaches an address, or by which error not.
func (w *World) Dial(from *os.File, addr string) (as string) {
	return w.dialFor(2*time.Second, from, addr)
}

// Silent says so of what is not to be answered.
func (w *World) Silent(from *os.File, addr string) (as string) {
	return w.dialFor(200*time.Millisecond, from, addr)
}

func (w *World) dialFor(d time.Duration, from *os.File, addr string) (as string) {
	w.t.Helper()
	_ = netspace.Within(from, func() error {
		c, err := net.DialTimeout("tcp", addr, d)
		if err != nil {
			var errno syscall.Errno
			if as = "timeout"; errors.As(err, &errno) {
				as = unix.ErrnoName(errno)
			}
			return nil
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(time.Second))
		b := make([]byte, 64)
		k, _ := c.Read(b)
		as = string(b[:k])
		return nil
	})
	return as
}

// Unguard takes away the filters that are part of the tasks' links, so that it is
// seen what the host's rules do.
func (w *World) Unguard() {
	w.t.Helper()
	w.must(netspace.Within(w.Host, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Alias, "gpuai ") {
				err = errors.Join(err, netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
					LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
				}}))
			}
		}
		return err
	}))
}

// Untell takes the routes away by which a task knows what it will not reach, so
// that it is seen what the host does with packets that come all the same.
func (w *World) Untell(task *os.File) {
	w.t.Helper()
	w.must(netspace.Within(task, func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_TYPE)
		if err == nil && len(routes) == 0 {
			err = errors.New("the task was told of nothing")
		}
		for _, r := range routes {
			err = errors.Join(err, netlink.RouteDel(&r))
		}
		return err
	}))
}
