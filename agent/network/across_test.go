package network

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network/mesh"
	"github.com/gpuai/gpuai/agent/network/netspace"
)

// built is where meshProgram has built; "" when nobody has asked for it.
var built string

// meshProgram builds gpuai-mesh as it is released, once.
var meshProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "network")
	if err != nil {
		return "", err
	}
	built = dir
	path := filepath.Join(dir, "gpuai-mesh")
	build := exec.Command("go", "build", "-o", path, "github.com/gpuai/gpuai/cmd/gpuai-mesh")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// A lan is a world of hosts with agents.
type lan struct {
	*world
	hosts []*host
}

// A host has an address and an agent's node.
type host struct {
	*Node
	space *os.File
	addr  string
	dir   string
	lost  chan string
}

// newLAN makes so many hosts that reach one another.
func newLAN(t testing.TB, n int) *lan {
	t.Helper()
	l := &lan{world: newWorld(t)}
	program, err := meshProgram()
	l.must(err)
	sw := l.Space()
	l.must(netspace.Within(sw, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "switch"
		b := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(b); err != nil {
			return err
		}
		return netlink.LinkSetUp(b)
	}))
	for i := range n {
		h := &host{space: l.Space(), addr: fmt.Sprintf("10.77.0.%d", i+1), dir: t.TempDir(), lost: make(chan string, 16)}
		l.must(netspace.Within(sw, func() error {
			b, err := netlink.LinkByName("switch")
			if err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MasterIndex, attrs.Index = fmt.Sprint("port", i), b.Attrs().Index, 200+i
			veth := netlink.NewVeth(attrs)
			veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(h.space.Fd())
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			return netlink.LinkSetUp(veth)
		}))
		l.must(netspace.Within(h.space, func() error { return netspace.Bring("eth0", netip.MustParsePrefix(h.addr+"/24")) }))
		h.Node = l.node(h, program)
		l.hosts = append(l.hosts, h)
	}
	return l
}

// node opens the node of a host, as each life of its agent does.
func (l *lan) node(h *host, program string) *Node {
	l.t.Helper()
	n, err := Open(Config{Space: h.space, Mesh: MeshConfig{
		Program: program, Dir: h.dir, Ports: mesh.Ports{Min: 51820, Max: 51835}, Lost: func(lease, _ string) { h.lost <- lease },
	}}, "owner", slog.New(slog.DiscardHandler))
	l.must(err)
	if lacks := n.Lacks(); len(lacks) > 0 {
		l.t.Skip(lacks)
	}
	l.t.Cleanup(func() { n.Close() })
	return n
}

// A seat is a member of a gang on a host.
type seat struct {
	h     *host
	rank  uint32
	lease string
	space *os.File
}

// seat has a new member of a gang join.
func (l *lan) seat(h *host, g Gang, rank uint32) *seat {
	l.t.Helper()
	s := &seat{h: h, rank: rank, lease: fmt.Sprint(g.Group, rank, h.addr)}
	s.space = l.join(h.Node, Task{Lease: s.lease, Gang: &g, Rank: rank, Mesh: true})
	l.t.Cleanup(func() { h.Leave(s.lease) })
	return s
}

// told tells all hosts of seats where the others are, as a region does.
func (l *lan) told(g Gang, index uint64, seats ...*seat) {
	l.t.Helper()
	var all errgroup.Group
	for _, s := range seats {
		peers := l.peersOf(s.h, g, seats)
		all.Go(func() error { return s.h.SetPeers(g, index, peers) })
	}
	l.must(all.Wait())
}

func (l *lan) peersOf(h *host, g Gang, seats []*seat) (peers []gpuai.MeshPeer) {
	l.t.Helper()
	for _, o := range l.hosts {
		p := gpuai.MeshPeer{Address: o.addr}
		for _, s := range seats {
			if s.h == o && o != h {
				p.Ranks = append(p.Ranks, s.rank)
			}
		}
		if len(p.Ranks) == 0 {
			continue
		}
		point, ok := o.Point(g)
		if !ok {
			l.t.Fatalf("%s has no mesh", o.addr)
		}
		p.MeshPoint = point
		peers = append(peers, p)
	}
	return peers
}

// reach says as whom one seat reaches another; a mesh that is new is waited for.
func (l *lan) reach(from, to *seat, g Gang, port string) string {
	l.t.Helper()
	return l.Dial(from.space, g.Addr(to.rank).String()+port)
}

const nothing = "timeout EHOSTUNREACH ENETUNREACH"

func (l *lan) unreached(why string, from *os.File, addr string) {
	l.t.Helper()
	if got := l.Silent(from, addr); !strings.Contains(nothing, got) {
		l.t.Errorf("%s: %s", why, got)
	}
}

var training = Gang{Job: gpuai.JobID{1}, Group: "main"}

// Case 35: members of a gang on two hosts reach one another, and nobody else does.
func TestCase35GangAcrossHosts(t *testing.T) {
	l := newLAN(t, 2)
	other := Gang{Job: gpuai.JobID{2}, Group: "main"}
	a, b := l.hosts[0], l.hosts[1]
	seats := []*seat{l.seat(a, training, 0), l.seat(a, training, 1), l.seat(b, training, 2), l.seat(b, training, 3)}
	foe := []*seat{l.seat(a, other, 0), l.seat(b, other, 1)}
	l.told(training, 1, seats...)
	l.told(other, 1, foe...)
	for _, s := range append(seats, foe...) {
		l.Listen(s.space, ":80")
	}
	for _, from := range seats {
		for _, to := range seats {
			if got := l.reach(from, to, training, ":80"); from != to && got != training.Addr(from.rank).String() {
				t.Errorf("rank %d to %d: %q", from.rank, to.rank, got)
			}
		}
		for _, rank := range []uint32{0, 1} {
			l.unreached(fmt.Sprintf("rank %d reaches another gang", from.rank), from.space, other.Addr(rank).String()+":80")
		}
		for _, addr := range []string{a.addr, b.addr, "169.254.169.254"} {
			if got := l.Silent(from.space, addr+":80"); !strings.Contains(nothing+" ECONNREFUSED", got) {
				t.Errorf("rank %d reaches %s: %s", from.rank, addr, got)
			}
		}
	}
	for name, s := range map[string]*os.File{"a host": a.space, "the other host": b.space, "another gang": foe[0].space, "a task of none": l.join(a.Node, Task{Lease: "alone"})} {
		l.unreached(name+" reaches the gang", s, training.Addr(2).String()+":80")
	}
	// Nothing of the mesh is in the hosts' networks but its sockets.
	l.must(netspace.Within(a.space, func() error {
		links, err := netlink.LinkList()
		if len(links) != 2 {
			t.Errorf("the host has %d links", len(links))
		}
		return err
	}))
}

// A member that is placed on another host takes its rank along, and what is left
// where it was is no member any more.
func TestMeshFollowsAMember(t *testing.T) {
	l := newLAN(t, 3)
	first, moved := l.seat(l.hosts[0], training, 0), l.seat(l.hosts[1], training, 1)
	l.told(training, 1, first, moved)
	l.Listen(moved.space, ":80")
	l.Listen(first.space, ":80")
	if got := l.reach(first, moved, training, ":80"); got != training.Addr(0).String() {
		t.Fatalf("before: %q", got)
	}
	again := l.seat(l.hosts[2], training, 1)
	l.told(training, 2, first, again)
	l.Listen(again.space, ":81")
	if got := l.reach(first, again, training, ":81"); got != training.Addr(0).String() {
		t.Errorf("after: %q", got)
	}
	l.unreached("the one that has gone", moved.space, training.Addr(0).String()+":80")
	// An older word changes nothing any more.
	l.must(first.h.SetPeers(training, 1, l.peersOf(first.h, training, []*seat{first, moved})))
	if got := l.reach(first, again, training, ":81"); got != training.Addr(0).String() {
		t.Errorf("after an older word: %q", got)
	}
	// And one that moves to the first one's host is reached there.
	home := l.seat(l.hosts[0], training, 1)
	l.Listen(home.space, ":82")
	l.told(training, 3, first, home)
	if got := l.reach(first, home, training, ":82"); got != training.Addr(0).String() {
		t.Errorf("on one host: %q", got)
	}
}

// A host that has another's key in its list is not let in by its own.
func TestMeshRefusesAnotherKey(t *testing.T) {
	l := newLAN(t, 2)
	a, b := l.seat(l.hosts[0], training, 0), l.seat(l.hosts[1], training, 1)
	l.Listen(a.space, ":80")
	l.Listen(b.space, ":80")
	wrong := l.peersOf(a.h, training, []*seat{a, b})
	wrong[0].Key[5] ^= 1
	// tell is SetPeers that does not wait for who will not come.
	tell := func(s *seat, index uint64, peers []gpuai.MeshPeer) {
		list, all, err := s.h.resolve(training, peers)
		l.must(err)
		m, err := s.h.tellMesh(training, index, list, all)
		l.must(err)
		if index > 1 { // they meet, whatever they may say then
			l.must(m.Await())
		}
	}
	tell(a, 1, wrong)
	tell(b, 1, l.peersOf(b.h, training, []*seat{a, b}))
	l.unreached("a key that is not its own", b.space, training.Addr(0).String()+":80")
	l.unreached("to a key that nobody has", a.space, training.Addr(1).String()+":80")
	// Nor does the right key let one in under another's address.
	right := l.peersOf(a.h, training, []*seat{a, b})
	right[0].Ranks = []uint32{2}
	tell(a, 2, right)
	l.unreached("under another rank", b.space, training.Addr(0).String()+":80")
	l.told(training, 3, a, b)
	if got := l.reach(b, a, training, ":80"); got != training.Addr(1).String() {
		t.Errorf("with its own: %q", got)
	}
}

// What is not TCP passes, too, whole to the MTU.
func TestMeshCarriesLargeDatagrams(t *testing.T) {
	l := newLAN(t, 2)
	a, b := l.seat(l.hosts[0], training, 0), l.seat(l.hosts[1], training, 1)
	l.told(training, 1, a, b)
	in, out := l.packets(a.space, ":5000"), l.packets(b.space, ":5000")
	to, err := net.ResolveUDPAddr("udp4", training.Addr(0).String()+":5000")
	l.must(err)
	for _, size := range []int{1, mesh.DefaultMTU - 28, mesh.DefaultMTU - 27, 9000} {
		_, err := out.WriteTo(make([]byte, size), to)
		l.must(err)
		b := make([]byte, 16<<10)
		l.must(in.SetReadDeadline(time.Now().Add(5 * time.Second)))
		if n, _, err := in.ReadFrom(b); err != nil || n != size {
			t.Errorf("of %d bytes %d came: %v", size, n, err)
		}
	}
}

// A mesh goes on while its agent is gone, and is the next one's.
func TestMeshOutlivesItsAgent(t *testing.T) {
	l := newLAN(t, 2)
	a, b := l.seat(l.hosts[0], training, 0), l.seat(l.hosts[1], training, 1)
	l.told(training, 1, a, b)
	h := a.h
	hold, err := reopen(h.hubs[training].space)
	l.must(err)
	defer hold.Close()
	before, _ := h.Point(training)
	h.mu.Lock()
	for _, hub := range h.hubs { // as a kill does
		hub.leave()
	}
	h.hubs = map[Gang]*hub{}
	h.mu.Unlock()
	l.Listen(a.space, ":80")
	if got := l.reach(b, a, training, ":80"); got != training.Addr(1).String() {
		t.Errorf("without an agent: %q", got)
	}
	stale := filepath.Join(h.dir, "0000.sock")
	l.must(os.WriteFile(stale, nil, 0o600))
	h.Node = l.node(h, h.cfg.Mesh.Program)
	l.must(h.Retain([]Member{{Lease: a.lease, Gang: &training, Hold: fmt.Sprintf("/proc/self/fd/%d", hold.Fd())}}))
	if after, ok := h.Point(training); !ok || after != before {
		t.Errorf("the next agent has %v, %v", after, ok)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("what nobody needs is left")
	}
	// It can be told of others.
	late := l.seat(b.h, training, 2)
	l.told(training, 2, a, b, late)
	if got := l.reach(late, a, training, ":80"); got != training.Addr(2).String() {
		t.Errorf("a later member: %q", got)
	}
	// With the last member the process ends.
	gone := h.hubs[training].mesh.Gone()
	l.must(h.Leave(a.lease))
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the process goes on without members")
	}
	if left, err := os.ReadDir(h.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A process that ends by itself ends the gang's members: the region places them anew.
func TestMeshThatDiesIsTold(t *testing.T) {
	l := newLAN(t, 1)
	a := l.seat(l.hosts[0], training, 0)
	m, err := mesh.Dial(a.h.socket(training)) // as somebody who kills it
	l.must(err)
	l.must(m.Quit())
	select {
	case lease := <-a.h.lost:
		if lease != a.lease {
			t.Errorf("told of %s", lease)
		}
	case <-time.After(5 * time.Second):
		t.Error("nobody is told")
	}
}

func TestMeshWithoutPortsSaysSo(t *testing.T) {
	l := newLAN(t, 1)
	h := l.hosts[0]
	h.cfg.Mesh.Ports = mesh.Ports{Min: 51820, Max: 51820}
	l.seat(h, training, 0)
	other := Gang{Job: gpuai.JobID{2}, Group: "main"}
	s, err := netspace.New()
	l.must(err)
	defer s.Close()
	_, err = h.Join(&Task{Lease: "2", Space: s, Gang: &other, Mesh: true})
	if err == nil || !strings.Contains(err.Error(), mesh.ErrNoPort.Error()) {
		t.Errorf("%v", err)
	}
	l.must(h.Leave("2"))
}

func TestMeshOfMembersOnOneHostIsNotNeeded(t *testing.T) {
	l := newLAN(t, 1)
	h := l.hosts[0]
	h.meshes = false
	l.join(h.Node, Task{Lease: "1", Gang: &training, Rank: 0})
	if _, ok := h.Point(training); ok {
		t.Error("it has a mesh")
	}
	l.must(h.SetPeers(training, 1, nil))
	if err := h.SetPeers(training, 2, []gpuai.MeshPeer{{Address: "10.77.0.9", Ranks: []uint32{3}}}); err == nil {
		t.Error("peers without a mesh are taken")
	}
	if got := h.Labels()[gpuai.LabelMesh]; got != "" {
		t.Errorf("the label %q", got)
	}
	l.must(h.Leave("1"))
}
