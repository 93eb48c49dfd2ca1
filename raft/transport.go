package raft

import (
	"context"
	"fmt"
	"net"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/telemetry"
)

// maxPool is how many idle connections to one peer are kept.
const maxPool = 3

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// streams is hraft's StreamLayer. As an address hraft is given the server's
// ID where Peers knows it (see addresses), so that an address is looked up
// when it is dialled and checked to be the server that was meant.
type streams struct {
	*muxListener
	n *Node
}

var _ hraft.StreamLayer = (*streams)(nil)

// Dial connects to a server by ID, or to an address that is no ID.
func (s *streams) Dial(address hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	id := gpuai.ServerID(address)
	if _, ok := s.n.cfg.addr(id); ok {
		return s.n.connect(ctx, kindRaft, id)
	}
	return s.n.mux.dial(ctx, s.n.cfg.Dial, string(address), s.n.hello(kindRaft, ""))
}

// addresses gives the ID as the address of every known peer.
type addresses struct{ n *Node }

var _ hraft.ServerAddressProvider = addresses{}

// ServerAddr implements hraft.ServerAddressProvider.
func (a addresses) ServerAddr(id hraft.ServerID) (hraft.ServerAddress, error) {
	if _, ok := a.n.cfg.addr(gpuai.ServerID(id)); !ok {
		return "", fmt.Errorf("server %s is not among the peers of %s", id, a.n.cfg.ID)
	}
	return hraft.ServerAddress(id), nil
}

func (n *Node) newTransport() *transport {
	inner := hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{
		ServerAddressProvider:   addresses{n},
		Logger:                  telemetry.HCLog(n.cfg.Logger).Named("raft-net"),
		Stream:                  &streams{muxListener: n.mux.listener(kindRaft), n: n},
		MaxPool:                 maxPool,
		MaxRPCsInFlight:         maxRPCsInFlight,
		Timeout:                 n.tune.rpcTimeout,
		MsgpackUseNewTimeFormat: true,
	})
	return &transport{
		NetworkTransport: inner, timeout: n.tune.rpcTimeout, handOff: 2 * n.heartbeat(), closing: n.closing,
		gate: n.gate, unfit: n.unfit, refuse: n.refuseRPC, peers: &n.views,
	}
}

func (n *Node) hello(kind byte, to gpuai.ServerID) hello {
	return hello{kind: kind, cluster: n.cluster(), from: n.cfg.ID, to: to}
}

func (n *Node) connect(ctx context.Context, kind byte, id gpuai.ServerID) (net.Conn, error) {
	addr, ok := n.cfg.addr(id)
	if !ok {
		return nil, fmt.Errorf("server %s is not among the peers of %s", id, n.cfg.ID)
	}
	return n.mux.dial(ctx, n.cfg.Dial, addr, n.hello(kind, id))
}

// DialPeer opens a connection to the HTTP side of another server's Raft port.
// The caller closes it; Close closes it too.
func (n *Node) DialPeer(ctx context.Context, id gpuai.ServerID) (net.Conn, error) {
	return n.connect(ctx, kindPeer, id)
}

// PeerListener accepts what other servers open by DialPeer. It ends with the
// Node.
func (n *Node) PeerListener() net.Listener { return n.peers }

// Peers returns the members as configured.
func (n *Node) Peers() []Peer { return append([]Peer(nil), n.cfg.Peers...) }
