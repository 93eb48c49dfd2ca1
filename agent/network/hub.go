package network

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/gpuai/gpuai/agent/network/netspace"
)

// A hub is a gang's bridge, in a network namespace of its own: no address, route
// or rule of the host is there, so that the members reach one another and nobody
// else, and neither a host's rules for its bridges (those of other programs that run
// containers) nor its own stack see what they say. It lives as long as a member
// holds its namespace.
type hub struct {
	space   *os.File
	members map[string]bool // by lease
}

const bridgeName = "bridge"

// firstPort is the index of rank 0's port, above any of a task's links: the kernel
// may turn a link on a second late whose other end has the same index.
const firstPort = 100

func newHub() (*hub, error) {
	space, err := netspace.New()
	if err != nil {
		return nil, err
	}
	err = netspace.Within(space, func() error {
		if err := netspace.Set("ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		return netlink.LinkSetUp(bridge)
	})
	if err != nil {
		space.Close()
		return nil, err
	}
	return &hub{space: space, members: map[string]bool{}}, nil
}

// join links a member's namespace to the bridge. A link that an earlier member of
// the rank has left goes: its address is the new one's.
func (h *hub) join(space *os.File, g Gang, rank uint32) error {
	port := "rank" + strconv.FormatUint(uint64(rank), 10)
	addr := g.Addr(rank)
	err := netspace.Within(h.space, func() error {
		if err := netspace.Unlink(port); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("the gang's bridge: %w", err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex, attrs.Index = port, bridge.Attrs().Index, firstPort+int(rank)
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = GangLink, hardware(addr), netlink.NsFd(space.Fd())
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("link a task to its gang: %w", err)
		}
		return netlink.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	if err := netspace.Within(space, func() error { return netspace.Bring(GangLink, netip.PrefixFrom(addr, gangBits)) }); err != nil {
		return err
	}
	return netspace.Within(h.space, func() error { return netspace.Await(port) })
}
