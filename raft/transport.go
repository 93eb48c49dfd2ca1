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
// ID (see addresses), so that an address is looked up when it is dialled and
// checked to be the server that was meant.
type streams struct {
	*muxListener
	n *Node
}

var _ hraft.StreamLayer = (*streams)(nil)

// Dial connects to a server by ID.
func (s *streams) Dial(address hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.n.connect(ctx, kindRaft, gpuai.ServerID(address))
}

// addresses gives the ID as every server's address.
type addresses struct{}

var _ hraft.ServerAddressProvider = addresses{}

// ServerAddr implements hraft.ServerAddressProvider.
func (addresses) ServerAddr(id hraft.ServerID) (hraft.ServerAddress, error) {
	return hraft.ServerAddress(id), nil
}

func (n *Node) newTransport() *transport {
	inner := hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{
		ServerAddressProvider:   addresses{},
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

// connect tries a member's addresses in turn, sharing the time between them.
func (n *Node) connect(ctx context.Context, kind byte, id gpuai.ServerID) (net.Conn, error) {
	all := n.addressesOf(id)
	if len(all) == 0 {
		return nil, fmt.Errorf("server %s is not among the members that %s knows", id, n.cfg.ID)
	}
	var first error
	for i, addr := range all {
		conn, err := n.dialWithin(ctx, addr, n.hello(kind, id), len(all)-i)
		if err == nil {
			n.book.answered(id, addr)
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// dialWithin spends a part of the time that is left on one address.
func (n *Node) dialWithin(ctx context.Context, addr string, h hello, parts int) (net.Conn, error) {
	if d, ok := ctx.Deadline(); ok && parts > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(d)/time.Duration(parts))
		defer cancel()
	}
	return n.mux.dial(ctx, n.cfg.Dial, addr, h)
}

// DialPeer opens a connection to the HTTP side of another server's Raft port.
// The caller closes it; Close closes it too.
func (n *Node) DialPeer(ctx context.Context, id gpuai.ServerID) (net.Conn, error) {
	return n.connect(ctx, kindPeer, id)
}

// PeerListener accepts what other servers open by DialPeer. It ends with the
// Node.
func (n *Node) PeerListener() net.Listener { return n.peers }
