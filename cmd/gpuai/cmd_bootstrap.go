package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/server"
)

func newBootstrapCmd(a *app) *cobra.Command {
	var data, name string
	var again bool
	c := &cobra.Command{
		Use: "bootstrap", Short: "Make the region's first operator token, once", Args: cobra.NoArgs,
		Long: `Make the first operator's token of a new region and keep it as a context. It works
once in a region's life, with the secret that the server which formed the region
has left in its data directory: run it on that host with --data, or give the
secret on standard input. A server that was started a moment ago is waited for, up
to --request-timeout. The token is good for 90 days: make others with gpuai token
create before it ends.

Where the answer never came, or every operator's token was lost or has expired,
--recover makes another: on the host of any server of the region, by who can write
to its data directory. It leaves a secret there, for which that server makes one
token, within ten minutes and once; run it again if that answer is lost, too. The
audit has it as recovery/SERVER. Then revoke what was lost: gpuai token list shows
which tokens were never used, gpuai token revoke ends them.`,
		Example: `  gpuai operator bootstrap --data /var/lib/gpuai
  gpuai operator bootstrap --data /var/lib/gpuai --addr https://10.0.0.1:7470
  ssh gpu-1 cat /var/lib/gpuai/bootstrap.secret | gpuai operator bootstrap --addr https://gpu-1:7470
  gpuai operator bootstrap --recover --data /var/lib/gpuai`,
	}
	c.Flags().StringVar(&data, "data", "", "data directory of the server that formed the region, on this host; with --recover of any server")
	c.Flags().StringVar(&name, "name", "", "the context's name (default --context, the current one, or default)")
	c.Flags().BoolVar(&again, "recover", false, "make another operator's token, in a region that has one: needs --data")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if again && data == "" {
			return usageError{errors.New("--recover is for who can write to a server's data directory: name it with --data, on that server's host")}
		}
		secretFor := a.bootstrapSecret
		if again {
			secretFor = recoverySecret
		}
		secret, err := secretFor(ctx, data)
		if err != nil {
			return err
		}
		if err := a.reachOwn(ctx, data); err != nil {
			return err
		}
		made, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.NewAccessToken, error) {
			return c.Bootstrap(ctx, secret)
		})
		if err != nil {
			return bootstrapError(err, data, again)
		}
		if err := a.showMade(ctx, &made); err != nil {
			return err
		}
		kept, err := a.keepLogin(&loginFlags{name: name}, gpuai.NewSecret(made.Text), &gpuai.WhoAmI{})
		if err == nil {
			a.say("context %s is in use\n", kept)
		}
		return err
	})
	return a.talks(c)
}

// recoverySecret leaves a secret in a server's data directory.
func recoverySecret(_ context.Context, data string) (gpuai.Secret, error) {
	if !server.IsSecure(data) {
		return gpuai.Secret{}, usageError{fmt.Errorf("%s is no data directory of a server of a region with authentication, or this user may not read it", data)}
	}
	text := gpuai.BootstrapPrefix + rand.Text()
	if err := server.LeaveRecovery(data, text); err != nil {
		return gpuai.Secret{}, usageError{fmt.Errorf("leaving the secret in %s, as root or the user that the server runs as: %w", data, err)}
	}
	return gpuai.NewSecret(text), nil
}

// bootstrapError says what is to be done when nobody knows whether a token was made.
func bootstrapError(err error, data string, again bool) error {
	var api *gpuai.Error
	answered := errors.As(err, &api) && api.Code != gpuai.OutcomeUnknown && api.Code != gpuai.Internal
	switch {
	case again && answered && api.Code == gpuai.Unauthenticated:
		text := err.Error() + "; either another server was asked than the one of " + data + ", which --addr names, or its answer was lost and asked for again, which works once"
		return &exitError{exitNotAllowed, text, "run it again; gpuai token list shows the tokens that were made and never used"}
	case !answered || !again && api.Code == gpuai.Conflict:
		text := err.Error()
		if !answered {
			text += "; a token may have been made whose text nobody knows"
		}
		return &exitError{codeExits[gpuai.Conflict], text, "gpuai operator bootstrap --recover --data DIR, on the host of a server whose data directory is DIR, makes another; then revoke the lost one"}
	}
	return err
}
