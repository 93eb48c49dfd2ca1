package main

import (
	"context"
	"os/exec"
	"runtime"
	"slices"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/identity"
)

// loginWait bounds the wait for a user to log in.
const loginWait = 5 * time.Minute

// loginOIDC has the user log in at the provider and exchanges what it says for a
// token of the region.
func (a *app) loginOIDC(ctx context.Context, l *loginFlags, info *gpuai.LoginInfo) (gpuai.Secret, error) {
	wait, cancel := context.WithTimeout(ctx, loginWait)
	defer cancel()
	flow := identity.Login{
		Issuer: info.Issuer, Client: info.ClientID,
		Scopes: slices.DeleteFunc(slices.Clone(info.Scopes), func(s string) bool { return s == "openid" }),
		Open: func(url string) error {
			a.say("log in at\n  %s\n", url)
			if !l.noBrowser {
				openBrowser(url)
			}
			return nil
		},
	}
	id, err := flow.Run(wait)
	if err != nil {
		return gpuai.Secret{}, err
	}
	made, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.NewAccessToken, error) {
		return c.Login(ctx, gpuai.LoginRequest{IDToken: id.Reveal(), Tenant: gpuai.TenantID(l.tenant)})
	})
	return gpuai.NewSecret(made.Text), err
}

// openBrowser opens a URL where there is a browser; its user has been told it.
func openBrowser(url string) {
	name := "xdg-open"
	if runtime.GOOS == "darwin" {
		name = "open"
	}
	if path, err := exec.LookPath(name); err == nil {
		_ = exec.Command(path, url).Start() // the URL has been printed
	}
}
