package network

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai/agent/network/netspace"
)

func (w *world) nft(text string) {
	w.t.Helper()
	w.must(netspace.Within(w.Host, func() error { return nft(text) }))
}

// noNFT makes loads fail until the function is called.
func noNFT(t *testing.T) (back func()) {
	before := nftPaths
	nftPaths = nil
	back = func() { nftPaths = before }
	t.Cleanup(back)
	return back
}

// neverReached are services of the host and of the clouds' metadata.
var neverReached = []string{uplink + ":80", lanHost + ":80", "198.18.0.1:80", metadata + ":80", "100.100.100.200:80", "168.63.129.16:80", "192.0.0.192:80"}

// Case 35: no agent runs, and somebody flushes the host's rules.
func TestCase35FlushWithNoAgentOpensNeitherHostNorMetadata(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	task := w.join(n, Task{Lease: "1", Egress: true})
	for _, at := range append([]string{"198.18.0.5:80"}, neverReached...) {
		if at == "198.18.0.1:80" {
			continue // its way out, of which it cannot be told
		}
		if got := w.Dial(task, at); got != closed {
			t.Errorf("%s: %s, and is to fail at once", at, got)
		}
	}
	w.Untell(task)
	w.nft("flush ruleset\n")
	for _, at := range neverReached {
		if got := w.Silent(task, at); got != "timeout" {
			t.Errorf("%s: %s", at, got)
		}
	}
	w.Unguard() // else the test would show nothing
	for _, at := range neverReached[:3] {
		if got := w.Dial(task, at); strings.HasPrefix(got, "E") || got == "timeout" {
			t.Errorf("%s without the baseline: %s", at, got)
		}
	}
}

// Case 35: nor does a task then send under another's address.
func TestCase35FlushWithNoAgentLetsNobodyForge(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	task := w.join(n, Task{Lease: "1", Egress: true})
	w.must(netspace.Within(w.Host, func() error { return netspace.Set("ipv4/conf/"+linkName("owner", "1")+"/rp_filter", "0") }))
	w.must(netspace.Within(task, func() error { return netspace.Bring("lo", netip.MustParsePrefix("198.18.0.6/32")) }))
	_, addr := egressAddrs(0)
	own, forged, there := w.packets(task, addr.Addr().String()+":5000"), w.packets(task, "198.18.0.6:5000"), w.packets(w.Beyond, internet+":5000")
	w.nft("flush ruleset\n")
	w.send(forged, internet+":5000", "forged")
	w.send(own, internet+":5000", "own")
	if text, _ := w.first(there); text != "own" {
		t.Errorf("the internet gets %q", text)
	}
	w.Unguard()
	w.send(forged, internet+":5000", "forged")
	if text, _ := w.first(there); text != "forged" {
		t.Errorf("without the baseline it gets %q", text)
	}
}

// Case 35: the rules are gone and cannot be loaded again.
func TestCase35FailedLoadCutsTasksOffUntilItIsDone(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	task := w.join(n, Task{Lease: "1", Egress: true})
	w.Untell(task)
	w.nft("flush ruleset\n")
	back := noNFT(t)
	n.look()
	for _, at := range append([]string{internet + ":80"}, neverReached...) {
		if got := w.Silent(task, at); got != "timeout" && got != "EHOSTUNREACH" {
			t.Errorf("%s: %s", at, got)
		}
	}
	w.must(netspace.Within(w.Host, func() error {
		link, err := netlink.LinkByName(linkName("owner", "1"))
		if err == nil && link.Attrs().RawFlags&unix.IFF_UP != 0 {
			t.Error("the link is on")
		}
		return err
	}))
	n.look()
	back()
	n.look()
	if a, b := w.Dial(task, internet+":80"), w.Silent(task, uplink+":80"); a != open || b != "timeout" {
		t.Errorf("once loaded: %s and %s", a, b)
	}
}

// What is left of the table is not enough, whichever part of it went.
func TestRulesThatAreNotWholeAreLoadedAgain(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	if got := w.Dial(w.join(n, Task{Lease: "1", Egress: true}), internet+":80"); got != open { // it has a flow
		t.Error(got)
	}
	w.join(n, Task{Lease: "2", Slot: 1, Egress: true})
	whole := func() error { return netspace.Within(w.Host, n.whole) }
	w.must(whole())
	for _, harm := range []string{
		"flush chain inet %s input", "delete chain inet %s forward", "flush chain inet %s prerouting", "delete chain inet %s output",
		"flush chain inet %s postrouting", "flush chain inet %s judge", "insert rule inet %s judge accept", "flush set inet %s never",
		"flush set inet %s tasks", "add element inet %s listed { 10.0.0.0/8 }", "delete table inet %s",
	} {
		w.nft(strings.ReplaceAll(harm, "%s", n.table()) + "\n")
		if whole() == nil {
			t.Errorf("%s: not seen", harm)
		}
		n.look()
		w.must(whole())
	}
	w.must(n.Leave("2"))
	w.must(whole())
}

// Addresses that the host is given while a task runs are its own too.
func TestNewAddressesOfTheHostAreInTheBaseline(t *testing.T) {
	w := newWorld(t)
	n := w.open(Config{Egress: egress(t, "allow")})
	task := w.join(n, Task{Lease: "1", Egress: true})
	w.must(netspace.Within(w.Host, func() error { return netspace.Bring("lo", netip.MustParsePrefix("52.7.7.7/32")) }))
	n.look()
	w.nft("flush ruleset\n")
	if got := w.Silent(task, "52.7.7.7:80"); got != "timeout" {
		t.Errorf("%s", got)
	}
}

// An agent adopts the links of one that had no baselines.
func TestNextAgentGuardsTheLinksThatItFinds(t *testing.T) {
	w := newWorld(t)
	task := w.join(w.open(Config{Egress: egress(t, "allow")}), Task{Lease: "1", Egress: true})
	w.Unguard()
	w.Untell(task)
	w.open(Config{Egress: egress(t, "allow")})
	w.nft("flush ruleset\n")
	if got := w.Silent(task, uplink+":80"); got != "timeout" {
		t.Errorf("%s", got)
	}
}

func TestTooManyAddressesAreRefused(t *testing.T) {
	var own []netip.Prefix
	for i := range 2000 {
		own = append(own, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32))
	}
	if err := guards(own); !errors.Is(err, errTooMany) {
		t.Errorf("%v", err)
	}
	if got := len(denied(append(own, netip.MustParsePrefix("10.0.0.0/8")))); got != len(never)+1 {
		t.Errorf("%d networks", got)
	}
}
