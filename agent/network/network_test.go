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
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
)

// Addresses of the world: a host with an uplink of public addresses and a LAN.
const (
	internet  = "8.8.4.4"
	metadata  = "169.254.169.254"
	uplink    = "52.1.1.2"
	gateway   = "52.1.1.1"
	neighbour = "52.1.1.9"
	lanHost   = "10.9.0.1"
	lanOther  = "10.9.0.2"
	resolver  = "9.9.9.9"
)

// A world is a host in a namespace of its own, and one more that plays all that
// is beyond its links.
type world struct {
	t            *testing.T
	host, beyond *os.File
}

// newWorld makes a world, or skips the test where there can be none; with
// GPUAI_NEED_SANDBOX=1 it fails.
func newWorld(t *testing.T) *world {
	t.Helper()
	skip := t.Skip
	if os.Getenv("GPUAI_NEED_SANDBOX") == "1" {
		skip = t.Fatal
	}
	if os.Geteuid() != 0 {
		skip("a network is made by root")
	}
	w := &world{t: t}
	w.host, w.beyond = w.space(), w.space()
	if err := within(w.host, func() error { return nft("list ruleset\n") }); err != nil {
		skip("there is no filter to test: ", err)
	}
	w.wire("up0", uplink+"/24", gateway+"/24", neighbour+"/24", metadata+"/16", internet+"/32", resolver+"/32",
		"100.100.100.200/32", "168.63.129.16/32", "100.64.0.9/32", "192.0.0.192/32")
	w.wire("lan0", lanHost+"/24", lanOther+"/24")
	w.must(within(w.host, func() error {
		return errors.Join(setting("ipv4/ip_forward", "1"), setting("ipv4/icmp_ratemask", "0"), netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}))
	}))
	for _, s := range []*os.File{w.host, w.beyond} {
		for _, port := range []string{":80", ":53"} {
			w.listen(s, port)
		}
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// space makes a namespace that reaches itself.
func (w *world) space() *os.File {
	w.t.Helper()
	s, err := newSpace()
	w.must(err)
	w.t.Cleanup(func() { s.Close() })
	w.must(settle(s))
	return s
}

// wire links the host to what is beyond, with the addresses of both ends.
func (w *world) wire(name, at string, there ...string) {
	w.t.Helper()
	w.must(within(w.host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = name, firstPort+len(name) // see firstPort
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = name, netlink.NsFd(w.beyond.Fd())
		return errors.Join(netlink.LinkAdd(veth), bring(name, netip.MustParsePrefix(at)))
	}))
	w.must(within(w.beyond, func() (err error) {
		for _, a := range there {
			err = errors.Join(err, bring(name, netip.MustParsePrefix(a)))
		}
		return err
	}))
}

// listen takes connections in a namespace and says from where they are.
func (w *world) listen(space *os.File, addr string) {
	w.t.Helper()
	var l net.Listener
	w.must(within(space, func() (err error) {
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

// dial says as whom a namespace reaches an address, or by which error not.
func (w *world) dial(from *os.File, addr string) (as string) {
	return w.dialFor(2*time.Second, from, addr)
}

// silent says so of what is not to be answered.
func (w *world) silent(from *os.File, addr string) (as string) {
	return w.dialFor(200*time.Millisecond, from, addr)
}

func (w *world) dialFor(d time.Duration, from *os.File, addr string) (as string) {
	w.t.Helper()
	_ = within(from, func() error {
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

func (w *world) open(c Config) *Node {
	w.t.Helper()
	c.Space = w.host
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
	s, err := newSpace()
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
	w.must(within(w.host, func() error {
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

func egress(t *testing.T, s string) Egress {
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
		"allow":                  {internet + ":80": open, resolver + ":80": open, lanOther + ":80": closed, neighbour + ":80": closed, gateway + ":80": closed},
		"8.8.4.0/24":             {internet + ":80": open, resolver + ":80": closed, lanOther + ":80": closed, neighbour + ":80": closed},
		"allow,10.9.0.2":         {internet + ":80": open, lanOther + ":80": lanHost, neighbour + ":80": closed},
		"10.0.0.0/8,52.1.1.9/32": {internet + ":80": closed, lanOther + ":80": lanHost, neighbour + ":80": open, gateway + ":80": closed},
		"0.0.0.0/1,128.0.0.0/1":  {internet + ":80": open, lanOther + ":80": lanHost},
	} {
		t.Run(policy, func(t *testing.T) {
			w := newWorld(t)
			task := w.join(w.open(Config{Egress: egress(t, policy)}), Task{Lease: "1", Slot: 7, Egress: true})
			for _, list := range []map[string]string{everywhere, more} {
				for addr, want := range list {
					if policy == "0.0.0.0/1,128.0.0.0/1" && addr == "100.64.0.9:80" {
						want = open
					}
					if got := w.dial(task, addr); got != want {
						t.Errorf("%s: %s, want %s", addr, got, want)
					}
				}
			}
		})
	}
}

// Case 35: tasks reach neither one another nor the host, nor does the host them,
// and a task has no address but its own.
func TestCase35TasksAreApart(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	one := w.join(n, Task{Lease: "1", Slot: 0, Egress: true})
	two := w.join(n, Task{Lease: "2", Slot: 1, Egress: true})
	w.listen(two, ":80")
	_, addr := egressAddrs(1)
	at := addr.Addr().String() + ":80"
	if got := w.dial(two, at); got == "timeout" || strings.HasPrefix(got, "E") {
		t.Fatalf("the task does not reach itself: %s", got)
	}
	if got := w.dial(one, at); got != closed {
		t.Errorf("another task: %s", got)
	}
	if got := w.silent(w.host, at); got != "EPERM" && got != "timeout" {
		t.Errorf("from the host: %s", got)
	}
	// From beyond, by one that sends packets for the task to the host.
	w.must(within(w.beyond, func() error {
		_, pool, _ := net.ParseCIDR(egressPool.String())
		return netlink.RouteAdd(&netlink.Route{Dst: pool, Gw: net.ParseIP(uplink)})
	}))
	if got := w.silent(w.beyond, at); got != "timeout" {
		t.Errorf("from beyond: %s", got)
	}
	// A task that could give itself another's address is not believed.
	w.must(within(one, func() error {
		link, err := netlink.LinkByName(EgressLink)
		if err != nil {
			return err
		}
		forged, err := netlink.ParseAddr("198.18.0.6/32")
		return errors.Join(err, netlink.AddrAdd(link, forged), netlink.RouteReplace(&netlink.Route{Gw: net.ParseIP("198.18.0.1"), Src: net.ParseIP("198.18.0.6")}))
	}))
	if got := w.silent(one, internet+":80"); got != "timeout" {
		t.Errorf("with a forged address: %s", got)
	}
	if got := w.dial(two, internet+":80"); got != open {
		t.Errorf("whose address was forged: %s", got)
	}
}

// The host's other rules may send what goes to one address to another.
func TestEgressIsJudgedBehindOthersTranslation(t *testing.T) {
	w := newWorld(t)
	task := w.join(w.open(Config{Egress: egress(t, "allow")}), Task{Lease: "1", Egress: true})
	w.must(within(w.host, func() error {
		return nft("table ip other {\nchain p { type nat hook prerouting priority dstnat; ip daddr 8.8.4.7 dnat to " + lanOther + "; ip daddr 8.8.4.8 dnat to " + internet + "; }\n}\n")
	}))
	if got := w.dial(task, "8.8.4.8:80"); got != open {
		t.Errorf("to the internet: %s", got)
	}
	if got := w.dial(task, "8.8.4.7:80"); got != closed {
		t.Errorf("to the LAN: %s", got)
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
	w.listen(spaces[2], ":80")
	w.listen(stranger, ":80")
	at := gang.Addr(2).String() + ":80"
	for rank, s := range spaces {
		if got := w.dial(s, at); got != gang.Addr(uint32(rank)).String() {
			t.Errorf("rank %d is seen as %s", rank, got)
		}
		if got := w.dial(s, internet+":80"); got != "ENETUNREACH" {
			t.Errorf("rank %d reaches the internet: %s", rank, got)
		}
		if got := w.silent(s, other.Addr(0).String()+":80"); got != "ENETUNREACH" && got != "EHOSTUNREACH" && got != "timeout" {
			t.Errorf("rank %d reaches another gang: %s", rank, got)
		}
	}
	for name, s := range map[string]*os.File{"the host": w.host, "another gang": stranger, "a task of none": alone} {
		if got := w.silent(s, at); got != "ENETUNREACH" && got != "timeout" && got != "EHOSTUNREACH" && got != internet {
			t.Errorf("%s reaches the gang: %s", name, got)
		}
	}
	// A member that is placed again takes the place of the one before.
	w.must(n.Leave("2"))
	again := w.join(n, Task{Lease: "12", Gang: &gang, Rank: 2})
	w.listen(again, ":81")
	if got := w.dial(spaces[0], gang.Addr(2).String()+":81"); got != gang.Addr(0).String() {
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
	if got := w.dial(stays, internet+":80"); got != open {
		t.Errorf("the task that goes on: %s", got)
	}
	if got := w.left(); strings.Contains(got, linkName("owner", "2")) {
		t.Errorf("what nobody needs:\n%s", got)
	}
	late := w.join(next, Task{Lease: "3", Gang: &gang, Rank: 1})
	w.listen(stays, ":80")
	if got := w.dial(late, gang.Addr(0).String()+":80"); got != gang.Addr(1).String() {
		t.Errorf("a member that joined later: %s", got)
	}
	// The next agent's operator allows nothing any more.
	last := w.open(Config{})
	if got := w.dial(stays, internet+":80"); got != closed {
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
	flush := func() { w.must(within(w.host, func() error { return nft("flush ruleset\n") })) }
	flush()
	n.look()
	if a, b := w.dial(one, internet+":80"), w.dial(one, uplink+":80"); a != open || b != closed {
		t.Errorf("%s and %s", a, b)
	}
	flush()
	two := w.join(n, Task{Lease: "2", Slot: 1, Egress: true})
	for _, s := range []*os.File{one, two} {
		if a, b := w.dial(s, internet+":80"), w.dial(s, uplink+":80"); a != open || b != closed {
			t.Errorf("%s and %s", a, b)
		}
	}
}

func TestWhatTheHostLacksIsSaid(t *testing.T) {
	w := newWorld(t)
	w.must(within(w.host, func() error { return setting("ipv4/ip_forward", "0") }))
	n, err := Open(Config{Egress: Egress{Internet: true}, DNS: []netip.Addr{netip.MustParseAddr(resolver)}, Space: w.host}, "owner", slog.New(slog.DiscardHandler))
	w.must(err)
	if l := n.Lacks(); len(l) != 1 || !strings.Contains(l[0].Error(), "ip_forward") {
		t.Errorf("%v", l)
	}
	if l := n.Labels(); l[gpuai.LabelEgress] != "" || l[gpuai.LabelGangNetwork] != gpuai.LabelYes || n.Refusal(gpuai.NetworkEgress, false) == nil {
		t.Errorf("%v", l)
	}
	listed := w.open(Config{Host: true})
	if l := listed.Labels(); l[gpuai.LabelHostNetwork] != gpuai.LabelYes || listed.Refusal(gpuai.NetworkHost, true) != nil || listed.Refusal(gpuai.NetworkEgress, false) == nil {
		t.Errorf("%v", l)
	}
}
