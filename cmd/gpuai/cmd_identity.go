package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/client"
)

// A joinTokenConfig is what "token create --join" is told.
type joinTokenConfig struct {
	Join        string // node or server
	TTL         time.Duration
	Name        string
	Contributor string
}

// createJoinToken makes a token with which a host joins, and prints it.
func (a *app) createJoinToken(ctx context.Context, cfg *joinTokenConfig) error {
	r := gpuai.JoinTokenRequest{
		TTL: gpuai.Duration(cfg.TTL / time.Millisecond), Name: cfg.Name, Contributor: gpuai.ContributorID(cfg.Contributor),
	}
	if r.TTL == 0 {
		r.TTL = gpuai.DefaultJoinTTL
	}
	if cfg.Join == "" || r.Join.UnmarshalText([]byte(cfg.Join)) != nil {
		return usageError{fmt.Errorf("--join is node or server, not %q", cfg.Join)}
	}
	t, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.JoinToken, error) { return c.CreateJoinToken(ctx, r) })
	if err != nil {
		return err
	}
	if a.api.output != formatTable {
		v := &view{head: []string{"TOKEN", "JOIN", "TTL"}}
		v.row(t.Token, t.Token, t.Join.String(), t.TTL.String())
		return a.show(ctx, v)
	}
	fmt.Fprintf(a.err, "for one %s, good for %s:\n", t.Join, t.TTL)
	_, err = fmt.Fprintln(a.out, t.Token)
	return err
}

// newCACmd has the region's CA.
func newCACmd(a *app) *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Show the region's CAs that are trusted", Args: cobra.NoArgs,
		Long: `Show the region's CAs that are trusted: the one that issues, and those that it has
replaced and that are trusted until their certificates have ended.`,
		Example: `  gpuai operator ca show
  gpuai operator ca show -o json --jq '.authorities[].spki_sha256'`,
		RunE: does(func(ctx context.Context, _ []string) error {
			list, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.AuthorityList, error) { return c.Authorities(ctx) })
			if err != nil {
				return err
			}
			return a.showAuthorities(ctx, &list)
		}),
	}
	rotate := &cobra.Command{
		Use: "rotate", Short: "Have a new CA issue the region's certificates", Args: cobra.NoArgs,
		Long: `Have a new CA issue the region's certificates. It is signed by the present one too,
so that whoever knows only that follows it, and nobody is cut off: servers change
their certificates at once, nodes at half of theirs. The old CA is trusted until
the last of its certificates has ended, and is dropped then by itself.`,
		Example: `  gpuai operator ca rotate`,
		RunE: does(func(ctx context.Context, _ []string) error {
			list, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.AuthorityList, error) {
				return c.RotateAuthority(ctx)
			})
			if err != nil {
				return err
			}
			return a.showAuthorities(ctx, &list)
		}),
	}
	return group("ca", "Look at the region's CA and replace it", a.talks(show), a.talks(rotate))
}

func (a *app) showAuthorities(ctx context.Context, list *gpuai.AuthorityList) error {
	v := &view{head: []string{"SPKI SHA-256", "STATE", "TRUSTED FOR"}}
	for _, c := range list.Authorities {
		state, left := "issues", "until it is replaced"
		if !c.Active {
			state, left = "replaced", gpuai.Duration(c.RetireAt-list.Time).String()
		}
		v.row(c.Hash, c.Hash, state, left)
	}
	return a.show(ctx, v)
}

func newRevokeCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "revoke node/ID|server/ID", Short: "Void all certificates of a node or a server, at once", Args: cobra.ExactArgs(1),
		Long: `Void all certificates of a node or a server, at once and for good: its connections
are closed, new ones refused. Its leases end when they expire. It joins again with a
token that names it. Of a server remove the membership too, with "gpuai server members
remove"; who has had its disk has had the region's keys: rotate the CA.`,
		Example: `  gpuai operator revoke node/gpu-7
  gpuai operator revoke server/b && gpuai server members remove b && gpuai operator ca rotate`,
		RunE: does(func(ctx context.Context, args []string) error {
			id, err := gpuai.ParseIdentity(args[0])
			if err != nil {
				return usageError{err}
			}
			if _, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.AuthorityList, error) {
				return c.RevokeIdentity(ctx, id)
			}); err != nil {
				return err
			}
			fmt.Fprintf(a.err, "%s is revoked: it joins again with gpuai token create --join %s --name %s\n", id, id.Kind, id.Name)
			return nil
		}),
	}
	return a.talks(c)
}

// newAgentJoinCmd gets a node's first certificate.
func newAgentJoinCmd(a *app) *cobra.Command {
	var cfg agent.JoinConfig
	var id string
	c := &cobra.Command{
		Use: "join --token TOKEN ADDR...", Short: "Get this node's certificate with a join token", Args: cobra.MinimumNArgs(1),
		Long: `Get this node's certificate with a join token, from servers of a region at the
addresses of their API. The key is made here and never leaves the host; both are kept
in --data, and "gpuai agent run" renews the certificate from then on. The token names the
region's CA: no other region's server is spoken to.`,
		Example: `  gpuai agent join --id gpu-c11 --data /var/lib/gpuai/agent --token gpujoin_… 10.0.0.1:7470 10.0.0.2:7470
  gpuai agent run --id gpu-c11 --data /var/lib/gpuai/agent --servers 10.0.0.1:7470,10.0.0.2:7470 --driver auto`,
	}
	f := c.Flags()
	f.StringVar(&id, "id", "", "name of the node, unique in the region (required)")
	f.StringVar(&cfg.DataDir, "data", "", "data directory of the agent (required)")
	f.StringVar(&cfg.Token, "token", "", "join token (default $GPUAI_JOIN_TOKEN)")
	c.RunE = does(func(ctx context.Context, args []string) error {
		cfg.Node, cfg.Servers = gpuai.NodeID(id), args
		if cfg.Token == "" {
			cfg.Token = a.getenv("GPUAI_JOIN_TOKEN")
		}
		if !gpuai.ValidName(id) || cfg.DataDir == "" || cfg.Token == "" {
			return usageError{errors.New("--id must be 1 to 63 characters of a-z, 0-9 and '-', --data must name a directory, and a --token is needed")}
		}
		cred, err := agent.Join(ctx, cfg)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.err, "node %s has joined cluster %s; its certificate is good until %s and renewed by gpuai agent run\n",
			id, cred.Peer.Cluster, cred.NotAfter().UTC().Format(time.RFC3339))
		return nil
	})
	return c
}
