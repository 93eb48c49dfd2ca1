package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newSecretCmd(a *app) *cobra.Command {
	return group("secret", "Set the secrets that jobs are given", newSecretPutCmd(a), newSecretListCmd(a), newSecretDeleteCmd(a))
}

func newSecretPutCmd(a *app) *cobra.Command {
	var from, tenant string
	c := &cobra.Command{
		Use: "put NAME", Short: "Give a secret its first or its next value", Args: cobra.ExactArgs(1),
		Long: `Give a secret of the tenant a value: from a file, or from stdin, of 1 to 65536
bytes. One line end at the end of stdin is left out; a file is taken as it is. The
value is sealed before it is stored, and no command shows it again. Tasks that
start from now on get it; those that run keep what they have.

A job names the secret, in its task:

  env: {HF_TOKEN: {secret: hf-token}}        as a variable
  secrets: [{name: hf-token, path: token}]   as the file $GPUAI_SECRETS_DIR/token`,
		Example: `  gpuai secret put hf-token --from-file token.txt
  pass show hf | gpuai secret put hf-token`,
	}
	c.Flags().StringVar(&from, "from-file", "", "the file that holds the value; - or nothing is stdin")
	c.Flags().StringVar(&tenant, "tenant", "", "whose secret it is, for operators")
	c.RunE = does(func(ctx context.Context, args []string) error {
		value, err := secretValue(c.InOrStdin(), from)
		if err != nil {
			return err
		}
		if !gpuai.ValidName(args[0]) {
			return usageError{fmt.Errorf("a secret's name is 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end, not %q", args[0])}
		}
		set, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.SecretSet, error) {
			return c.PutSecret(ctx, args[0], gpuai.SecretRequest{Value: value, Tenant: gpuai.TenantID(tenant)})
		})
		if err != nil {
			return err
		}
		return a.showSecret(ctx, set)
	})
	return a.talks(c)
}

// secretValue reads a secret.
func secretValue(stdin io.Reader, from string) (value []byte, err error) {
	what := from
	if from == "" || from == "-" {
		what = "stdin"
		value, err = io.ReadAll(io.LimitReader(stdin, gpuai.MaxSecretBytes+2))
		if n := len(value); n > 0 && value[n-1] == '\n' {
			value = value[:n-1]
		}
	} else {
		var f *os.File
		if f, err = os.Open(from); err == nil {
			defer f.Close()
			value, err = io.ReadAll(io.LimitReader(f, gpuai.MaxSecretBytes+1))
		}
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the secret: %w", err)
	case len(value) == 0:
		return nil, usageError{errors.New("the secret is empty: " + what + " has nothing in it")}
	case len(value) > gpuai.MaxSecretBytes:
		return nil, usageError{fmt.Errorf("%s has more than %d bytes, which is the most that a secret has", what, gpuai.MaxSecretBytes)}
	}
	return value, nil
}

func (a *app) showSecret(ctx context.Context, s gpuai.SecretSet) error {
	v := &view{head: []string{"SECRET", "TENANT", "VERSION"}}
	version := num(s.Version)
	if s.Version == 0 {
		version = "deleted"
	}
	v.row(s.Name, s.Name, string(s.Tenant), version)
	return a.showObject(ctx, s, v)
}

func newSecretListCmd(a *app) *cobra.Command {
	var q client.Page
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List secrets: names and versions, never values", Args: cobra.NoArgs,
		Long: `List the tenant's secrets, or for an operator those of all tenants. KEY names the
region key under which a secret is sealed. Nobody is shown a value.`,
		Example: `  gpuai secret list
  gpuai secret list -o json --jq '.[] | {name, version}'`,
	}
	paging(c, &q)
	c.RunE = does(func(ctx context.Context, _ []string) error {
		v := &view{head: []string{"SECRET", "TENANT", "VERSION", "BYTES", "KEY"}}
		page, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.SecretInfo, error) {
			page, next, err := c.Secrets(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for _, s := range page {
			v.row(s.Name, s.Name, string(s.Tenant), num(s.Version), num(s.Bytes), s.Key)
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func newSecretDeleteCmd(a *app) *cobra.Command {
	var tenant string
	c := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Forget a secret", Args: cobra.ExactArgs(1),
		Long: `Forget a secret of the tenant, all its versions. Tasks that run keep what they have;
one that starts later and wants it fails, and says so.`,
		Example: `  gpuai secret delete hf-token`,
	}
	c.Flags().StringVar(&tenant, "tenant", "", "whose secret it is, for operators")
	c.RunE = does(func(ctx context.Context, args []string) error {
		set, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.SecretSet, error) {
			return c.DeleteSecret(ctx, args[0], gpuai.TenantID(tenant))
		})
		if err != nil {
			return err
		}
		return a.showSecret(ctx, set)
	})
	return a.talks(c)
}
