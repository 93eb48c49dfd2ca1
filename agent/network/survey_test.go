package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gpuai/gpuai/agent/network/netspace"
)

// A survey says what a host lacks, and leaves it as it was.
func TestSurveySaysWhatAHostLacks(t *testing.T) {
	w := newWorld(t)
	before := w.left()
	c := Config{Space: w.Host, Egress: egress(t, "allow"), DNS: []netip.Addr{netip.MustParseAddr(resolver)}}
	if gangs, out := Survey(c); gangs != nil || out != nil {
		t.Errorf("of a host that lacks nothing: %v, %v", gangs, out)
	}
	if after := w.left(); after != before {
		t.Errorf("the host was\n%s\nand is\n%s", before, after)
	}
	w.must(netspace.Within(w.Host, func() error { return netspace.Set("ipv4/ip_forward", "0") }))
	if _, out := Survey(c); out == nil || !strings.Contains(out.Error(), "ip_forward") {
		t.Errorf("without forwarding: %v", out)
	}
	if _, out := Survey(Config{Space: w.Host}); out != nil {
		t.Errorf("of a policy that allows nothing: %v", out)
	}
	paths := nftPaths
	nftPaths = []string{"no-such-program"}
	defer func() { nftPaths = paths }()
	w.must(netspace.Within(w.Host, func() error { return netspace.Set("ipv4/ip_forward", "1") }))
	if _, out := Survey(c); out != errNoNFT {
		t.Errorf("without nft: %v", out)
	}
}
