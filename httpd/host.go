package httpd

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
)

// checkHost refuses a request to a server that asks nobody who they are under a
// name that is not its own: a page whose name was made to lead here (DNS
// rebinding) would else use the API with the user's browser. An address is no
// name that anybody else could have made lead here.
func (c *call) checkHost() error {
	if c.api.cfg.Auth != nil || c.rt.probe || fromServer(c.r.Context()) {
		return nil
	}
	host := hostName(c.r.Host)
	if host == "localhost" || slices.Contains(c.api.cfg.Hosts, host) {
		return nil
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	return gpuai.NewError(gpuai.Forbidden, "this region has no authentication, and this server is not known as "+clip(host)+
		": ask it by its address, or start it with --host "+clip(host)+" when that is its name")
}

// hostName returns the name or the address in a Host header or a list of names,
// as names are compared.
func hostName(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
