package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/integration/access"
)

// tenant submits the demo's jobs.
const tenant gpuai.TenantID = "demo"

// form starts the servers: the first forms the region and makes its CA, the others
// join it with a token each. It makes the operator's token, and the tenant's.
func (r *region) form(ctx context.Context) error {
	first := r.servers[0]
	if err := r.startServer(first, nil, "--bootstrap"); err != nil {
		return err
	}
	var err error
	if r.access, err = access.Bootstrap(ctx, r.data(first), first.url()); err != nil {
		return err
	}
	for _, m := range r.servers {
		if m.api, err = r.access.Client(m.url()); err != nil {
			return err
		}
	}
	for _, m := range r.servers[1:] {
		env, err := access.JoinEnv(ctx, first.api, gpuai.IdentityServer)
		if err != nil {
			return err
		}
		if err := r.startServer(m, env, "--join", first.http); err != nil {
			return err
		}
	}
	if err := access.AwaitVoters(ctx, first.api, servers); err != nil {
		return err
	}
	for _, m := range r.servers {
		if err := r.waitReady(ctx, m); err != nil {
			return err
		}
	}
	if r.api, err = r.access.Client(r.urls()...); err != nil {
		return err
	}
	return r.login(ctx)
}

// login makes a token of the tenant and logs in with it, by the commands that a user
// has for it.
func (r *region) login(ctx context.Context) error {
	if _, err := r.api.CreateTenant(ctx, gpuai.TenantRequest{ID: tenant, Name: "The demo"}); err != nil {
		return fmt.Errorf("create the tenant: %w", err)
	}
	made, err := r.api.CreateToken(ctx, gpuai.TokenRequest{
		Tenant: tenant, Scopes: []gpuai.Scope{gpuai.ScopeSubmit, gpuai.ScopeRead}, TTL: gpuai.Hour,
	})
	if err != nil {
		return fmt.Errorf("make the tenant's token: %w", err)
	}
	r.token = gpuai.NewSecret(made.Text)
	if _, err := r.command(ctx, made.Text, "login", "--addr", strings.Join(r.urls(), ","), "--cacert", r.access.CA, "--token-stdin"); err != nil {
		return err
	}
	r.user, err = r.access.As(r.token, r.urls()...)
	return err
}

// command calls gpuai as a user would, with contexts of the demo's own, and returns
// what it prints.
func (r *region) command(ctx context.Context, in string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, filepath.Join(r.bin, "gpuai"), args...)
	c.Env = []string{"XDG_CONFIG_HOME=" + filepath.Join(r.dir, "config"), "PATH=" + os.Getenv("PATH")}
	c.Stdin = strings.NewReader(in)
	var failed strings.Builder
	c.Stderr = &failed
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("gpuai %s: %w: %s", args[0], err, failed.String())
	}
	return string(out), nil
}

// doors is who was let in.
type doors struct {
	// Refused are the attempts that were refused, all of them rightly.
	Refused []string `json:"refused"`
}

// doors checks on a server that runs that a user's command works over TLS with a
// token, and that nothing else does.
func (d *demo) doors(ctx context.Context) error {
	listed, err := d.region.command(ctx, "", "job", "list", "-o", "name")
	if err != nil {
		return err
	}
	if !strings.Contains(listed, d.gang) && !strings.Contains(listed, "training") {
		return fmt.Errorf("the tenant's gpuai job list does not have its training: %q", listed)
	}
	m := d.region.except(d.deadServer)[0]
	list := func(c *client.Client) error {
		_, _, err := c.Jobs(ctx, client.JobQuery{})
		return err
	}
	nodes := func(c *client.Client) error {
		_, _, err := c.Nodes(ctx, client.Page{})
		return err
	}
	wrong := d.region.token.Reveal() + "0"
	for _, try := range []struct {
		what  string
		token string
		call  func(*client.Client) error
		code  gpuai.Code
	}{
		{"no token", "", list, gpuai.Unauthenticated},
		{"a wrong token", wrong, list, gpuai.Unauthenticated},
		{"a tenant's token for an operator's request", d.region.token.Reveal(), nodes, gpuai.Forbidden},
	} {
		c, err := d.region.access.As(gpuai.NewSecret(try.token), m.url())
		if err != nil {
			return err
		}
		if err := try.call(c); !errors.Is(err, &gpuai.Error{Code: try.code}) {
			return fmt.Errorf("%s is to be refused as %s, and was answered: %w", try.what, try.code, err)
		}
		d.report.Access.Refused = append(d.report.Access.Refused, try.what)
	}
	if err := d.plaintext(ctx, m); err != nil {
		return err
	}
	d.say("gpuai job list works with the tenant's login; refused: %s", strings.Join(d.report.Access.Refused, ", "))
	return nil
}

// plaintext checks that a server does not serve plain HTTP.
func (d *demo) plaintext(ctx context.Context, m *member) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.http+"/v1/jobs", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.region.token.Reveal())
	res, err := http.DefaultClient.Do(req)
	if err == nil {
		res.Body.Close()
		if res.StatusCode < 400 {
			return fmt.Errorf("%s answers plain HTTP with %s", m.id, res.Status)
		}
	}
	d.report.Access.Refused = append(d.report.Access.Refused, "plain HTTP")
	return nil
}
