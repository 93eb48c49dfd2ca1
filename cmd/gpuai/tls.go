package main

import (
	"strings"

	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

// urlOf returns the address of a server as a URL, with a scheme where it has none.
func urlOf(scheme, s string) (string, error) {
	if s = strings.TrimSpace(s); s != "" && !strings.Contains(s, "://") {
		s = scheme + "://" + s
	}
	return serverURL(s)
}

// secure reports whether a server is one of a region with authentication: its data
// directory is, it joins with a token, or it forms a region by itself.
func (c *serverConfig) secure() bool {
	if server.IsSecure(c.Data) || c.JoinToken != "" {
		return true
	}
	id, err := store.ServerOf(c.Data)
	return err == nil && id == "" && c.Bootstrap && len(c.Peers) == 0 && !c.Insecure
}
