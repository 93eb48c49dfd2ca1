package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/store"
)

// A JoinConfig says which node joins which region.
type JoinConfig struct {
	DataDir string // of the agent; made where it is missing
	Node    gpuai.NodeID
	Servers []string // addresses of the region's API
	Token   string   // a join token for nodes
}

// Join gets a node's first certificate with a join token, and keeps it in the
// agent's data directory with its key, which never leaves the host. A certificate
// that is there already is replaced.
func Join(ctx context.Context, cfg JoinConfig) (*identity.Credential, error) {
	token, err := identity.ParseJoinToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	id := gpuai.Identity{Kind: gpuai.IdentityNode, Name: string(cfg.Node)}
	if !id.Valid() {
		return nil, fmt.Errorf("node %q is not a name: use 1 to 63 of a-z, 0-9 and '-'", cfg.Node)
	}
	key, csr, err := identity.NewKey(id, nil)
	if err != nil {
		return nil, err
	}
	c, err := client.New(client.Config{Addrs: cfg.Servers, TLS: identity.JoinConfig(token)})
	if err != nil {
		return nil, err
	}
	out, err := c.Join(ctx, gpuai.JoinRequest{Token: token.Text(), CSR: csr})
	if err != nil {
		return nil, fmt.Errorf("join the region: %w", err)
	}
	cred, err := token.Accept(identity.Answer{Key: key, For: id, Issued: &out, Now: time.Now()})
	if err != nil {
		return nil, err
	}
	return cred, keepCredential(cfg.DataDir, cred)
}

func keepCredential(dir string, c *identity.Credential) error {
	text, err := c.Encode(nil)
	if err != nil {
		return err
	}
	return store.WritePrivate(filepath.Join(dir, store.CredentialFile), text)
}

// OpenIdentity reads the certificate of an agent's data directory; nil where the
// node has not joined a region with authentication. One that has ended is an
// error that says what to do.
func OpenIdentity(dir string) (*identity.Source, error) {
	path := filepath.Join(dir, store.CredentialFile)
	text, err := store.ReadPrivate(path)
	if text == nil || err != nil {
		return nil, err
	}
	c, err := identity.ReadCredential(text, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if now := time.Now(); now.After(c.NotAfter()) {
		return nil, fmt.Errorf("the certificate of %s ended at %s, while this host was off for longer than it is good for: join again with 'gpuai agent join' and a new token, which 'gpuai token create --join node --name %s' makes",
			c.Peer.Identity, c.NotAfter().UTC().Format(time.RFC3339), c.Peer.Name)
	}
	s := identity.NewSource(identity.SourceConfig{})
	s.Set(c)
	return s, nil
}

// keepIdentity renews the node's certificate at half of its time, until ctx ends.
func (a *Agent) keepIdentity(ctx context.Context) {
	a.cfg.Identity.Run(ctx, func(ctx context.Context) error {
		err := a.renew(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("the node's certificate was not renewed; it is tried again", "error", err, "not_after", a.cfg.Identity.Credential().NotAfter())
		}
		return err
	})
}

// renewTimeout bounds one attempt at a renewal, over all servers.
const renewTimeout = 20 * time.Second

// renewAttempt bounds one at one server.
const renewAttempt = 5 * time.Second

func (a *Agent) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	cred, err := renewAtAny(ctx, a.cfg.Servers, a.cfg.Identity)
	if err != nil {
		return err
	}
	if err := keepCredential(a.cfg.DataDir, cred); err != nil {
		return err
	}
	a.cfg.Identity.Set(cred)
	a.log.Info("the node's certificate was renewed", "not_after", cred.NotAfter())
	return nil
}

// renewAtAny asks one server after the other, until one gives a certificate that is
// good here: one of them may have a wrong clock, or be behind and refuse.
func renewAtAny(ctx context.Context, servers []string, src *identity.Source) (*identity.Credential, error) {
	now := src.Credential()
	key, csr, err := identity.NewKey(now.Peer.Identity, nil)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range servers {
		c, err := client.New(client.Config{Addrs: []string{addr}, TLS: src.ClientConfig(), AttemptTimeout: renewAttempt, RetryFor: -1})
		if err != nil {
			return nil, err
		}
		out, err := c.Renew(ctx, csr)
		if err == nil {
			var cred *identity.Credential
			cred, err = src.Trust().Accept(identity.Answer{Key: key, For: now.Peer.Identity, Issued: &out, Now: time.Now(), Until: now.NotAfter()})
			if err == nil {
				return cred, nil
			}
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, errors.Join(errs...)
}
