package plugins

import (
	"context"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	pb "github.com/gpuai/gpuai/plugins/proto"
)

// ProtocolVersion is the major version of the contract (package gpuai.driver.v1).
// An agent and a driver of different ones refuse each other.
const ProtocolVersion = 1

// serviceName is the name that the contract is dispensed under.
const serviceName = "driver"

// handshake is no secret: it keeps a driver that is run by hand from waiting
// for an agent.
func handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{
		ProtocolVersion: ProtocolVersion,
		MagicCookieKey:  cookieKey, MagicCookieValue: cookieValue,
	}
}

const (
	cookieKey   = "GPUAI_DRIVER_PLUGIN"
	cookieValue = "5d0c7a7e-driver-v1"
)

// glue is the contract as go-plugin wants it. Only the driver's side has impl.
type glue struct {
	plugin.NetRPCUnsupportedPlugin
	impl Driver
}

var _ plugin.GRPCPlugin = (*glue)(nil)

// GRPCServer registers the driver; go-plugin calls it in the driver's process.
func (g *glue) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	pb.RegisterDriverServer(s, &adaptor{driver: g.impl})
	return nil
}

// GRPCClient returns the *Remote; go-plugin calls it in the agent's process.
func (g *glue) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return &Remote{rpc: pb.NewDriverClient(c)}, nil
}
