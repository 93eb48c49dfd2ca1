package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

// maxTokenLine bounds a token that is read.
const maxTokenLine = 4 << 10

type loginFlags struct {
	name, tenant, cacert string
	stdin, noBrowser     bool
}

func newLoginCmd(a *app) *cobra.Command {
	var l loginFlags
	c := &cobra.Command{
		Use: "login", Short: "Log in to a region, and keep how to reach it as a context", Args: cobra.NoArgs,
		Long: `Log in to the region at --addr and keep its servers and the token as a context,
which later commands use.

With --token-stdin the token is read from standard input. Otherwise the region is
asked how users log in: with an OpenID provider, a browser is opened (its URL is
printed), and the region gives a token of 12 hours for what the provider says of
you. A region whose requests need no token is kept without one.`,
		Example: `  gpuai login --addr https://gpu.example:7470 --cacert ca.pem
  gpuai login --addr https://gpu.example:7470 --token-stdin < token
  gpuai login --name prod --tenant research`,
	}
	f := c.Flags()
	f.StringVar(&l.name, "name", "", "the context's name (default --context, the current one, or default)")
	f.StringVar(&l.tenant, "tenant", "", "the tenant, for who has several (default $GPUAI_TENANT)")
	f.StringVar(&l.cacert, "cacert", "", "PEM file of the region's CA (default $GPUAI_CACERT)")
	f.BoolVar(&l.stdin, "token-stdin", false, "read the token from standard input")
	f.BoolVar(&l.noBrowser, "no-browser", false, "print the URL to open, and open no browser")
	c.RunE = does(func(ctx context.Context, _ []string) error { return a.login(ctx, &l) })
	return a.talks(c)
}

func (a *app) login(ctx context.Context, l *loginFlags) error {
	if l.cacert != "" { // for this command, and for the context
		a.override("GPUAI_CACERT", l.cacert)
	}
	if l.tenant == "" {
		l.tenant = a.getenv("GPUAI_TENANT")
	}
	token, err := a.tokenFor(ctx, l)
	if err != nil {
		return err
	}
	a.override("GPUAI_TOKEN", token.Reveal()) // ask with the new one
	who, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.WhoAmI, error) { return c.WhoAmI(ctx) })
	if err != nil {
		return err
	}
	name, err := a.keepLogin(l, token, &who)
	if err != nil {
		return err
	}
	a.say("context %s is in use\n", name)
	v := &view{head: []string{"CONTEXT", "ACTOR", "TENANT", "SCOPES"}}
	v.row(name, name, who.Actor, string(who.Tenant), scopesText(who.Scopes))
	return a.show(ctx, v)
}

// override has a variable of the environment be another for this command.
func (a *app) override(name, value string) {
	old := a.getenv
	a.getenv = func(k string) string {
		if k == name {
			return value
		}
		return old(k)
	}
}

// keepLogin writes the context.
func (a *app) keepLogin(l *loginFlags, token gpuai.Secret, who *gpuai.WhoAmI) (name string, err error) {
	var pem []byte
	if path := a.getenv("GPUAI_CACERT"); path != "" {
		if pem, err = os.ReadFile(path); err != nil {
			return "", usageError{err}
		}
	}
	if name = l.name; name == "" {
		if name, _, err = a.chosen(); err != nil {
			return "", err
		}
	}
	if name == "" {
		name = "default"
	}
	return name, a.useContext(name, func(c *regionContext) {
		c.Addrs, c.Token, c.Tenant = a.api.addrs, token.Reveal(), who.Tenant
		if len(pem) > 0 {
			c.CACert = string(pem)
		}
	})
}

// tokenFor gets the token to log in with; none where the region needs none.
func (a *app) tokenFor(ctx context.Context, l *loginFlags) (gpuai.Secret, error) {
	if l.stdin {
		line, err := bufio.NewReader(io.LimitReader(a.in, maxTokenLine)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return gpuai.Secret{}, fmt.Errorf("reading the token: %w", err)
		}
		line = strings.TrimSpace(line)
		if _, ok := gpuai.SplitAccessToken(line); !ok {
			return gpuai.Secret{}, usageError{errors.New("standard input holds no token: one begins with " + gpuai.AccessTokenPrefix)}
		}
		return gpuai.NewSecret(line), nil
	}
	info, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.LoginInfo, error) { return c.LoginInfo(ctx) })
	switch {
	case err != nil:
		return gpuai.Secret{}, err
	case info.Insecure:
		return gpuai.Secret{}, nil
	case info.Issuer == "":
		return gpuai.Secret{}, usageError{errors.New("this region has no identity provider: get a token from an operator or your tenant's administrator, and give it to gpuai login --token-stdin")}
	}
	return a.loginOIDC(ctx, l, &info)
}

// reachOwn has this command trust the CA of a server on this host, by its data
// directory, and talk TLS to it. The CA comes with the region's first election, so it
// is waited for.
func (a *app) reachOwn(ctx context.Context, data string) error {
	if data == "" || !server.IsSecure(data) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.api.timeout)
	defer cancel()
	path := filepath.Join(data, store.TrustFile)
	every := time.NewTicker(100 * time.Millisecond)
	defer every.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return fmt.Errorf("%s has no %s yet, which comes with the region's first leader: look at the server's log, and run this again", data, store.TrustFile)
		}
	}
	if a.getenv("GPUAI_CACERT") == "" {
		a.override("GPUAI_CACERT", path)
	}
	if a.api.addr == "" && a.getenv("GPUAI_ADDR") == "" {
		a.api.addr = "https://" + strings.TrimPrefix(defaultAddr, "http://")
	}
	return nil
}

// bootstrapSecret reads the secret from a server's data directory, or from
// standard input.
func (a *app) bootstrapSecret(ctx context.Context, data string) (gpuai.Secret, error) {
	in := a.in
	if data != "" {
		text, err := a.awaitSecret(ctx, data)
		if err != nil {
			return gpuai.Secret{}, err
		}
		in = strings.NewReader(text)
	}
	line, err := bufio.NewReader(io.LimitReader(in, maxTokenLine)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return gpuai.Secret{}, fmt.Errorf("reading the bootstrap secret: %w", err)
	}
	if line = strings.TrimSpace(line); line == "" {
		return gpuai.Secret{}, usageError{errors.New("give the bootstrap secret on standard input, or --data of the server that formed the region")}
	}
	return gpuai.NewSecret(line), nil
}

// secretGrace is how long a server that has formed its region may take to write the
// bootstrap secret beside the CA: it does both at once.
const secretGrace = 2 * time.Second

// awaitSecret reads the secret from a server's data directory. One that was started
// a moment ago has not yet decided whether it forms a region: it is waited for until
// the CA says that the region is there, or --request-timeout is over.
func (a *app) awaitSecret(ctx context.Context, data string) (string, error) {
	bounded, cancel := context.WithTimeout(ctx, a.api.timeout)
	defer cancel()
	every := time.NewTicker(50 * time.Millisecond)
	defer every.Stop()
	formed := false
	for waits := false; ; waits = true {
		text, err := os.ReadFile(filepath.Join(data, server.BootstrapFile))
		if err == nil && strings.HasSuffix(string(text), "\n") {
			return string(text), nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if _, err := os.Stat(filepath.Join(data, store.TrustFile)); err == nil && !formed {
			formed = true
			bounded, cancel = context.WithTimeout(bounded, min(secretGrace, a.api.timeout))
			defer cancel()
		} else if !waits && !formed {
			a.say("waiting for the server of %s to form its region\n", data)
		}
		select {
		case <-every.C:
		case <-bounded.Done():
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			return "", usageError{noSecret(data, formed)}
		}
	}
}

// noSecret says why a data directory has no bootstrap secret.
func noSecret(data string, formed bool) error {
	if formed {
		return fmt.Errorf("%s has no %s: the region was bootstrapped before, or another server formed it; where the token or its answer was lost, --recover makes another", data, server.BootstrapFile)
	}
	return fmt.Errorf("%s has no %s, and no %s either: no server has formed a region there, or it does not authenticate, or the region was bootstrapped before: see its log, and run this again",
		data, server.BootstrapFile, store.TrustFile)
}
