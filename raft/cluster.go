package raft

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/store"
)

// membership is which cluster this server belongs to, and what the others say.
type membership struct {
	ask     chan struct{} // somebody of another cluster has called
	mu      sync.Mutex    // guards below, and the cluster's adoption
	foreign map[gpuai.ServerID]gpuai.ClusterID
}

func newMembership() membership {
	return membership{ask: make(chan struct{}, 1), foreign: make(map[gpuai.ServerID]gpuai.ClusterID)}
}

// identify writes or checks the directory's identity.
func (c *Config) identify() error {
	if err := c.checkLevel(); err != nil {
		return err
	}
	return c.Dir.Update(func(id *store.Identity) {
		id.Server, id.Region = c.ID, c.Region // refused where it is a change
		if id.Cluster == "" && c.Bootstrap && !id.Formed && c.mints() {
			var b [16]byte
			rand.Read(b[:]) // never fails
			id.Cluster = gpuai.ClusterID(hex.EncodeToString(b[:]))
		}
	})
}

// mints reports whether this server names a new cluster.
func (c *Config) mints() bool {
	return !slices.ContainsFunc(c.Peers, func(p Peer) bool { return p.ID < c.ID })
}

// bootstrap writes the first configuration into an empty log.
func (c *Config) bootstrap(lib *hraft.Config, log *guard, snaps hraft.SnapshotStore, trans hraft.Transport) error {
	id, _ := c.Dir.Identity()
	if id.Formed || !c.Bootstrap {
		return nil
	}
	if err := forgetHalfBootstrap(log); err != nil {
		return err
	}
	var conf hraft.Configuration
	for _, p := range c.Peers {
		conf.Servers = append(conf.Servers, hraft.Server{
			Suffrage: hraft.Voter,
			ID:       hraft.ServerID(p.ID),
			Address:  hraft.ServerAddress(p.Addr),
		})
	}
	err := hraft.BootstrapCluster(lib, log, log, snaps, trans, conf)
	if err != nil && !errors.Is(err, hraft.ErrCantBootstrap) {
		return fmt.Errorf("form the cluster: %w", err)
	}
	return c.Dir.Update(func(id *store.Identity) { id.Formed = true })
}

// forgetHalfBootstrap undoes a bootstrap that stopped between its two writes:
// term 1 and no entry. A server that voted has a higher term.
func forgetHalfBootstrap(log *guard) error {
	last, err := log.LastIndex()
	if err != nil || last != 0 {
		return err
	}
	key := []byte("CurrentTerm")
	if term, err := log.GetUint64(key); err != nil || term != 1 {
		return nil // not found: nothing was written
	}
	return log.SetUint64(key, 0)
}

func (n *Node) cluster() gpuai.ClusterID {
	id, _ := n.cfg.Dir.Identity()
	return id.Cluster
}

var _ gatekeeper = (*Node)(nil)

// admit judges a handshake from another server.
func (n *Node) admit(h hello) (cluster gpuai.ClusterID, status byte, err error) {
	switch cluster = n.cluster(); {
	case h.to != "" && h.to != n.cfg.ID:
		err = fmt.Errorf("this is server %s, not %s: correct the peers' addresses", n.cfg.ID, h.to)
	case h.kind == kindJoin:
		err = n.admitJoin(h.cluster)
	case h.cluster == cluster && n.gone(h.from):
		return cluster, statusRemoved, fmt.Errorf("server %s was removed from this region", h.from)
	default:
		cluster, err = n.agree(h.from, h.cluster)
	}
	if err != nil {
		return cluster, statusRefused, err
	}
	return cluster, statusOK, nil
}

// admitJoin judges somebody who may be no member: who belongs to another
// cluster has come to the wrong place, which says nothing of ours.
func (n *Node) admitJoin(theirs gpuai.ClusterID) error {
	switch ours := n.cluster(); {
	case ours == "":
		return fmt.Errorf("server %s has no cluster itself yet: name a member that runs", n.cfg.ID)
	case theirs != "" && theirs != ours:
		return fmt.Errorf("this server belongs to cluster %s, not to %s: name a member of that one", ours, theirs)
	}
	return nil
}

// greet judges the answer to a handshake of ours. Who refuses us may still
// have told us the cluster.
func (n *Node) greet(h hello, cluster gpuai.ClusterID, status byte, reason string) error {
	if h.kind == kindJoin { // a member adopts a cluster only once it is admitted
		if status != statusOK {
			return errors.New(reason)
		}
		return nil
	}
	_, err := n.agree(h.to, cluster)
	if err == nil && status == statusRemoved {
		n.damaged(n.removedError("server " + string(h.to) + " says so"))
	}
	if err == nil && status != statusOK {
		err = errors.New(reason)
	}
	return err
}

// agree compares another server's cluster with ours, and takes it over while
// this server has none.
func (n *Node) agree(peer gpuai.ServerID, theirs gpuai.ClusterID) (ours gpuai.ClusterID, err error) {
	n.members.mu.Lock()
	defer n.members.mu.Unlock()
	ours = n.cluster()
	switch {
	case theirs == "" && ours == "":
		return "", errors.New("the cluster is not formed yet: start the server with the lowest ID")
	case theirs == "":
		// It takes over ours from the answer, if it is one of us.
		if _, ok := n.Member(peer); !ok {
			return ours, fmt.Errorf("server %s is not among the members that %s knows", peer, n.cfg.ID)
		}
		return ours, nil
	case theirs == ours:
		delete(n.members.foreign, peer)
		return ours, nil
	case ours == "":
		return n.adopt(peer, theirs)
	}
	n.members.foreign[peer] = theirs
	n.countForeign(ours, theirs)
	select {
	case n.members.ask <- struct{}{}:
	default:
	}
	return ours, fmt.Errorf("this server belongs to cluster %s, not to %s", ours, theirs)
}

func (n *Node) adopt(peer gpuai.ServerID, theirs gpuai.ClusterID) (gpuai.ClusterID, error) {
	if _, ok := n.Member(peer); !ok {
		return "", fmt.Errorf("server %s is not among the members that %s knows", peer, n.cfg.ID)
	}
	if err := n.cfg.Dir.Update(func(id *store.Identity) { id.Cluster = theirs }); err != nil {
		return "", err
	}
	n.cfg.Logger.Info("joined cluster", "cluster", theirs, "told_by", peer)
	return theirs, nil
}

// countForeign gives up when a majority of the members belong to one other
// cluster: then it is this server that is in the wrong place.
func (n *Node) countForeign(ours, theirs gpuai.ClusterID) {
	var who []string
	all := n.around()
	for _, p := range all {
		if n.members.foreign[p.ID] == theirs {
			who = append(who, string(p.ID))
		}
	}
	if 2*len(who) > len(all) {
		n.damaged(fmt.Errorf("data directory %s belongs to cluster %s, but servers %s belong to cluster %s: "+
			"use this server's own directory, or rebuild it with 'gpuai server rejoin --wipe'",
			n.cfg.Dir.Path(), ours, strings.Join(who, ", "), theirs))
	}
}

// around returns who must be asked for their cluster: what the operator says,
// if that is something. The log of a server in the wrong place names others.
func (n *Node) around() []Member {
	if len(n.cfg.Peers) == 0 {
		return n.Members()
	}
	var out []Member
	for _, p := range n.cfg.Peers {
		out = append(out, Member{ID: p.ID, Addr: p.Addr, Voter: true})
	}
	return out
}

// askEvery bounds how often the members are asked for their cluster.
const askEvery = time.Second

// askAround asks all members for their cluster when one has named another: a
// leader calls this server, the others may never. Without it a server that has
// the directory of a smaller cluster would lead that one for ever. It asks too
// while nobody leads this server: one that was removed is sent nothing more, and
// learns it by the answer.
func (n *Node) askAround() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-n.closing
		cancel()
	}()
	every := time.NewTicker(askEvery)
	defer every.Stop()
	foreign := false
	for {
		select {
		case <-n.members.ask:
			foreign = true
			continue // at the next tick
		case <-every.C:
		case <-n.closing:
			return
		}
		if !foreign && !n.forgotten() {
			continue
		}
		foreign = false
		for _, p := range n.around() {
			if p.ID != n.cfg.ID {
				n.askPeer(ctx, p.ID)
			}
		}
	}
}

// forgotten reports whether this member of a cluster is told nothing: it knows
// no leader, or the newest configuration is without it.
func (n *Node) forgotten() bool {
	if n.cluster() == "" {
		return false
	}
	if _, led := n.Leader(); !led {
		return true
	}
	conf := membersOf(n.configuration())
	_, member := find(conf, n.cfg.ID)
	return len(conf) > 0 && !member
}

// askPeer has a member's handshake judged.
func (n *Node) askPeer(ctx context.Context, id gpuai.ServerID) {
	ctx, cancel := context.WithTimeout(ctx, n.tune.rpcTimeout)
	defer cancel()
	if conn, err := n.DialPeer(ctx, id); err == nil {
		conn.Close()
	}
}
