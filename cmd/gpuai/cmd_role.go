package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

var roleHead = []string{"CLAIM", "VALUE", "TENANT", "CONTRIBUTOR", "SCOPES"}

func (a *app) showRoles(ctx context.Context, roles []gpuai.RoleMapping) error {
	v := &view{head: roleHead}
	for i := range roles {
		r := &roles[i]
		v.row(r.Claim+"="+r.Value, r.Claim, r.Value, string(r.Tenant), string(r.Contributor), scopesText(r.Scopes))
	}
	return a.show(ctx, v)
}

func newRoleListCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what users who log in get", Args: cobra.NoArgs,
		Long:    "List the mappings of claims, such as groups, to scopes in tenants.",
		Example: "  gpuai operator role list",
		RunE: does(func(ctx context.Context, _ []string) error {
			roles, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.RoleMapping, error) { return c.Roles(ctx) })
			if err != nil {
				return err
			}
			return a.showRoles(ctx, roles)
		}),
	})
}

func newRoleSetCmd(a *app) *cobra.Command {
	var tenant, contributor string
	var scopes []string
	var none bool
	c := &cobra.Command{
		Use: "set CLAIM=VALUE", Short: "Say what users with a claim get", Args: cobra.ExactArgs(1),
		Long: `Say what users get who log in with an identity provider that says CLAIM of them,
with VALUE as its value or among its values. It holds from their next login on.
--none takes it away; tokens that were given before stay good until they expire,
within 12 hours.`,
		Example: `  gpuai operator role set groups=ml-team --tenant research --scope submit,read
  gpuai operator role set groups=platform --scope operator
  gpuai operator role set groups=ml-team --tenant research --none`,
	}
	f := c.Flags()
	f.StringVar(&tenant, "tenant", "", "the tenant, for read, submit and tenant-admin")
	f.StringVar(&contributor, "contributor", "", "whose nodes, for contributor")
	f.StringSliceVar(&scopes, "scope", nil, "what they get, comma-separated")
	f.BoolVar(&none, "none", false, "take the mapping away")
	c.RunE = does(func(ctx context.Context, args []string) error {
		claim, value, ok := strings.Cut(args[0], "=")
		if !ok || claim == "" || value == "" {
			return usageError{errors.New("a mapping begins with CLAIM=VALUE, such as groups=ml-team")}
		}
		set, err := readScopes(scopes)
		if err != nil {
			return err
		}
		if none == (len(set) > 0) {
			return usageError{errors.New("give --scope, or --none to take the mapping away")}
		}
		r := gpuai.RoleMapping{Claim: claim, Value: value, Tenant: gpuai.TenantID(tenant), Contributor: gpuai.ContributorID(contributor), Scopes: set}
		roles, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.RoleMapping, error) { return c.SetRole(ctx, r) })
		if err != nil {
			return err
		}
		return a.showRoles(ctx, roles)
	})
	return a.talks(c)
}
