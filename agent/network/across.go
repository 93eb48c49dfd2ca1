package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/network/mesh"
	"github.com/gpuai/gpuai/agent/network/netspace"
)

// A MeshConfig says how gangs of this node are linked with their members on others.
// The zero value is that they are not.
type MeshConfig struct {
	// Program is the path of gpuai-mesh; "" turns the mesh off.
	Program string
	// Dir holds the processes' sockets. A boot empties it.
	Dir string
	// Ports are the UDP ports of which each gang on this node takes one, in the
	// host's network; other nodes must reach them.
	Ports mesh.Ports
	// MTU is that of the gangs' links, equal on all nodes; 0 means mesh.DefaultMTU.
	MTU int
	// Lost is told of each member whose gang is not linked with other nodes any
	// more.
	Lost func(lease, why string)
}

// DefaultMeshPorts are for nodes whose operator says nothing: 1,000, below those that
// kernels give to outgoing connections.
var DefaultMeshPorts = mesh.Ports{Min: 28000, Max: 28999}

// DefaultMTU is that of a gang's links whose operator says nothing.
const DefaultMTU = mesh.DefaultMTU

// ParseMeshPorts reads MIN-MAX.
func ParseMeshPorts(s string) (mesh.Ports, error) { return mesh.ParsePorts(s) }

// Bounds of a mesh's MTU: what every IP network carries, and what a TUN does.
const (
	minMTU = 576
	maxMTU = 65_400
)

// Validate says what is wrong with c.
func (c *MeshConfig) Validate() error {
	if c.Program == "" {
		return nil
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		return fmt.Errorf("the mesh's MTU must be %d to %d, not %d", minMTU, maxMTU, c.MTU)
	}
	return nil
}

// mtu is that of a gang's links.
func (n *Node) mtu() int {
	if n.cfg.Mesh.MTU == 0 {
		return mesh.DefaultMTU
	}
	return n.cfg.Mesh.MTU
}

// openMesh finds out whether this host can have meshes.
func (n *Node) openMesh(h *hub) error {
	c := &n.cfg.Mesh
	if c.Program == "" {
		return nil
	}
	if _, err := os.Stat(c.Program); err != nil {
		return fmt.Errorf("no gangs across nodes: %w: install gpuai-mesh beside the agent, or turn it off by --mesh off", err)
	}
	if err := mesh.Probe(h.space); err != nil {
		return fmt.Errorf("no gangs across nodes: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("no gangs across nodes: %w", err)
	}
	n.meshes = true
	return nil
}

// Meshes reports whether gangs of this node may have members on others.
func (n *Node) Meshes() bool { return n.meshes }

// socket is where the process of a gang's mesh is reached.
func (n *Node) socket(g Gang) string {
	sum := sha256.Sum256(append(g.Job[:], g.Group...))
	return filepath.Join(n.cfg.Mesh.Dir, hex.EncodeToString(sum[:8])+socketSuffix)
}

const socketSuffix = ".sock"

// startMesh gives a hub its mesh. mu is held.
func (n *Node) startMesh(g Gang, h *hub) error {
	if h.mesh != nil {
		return nil
	}
	if !n.meshes {
		return errors.New("this node does not link gangs with other nodes (--mesh, or what its log says that it lacks)")
	}
	m, err := mesh.Start(&mesh.Config{
		Program: n.cfg.Mesh.Program, Socket: n.socket(g), Host: n.cfg.Space, Space: h.space,
		Ports: n.cfg.Mesh.Ports, MTU: n.mtu(), Members: rankPrefix,
	})
	if err != nil {
		return err
	}
	err = netspace.Within(h.space, func() error { return netspace.Set("ipv4/conf/"+mesh.LinkName+"/rp_filter", "1") })
	if err != nil {
		return errors.Join(err, m.Quit())
	}
	n.watchMesh(g, h, m)
	return nil
}

// watchMesh makes m the mesh of a hub, and tells the hub's members when it is gone.
// mu is held.
func (n *Node) watchMesh(g Gang, h *hub, m *mesh.Mesh) {
	h.mesh = m
	go func() {
		<-m.Gone()
		for _, lease := range n.membersOf(g, h) {
			if n.cfg.Mesh.Lost != nil {
				n.cfg.Mesh.Lost(lease, "the process gpuai-mesh, which links its gang with other nodes, has ended")
			}
		}
	}()
}

// membersOf are the leases of a gang's hub; none when it is that no more.
func (n *Node) membersOf(g Gang, h *hub) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hubs[g] != h {
		return nil // it was ended here
	}
	return slices.Sorted(maps.Keys(h.members))
}

// Point is where members of a gang on other nodes reach those on this one; false
// where they do not.
func (n *Node) Point(g Gang) (gpuai.MeshPoint, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hubs[g]; h != nil && h.mesh != nil {
		return h.mesh.Point, true
	}
	return gpuai.MeshPoint{}, false
}

// SetPeers tells a gang's members on this node where the others are, as the region
// has it at an index: what an older index says changes nothing. It returns when they
// are met, or after a moment.
func (n *Node) SetPeers(g Gang, index uint64, peers []gpuai.MeshPeer) error {
	list, all, err := n.resolve(g, peers)
	if err != nil {
		return err
	}
	m, err := n.tellMesh(g, index, list, all)
	if m == nil || err != nil {
		return err
	}
	if err := m.Await(); err != nil {
		return fmt.Errorf("the gang's members on other nodes: %w", err)
	}
	return nil
}

// tellMesh returns the mesh that it told; nil for none.
func (n *Node) tellMesh(g Gang, index uint64, list []mesh.Peer, all []netip.Addr) (*mesh.Mesh, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hubs[g]
	switch {
	case h == nil || index < h.told:
		return nil, nil
	case h.mesh == nil && len(list) == 0:
		return nil, nil
	case h.mesh == nil:
		return nil, errors.New("its gang has members on other nodes, and no mesh here")
	}
	if err := errors.Join(h.mesh.Set(list), h.routeMesh(all)); err != nil {
		return nil, fmt.Errorf("the gang's members on other nodes: %w", err)
	}
	h.told = index
	return h.mesh, nil
}

// resolve is what a mesh is told of peers, with all their addresses.
func (n *Node) resolve(g Gang, peers []gpuai.MeshPeer) (list []mesh.Peer, all []netip.Addr, err error) {
	for i := range peers {
		p := &peers[i]
		at, err := n.lookUp(p.Address)
		if err != nil {
			return nil, nil, fmt.Errorf("the node of ranks %v of its gang: %w", p.Ranks, err)
		}
		one := mesh.Peer{Key: p.Key, Endpoint: netip.AddrPortFrom(at, p.Port)}
		for _, rank := range p.Ranks {
			if rank >= gpuai.MaxGangTasks {
				return nil, nil, fmt.Errorf("rank %d is beyond any gang's", rank)
			}
			one.Allowed = append(one.Allowed, g.Addr(rank))
		}
		list, all = append(list, one), append(all, one.Allowed...)
	}
	return list, all, nil
}

// lookUp returns the address of a node, which may be given by name.
func (n *Node) lookUp(host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap(), nil
	}
	var ips []net.IP
	err := n.inHost(func() (err error) {
		ips, err = net.LookupIP(host)
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	slices.SortStableFunc(ips, func(a, b net.IP) int { return len(b.To4()) - len(a.To4()) }) // IPv4 first
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip); ok {
			return a.Unmap(), nil
		}
	}
	return netip.Addr{}, errors.New("lookup " + strconv.Quote(host) + ": no address")
}

// adoptMesh finds the process of a hub that an earlier agent made. mu is held.
func (n *Node) adoptMesh(g Gang, h *hub) {
	m, err := mesh.Dial(n.socket(g))
	if errors.Is(err, fs.ErrNotExist) {
		return // all of its members are here
	}
	if err != nil {
		n.log.Warn("the process that links a gang with other nodes is not reached", "job", g.Job, "group", g.Group, "error", err)
		return
	}
	n.watchMesh(g, h, m)
}

// endStale ends the processes of gangs that this node has no member of any more. mu
// is held.
func (n *Node) endStale() {
	if n.cfg.Mesh.Dir == "" {
		return
	}
	files, err := os.ReadDir(n.cfg.Mesh.Dir)
	if err != nil {
		return // there was never one
	}
	keep := map[string]bool{}
	for g := range n.hubs {
		keep[n.socket(g)] = true
	}
	for _, f := range files {
		path := filepath.Join(n.cfg.Mesh.Dir, f.Name())
		if !strings.HasSuffix(path, socketSuffix) || keep[path] {
			continue
		}
		if m, err := mesh.Dial(path); err == nil {
			_ = m.Quit() // it ends without members, too
		}
		removeSocket(path)
	}
}

// removeSocket removes what a process leaves.
func removeSocket(path string) {
	_ = os.Remove(path)
	_ = os.Remove(path + mesh.LogSuffix)
}
