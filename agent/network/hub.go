package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai/agent/network/mesh"
	"github.com/gpuai/gpuai/agent/network/netspace"
)

// A hub is where the members of a gang on this node meet: a network namespace of
// its own, which routes between their links, and to those on other nodes by a mesh. It
// has no address, no other link and no route but one for each member, so that the
// members reach one another and nobody else, and neither a host's rules nor its own
// stack see what they say. It lives as long as a member holds its namespace.
//
// A member takes all of its gang to be at its link: the hub answers for every rank
// that there is. So a rank that moves to another node changes one route, and no
// neighbour's cache is ever stale.
type hub struct {
	space   *os.File
	members map[string]bool // by lease
	mesh    *mesh.Mesh      // nil where all members are on this node
	told    uint64          // the index of what its peers are from
}

// rankPrefix begins the names of the members' links in a hub.
const rankPrefix = "rank"

// firstPort is the index of rank 0's port, above any of a task's links: the kernel
// may turn a link on a second late whose other end has the same index.
const firstPort = 100

func newHub() (*hub, error) {
	space, err := netspace.New()
	if err != nil {
		return nil, err
	}
	err = netspace.Within(space, func() error {
		return errors.Join(
			netspace.Set("ipv6/conf/default/disable_ipv6", "1"),
			netspace.Set("ipv4/ip_forward", "1"),
			// A host may have given others to new namespaces.
			netspace.Set("ipv4/conf/all/rp_filter", "0"),
			netspace.Set("ipv4/conf/all/accept_redirects", "0"),
			netspace.Set("ipv4/conf/all/accept_source_route", "0"),
		)
	})
	if err != nil {
		space.Close()
		return nil, fmt.Errorf("a gang's network: %w", err)
	}
	return &hub{space: space, members: map[string]bool{}}, nil
}

// join links a member's namespace to the hub. A link that an earlier member of
// the rank has left goes: its address is the new one's.
func (h *hub) join(t *Task, mtu int) error {
	port := rankPrefix + strconv.FormatUint(uint64(t.Rank), 10)
	addr := t.Gang.Addr(t.Rank)
	err := netspace.Within(h.space, func() error {
		if err := netspace.Unlink(port); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index, attrs.MTU = port, firstPort+int(t.Rank), mtu
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = GangLink, hardware(addr), netlink.NsFd(t.Space.Fd())
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("link a task to its gang: %w", err)
		}
		return errors.Join(strict(port), netlink.LinkSetUp(veth))
	})
	if err != nil {
		return err
	}
	if err := netspace.Within(t.Space, func() error { return netspace.Bring(GangLink, netip.PrefixFrom(addr, gangBits)) }); err != nil {
		return err
	}
	return netspace.Within(h.space, func() error {
		if err := netspace.Await(port); err != nil {
			return err
		}
		return route(port, addr, hardware(addr))
	})
}

// strict has a link of the hub answer for the whole gang at once, and take nothing
// whose source is not reached by it.
func strict(link string) error {
	return errors.Join(
		netspace.Set("ipv4/conf/"+link+"/rp_filter", "1"),
		netspace.Set("ipv4/conf/"+link+"/send_redirects", "0"),
		netspace.Set("ipv4/conf/"+link+"/proxy_arp", "1"),
		netspace.Set("ipv4/neigh/"+link+"/proxy_delay", "0"),
	)
}

// route has the thread's namespace send what is for an address by a link; at says
// who has it there, where that is a question.
func route(link string, addr netip.Addr, at net.HardwareAddr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("the link %s: %w", link, err)
	}
	index := l.Attrs().Index
	r := netlink.Route{LinkIndex: index, Dst: single(addr), Scope: unix.RT_SCOPE_LINK}
	if err := netlink.RouteReplace(&r); err != nil {
		return fmt.Errorf("the route to %s: %w", addr, err)
	}
	if at == nil {
		return nil
	}
	n := netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: at}
	if err := netlink.NeighSet(&n); err != nil {
		return fmt.Errorf("the neighbour %s: %w", addr, err)
	}
	return nil
}

func single(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }

// routeMesh has what is for these addresses, and no others, go to other nodes.
func (h *hub) routeMesh(to []netip.Addr) error {
	return netspace.Within(h.space, func() error {
		link, err := netlink.LinkByName(mesh.LinkName)
		if err != nil {
			return fmt.Errorf("the link %s: %w", mesh.LinkName, err)
		}
		want := map[netip.Addr]bool{}
		for _, a := range to {
			want[a] = true
		}
		old, err := undisturbed(func() ([]netlink.Route, error) { return netlink.RouteList(link, netlink.FAMILY_V4) })
		if err != nil {
			return fmt.Errorf("the routes of %s: %w", mesh.LinkName, err)
		}
		for _, r := range old {
			if a, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok && !want[a] {
				if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("the route to %s: %w", a, err)
				}
			}
		}
		for _, a := range to {
			if err := route(mesh.LinkName, a, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

// close ends the hub on this node: its mesh with it.
func (h *hub) close() (err error) {
	if h.mesh != nil {
		err = h.mesh.Quit()
	}
	return errors.Join(err, h.space.Close())
}

// leave lets go of a hub that goes on.
func (h *hub) leave() {
	if h.mesh != nil {
		h.mesh.Close()
	}
	h.space.Close()
}
