package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai/agent/network/netspace"
)

// The baseline is a program at the host's end of a task's link. It is part of the
// link: it needs no agent, no flush of the host's rules takes it away, and it goes
// with the link. It drops what is not IPv4 or ARP, what has another's source, and
// what is for a destination in never or for an address that the host had when an
// agent last looked. It is a classic BPF program, as cls_bpf takes it, because that
// needs neither the kernel's actions nor bpf(2).

// Where fields are in a frame of Ethernet.
const (
	offType   = 12
	offSource = 26
	offDest   = 30
)

// maxProgram is how many instructions the kernel takes (BPF_MAXINSNS).
const maxProgram = 4096

// errTooMany is returned for a host whose addresses no program holds.
var errTooMany = fmt.Errorf("the host has more addresses than a link's filter of %d instructions can deny", maxProgram)

// program passes ARP and what from sends to none of denied.
func program(from netip.Addr, denied []netip.Prefix) ([]unix.SockFilter, error) {
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | size | unix.BPF_ABS, K: at}
	}
	equal := func(k uint32, then, otherwise uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: then, Jf: otherwise, K: k}
	}
	verdict := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	pass, drop := verdict(uint32(netlink.TC_ACT_OK)), verdict(uint32(netlink.TC_ACT_SHOT))
	out := []unix.SockFilter{
		load(unix.BPF_H, offType),
		equal(unix.ETH_P_ARP, 0, 1), pass,
		equal(unix.ETH_P_IP, 1, 0), drop,
		load(unix.BPF_W, offSource),
		equal(number(from), 1, 0), drop,
	}
	for _, p := range denied {
		out = append(out,
			load(unix.BPF_W, offDest),
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: ^uint32(0) << (32 - p.Bits())},
			equal(number(p.Addr()), 0, 1), drop)
	}
	if out = append(out, pass); len(out) > maxProgram {
		return nil, errTooMany
	}
	return out, nil
}

func number(a netip.Addr) uint32 { return binary.BigEndian.Uint32(a.AsSlice()) }

// denied are never and the host's own, but for those within others.
func denied(own []netip.Prefix) (out []netip.Prefix) {
	all := slices.Concat(never, own)
	slices.SortStableFunc(all, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, p := range all {
		if !slices.ContainsFunc(out, func(wide netip.Prefix) bool { return wide.Contains(p.Addr()) }) {
			out = append(out, p)
		}
	}
	return out
}

// own are the destinations that the host takes as its own, those of tasks' links
// apart, which are in never. It runs in the host's namespace.
func own() (out []netip.Prefix, err error) {
	routes, err := undisturbed(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("the host's own addresses: %w", err)
	}
	addrs, err := hostAddrs() // those in other tables, as of a VRF
	if err != nil {
		return nil, fmt.Errorf("the host's own addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			out = append(out, netip.PrefixFrom(ip, 32))
		}
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if bits, _ := r.Dst.Mask.Size(); ok {
			out = append(out, netip.PrefixFrom(ip, bits).Masked())
		}
	}
	out = slices.DeleteFunc(out, func(p netip.Prefix) bool { return egressPool.Contains(p.Addr()) && p.Bits() >= egressPool.Bits() })
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(out), nil
}

// guard puts the baseline on a link, or another in the place of the one it has,
// with no packet between them. It runs in the link's namespace.
func guard(link netlink.Link, from netip.Addr, own []netip.Prefix) error {
	code, err := program(from, denied(own))
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	err = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("no filter at links of its own (the kernel's CONFIG_NET_SCH_INGRESS): %w", err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: 1, Parent: netlink.HANDLE_MIN_INGRESS,
		Info: netlink.MakeHandle(1, nl.Swap16(unix.ETH_P_ALL)),
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_OPS_LEN, nl.Uint16Attr(uint16(len(code))))
	options.AddRtAttr(nl.TCA_BPF_OPS, wire(code))
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	req.AddData(options)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("no filter at links of its own (the kernel's CONFIG_NET_CLS_BPF): %w", err)
	}
	return nil
}

// wire is a program as the kernel reads it.
func wire(code []unix.SockFilter) (out []byte) {
	for _, c := range code {
		out = binary.NativeEndian.AppendUint16(out, c.Code)
		out = append(out, c.Jt, c.Jf)
		out = binary.NativeEndian.AppendUint32(out, c.K)
	}
	return out
}

// guards reports whether the kernel has what guard needs, and room for own.
func guards(own []netip.Prefix) error {
	s, err := netspace.New()
	if err != nil {
		return err
	}
	defer s.Close()
	return netspace.Within(s, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return guard(lo, netip.AddrFrom4([4]byte{127, 0, 0, 1}), own)
	})
}

// tell has a task's programs fail at once, and not wait, where the baseline drops
// without a word. It runs in the task's namespace and is no protection.
func tell(own []netip.Prefix) error {
	for _, p := range denied(own) {
		if a := p.Addr(); p.Bits() == 0 || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
			continue // the task's own, or refused already
		}
		dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
		r := &netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}
		if err := netlink.RouteAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("the task's route to %s: %w", p, err)
		}
	}
	return nil
}
