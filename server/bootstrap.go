package server

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// BootstrapFile is the file in the data directory of the server that formed the
// region which holds the secret for its first operator token, until that is made.
const BootstrapFile = "bootstrap.secret"

// firstTokenTTL is for how long the first operator token is good.
const firstTokenTTL = gpuai.DefaultTokenTTL

// writeBootstrapSecret leaves the secret in the data directory of a server that
// forms a region, where only its owner can read it.
func (s *Server) writeBootstrapSecret() error {
	if !s.cfg.Authenticate || !s.cfg.Bootstrap || s.bootstrapped() {
		return nil
	}
	made, err := s.dir.CreateSecret(BootstrapFile, gpuai.BootstrapPrefix+rand.Text())
	if err != nil {
		return fmt.Errorf("write the secret for the first operator token: %w", err)
	}
	if !made {
		return nil
	}
	path := s.dir.Path(BootstrapFile)
	s.log.Info("this region has no operator yet: make the first operator's token with gpuai operator bootstrap, on this host or with the secret in this file", "file", path)
	return nil
}

func (s *Server) bootstrapped() (is bool) {
	s.node.View(func(m *fsm.Machine) { is = m.Bootstrapped() })
	return is
}

// Bootstrap implements httpd.Access. The secret is compared on this server; that
// the token is the first is judged by the machine.
func (s *Server) Bootstrap(ctx context.Context, secret string) (out gpuai.NewAccessToken, err error) {
	if recovers, err := s.takeRecovery(secret); recovers || err != nil {
		if err == nil {
			out, err = s.recover(ctx)
		}
		return out, err
	}
	want, err := s.dir.Secret(BootstrapFile)
	if err != nil {
		return out, fmt.Errorf("read the bootstrap secret: %w", err)
	}
	if want == "" {
		if s.bootstrapped() {
			return out, gpuai.NewError(gpuai.Conflict, "the region's first operator token was made before: an operator makes further ones with gpuai token create; if it was lost, or its answer, see gpuai operator bootstrap --recover")
		}
		return out, gpuai.NewError(gpuai.PreconditionFailed, "server "+string(s.cfg.ID)+" has no bootstrap secret: ask the server that formed the region, which has it in its data directory as "+BootstrapFile)
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(secret)) != 1 {
		return out, gpuai.NewError(gpuai.Unauthenticated, "this is not the bootstrap secret of server "+string(s.cfg.ID)+", which has it in its data directory as "+BootstrapFile)
	}
	if err := s.awaitTenants(ctx); err != nil {
		return out, err
	}
	out, err = s.createToken(s.byHost(ctx, "bootstrap/"), fsm.CreateToken{
		Scopes: gpuai.ScopesOf(gpuai.ScopeOperator), TTL: firstTokenTTL, Description: "the first operator", First: true,
	})
	if err == nil || isCode(err, gpuai.Conflict) {
		if gone := s.dir.RemoveSecret(BootstrapFile); gone != nil {
			s.log.Warn("the bootstrap secret is of no use any more and could not be removed", "error", gone)
		}
	}
	return out, err
}

// levelWait bounds how long a first operator waits for a new region to come to its
// feature level, which takes a moment from its first election on.
const levelWait = 10 * time.Second

// awaitTenants waits until the region knows tenants.
func (s *Server) awaitTenants(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, levelWait)
	defer cancel()
	for {
		changed := s.Changed()
		if s.level() >= fsm.LevelTenants {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errNoTenants
		}
	}
}

// errNoTenants is returned while servers of the region are of an older version.
var errNoTenants = &gpuai.Error{
	Code: gpuai.PreconditionFailed, Detail: "the region is below feature level 4, which brings tenants and access tokens: upgrade all its servers, and see gpuai server members",
}
