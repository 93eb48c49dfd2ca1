package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

const (
	// devTokenFile holds the operator's token of a region for development.
	devTokenFile = "operator.token"
	devLockFile  = "dev.lock"
	// devFormLimit bounds the forming of a region, which takes a second or two.
	devFormLimit = time.Minute
	devContextOf = "dev"
)

// lockData keeps another gpuai dev from the data directory until the file is closed,
// or this process ends.
func lockData(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, devLockFile), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use by another gpuai dev: stop it, or name another directory with --data", dir)
	}
	return f, nil
}

// checkData refuses a data directory of a region of the other kind. What is left of
// one whose forming was broken off, so that nobody ever had a token, goes.
func (d *devRegion) checkData() error {
	first := d.serverDir(devServers[0])
	id, err := store.ServerOf(first)
	secure := server.IsSecure(first)
	switch {
	case err != nil:
		return err
	case d.insecure && secure:
		return fmt.Errorf("%s holds a region with authentication: start it without --insecure, or name another directory with --data", d.data)
	case d.insecure:
		return nil
	case id != "" && !secure:
		return fmt.Errorf("%s holds a region without authentication: start it with --insecure, or name another directory with --data", d.data)
	}
	if _, err := os.Stat(filepath.Join(d.data, devTokenFile)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err = os.Stat(filepath.Join(first, server.BootstrapFile))
	if errors.Is(err, os.ErrNotExist) && server.IsSecure(d.serverDir(devServers[len(devServers)-1])) {
		return nil // it had an operator, whose token is lost: there will be another
	}
	return errors.Join(os.RemoveAll(filepath.Join(d.data, "servers")), os.RemoveAll(filepath.Join(d.data, "hosts")))
}

// form opens the servers of a region with authentication.
func (d *devRegion) form(ctx, running context.Context, cfgs []server.Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, devFormLimit, fmt.Errorf("the servers do not form a region within %s: is this machine very busy, or its disk slow?", devFormLimit))
	defer cancel()
	if _, err := server.Form(ctx, cfgs, func(s *server.Server) { d.serve(running, s) }); err != nil {
		closeListeners(cfgs[len(d.servers):])
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	return nil
}

// clientTLS trusts this region's servers only.
func (d *devRegion) clientTLS() (*tls.Config, error) {
	text, err := os.ReadFile(d.caFile())
	if err != nil {
		return nil, err
	}
	trust, err := identity.ReadTrustFile(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.caFile(), err)
	}
	return identity.TrustConfig(trust), nil
}

func (d *devRegion) caFile() string {
	return filepath.Join(d.serverDir(devServers[0]), store.TrustFile)
}

// openAccess has an operator's token for this machine's commands: the one that the
// data directory holds while it is good, or a new one.
func (d *devRegion) openAccess(ctx context.Context) error {
	if d.insecure {
		return nil
	}
	secure, err := d.clientTLS()
	if err != nil {
		return err
	}
	path := filepath.Join(d.data, devTokenFile)
	text, err := store.ReadPrivate(path)
	if err != nil {
		return err
	}
	d.token = gpuai.NewSecret(strings.TrimSpace(string(text)))
	cc := client.Config{Addrs: d.urls(), TLS: secure, Token: d.token, Logger: d.log}
	if d.operator, err = client.New(cc); err != nil {
		return err
	}
	if !d.token.IsZero() {
		_, err := d.operator.WhoAmI(ctx)
		if !errors.Is(err, &gpuai.Error{Code: gpuai.Unauthenticated}) {
			return err
		}
	}
	made, err := d.makeToken(ctx)
	if err != nil {
		return fmt.Errorf("making the operator's token: %w", err)
	}
	d.token = gpuai.NewSecret(made.Text)
	cc.Token = d.token
	if d.operator, err = client.New(cc); err != nil {
		return err
	}
	return store.WritePrivate(path, []byte(made.Text+"\n"))
}

// makeToken makes the region's first operator's token, or a further one.
func (d *devRegion) makeToken(ctx context.Context) (gpuai.NewAccessToken, error) {
	secret, err := os.ReadFile(filepath.Join(d.serverDir(devServers[0]), server.BootstrapFile))
	if err == nil {
		return d.operator.Bootstrap(ctx, gpuai.NewSecret(strings.TrimSpace(string(secret))))
	}
	if !errors.Is(err, os.ErrNotExist) {
		return gpuai.NewAccessToken{}, err
	}
	every := time.NewTicker(100 * time.Millisecond)
	defer every.Stop()
	for {
		made, err := d.servers[0].CreateToken(ctx, gpuai.TokenRequest{
			Scopes: []gpuai.Scope{gpuai.ScopeOperator}, TTL: gpuai.DefaultTokenTTL, Description: "gpuai dev",
		})
		if !errors.Is(err, &gpuai.Error{Code: gpuai.NoLeader}) {
			return made, err
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return made, context.Cause(ctx)
		}
	}
}

// hostIdentity returns a host's certificate. One that is not there yet, or has ended
// while the region was off, is got with a token.
func (d *devRegion) hostIdentity(ctx context.Context, cfg *agent.Config) (*identity.Source, error) {
	if d.insecure {
		return nil, nil
	}
	if id, err := agent.OpenIdentity(cfg.DataDir); id != nil && err == nil {
		return id, nil
	}
	t, err := d.operator.CreateJoinToken(ctx, gpuai.JoinTokenRequest{Join: gpuai.IdentityNode, Name: string(cfg.Node)})
	if err != nil {
		return nil, err
	}
	if _, err := agent.Join(ctx, agent.JoinConfig{DataDir: cfg.DataDir, Node: cfg.Node, Servers: cfg.Servers, Token: t.Token}); err != nil {
		return nil, err
	}
	return agent.OpenIdentity(cfg.DataDir)
}

func (d *devRegion) scheme() string {
	if d.insecure {
		return "http"
	}
	return "https"
}

// reachable returns a listener's address as this machine reaches it.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// A devContext is the context that a region for development was kept as.
type devContext struct {
	name    string
	context *regionContext
	current string // the context in use
	err     error  // why there is none
}

// keepDev keeps the region as a context, where it has authentication.
func (a *app) keepDev(d *devRegion) *devContext {
	out := &devContext{}
	if !d.insecure {
		var ca []byte
		if ca, out.err = os.ReadFile(d.caFile()); out.err == nil {
			out.context = &regionContext{Addrs: []string{d.url()}, Tenant: gpuai.DefaultTenant, Token: d.token.Reveal(), CACert: string(ca)}
			out.name, out.current, out.err = a.addContext(out.context)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reached = true
	return out
}

// addContext adds the context of a region for development, which is the current one
// where there was none.
func (a *app) addContext(c *regionContext) (name, current string, err error) {
	b, err := a.contexts()
	if err != nil {
		return "", "", err
	}
	name = b.devName(c.Addrs[0])
	b.Contexts[name] = c
	if b.Contexts[b.Current] == nil || b.Current == name {
		b.Current = name
	}
	return name, b.Current, b.save()
}

// devName is the name for the context of a region for development: dev, unless that
// is the context of another one which runs, or none of this machine.
func (b *contextBook) devName(addr string) string {
	c := b.Contexts[devContextOf]
	if c == nil || slices.Contains(c.Addrs, addr) || !slices.ContainsFunc(c.Addrs, othersOrAlive) {
		return devContextOf
	}
	u, _ := url.Parse(addr) // it is of a listener
	return devContextOf + "-" + u.Port()
}

// othersOrAlive reports whether an address is of another machine, or answers.
func othersOrAlive(addr string) bool {
	u, err := url.Parse(addr)
	if err != nil || !isLoopbackHost(u.Hostname()) {
		return true
	}
	c, err := net.DialTimeout("tcp", u.Host, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// forgetContext takes a context away, unless it has become another's.
func (a *app) forgetContext(name string, c *regionContext) error {
	if c == nil {
		return nil
	}
	b, err := a.contexts()
	if err != nil || b.Contexts[name] == nil || b.Contexts[name].Token != c.Token {
		return err
	}
	delete(b.Contexts, name)
	if b.Current == name {
		b.Current = ""
	}
	return b.save()
}

// devAccess says who reaches the region.
func (a *app) devAccess(d *devRegion, c *devContext) string {
	switch {
	case d.insecure:
		return "Everybody on this machine is its operator: --insecure is plain HTTP without tokens."
	case c.err != nil:
		return fmt.Sprintf("It takes its operator's token, over TLS. That is not kept as a context: %v.", c.err)
	case c.current != c.name:
		return fmt.Sprintf("The context %s reaches it, over TLS as an operator. The one in use is %s.", c.name, c.current)
	}
	return fmt.Sprintf("The context %s, which is in use, reaches it over TLS as an operator: other shells of this user need nothing more.", c.name)
}

// devExports are the lines that another shell needs first.
func (a *app) devExports(d *devRegion, c *devContext) string {
	switch {
	case d.insecure:
		return fmt.Sprintf("  export GPUAI_ADDR=%s\n", d.url())
	case c.err != nil:
		return fmt.Sprintf("  export GPUAI_ADDR=%s GPUAI_CACERT=%s GPUAI_TOKEN=$(cat %s)\n", d.url(), shellQuote(d.caFile()), shellQuote(filepath.Join(d.data, devTokenFile)))
	case c.current != c.name:
		return fmt.Sprintf("  export GPUAI_CONTEXT=%s\n", c.name)
	}
	return ""
}
