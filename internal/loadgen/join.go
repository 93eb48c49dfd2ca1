package loadgen

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
)

// This file is how simulated agents are who they say in a region with
// authentication: each joins with a token of its own, as a host does, and holds a
// session over its own certificate.

// joinTTL is how long a join token is good for: it is used at once, and a region
// keeps a bounded number of those that are over.
const joinTTL = 15 * gpuai.Second

// A registrar has agents join. It is safe for concurrent use.
type registrar struct {
	addrs    []string
	operator *client.Client
}

func newRegistrar(a Access, addrs []string) (*registrar, error) {
	c, err := a.client(&http.Transport{MaxIdleConnsPerHost: connectors, IdleConnTimeout: time.Minute}, addrs)
	return &registrar{addrs, c}, err
}

// A passport is one agent's certificate. Its methods are called by one goroutine
// at a time.
type passport struct {
	*registrar
	id     gpuai.Identity
	source *identity.Source
}

// newPassport returns the certificate of a node, which has none yet, and the client
// that shows it, dialling with d.
func (r *registrar) newPassport(node gpuai.NodeID, d *net.Dialer) (*passport, *client.Client, error) {
	p := &passport{r, gpuai.Identity{Kind: gpuai.IdentityNode, Name: string(node)}, identity.NewSource(identity.SourceConfig{})}
	c, err := p.dialing(d, p.source.ClientConfig())
	return p, c, err
}

// dialing returns a client that keeps no connection: there are many of its kind.
func (r *registrar) dialing(d *net.Dialer, cfg *tls.Config) (*client.Client, error) {
	t := &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true, TLSClientConfig: cfg}
	return client.New(client.Config{Addrs: r.addrs, HTTP: &http.Client{Transport: t}})
}

// ready sees to it that there is a certificate that is good: it joins where there
// is none, and renews one that has seen half of its time, over itself by c.
func (p *passport) ready(ctx context.Context, c *client.Client) error {
	held := p.source.Credential()
	if held == nil || !time.Now().Before(held.NotAfter()) {
		return p.join(ctx)
	}
	if !p.source.RenewDue() {
		return nil
	}
	err := p.request(func(csr string) (gpuai.IssuedCertificate, error) { return c.Renew(ctx, csr) })
	if err != nil && ctx.Err() == nil {
		return nil // the one that it has is good for as long again
	}
	return err
}

// join gets the first certificate. A node of this name may have joined before.
func (p *passport) join(ctx context.Context) error {
	made, err := p.operator.CreateJoinToken(ctx, gpuai.JoinTokenRequest{Join: p.id.Kind, Name: p.id.Name, TTL: joinTTL})
	if err != nil {
		return fmt.Errorf("making a join token: %w", err)
	}
	token, err := identity.ParseJoinToken(made.Token)
	if err != nil {
		return err
	}
	c, err := p.dialing(&net.Dialer{Timeout: dialTimeout}, identity.JoinConfig(token))
	if err != nil {
		return err
	}
	return p.request(func(csr string) (gpuai.IssuedCertificate, error) {
		return c.Join(ctx, gpuai.JoinRequest{Token: made.Token, CSR: csr})
	})
}

// request makes a key and has a certificate issued for it.
func (p *passport) request(issue func(csr string) (gpuai.IssuedCertificate, error)) error {
	key, csr, err := identity.NewKey(p.id, nil)
	if err != nil {
		return err
	}
	out, err := issue(csr)
	if err != nil {
		return fmt.Errorf("getting a certificate for %s: %w", p.id, err)
	}
	held, err := identity.CredentialOf(key, &out)
	if err == nil {
		p.source.Set(held)
	}
	return err
}
