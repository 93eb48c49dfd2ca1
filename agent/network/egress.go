package network

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// An Egress is what an operator lets tasks reach that ask for it: the zero value
// is nothing.
type Egress struct {
	// Internet is every address that is neither private nor in never, nor on a
	// network that the host has a link to.
	Internet bool
	// Listed are let through beside, private ones too, but not those in never.
	Listed []netip.Prefix
}

// never are destinations that no policy lets through: those of the clouds'
// metadata and agents, of the host itself, and of no single host.
var never = prefixes(
	"0.0.0.0/8", "127.0.0.0/8",
	"169.254.0.0/16",     // metadata of AWS, Azure, GCP, Oracle, OpenStack and others
	"100.100.100.200/32", // metadata of Alibaba
	"168.63.129.16/32",   // the host agent of Azure
	"192.0.0.192/32",     // metadata of Oracle's older images
	"198.18.0.0/18",      // other tasks
	"224.0.0.0/4", "240.0.0.0/4",
)

// private are networks that are let through only where they are listed.
var private = prefixes(
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
	"192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "192.88.99.0/24",
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// maxListed bounds an operator's list.
const maxListed = 1024

// ParseEgress reads a policy: "deny", or "allow" for the internet, networks as
// 10.1.0.0/16, or both, with commas between them.
func ParseEgress(s string) (e Egress, err error) {
	if s == "deny" || s == "" {
		return Egress{}, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "allow" {
			e.Internet = true
			continue
		}
		p, err := parsePrefix(part)
		if err != nil {
			return Egress{}, err
		}
		e.Listed = append(e.Listed, p)
	}
	if len(e.Listed) > maxListed {
		return Egress{}, fmt.Errorf("lists %d networks, and may list %d", len(e.Listed), maxListed)
	}
	return e, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if addr, err2 := netip.ParseAddr(s); err2 == nil {
		p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("is deny, or allow and networks such as 10.1.0.0/16 with commas between them, not %q", s)
	case !p.Addr().Is4():
		return p, fmt.Errorf("has %s: sandboxes have no IPv6", s)
	case p != p.Masked():
		return p, fmt.Errorf("has %s, which has bits behind its length: say %s", s, p.Masked())
	}
	for _, n := range never {
		if n.Bits() <= p.Bits() && n.Contains(p.Addr()) {
			return p, fmt.Errorf("has %s: no task ever reaches %s", s, n)
		}
	}
	return p, nil
}

// any reports whether there is anything to be reached.
func (e Egress) any() bool { return e.Internet || len(e.Listed) > 0 }

// allows reports whether tasks reach a. The networks of the host's links are
// left out of account.
func (e Egress) allows(a netip.Addr) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	switch {
	case !a.Is4() || in(never):
		return false
	case in(e.Listed):
		return true
	}
	return e.Internet && !in(private)
}

// ErrNoResolver is returned when tasks would have nobody to ask for names.
var ErrNoResolver = errors.New("none of the host's resolvers can be reached by tasks: name one by --network-dns, such as 9.9.9.9")

// maxResolvers is what the C library reads of resolv.conf.
const maxResolvers = 3

// resolvers are those of a host's resolv.conf that tasks may reach as anything else.
func (e Egress) resolvers(conf string) (out []netip.Addr, err error) {
	for s := bufio.NewScanner(strings.NewReader(conf)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && e.allows(a) && len(out) < maxResolvers {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, ErrNoResolver
	}
	return out, nil
}

// checkResolvers says what is wrong with an operator's resolvers.
func checkResolvers(list []netip.Addr) error {
	if len(list) > maxResolvers {
		return fmt.Errorf("there are %d resolvers, and programs ask %d at most", len(list), maxResolvers)
	}
	for _, a := range list {
		if !a.Is4() {
			return fmt.Errorf("the resolver %s cannot be reached: sandboxes have no IPv6", a)
		}
		for _, n := range never {
			if n.Contains(a) {
				return fmt.Errorf("the resolver %s cannot be reached: no task ever reaches %s", a, n)
			}
		}
	}
	return nil
}
