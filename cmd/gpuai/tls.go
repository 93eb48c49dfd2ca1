package main

import (
	"crypto/tls"
	"fmt"
	"os"

	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

// clientTLS returns how servers are spoken to: those whose certificates are signed by
// a CA of the file $GPUAI_CACERT, which is a server's ca.pem, are trusted. nil is
// without it: what the host trusts.
func (a *app) clientTLS() (*tls.Config, error) {
	path := a.getenv("GPUAI_CACERT")
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError{fmt.Errorf("GPUAI_CACERT: %w", err)}
	}
	trust, err := identity.ReadTrustFile(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("GPUAI_CACERT: %s: %w", path, err)}
	}
	return identity.TrustConfig(trust), nil
}

// secure reports whether a server is one of a region with authentication: its data
// directory is, it joins with a token, or it forms a region by itself.
func (c *serverConfig) secure() bool {
	if server.IsSecure(c.Data) || c.JoinToken != "" {
		return true
	}
	_, err := store.ServerOf(c.Data)
	return err != nil && c.Bootstrap && len(c.Peers) == 0 && !c.Insecure
}
