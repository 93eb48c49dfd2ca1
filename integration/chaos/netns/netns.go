// Package netns puts servers into network namespaces of their own, joined by
// bridges, and cuts the links between them in every way that works here.
//
//	server i   eth0  10.77.0.i  to the other servers, over bridge br0 or br1
//	           mgmt  10.78.0.i  to the clients, never cut
//
// The bridges are in one more namespace, the hub, so nothing of the host's own
// network is touched, and deleting the namespaces removes everything.
package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Network is a number of namespaces. Its methods are not safe for concurrent
// use, Dial aside.
type Network struct {
	prefix string
	n      int
}

// Available returns why networks cannot be made here; nil means that they can.
func Available() error {
	if os.Geteuid() != 0 {
		return errors.New("partitions need root, to make network namespaces")
	}
	for _, tool := range []string{"ip", "bridge", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("partitions need the program %s (packages iproute2, nftables)", tool)
		}
	}
	n, err := New(fmt.Sprintf("gpuai-chaos-probe%d", os.Getpid()), 1)
	if n != nil {
		err = errors.Join(err, n.Drop([][2]int{{0, 0}}), n.Close())
	}
	if err != nil {
		return fmt.Errorf("partitions need network namespaces, bridges and nftables: %w", err)
	}
	return nil
}

// New makes the namespaces of n servers, with names that begin with prefix.
// After an error what there is of them is removed by Close of the Network, if
// one is returned.
func New(prefix string, n int) (*Network, error) {
	w := &Network{prefix: prefix, n: n}
	script := []string{
		"ip netns add HUB",
		"ip -n HUB link set lo up",
		"ip -n HUB link add br0 type bridge", "ip -n HUB link set br0 up",
		"ip -n HUB link add br1 type bridge", "ip -n HUB link set br1 up",
		"ip -n HUB link add brm type bridge", "ip -n HUB link set brm up",
		"ip -n HUB addr add 10.78.0.254/24 dev brm",
	}
	for i := range n {
		for _, l := range []string{
			"ip netns add NS", "ip -n NS link set lo up",
			"ip -n HUB link add pI type veth peer name eth0 netns NS",
			"ip -n HUB link add mI type veth peer name mgmt netns NS",
			"ip -n HUB link set pI master br0", "ip -n HUB link set pI up",
			"ip -n HUB link set mI master brm", "ip -n HUB link set mI up",
			"ip -n NS addr add 10.77.0.H/24 dev eth0", "ip -n NS link set eth0 up",
			"ip -n NS addr add 10.78.0.H/24 dev mgmt", "ip -n NS link set mgmt up",
			"ip netns exec NS nft add table inet chaos",
			"ip netns exec NS nft add chain inet chaos in { type filter hook input priority 0 ; }",
		} {
			l = strings.NewReplacer("NS", w.ns(i), "pI", fmt.Sprint("p", i), "mI", fmt.Sprint("m", i), ".H/", fmt.Sprint(".", i+1, "/")).Replace(l)
			script = append(script, l)
		}
	}
	for _, l := range script {
		if err := w.run(l); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (w *Network) ns(i int) string { return fmt.Sprintf("%s-s%d", w.prefix, i+1) }
func (w *Network) hub() string     { return w.prefix + "-hub" }

// Peer returns a server's address among the servers.
func (w *Network) Peer(i int) string { return fmt.Sprint("10.77.0.", i+1) }

// Client returns a server's address for clients.
func (w *Network) Client(i int) string { return fmt.Sprint("10.78.0.", i+1) }

// Wrap returns the words before a command that make it run as a server.
func (w *Network) Wrap(i int) []string { return []string{"ip", "netns", "exec", w.ns(i)} }

// Dial connects from the hub to a server's address for clients.
func (w *Network) Dial(i, port int) (conn net.Conn, err error) {
	inside := within(w.hub(), func() {
		d := net.Dialer{Timeout: 2 * time.Second}
		conn, err = d.Dial("tcp4", net.JoinHostPort(w.Client(i), fmt.Sprint(port)))
	})
	return conn, errors.Join(inside, err)
}

// within calls f on a thread that is in a namespace: the sockets that f makes
// on its own goroutine belong there.
func within(ns string, f func()) error {
	done := make(chan error)
	go func() {
		// The thread ends with this goroutine, which does not unlock it.
		runtime.LockOSThread()
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	return <-done
}

// Down takes a server's link away, or brings it back.
func (w *Network) Down(i int, down bool) error {
	state := "up"
	if down {
		state = "down"
	}
	return w.run(fmt.Sprintf("ip -n HUB link set p%d %s", i, state))
}

// Aside moves a server to the second bridge, or back to the first.
func (w *Network) Aside(i int, aside bool) error {
	bridge := "br0"
	if aside {
		bridge = "br1"
	}
	return w.run(fmt.Sprintf("ip -n HUB link set p%d master %s", i, bridge))
}

// Isolate makes a server's port one of those that cannot reach each other.
func (w *Network) Isolate(i int, isolated bool) error {
	state := "off"
	if isolated {
		state = "on"
	}
	return w.run(fmt.Sprintf("ip netns exec HUB bridge link set dev p%d isolated %s", i, state))
}

// Drop drops all packets from the first server of each pair at the second.
func (w *Network) Drop(pairs [][2]int) error {
	for _, p := range pairs {
		if err := w.run(fmt.Sprintf("ip netns exec %s nft add rule inet chaos in ip saddr %s drop", w.ns(p[1]), w.Peer(p[0]))); err != nil {
			return err
		}
	}
	return nil
}

// Heal undoes every cut.
func (w *Network) Heal() error {
	var errs []error
	for i := range w.n {
		errs = append(errs, w.Down(i, false), w.Aside(i, false), w.Isolate(i, false),
			w.run("ip netns exec "+w.ns(i)+" nft flush chain inet chaos in"))
	}
	return errors.Join(errs...)
}

// Close removes the namespaces with all that is in them.
func (w *Network) Close() error { return Remove(w.prefix) }

// Remove removes all namespaces whose names begin with prefix.
func Remove(prefix string) error {
	dirs, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil // none was ever made
	}
	var errs []error
	for _, d := range dirs {
		if strings.HasPrefix(d.Name(), prefix) {
			errs = append(errs, tool("ip", "netns", "del", d.Name()))
		}
	}
	return errors.Join(errs...)
}

func (w *Network) run(line string) error {
	return tool(strings.Fields(strings.ReplaceAll(line, "HUB", w.hub()))...)
}

func tool(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
