package network

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"

	"github.com/gpuai/gpuai"
)

// Names of a task's interfaces, in its namespace.
const (
	EgressLink = "eth0"
	GangLink   = "gang0"
)

// Where addresses are from. Neither pool is one of a network that a task may have
// reason to reach: the first is for benchmarks of routers (RFC 2544), the second
// for carriers (RFC 6598), and no route of the host leads into it.
var (
	egressPool = netip.MustParsePrefix("198.18.0.0/18")
	gangPool   = netip.MustParsePrefix("100.64.0.0/10")
)

// gangBits is the length of a gang's subnet: gpuai.MaxGangTasks fit in.
const gangBits = 19

// Slots is how many tasks of a host can have egress at a time.
const Slots = 1 << (32 - 18 - 2)

// egressAddrs are the two ends of a slot's link: the host's, which is the task's
// gateway, and the task's. Each slot is a subnet of four addresses.
func egressAddrs(slot uint32) (host, task netip.Prefix) {
	base := slot * 4
	return netip.PrefixFrom(plus(egressPool.Addr(), base+1), 30), netip.PrefixFrom(plus(egressPool.Addr(), base+2), 30)
}

// A Gang names a gang's network. Its subnet and addresses are a function of the
// job, the group and the rank, and so the same on every host and over restarts:
// who carries packets between hosts needs to agree on nothing. Two gangs may have
// the same subnet, since no namespace has the links of both.
type Gang struct {
	Job   gpuai.JobID
	Group string
}

// Subnet is the gang's.
func (g Gang) Subnet() netip.Prefix {
	sum := sha256.Sum256(append(g.Job[:], g.Group...))
	n := binary.BigEndian.Uint32(sum[:]) >> (32 - (gangBits - gangPool.Bits()))
	return netip.PrefixFrom(plus(gangPool.Addr(), n<<(32-gangBits)), gangBits)
}

// Addr is where the member of a rank is reached. rank is below gpuai.MaxGangTasks.
func (g Gang) Addr(rank uint32) netip.Addr { return plus(g.Subnet().Addr(), rank+1) }

// hardware is the address of a member's link, which follows from the other one
// so that no neighbour's cache is ever stale.
func hardware(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x47, b[0], b[1], b[2], b[3]}
}

func plus(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

// linkPrefix begins the names of the host's ends of all tasks' links, and
// nothing else's.
const linkPrefix = "gpn"

// ownPrefix begins those of one owner's.
func ownPrefix(owner string) string { return linkPrefix + short(owner) }

// linkName is the host's end of a lease's link, in the 15 bytes that a name has.
func linkName(owner, lease string) string { return ownPrefix(owner) + short(lease) }

func short(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:3])
}

// alias says on a link whose it is.
func alias(owner, lease string) string { return "gpuai " + owner + " " + lease }
