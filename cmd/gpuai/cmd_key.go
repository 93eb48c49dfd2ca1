package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// newKeyCmd has the region's keys.
func newKeyCmd(a *app) *cobra.Command {
	return group("key", "Look at the keys under which secrets and the CA's key are sealed, and replace them",
		newKeyShowCmd(a), newKeyRotateCmd(a), newKeyRetireCmd(a))
}

func newKeyShowCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "show", Short: "Show the region's keys, what is sealed under each, and which servers have them", Args: cobra.NoArgs,
		Long: `Show the region's keys by their names in the servers' key files, how many secrets and
CAs' private keys are sealed under each, and which servers have them.`,
		Example: `  gpuai operator key show
  gpuai operator key show -o json --jq '.servers[] | select(.error)'`,
		RunE: does(func(ctx context.Context, _ []string) error {
			list, err := a.regionKeys(ctx)
			if err != nil {
				return err
			}
			return a.showKeys(ctx, &list)
		}),
	})
}

func (a *app) regionKeys(ctx context.Context) (gpuai.RegionKeyList, error) {
	return ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.RegionKeyList, error) { return c.RegionKeys(ctx) })
}

func newKeyRotateCmd(a *app) *cobra.Command {
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "rotate", Short: "Have the region seal under a new key", Args: cobra.NoArgs,
		Long: `Have the region seal under a new key. The servers give it to one another and keep it
in their key files; once all voters hold it, it becomes the active one, and secrets and
the CAs' private keys are sealed under it anew. A voter that is down is waited for: it
gets the key when it is back; one that never will be is removed from the members first.

The region does the work: the command may be interrupted, and run again it watches the
rotation that goes on. Afterwards copy a key file to where you keep its copies, and
retire the old key unless backups that may be restored need it.`,
		Example: `  gpuai operator key rotate
  gpuai operator key rotate --wait=false && gpuai operator key show`,
	}
	c.Flags().BoolVar(&wait, "wait", true, "wait until everything is sealed under the new key")
	c.Flags().DurationVar(&timeout, "timeout", 0, "wait no longer than this; 0 is for ever")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		list, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.RegionKeyList, error) { return c.RotateKey(ctx) })
		if err == nil && wait {
			list, err = a.waitRotated(ctx, list)
		}
		if err != nil {
			return err
		}
		return a.showKeys(ctx, &list)
	})
	return a.talks(c)
}

// waitRotated tells what a rotation waits for until it is over.
func (a *app) waitRotated(ctx context.Context, list gpuai.RegionKeyList) (gpuai.RegionKeyList, error) {
	said := ""
	for {
		what := list.Rotating()
		if what == "" {
			fmt.Fprintln(a.err, "everything is sealed under the new key: copy a server's key file to where you keep its copies; 'gpuai operator key retire' has old keys deleted")
			return list, nil
		}
		if what != said {
			said = what
			fmt.Fprintln(a.err, "waiting for", what)
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return list, fmt.Errorf("the rotation goes on, waiting for %s; run the command again to watch it: %w", what, ctx.Err())
		}
		next, err := a.regionKeys(ctx)
		if err != nil && ctx.Err() == nil {
			return list, err
		}
		if err == nil {
			list = next
		}
	}
}

func newKeyRetireCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "retire KEY", Short: "Have the servers delete an old key", Args: cobra.ExactArgs(1),
		Long: `Have the servers delete an old key from their key files. It is refused while something
is sealed under it. Backups that were made while it was active need it still: keep the
key file's copy of that time with them for as long as they may be restored.`,
		Example: `  gpuai operator key retire 1f00c3a9`,
		RunE: does(func(ctx context.Context, args []string) error {
			list, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.RegionKeyList, error) {
				return c.RetireKey(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return a.showKeys(ctx, &list)
		}),
	})
}

func (a *app) showKeys(ctx context.Context, list *gpuai.RegionKeyList) error {
	v := &view{head: []string{"KEY", "STATE", "SECRETS", "CAS", "SERVERS"}}
	for _, k := range list.Keys {
		have := 0
		for i := range list.Servers {
			if list.Servers[i].Holds(k.ID) {
				have++
			}
		}
		v.row(k.ID, k.ID, k.State.String(), num(k.Secrets), num(k.Authorities), fmt.Sprintf("%d/%d", have, len(list.Servers)))
	}
	for _, h := range list.Servers {
		if h.Error != "" {
			fmt.Fprintf(a.err, "server %s does not say which keys it has: %s\n", h.Server, h.Error)
		}
	}
	return a.show(ctx, v)
}
