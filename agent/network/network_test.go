package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network/netspace"
	"github.com/gpuai/gpuai/agent/network/nettest"
)

// Addresses of the world.
const (
	internet, metadata, uplink, gateway, nextDoor = nettest.Internet, nettest.Metadata, nettest.Uplink, nettest.Gateway, nettest.NextDoor
	lanHost, lanOther, resolver                   = nettest.LANHost, nettest.LANOther, nettest.Resolver
)

// A world is one to test a Node in.
type world struct {
	*nettest.World
	t testing.TB
}

func newWorld(t testing.TB) *world { return &world{nettest.New(t), t} }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open(c Config) *Node {
	w.t.Helper()
	c.Space = w.Host
	if c.DNS == nil && c.Egress.any() {
		c.DNS = []netip.Addr{netip.MustParseAddr(resolver)}
	}
	n, err := Open(c, "owner", slog.New(slog.DiscardHandler))
	w.must(err)
	if l := n.Lacks(); len(l) > 0 {
		w.t.Fatal(l)
	}
	w.t.Cleanup(func() { n.Close() })
	return n
}

// join gives a new task its links.
func (w *world) join(n *Node, t Task) *os.File {
	w.t.Helper()
	s, err := netspace.New()
	w.must(err)
	w.t.Cleanup(func() { s.Close() })
	t.Space = s
	hold, err := n.Join(&t)
	w.must(err)
	if hold != nil {
		w.t.Cleanup(func() { hold.Close() })
	}
	return s
}

// left are the links and tables of the host that are of tasks.
func (w *world) left() string {
	w.t.Helper()
	var out []string
	w.must(netspace.Within(w.Host, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, linkPrefix) {
				out = append(out, l.Attrs().Name)
			}
		}
		b, err2 := exec.Command("nft", "list", "ruleset").Output()
		if len(b) > 0 {
			out = append(out, string(b))
		}
		return errors.Join(err, err2)
	}))
	return strings.Join(out, "\n")
}

func egress(t testing.TB, s string) Egress {
	t.Helper()
	e, err := ParseEgress(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const (
	closed = "EHOSTUNREACH" // the filter says so at once
	open   = uplink         // masked by the host's own address
)

// Case 35: what a task with egress reaches, by its node's policy.
func TestCase35EgressReachesWhatThePolicySays(t *testing.T) {
	everywhere := map[string]string{
		metadata + ":80": closed, "100.100.100.200:80": closed, "168.63.129.16:80": closed, "192.0.0.192:80": closed,
		uplink + ":80": closed, "198.18.0.1:80": closed, "127.0.0.2:80": "ECONNREFUSED", "100.64.0.9:80": closed,
		"224.0.0.1:80": "ENETUNREACH", "[fd00:ec2::254]:80": "ENETUNREACH", "[2001:db8::1]:80": "ENETUNREACH",
		lanHost + ":80": closed, resolver + ":53": open,
	}
	for policy, more := range map[string]map[string]string{
		"allow":                  {internet + ":80": open, resolver + ":80": open, lanOther + ":80": closed, nextDoor + ":80": closed, gateway + ":80": closed},
		"8.8.4.0/24":             {internet + ":80": open, resolver + ":80": closed, lanOther + ":80": closed, nextDoor + ":80": closed},
		"allow,10.9.0.2":         {internet + ":80": open, lanOther + ":80": lanHost, nextDoor + ":80": closed},
		"10.0.0.0/8,52.1.1.9/32": {internet + ":80": closed, lanOther + ":80": lanHost, nextDoor + ":80": open, gateway + ":80": closed},
		"0.0.0.0/1,128.0.0.0/1":  {internet + ":80": open, lanOther + ":80": lanHost},
	} {
		t.Run(policy, func(t *testing.T) {
			w := newWorld(t)
			task := w.join(w.open(Config{Egress: egress(t, policy)}), Task{Lease: "1", Slot: 7, Egress: true})
			w.Untell(task)
			w.Unguard()
			for _, list := range []map[string]string{everywhere, more} {
				for addr, want := range list {
					if policy == "0.0.0.0/1,128.0.0.0/1" && addr == "100.64.0.9:80" {
						want = open
					}
					if got := w.Dial(task, addr); got != want {
						t.Errorf("%s: %s, want %s", addr, got, want)
					}
				}
			}
		})
	}
}

// Case 35: tasks reach neither one another nor the host, nor does anybody them.
func TestCase35TasksAreApart(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	one := w.join(n, Task{Lease: "1", Slot: 0, Egress: true})
	two := w.join(n, Task{Lease: "2", Slot: 1, Egress: true})
	w.Untell(one)
	w.Unguard()
	w.Listen(two, ":80")
	_, addr := egressAddrs(1)
	at := addr.Addr().String() + ":80"
	if got := w.Dial(two, at); got == "timeout" || strings.HasPrefix(got, "E") {
		t.Fatalf("the task does not reach itself: %s", got)
	}
	if got := w.Dial(one, at); got != closed {
		t.Errorf("another task: %s", got)
	}
	if got := w.Silent(w.Host, at); got != "EPERM" && got != "timeout" {
		t.Errorf("from the host: %s", got)
	}
	// From beyond, by one that sends packets for the task to the host.
	w.must(netspace.Within(w.Beyond, func() error {
		_, pool, _ := net.ParseCIDR(egressPool.String())
		return netlink.RouteAdd(&netlink.Route{Dst: pool, Gw: net.ParseIP(uplink)})
	}))
	if got := w.Silent(w.Beyond, at); got != "timeout" {
		t.Errorf("from beyond: %s", got)
	}
}

// packets opens a socket for datagrams in a namespace.
func (w *world) packets(space *os.File, at string) net.PacketConn {
	w.t.Helper()
	var c net.PacketConn
	w.must(netspace.Within(space, func() (err error) {
		c, err = net.ListenPacket("udp4", at)
		return err
	}))
	w.t.Cleanup(func() { c.Close() })
	return c
}

// send sends a datagram; one that is refused at once is as good as lost.
func (w *world) send(from net.PacketConn, to, text string) {
	w.t.Helper()
	a, err := net.ResolveUDPAddr("udp4", to)
	w.must(err)
	_, _ = from.WriteTo([]byte(text), a)
}

// first reads the first datagram that came, and from where it did.
func (w *world) first(c net.PacketConn) (string, net.Addr) {
	w.t.Helper()
	w.must(c.SetReadDeadline(time.Now().Add(5 * time.Second)))
	b := make([]byte, 64)
	n, from, err := c.ReadFrom(b)
	w.must(err)
	return string(b[:n]), from
}

// Case 35: not a single packet goes out under another's address, or comes in that
// was not asked for, though nobody waits for an answer. The kernel's own check of
// sources is off here: the rules do not need it.
func TestCase35NoPacketIsForgedOrUnasked(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	one := w.join(n, Task{Lease: "1", Slot: 0, Egress: true})
	w.Unguard()
	w.must(netspace.Within(w.Host, func() error { return netspace.Set("ipv4/conf/"+linkName("owner", "1")+"/rp_filter", "0") }))
	w.must(netspace.Within(one, func() error {
		link, err := netlink.LinkByName(EgressLink)
		if err != nil {
			return err
		}
		forged, err := netlink.ParseAddr("198.18.0.6/32")
		return errors.Join(err, netlink.AddrAdd(link, forged))
	}))
	_, addr := egressAddrs(0)
	own, forged := w.packets(one, addr.Addr().String()+":5000"), w.packets(one, "198.18.0.6:5000")
	there, host := w.packets(w.Beyond, internet+":5000"), w.packets(w.Host, ":5000")
	w.must(netspace.Within(w.Beyond, func() error {
		_, pool, _ := net.ParseCIDR(egressPool.String())
		return netlink.RouteAdd(&netlink.Route{Dst: pool, Gw: net.ParseIP(uplink)})
	}))
	w.send(forged, internet+":5000", "forged")
	w.send(host, own.LocalAddr().String(), "from the host")
	w.send(w.packets(w.Beyond, gateway+":5000"), own.LocalAddr().String(), "from beyond")
	w.send(own, internet+":5000", "question")
	text, from := w.first(there)
	if text != "question" {
		t.Errorf("the internet gets %q", text)
	}
	w.send(there, from.String(), "answer")
	if text, _ := w.first(own); text != "answer" {
		t.Errorf("the task gets %q", text)
	}
}

// A link that has IPv6 after all does not pass the filter by it.
func TestCase35NoIPv6(t *testing.T) {
	w := newWorld(t)
	one := w.join(w.open(Config{Egress: egress(t, "allow")}), Task{Lease: "1", Egress: true})
	w.Unguard()
	for space, c := range map[*os.File][2]string{w.Host: {linkName("owner", "1"), "fd00::1/64"}, one: {EgressLink, "fd00::2/64"}} {
		w.must(netspace.Within(space, func() error {
			link, err := netlink.LinkByName(c[0])
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(c[1])
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			return errors.Join(netspace.Set("ipv6/conf/"+c[0]+"/disable_ipv6", "0"), netlink.AddrAdd(link, addr))
		}))
	}
	w.must(netspace.Within(one, func() error {
		_, all, _ := net.ParseCIDR("2001:db8::/32")
		return netlink.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP("fd00::1")})
	}))
	for _, addr := range []string{"[fd00::1]:80", "[2001:db8::1]:80"} {
		// Not even the host's link address is told.
		if got := w.Silent(one, addr); got != "timeout" && got != "EHOSTUNREACH" {
			t.Errorf("%s: %s", addr, got)
		}
	}
}

// The host's other rules may send what goes to one address to another.
func TestEgressIsJudgedBehindOthersTranslation(t *testing.T) {
	w := newWorld(t)
	task := w.join(w.open(Config{Egress: egress(t, "allow")}), Task{Lease: "1", Egress: true})
	w.must(netspace.Within(w.Host, func() error {
		return nft("table ip other {\nchain p { type nat hook prerouting priority dstnat; ip daddr 8.8.4.7 dnat to " + lanOther + "; ip daddr 8.8.4.8 dnat to " + internet + "; ip daddr 8.8.4.9 dnat to " + lanHost + "; }\n}\n")
	}))
	if got := w.Dial(task, "8.8.4.8:80"); got != open {
		t.Errorf("to the internet: %s", got)
	}
	if got := w.Dial(task, "8.8.4.7:80"); got != closed {
		t.Errorf("to the LAN: %s", got)
	}
	if got := w.Silent(task, "8.8.4.9:80"); got != "timeout" {
		t.Errorf("to the host itself: %s", got)
	}
}

func TestGangMembersReachOneAnotherAndNobodyElse(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{})
	gang, other := Gang{Job: gpuai.JobID{1}, Group: "main"}, Gang{Job: gpuai.JobID{1}, Group: "eval"}
	var spaces []*os.File
	for rank := range uint32(3) {
		spaces = append(spaces, w.join(n, Task{Lease: fmt.Sprint(rank), Gang: &gang, Rank: rank}))
	}
	stranger := w.join(n, Task{Lease: "9", Gang: &other, Rank: 0})
	alone := w.join(n, Task{Lease: "10"})
	w.Listen(spaces[2], ":80")
	w.Listen(stranger, ":80")
	at := gang.Addr(2).String() + ":80"
	for rank, s := range spaces {
		if got := w.Dial(s, at); got != gang.Addr(uint32(rank)).String() {
			t.Errorf("rank %d is seen as %s", rank, got)
		}
		if got := w.Dial(s, internet+":80"); got != "ENETUNREACH" {
			t.Errorf("rank %d reaches the internet: %s", rank, got)
		}
		if got := w.Silent(s, other.Addr(0).String()+":80"); got != "ENETUNREACH" && got != "EHOSTUNREACH" && got != "timeout" {
			t.Errorf("rank %d reaches another gang: %s", rank, got)
		}
	}
	for name, s := range map[string]*os.File{"the host": w.Host, "another gang": stranger, "a task of none": alone} {
		if got := w.Silent(s, at); got != "ENETUNREACH" && got != "timeout" && got != "EHOSTUNREACH" && got != internet {
			t.Errorf("%s reaches the gang: %s", name, got)
		}
	}
	// A member that is placed again takes the place of the one before.
	w.must(n.Leave("2"))
	again := w.join(n, Task{Lease: "12", Gang: &gang, Rank: 2})
	w.Listen(again, ":81")
	if got := w.Dial(spaces[0], gang.Addr(2).String()+":81"); got != gang.Addr(0).String() {
		t.Errorf("the new member: %s", got)
	}
}

func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	gang := Gang{Group: "main"}
	n := w.open(Config{Egress: egress(t, "allow")})
	for i := range uint32(3) {
		w.join(n, Task{Lease: fmt.Sprint(i), Slot: i, Egress: true, Gang: &gang, Rank: i})
	}
	if got := w.left(); strings.Count(got, linkName("owner", "1")) < 2 {
		t.Fatalf("link and rule of a task:\n%s", got)
	}
	for i := range 3 {
		w.must(n.Leave(fmt.Sprint(i)))
	}
	w.must(n.Leave("never was there"))
	if got := w.left(); strings.Contains(got, linkName("owner", "1")) || len(n.hubs) > 0 {
		t.Errorf("after the tasks: %d hubs\n%s", len(n.hubs), got)
	}
	w.must(n.Close())
	if got := w.left(); got != "" {
		t.Errorf("after the agent:\n%s", got)
	}
}

// An agent that was killed leaves what the next one adopts or takes away.
func TestCrashLeavesWhatTheNextAgentFinds(t *testing.T) {
	w := newWorld(t)
	gang := Gang{Group: "main"}
	first := w.open(Config{Egress: egress(t, "allow")})
	stays := w.join(first, Task{Lease: "1", Slot: 1, Egress: true, Gang: &gang, Rank: 0})
	w.join(first, Task{Lease: "2", Slot: 2, Egress: true})
	hold, err := reopen(first.hubs[gang].space)
	w.must(err)
	defer hold.Close()
	for _, h := range first.hubs { // as a kill does; no Close
		h.space.Close()
	}
	first.hubs = nil
	next := w.open(Config{Egress: egress(t, "allow")})
	w.must(next.Retain([]Member{{Lease: "1", Gang: &gang, Hold: fmt.Sprintf("/proc/self/fd/%d", hold.Fd())}}))
	if got := w.Dial(stays, internet+":80"); got != open {
		t.Errorf("the task that goes on: %s", got)
	}
	if got := w.left(); strings.Contains(got, linkName("owner", "2")) {
		t.Errorf("what nobody needs:\n%s", got)
	}
	late := w.join(next, Task{Lease: "3", Gang: &gang, Rank: 1})
	w.Listen(stays, ":80")
	if got := w.Dial(late, gang.Addr(0).String()+":80"); got != gang.Addr(1).String() {
		t.Errorf("a member that joined later: %s", got)
	}
	// The next agent's operator allows nothing any more.
	last := w.open(Config{})
	if got := w.Dial(stays, internet+":80"); got != closed {
		t.Errorf("by a policy that was taken back: %s", got)
	}
	w.must(last.Retain(nil))
	_ = w.open(Config{})
	if got := w.left(); got != "" {
		t.Errorf("in the end:\n%s", got)
	}
}

func TestFlushedRulesAreLoadedAgain(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	one := w.join(n, Task{Lease: "1", Egress: true})
	flush := func() { w.must(netspace.Within(w.Host, func() error { return nft("flush ruleset\n") })) }
	flush()
	n.look()
	if a, b := w.Dial(one, internet+":80"), w.Dial(one, uplink+":80"); a != open || b != closed {
		t.Errorf("%s and %s", a, b)
	}
	flush()
	two := w.join(n, Task{Lease: "2", Slot: 1, Egress: true})
	for _, s := range []*os.File{one, two} {
		if a, b := w.Dial(s, internet+":80"), w.Dial(s, uplink+":80"); a != open || b != closed {
			t.Errorf("%s and %s", a, b)
		}
	}
}

// A network that the host is given while a task runs is its LAN too.
func TestNewLinksOfTheHostAreLAN(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	one := w.join(n, Task{Lease: "1", Egress: true})
	w.must(netspace.Within(w.Host, func() error { return netspace.Bring("lan0", netip.MustParsePrefix("8.8.4.1/24")) }))
	n.look()
	if got := w.Dial(one, internet+":80"); got != closed {
		t.Errorf("%s", got)
	}
}

func TestWhatTheHostLacksIsSaid(t *testing.T) {
	w := newWorld(t)
	w.must(netspace.Within(w.Host, func() error { return netspace.Set("ipv4/ip_forward", "0") }))
	n, err := Open(Config{Egress: Egress{Internet: true}, DNS: []netip.Addr{netip.MustParseAddr(resolver)}, Space: w.Host}, "owner", slog.New(slog.DiscardHandler))
	w.must(err)
	if l := n.Lacks(); len(l) != 1 || !strings.Contains(l[0].Error(), "ip_forward") {
		t.Errorf("%v", l)
	}
	if l := n.Labels(); l[gpuai.LabelEgress] != "" || l[gpuai.LabelGangNetwork] != gpuai.LabelYes || n.Refusal(gpuai.NetworkEgress, false) == nil {
		t.Errorf("%v", l)
	}
	w.must(netspace.Within(w.Host, func() error { return netspace.Set("ipv4/ip_forward", "1") }))
	n, err = Open(Config{Egress: Egress{Internet: true}, DNS: []netip.Addr{netip.MustParseAddr(uplink)}, Space: w.Host}, "owner", slog.New(slog.DiscardHandler))
	w.must(err)
	if l := n.Lacks(); len(l) != 1 || !strings.Contains(l[0].Error(), "is this host") {
		t.Errorf("%v", l)
	}
	listed := w.open(Config{Host: true})
	if l := listed.Labels(); l[gpuai.LabelHostNetwork] != gpuai.LabelYes || listed.Refusal(gpuai.NetworkHost, true) != nil || listed.Refusal(gpuai.NetworkEgress, false) == nil {
		t.Errorf("%v", l)
	}
}

func TestHostNetworkIsNeverBesideAnotherTenant(t *testing.T) {
	n := newWorld(t).open(Config{Host: true})
	for _, c := range []struct {
		lease  string
		tenant gpuai.TenantID
		net    gpuai.Network
		ok     bool
	}{
		{"1", "a", gpuai.NetworkNone, true}, {"2", "b", gpuai.NetworkEgress, true}, {"3", "a", gpuai.NetworkHost, false},
		{"2", "", gpuai.NetworkNone, true}, // leaves
		{"3", "a", gpuai.NetworkHost, true}, {"3", "a", gpuai.NetworkHost, true}, {"4", "b", gpuai.NetworkNone, false}, {"5", "a", gpuai.NetworkNone, true},
	} {
		if c.tenant == "" {
			if err := n.Leave(c.lease); err != nil {
				t.Fatal(err)
			}
		} else if err := n.Admit(c.lease, c.tenant, c.net); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A filter that cannot be loaded lets nobody go on.
func TestTasksWithoutAFilterAreCutOff(t *testing.T) {
	w := newWorld(t)
	task := w.join(w.open(Config{Egress: egress(t, "allow")}), Task{Lease: "1", Egress: true})
	nftPaths = nil
	defer func() { nftPaths = []string{"nft", "/usr/sbin/nft"} }()
	n, err := Open(Config{Space: w.Host}, "owner", slog.New(slog.DiscardHandler))
	w.must(err)
	if l := n.Lacks(); len(l) != 1 || !strings.Contains(l[0].Error(), "install nftables") {
		t.Errorf("%v", l)
	}
	if got := w.Dial(task, internet+":80"); got != "ENETUNREACH" {
		t.Errorf("%s", got)
	}
}

// BenchmarkJoin is what a task's start waits for its network, and its end.
func BenchmarkJoin(b *testing.B) {
	gang := Gang{Group: "main"}
	for name, task := range map[string]Task{"egress": {Egress: true}, "gang": {Gang: &gang, Rank: 1}} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			n := w.open(Config{Egress: egress(b, "allow")})
			w.join(n, Task{Lease: "first", Slot: 1, Gang: &gang})
			for b.Loop() {
				task.Lease = "1"
				w.join(n, task)
				w.must(n.Leave("1"))
			}
		})
	}
}
