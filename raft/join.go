package raft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/store"
)

// A JoinRequest is what a server says that wants to join a group, or whose
// address changed.
type JoinRequest struct {
	Server  gpuai.ServerID  `json:"server"`
	Region  gpuai.RegionID  `json:"region"`
	Cluster gpuai.ClusterID `json:"cluster,omitzero"` // "" while it has none
	Address string          `json:"address"`          // of its Raft port, as others reach it
	// Holds says that it has something of the cluster's log.
	Holds bool `json:"holds"`
	// Level is the newest feature level that it can run.
	Level uint32 `json:"feature_level"`
}

// JoinRequest returns what this server says of itself.
func (n *Node) JoinRequest() JoinRequest {
	return JoinRequest{
		Server: n.cfg.ID, Region: n.cfg.Region, Cluster: n.cluster(), Address: n.cfg.Advertise,
		Holds: n.Joined(), Level: fsm.MaxLevel,
	}
}

// refuse is for those who must not come again as they are: Forbidden, where
// Conflict may pass.
func refuse(format string, args ...any) error {
	return gpuai.NewError(gpuai.Forbidden, fmt.Sprintf(format, args...))
}

// Admit judges a server that wants to join and adds it as a non-voter, or
// records its new address. Only the leader can. Forbidden means that the server
// cannot belong to this group as it is.
func (n *Node) Admit(ctx context.Context, r JoinRequest) error {
	if err := checkMember(r.Server, r.Address); err != nil {
		return err
	}
	if !n.IsLeader() {
		return n.notLeading()
	}
	if err := n.mayJoin(&r); err != nil {
		return err
	}
	m, ok := n.Member(r.Server)
	switch {
	case !ok && r.Holds:
		return refuse("server %s has a part of this cluster's log and is no member any more: rebuild it with 'gpuai server rejoin --wipe'", r.Server)
	case !ok:
		return n.AddMember(ctx, r.Server, r.Address)
	case !r.Holds && m.Voter:
		return refuse("server %s is a voter of this region and comes with an empty data directory: under its old ID it could vote twice; "+
			"give it its own directory back, or rebuild it with 'gpuai server rejoin --wipe'", r.Server)
	}
	return n.SetMemberAddr(ctx, r.Server, r.Address)
}

// mayJoin refuses those who belong elsewhere.
func (n *Node) mayJoin(r *JoinRequest) error {
	var level uint32
	n.View(func(m *fsm.Machine) { level = m.Level() })
	ours := n.cluster()
	switch {
	case r.Cluster != "" && r.Cluster != ours:
		return refuse("server %s belongs to cluster %s, and this is cluster %s: name a member of its own cluster, or give it an empty data directory", r.Server, r.Cluster, ours)
	case r.Region != n.cfg.Region:
		return refuse("server %s is of region %s, and this is region %s: correct --region or --join", r.Server, r.Region, n.cfg.Region)
	case r.Level < level:
		return refuse("server %s knows feature levels up to %d and the region is at %d: run a newer version of gpuai", r.Server, r.Level, level)
	case n.gone(r.Server):
		return refuse("server %s was removed from this region, and its ID is never used again, since it could vote twice: rebuild it under a new one with 'gpuai server rejoin --wipe'", r.Server)
	}
	return nil
}

// Adopt makes this server one of a cluster that has admitted it.
func (n *Node) Adopt(cluster gpuai.ClusterID) error {
	n.members.mu.Lock()
	defer n.members.mu.Unlock()
	if n.cluster() == cluster {
		return nil
	}
	err := n.cfg.Dir.Update(func(id *store.Identity) { id.Cluster = cluster })
	if err == nil {
		n.cfg.Logger.Info("joined cluster", "cluster", cluster)
	}
	return err
}

// DialJoin opens a connection to the HTTP side of a Raft port, whosever it is.
// The other side serves joins to it even where this server belongs to nobody
// yet. The caller closes it.
func (n *Node) DialJoin(ctx context.Context, addr string) (net.Conn, error) {
	return n.mux.dial(ctx, n.cfg.Dial, addr, n.hello(kindJoin, ""))
}

// A Caller opens connections to the HTTP side of Raft ports without being a
// member: a command of the operator's.
type Caller struct {
	Server  gpuai.ServerID  // whose data directory it speaks for; "" for nobody's
	Cluster gpuai.ClusterID // must be that of the other side; "" for any
	// Identity is the server's, for regions with authentication; nil is plaintext.
	Identity *identity.Source
	mux      *mux
}

// Dial opens a connection. The caller closes it.
func (c *Caller) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if c.mux == nil {
		c.mux = &mux{gate: c, tls: c.Identity, done: make(chan struct{}), open: make(map[*trackedConn]struct{})}
	}
	return c.mux.dial(ctx, dialTCP, addr, hello{kind: kindJoin, cluster: c.Cluster, from: c.Server})
}

var _ gatekeeper = (*Caller)(nil)

func (c *Caller) admit(hello) (gpuai.ClusterID, byte, error) {
	return "", statusRefused, errors.New("it serves nobody")
}

func (c *Caller) greet(h hello, cluster gpuai.ClusterID, status byte, reason string) error {
	switch {
	case c.Cluster != "" && cluster != "" && cluster != c.Cluster:
		return fmt.Errorf("it belongs to cluster %s, and the data directory to cluster %s: name a member of that", cluster, c.Cluster)
	case status != statusOK:
		return errors.New(reason)
	}
	return nil
}

// CheckAddr refuses what others could not connect to.
func CheckAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return fmt.Errorf("its address must be host:port, not %q", addr)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("others cannot reach it at %q: name the address that they reach with --advertise", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("its address must have a port of 1 to 65535, not %q", addr)
	}
	return nil
}
