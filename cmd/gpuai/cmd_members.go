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
	"github.com/gpuai/gpuai/server"
)

// rejoinTimeout bounds a rejoin's calls: the removal may wait for a new leader.
const rejoinTimeout = 30 * time.Second

func newMembersCmd(a *app) *cobra.Command {
	return group("members", "Look at the servers of a region and change them",
		newMembersListCmd(a), newMembersAddCmd(a), newMembersPromoteCmd(a), newMembersRemoveCmd(a))
}

func newMembersListCmd(a *app) *cobra.Command {
	var stale bool
	c := &cobra.Command{
		Use: "list", Short: "List the servers, and how far each is", Args: cobra.NoArgs,
		Long: `List the servers of the region. The leader asks each of them just now: UP says
whether it answered, APPLIED how far its state is.`,
		Example: `  gpuai server members list
  gpuai server members list --stale --addr http://10.0.0.2:7470   # when no server leads
  gpuai server members list --jq '.members[] | select(.voter) | .server'`,
	}
	c.Flags().BoolVar(&stale, "stale", false, "the view of the server that is asked, without its leader")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		return a.membersDo(ctx, func(ctx context.Context, c *client.Client) (gpuai.MemberList, error) {
			return c.Members(ctx, stale)
		})
	})
	return a.talks(c)
}

func newMembersAddCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "add SERVER HOST:PORT", Short: "Add a server as a non-voter", Args: cobra.ExactArgs(2),
		Long: `Add a server at the address of its Raft port. It is sent the log, and nothing
waits for it until it is promoted. A server that is started with --join adds
itself and is promoted once it has caught up; this command is for those that are
started without. An ID that was removed before is refused.`,
		Example: `  gpuai server members add d 10.0.0.4:7471`,
		RunE: does(func(ctx context.Context, args []string) error {
			return a.membersDo(ctx, func(ctx context.Context, c *client.Client) (gpuai.MemberList, error) {
				return c.AddMember(ctx, gpuai.MemberRequest{Server: gpuai.ServerID(args[0]), Address: args[1]})
			})
		}),
	})
}

func newMembersPromoteCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "promote SERVER", Short: "Make a non-voter that has caught up a voter", Args: cobra.ExactArgs(1),
		Long: `Make a non-voter a voter. It is refused while the server does not answer or has
not applied what its leader has: a majority that needs it would wait for it.`,
		Example: `  gpuai server members promote d`,
		RunE: does(func(ctx context.Context, args []string) error {
			return a.membersDo(ctx, func(ctx context.Context, c *client.Client) (gpuai.MemberList, error) {
				return c.PromoteMember(ctx, gpuai.ServerID(args[0]))
			})
		}),
	})
}

func newMembersRemoveCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "remove SERVER", Short: "Remove a server for ever", Args: cobra.ExactArgs(1),
		Long: `Remove a server from the region. It stops by itself, and its ID is never used
again: a server that came back under it with an empty directory could vote twice.
A leader hands its leadership over first. It is refused where the voters that can
be reached would be no majority afterwards.`,
		Example: `  gpuai server members remove c`,
		RunE: does(func(ctx context.Context, args []string) error {
			return a.membersDo(ctx, func(ctx context.Context, c *client.Client) (gpuai.MemberList, error) {
				return c.RemoveMember(ctx, gpuai.ServerID(args[0]))
			})
		}),
	})
}

// membersDo makes a call that answers with the members, and shows them.
func (a *app) membersDo(ctx context.Context, f func(context.Context, *client.Client) (gpuai.MemberList, error)) error {
	list, err := ask(ctx, a, f)
	if err != nil {
		return err
	}
	v := &view{head: []string{"SERVER", "ADDRESS", "ROLE", "UP", "APPLIED", "STATE"}}
	for _, m := range list.Members {
		role, up, state := "non-voter", "no", "ok"
		switch {
		case m.Leader:
			role = "leader"
		case m.Voter:
			role = "voter"
		}
		if m.Reachable {
			up = "yes"
		}
		switch {
		case m.Quarantined != "":
			state = "quarantined: " + m.Quarantined
		case !m.Reachable:
			state = "not reached"
		}
		v.row(string(m.Server), string(m.Server), m.Address, role, up, num(m.AppliedIndex), state)
	}
	return a.show(ctx, v)
}

func newRejoinCmd(a *app) *cobra.Command {
	var cfg server.RejoinConfig
	var id, newID, region string
	var wipe bool
	c := &cobra.Command{
		Use: "rejoin --wipe --data DIR --join HOST:PORT", Short: "Rebuild a stopped server from the others", Args: cobra.NoArgs,
		Long: `Rebuild a stopped server whose data directory is damaged, lost entries or is of no
more use. The old server is removed from the region and the directory becomes that
of a new one, with a new ID, since a wiped server under its old ID could vote
twice. Start the new one with --join: it is a non-voter until it has caught up.

What the directory held is kept within it until then. Nothing is changed where the
other servers have no leader or no majority: the directory may hold the last copy
of what they lack.

In a region with authentication the new server joins as any new one does: its
certificate, its key and its copy of the region's keys are put aside with the rest.
Start it with --join and --join-token of "gpuai token create --join server"; a key file
outside the data directory is written anew then.`,
		Example: `  gpuai server rejoin --wipe --data /var/lib/gpuai/c --join 127.0.0.1:7471,127.0.0.1:7481
  gpuai server run --data /var/lib/gpuai/c --http 127.0.0.1:7490 --raft 127.0.0.1:7491 --join 127.0.0.1:7471`,
	}
	f := c.Flags()
	f.BoolVar(&wipe, "wipe", false, "yes, give up what the data directory holds (required)")
	f.StringVar(&cfg.DataDir, "data", "", "data directory of the stopped server (required)")
	f.StringSliceVar(&cfg.Join, "join", nil, "Raft addresses of other servers of the region, comma-separated (required)")
	f.StringVar(&cfg.KeyFile, "key-file", "", "the region's key file (default keyring in --data), where the region has authentication")
	f.StringVar(&id, "id", "", "the old server's name, where the directory cannot tell it")
	f.StringVar(&newID, "new-id", "", "name of the new server (default: the old one's with a new end)")
	f.StringVar(&region, "region", string(gpuai.DefaultRegion), "name of the region, where the directory cannot tell it")
	f.DurationVar(&a.api.timeout, "request-timeout", rejoinTimeout, "limit of all calls to the other servers")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		cfg.Server, cfg.NewID, cfg.Region = gpuai.ServerID(id), gpuai.ServerID(newID), gpuai.RegionID(region)
		cfg.Say = func(text string) { a.say("%s\n", text) }
		if err := checkRejoin(&cfg, wipe); err != nil {
			return usageError{err}
		}
		return a.runRejoin(ctx, cfg)
	})
	return a.prints(c)
}

func checkRejoin(cfg *server.RejoinConfig, wipe bool) error {
	var errs []error
	if !wipe {
		errs = append(errs, errors.New("give --wipe to say that what the data directory holds may be given up"))
	}
	if cfg.DataDir == "" {
		errs = append(errs, errors.New("--data must name a directory"))
	}
	if len(cfg.Join) == 0 {
		errs = append(errs, errors.New("--join must name the Raft address of another server"))
	}
	return errors.Join(append(errs, checkJoin(cfg.Join))...)
}

// joinWords are the flags with which the new server is started.
func joinWords(done *server.Rejoined, raft []string) string {
	if done.Secure {
		return "--join API-OF-A-SERVER --join-token TOKEN    # of gpuai token create --join server --name " + string(done.New)
	}
	return "--join " + strings.Join(raft, ",")
}

func (a *app) runRejoin(ctx context.Context, cfg server.RejoinConfig) error {
	if err := a.checkFormat(); err != nil {
		return err
	}
	var done server.Rejoined
	err := a.call(ctx, func(ctx context.Context) (err error) {
		done, err = server.Rejoin(ctx, cfg)
		return err
	})
	if err != nil {
		return err
	}
	v := &view{names: []string{string(done.New)}, text: func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "server %s of cluster %s takes the place of %s. Start it, with the --http and --raft of before:\n  gpuai server run --data %s %s\n",
			done.New, done.Cluster, done.Old, cfg.DataDir, joinWords(&done, cfg.Join))
		return err
	}}
	return a.showObject(ctx, done, v)
}
