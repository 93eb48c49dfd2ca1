package mesh

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network/netspace"
)

// LinkName is the device in the gang's namespace.
const LinkName = "mesh0"

// keepAlive is how often a peer hears of a silent one, in seconds, so that what keeps
// track of flows between them remembers. Turned on it also has the peer be greeted
// at once.
const keepAlive = 25

// Two that greet one another at the same time both fail, and try again 5 s
// later. So of two that learn of one another the one with the lower key greets at
// once; the other only after greetLate, since it may have been the later one to
// learn, and have missed that.
const greetLate = 200 * time.Millisecond

// A Peer is another host's device of the same gang.
type Peer struct {
	Key      gpuai.MeshKey  `json:"key"`
	Endpoint netip.AddrPort `json:"endpoint"`
	// Allowed are the only sources that it may send from, and all that is sent to it.
	Allowed []netip.Addr `json:"allowed"`
}

// Ports are the UDP ports of which a device takes a free one; the zero value lets
// the kernel choose.
type Ports struct{ Min, Max uint16 }

// ParsePorts reads MIN-MAX.
func ParsePorts(s string) (p Ports, err error) {
	low, high, ok := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	if !ok || errA != nil || errB != nil || a == 0 && b > 0 || b < a {
		return p, fmt.Errorf("is MIN-MAX, such as 51820-52843, not %q", s)
	}
	return Ports{uint16(a), uint16(b)}, nil
}

// String returns MIN-MAX.
func (p Ports) String() string { return fmt.Sprintf("%d-%d", p.Min, p.Max) }

// Free is how many of the ports nobody listens at.
func (p Ports) Free() (n int) {
	for port := int(p.Min); port <= int(p.Max); port++ {
		if c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port}); err == nil {
			n++
			_ = c.Close()
		}
	}
	return n
}

// ErrNoPort is returned when every port of a range is taken.
var ErrNoPort = errors.New("no UDP port of the mesh's is free: another program has them, or more gangs run here than --mesh-ports has")

// A wire is a WireGuard device.
type wire struct {
	dev   *device.Device
	point gpuai.MeshPoint
	peers map[gpuai.MeshKey]Peer
}

// A steady TUN does not ask the kernel for its MTU, which is looked up by name in the
// namespace of whatever thread asks, and tells of no events: the device would close
// its sockets before the link is first turned on, and might not get its port again.
type steady struct {
	tun.Device
	mtu    int
	events chan tun.Event
}

func newSteady(link tun.Device, mtu int) *steady {
	s := &steady{link, mtu, make(chan tun.Event)}
	go func() {
		for range link.Events() {
		}
		close(s.events)
	}()
	return s
}

func (s *steady) MTU() (int, error)        { return s.mtu, nil }
func (s *steady) Events() <-chan tun.Event { return s.events }

// newWire makes a device in a namespace, with its sockets in that of the process, and
// turns it on.
func newWire(space *os.File, ports Ports, mtu int, log *device.Logger) (*wire, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	link, err := newTUN(space, mtu)
	if err != nil {
		return nil, err
	}
	w := &wire{dev: device.NewDevice(newSteady(link, mtu), conn.NewDefaultBind(), log), peers: map[gpuai.MeshKey]Peer{}}
	copy(w.point.Key[:], key.PublicKey().Bytes())
	if err := w.dev.IpcSet("private_key=" + hex.EncodeToString(key.Bytes()) + "\n"); err != nil {
		return nil, errors.Join(fmt.Errorf("the mesh's key: %w", err), w.close())
	}
	if err := w.listen(ports); err != nil {
		return nil, errors.Join(err, w.close())
	}
	err = netspace.Within(space, func() error {
		l, err := netlink.LinkByName(LinkName)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("turn %s on: %w", LinkName, err), w.close())
	}
	return w, nil
}

// newTUN makes a TUN in a namespace.
func newTUN(space *os.File, mtu int) (link tun.Device, err error) {
	err = netspace.Within(space, func() error {
		link, err = tun.CreateTUN(LinkName, mtu)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("no TUN device can be made (the kernel's CONFIG_TUN: modprobe tun; /dev/net/tun): %w", err)
	}
	return link, nil
}

// Probe reports whether a device can be made in a namespace, and leaves none.
func Probe(space *os.File) error {
	link, err := newTUN(space, device.DefaultMTU)
	if err != nil {
		return err
	}
	// That it could be made is the answer. What Close returns is whether it was in time
	// to wake the device's listener, which another of its steps wakes as well; it closes
	// the device in any case.
	_ = link.Close()
	return nil
}

// listen opens the sockets, at the first port that is free. Where it begins differs
// between devices, so that they seldom meet.
func (w *wire) listen(ports Ports) error {
	n := int(ports.Max) - int(ports.Min) + 1
	at := int(w.point.Key[0])<<8 | int(w.point.Key[1])
	for i := range n {
		port := int(ports.Min) + (at+i)%n
		if err := w.dev.IpcSet("listen_port=" + strconv.Itoa(port) + "\n"); err != nil {
			return fmt.Errorf("the mesh's port: %w", err)
		}
		err := w.dev.Up()
		if err == nil {
			return w.bound()
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("listen at UDP port %d: %w", port, err)
		}
	}
	return ErrNoPort
}

// bound reads which port it is.
func (w *wire) bound() error {
	text, err := w.dev.IpcGet()
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		if port, ok := strings.CutPrefix(s.Text(), "listen_port="); ok {
			n, err := strconv.ParseUint(port, 10, 16)
			w.point.Port = uint16(n)
			return err
		}
	}
	return errors.New("the device does not say at which port it listens")
}

// set makes peers the only ones. What stays as it is keeps its session. late are
// those to be greeted later.
func (w *wire) set(peers []Peer) (late []gpuai.MeshKey, err error) {
	if len(peers) > gpuai.MaxMeshTasks {
		return nil, fmt.Errorf("%d peers, and a gang has %d at most", len(peers), gpuai.MaxMeshTasks)
	}
	var text strings.Builder
	next := make(map[gpuai.MeshKey]Peer, len(peers))
	for _, p := range peers {
		next[p.Key] = p
	}
	for key := range w.peers {
		if _, stays := next[key]; !stays {
			fmt.Fprintf(&text, "public_key=%x\nremove=true\n", key[:])
		}
	}
	for key, p := range next {
		if old, known := w.peers[key]; known && old.Endpoint == p.Endpoint && slices.Equal(old.Allowed, p.Allowed) {
			continue
		}
		fmt.Fprintf(&text, "public_key=%x\nendpoint=%s\nreplace_allowed_ips=true\n", key[:], p.Endpoint)
		if bytes.Compare(w.point.Key[:], key[:]) < 0 {
			fmt.Fprintf(&text, "persistent_keepalive_interval=%d\n", keepAlive)
		} else if _, known := w.peers[key]; !known {
			late = append(late, key)
		}
		for _, a := range p.Allowed {
			fmt.Fprintf(&text, "allowed_ip=%s\n", netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if text.Len() == 0 {
		return nil, nil
	}
	if err := w.dev.IpcSet(text.String()); err != nil {
		return nil, fmt.Errorf("the mesh's peers: %w", err)
	}
	w.peers = next
	return late, nil
}

// greet has peers be greeted that are there still.
func (w *wire) greet(peers []gpuai.MeshKey) error {
	var text strings.Builder
	for _, key := range peers {
		if _, is := w.peers[key]; is {
			fmt.Fprintf(&text, "public_key=%x\nupdate_only=true\npersistent_keepalive_interval=%d\n", key[:], keepAlive)
		}
	}
	return w.dev.IpcSet(text.String())
}

// met reports whether every peer has been greeted, and has answered.
func (w *wire) met() bool {
	text, err := w.dev.IpcGet()
	return err == nil && !strings.Contains(text, "last_handshake_time_sec=0\n")
}

// close takes the device away.
func (w *wire) close() error {
	w.dev.Close()
	return nil
}
