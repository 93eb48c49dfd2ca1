package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestAddressesOfGangs(t *testing.T) {
	g := Gang{Job: gpuai.JobID{1, 2, 3}, Group: "main"}
	// On every host and in every version: members on others rely on it.
	if got := g.Subnet().String() + " " + g.Addr(0).String() + " " + g.Addr(255).String(); got != "100.77.64.0/19 100.77.64.1 100.77.65.0" {
		t.Errorf("%s", got)
	}
	if last := g.Addr(gpuai.MaxGangTasks - 1); !g.Subnet().Contains(last) || !gangPool.Contains(last) {
		t.Errorf("the last member of the largest gang has %s", last)
	}
	seen := map[netip.Prefix]bool{}
	for i := range byte(200) {
		seen[Gang{Job: gpuai.JobID{i}, Group: "main"}.Subnet()] = true
	}
	if len(seen) < 130 { // 200 draws of 512 have 165 values on average
		t.Errorf("200 gangs have %d subnets", len(seen))
	}
}

func TestAddressesOfSlots(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for slot := range uint32(Slots) {
		host, task := egressAddrs(slot)
		for _, a := range []netip.Prefix{host, task} {
			if seen[a.Addr()] || !egressPool.Contains(a.Addr()) || a.Masked() != host.Masked() {
				t.Fatalf("slot %d: %s and %s", slot, host, task)
			}
			seen[a.Addr()] = true
		}
	}
}

func TestLinksAreNamedByOwnerAndLease(t *testing.T) {
	a, b, c := linkName("one", "1"), linkName("one", "2"), linkName("two", "1")
	if a == b || a == c || len(a) != 15 || !strings.HasPrefix(a, ownPrefix("one")) || strings.HasPrefix(c, ownPrefix("one")) {
		t.Errorf("%s, %s, %s", a, b, c)
	}
}

func TestParseEgress(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "deny": "", "allow": "", "allow,10.1.0.0/16": "", " 10.1.2.3 , 8.8.0.0/16": "",
		"deny,allow": "is deny, or allow and networks", "no": `not "no"`, "10.1.2.3/16": "say 10.1.0.0/16",
		"169.254.169.254": "no task ever reaches 169.254.0.0/16", "169.254.169.0/24": "no task ever", "127.0.0.0/8": "no task ever",
		"::/0": "have no IPv6", "allow,": `not ""`, strings.Repeat("10.0.0.0/8,", maxListed) + "10.0.0.0/8": "may list 1024",
	} {
		e, err := ParseEgress(s)
		if want == "" {
			if err != nil || e.any() != (s != "" && s != "deny") {
				t.Errorf("%q: %+v, %v", s, e, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if e, err := ParseEgress("10.0.0.0/8,allow,1.2.3.4"); err != nil || !e.Internet || len(e.Listed) != 2 || e.Listed[1].Bits() != 32 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestResolversAreThoseThatCanBeReached(t *testing.T) {
	const conf = "search x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver 169.254.169.254\nnameserver fd00::1\nnameserver 9.9.9.9\nnameserver\n"
	for policy, want := range map[string]string{"allow": "[9.9.9.9]", "10.0.0.0/8": "[10.0.0.2]", "allow,10.0.0.0/8": "[10.0.0.2 9.9.9.9]"} {
		e, err := ParseEgress(policy)
		if err != nil {
			t.Fatal(err)
		}
		got, err := e.resolvers(conf)
		var list []string
		for _, a := range got {
			list = append(list, a.String())
		}
		if err != nil || "["+strings.Join(list, " ")+"]" != want {
			t.Errorf("%s: %v, %v", policy, got, err)
		}
	}
	if _, err := (Egress{Internet: true}).resolvers("nameserver 127.0.0.53\n"); err != ErrNoResolver {
		t.Error(err)
	}
	for _, bad := range []string{"169.254.169.253", "127.0.0.53", "fd00::1"} {
		c := Config{DNS: []netip.Addr{netip.MustParseAddr(bad)}}
		if err := c.Validate(); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	many := Config{DNS: slices.Repeat([]netip.Addr{netip.MustParseAddr("9.9.9.9")}, 4)}
	if err := many.Validate(); err == nil {
		t.Error("four resolvers are taken")
	}
}
