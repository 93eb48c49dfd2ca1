package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newTokenCmd(a *app) *cobra.Command {
	return group("token", "Make, list and revoke access tokens", newTokenCreateCmd(a), newTokenListCmd(a), newTokenRevokeCmd(a))
}

var tokenHead = []string{"TOKEN", "TENANT", "SCOPES", "EXPIRES", "USED", "STATE"}

var tokenWide = []string{"USER", "CONTRIBUTOR", "DESCRIPTION"}

func (a *app) tokenRow(v *view, t *gpuai.AccessToken) {
	state := "good"
	switch {
	case t.Revoked:
		state = "revoked"
	case t.Expired:
		state = "expired"
	}
	used := "never"
	if t.UsedAt != 0 {
		used = a.since(t.UsedAt) + " ago"
	}
	expires := "in " + a.until(t.ExpiresAt)
	if t.Expired {
		expires = a.since(t.ExpiresAt) + " ago"
	}
	v.row(t.ID.String(), t.ID.String(), string(t.Tenant), scopesText(t.Scopes), expires, used, state, t.User, string(t.Contributor), t.Description)
}

// since and until say how long something is from now, in two units at most.
func (a *app) since(at gpuai.WallTime) string { return roughly(a.now().Sub(time.UnixMilli(int64(at)))) }
func (a *app) until(at gpuai.WallTime) string { return roughly(time.UnixMilli(int64(at)).Sub(a.now())) }

func roughly(d time.Duration) string {
	switch d = max(d, 0); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	case d >= time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	case d >= time.Minute:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	default:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
}

func scopesText(scopes []gpuai.Scope) string {
	var out []string
	for _, s := range scopes {
		out = append(out, s.String())
	}
	return strings.Join(out, ",")
}

// readScopes reads names of scopes.
func readScopes(names []string) (out []gpuai.Scope, err error) {
	for _, name := range names {
		var s gpuai.Scope
		if err := s.UnmarshalText([]byte(strings.TrimSpace(name))); err != nil {
			return nil, usageError{fmt.Errorf("--scope: %w", err)}
		}
		out = append(out, s)
	}
	return out, nil
}

func newTokenCreateCmd(a *app) *cobra.Command {
	var r gpuai.TokenRequest
	var scopes []string
	var ttl time.Duration
	var join joinTokenConfig
	c := &cobra.Command{
		Use: "create", Short: "Make an access token, or one with which a host joins", Args: cobra.NoArgs,
		Long: `Make an access token and print it: this once, to standard output; what is known
of it goes to standard error. No scope contains another:

  read          see jobs, leases, logs, events and usage of the tenant
  submit        submit, stop and enter jobs of the tenant, and plan
  tenant-admin  make and revoke tokens of the tenant
  contributor   see, price, schedule and drain the nodes of --contributor, and see what
                they earn and never whose jobs run there
  operator      everything in the region

A tenant's administrator makes tokens of its tenant with the first three.

With --join it is a token with which one host joins the region, once: the region keeps
a hash of it, and it names the region's CA, so that the host knows the region too. A
node or server that has joined before joins again only with a token that names it,
and its older certificates are void then.`,
		Example: `  gpuai token create --tenant research --scope submit,read --ttl 720h
  gpuai token create --scope read --description "dashboard" > token
  gpuai token create --contributor carol --scope contributor
  gpuai token create --join node --contributor carol
  gpuai token create --join node --name gpu-7      # gpu-7 may have joined before
  gpuai token create --join server --ttl 1h`,
	}
	f := c.Flags()
	f.StringVar((*string)(&r.Tenant), "tenant", "", "whose jobs it is for (default $GPUAI_TENANT, the context's, or the tenant of the token in use)")
	f.StringVar((*string)(&r.Contributor), "contributor", "", "whose nodes it is for, with the scope contributor; with --join: whose the node will be")
	f.StringSliceVar(&scopes, "scope", nil, "what it allows: read, submit, tenant-admin, contributor, operator; comma-separated")
	f.StringVar(&join.Join, "join", "", "make a token with which a host joins: as a node or a server")
	f.StringVar(&join.Name, "name", "", "with --join: the only node or server that may join with it (default: any that has not joined before)")
	f.DurationVar(&ttl, "ttl", 0, fmt.Sprintf("for how long it is good: at most five years (default %s), with --join at most 1h (default %s)", gpuai.DefaultTokenTTL, gpuai.DefaultJoinTTL))
	f.StringVar(&r.Description, "description", "", "what it is for, shown in lists")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if join.Join != "" {
			if len(scopes) > 0 || r.Tenant != "" || r.Description != "" {
				return usageError{errors.New("--join makes a token for a host, which has no --scope, --tenant or --description")}
			}
			join.TTL, join.Contributor = ttl, string(r.Contributor)
			return a.createJoinToken(ctx, &join)
		}
		if join.Name != "" {
			return usageError{errors.New("--name goes with --join")}
		}
		if r.TTL = gpuai.Duration(ttl / time.Millisecond); ttl == 0 {
			r.TTL = gpuai.DefaultTokenTTL
		}
		return a.createToken(ctx, r, scopes)
	})
	return a.talks(c)
}

// createToken makes an access token with the scopes of these names, and prints it.
func (a *app) createToken(ctx context.Context, r gpuai.TokenRequest, scopes []string) (err error) {
	if r.Scopes, err = readScopes(scopes); err != nil {
		return err
	}
	if len(r.Scopes) == 0 {
		return usageError{errors.New("a token needs --scope: read, submit, tenant-admin, contributor or operator")}
	}
	const ofTenant = gpuai.Scopes(1<<gpuai.ScopeRead | 1<<gpuai.ScopeSubmit | 1<<gpuai.ScopeTenantAdmin)
	made, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.NewAccessToken, error) {
		if r.Tenant == "" && gpuai.ScopesOf(r.Scopes...)&ofTenant != 0 {
			r.Tenant = a.api.tenant
		}
		return c.CreateToken(ctx, r)
	})
	if err != nil {
		return err
	}
	return a.showMade(ctx, &made)
}

// showMade prints a token that was just made: as data its text, or the object.
func (a *app) showMade(ctx context.Context, made *gpuai.NewAccessToken) error {
	v := &view{head: []string{"TOKEN"}, names: []string{made.Token.ID.String()}}
	v.text = func(w io.Writer) error {
		_, err := fmt.Fprintln(w, made.Text)
		return err
	}
	if !a.objects() {
		a.say("token %s, %s, good for %s; it is shown this once\n", made.Token.ID, scopesText(made.Token.Scopes), a.until(made.Token.ExpiresAt))
	}
	return a.show(ctx, v)
}

func newTokenListCmd(a *app) *cobra.Command {
	var q client.Page
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List access tokens", Args: cobra.NoArgs,
		Long: `List the access tokens that there are: an operator sees all, a tenant's
administrator those of the tenant. USED is to within minutes. One that expired or
was revoked is listed for another day.`,
		Example: `  gpuai token list
  gpuai token list -o wide --filter 'tenant == "research"'`,
	}
	paging(c, &q)
	c.RunE = does(func(ctx context.Context, _ []string) error {
		v := &view{head: tokenHead, wide: tokenWide}
		tokens, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.AccessToken, error) {
			page, next, err := c.AccessTokens(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for i := range tokens {
			a.tokenRow(v, &tokens[i])
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func newTokenRevokeCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "revoke TOKEN", Short: "End an access token, at once and for good", Args: cobra.ExactArgs(1),
		Long: `End an access token by its ID, which is the part of its text between the first
and the second "_". Every server refuses it from then on; streams that are open
with it end within a second.`,
		Example: `  gpuai token revoke 6f2m0qk9w3ehzt7a`,
		RunE: does(func(ctx context.Context, args []string) error {
			id, err := gpuai.ParseAccessTokenID(args[0])
			if err != nil {
				if _, whole := gpuai.SplitAccessToken(args[0]); whole {
					return usageError{errors.New("this is a whole token: give its ID only, the part between the first and the second _; and revoke it, since it is now in your shell's history")}
				}
				return usageError{err}
			}
			t, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.AccessToken, error) { return c.RevokeToken(ctx, id) })
			if err != nil {
				return err
			}
			v := &view{head: tokenHead, wide: tokenWide}
			a.tokenRow(v, &t)
			return a.show(ctx, v)
		}),
	})
}
