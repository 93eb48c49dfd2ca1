package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newContextCmd(a *app) *cobra.Command {
	return group("context", "Choose which region commands talk to, and as whom",
		newContextListCmd(a), newContextUseCmd(a), newContextShowCmd(a), newContextForgetCmd(a))
}

// A shownContext is a context without its secrets.
type shownContext struct {
	Name    string   `json:"name"`
	Current bool     `json:"current,omitzero"`
	Addrs   []string `json:"addrs"`
	Tenant  string   `json:"tenant,omitzero"`
	Token   string   `json:"token,omitzero"` // its ID
	TLS     bool     `json:"ca_cert,omitzero"`
}

func shown(name string, current bool, c *regionContext) shownContext {
	s := shownContext{Name: name, Current: current, Addrs: c.Addrs, Tenant: string(c.Tenant), TLS: c.CACert != ""}
	if parts := strings.SplitN(c.Token, "_", 3); len(parts) == 3 {
		s.Token = parts[1]
	}
	return s
}

func (s *shownContext) row(v *view) {
	mark := ""
	if s.Current {
		mark = "*"
	}
	v.row(s.Name, mark, s.Name, strings.Join(s.Addrs, ","), s.Tenant, s.Token)
}

var contextHead = []string{"CURRENT", "NAME", "SERVERS", "TENANT", "TOKEN"}

func newContextListCmd(a *app) *cobra.Command {
	return a.prints(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List contexts", Args: cobra.NoArgs,
		Long: `List the contexts: servers, tenant and token of a region, as gpuai login left
them. They are in contexts.json in $XDG_CONFIG_HOME/gpuai, ~/.config/gpuai unless
set, which only its owner can read. Of a token its ID is shown, never its secret.`,
		Example: `  gpuai context list
  GPUAI_CONTEXT=prod gpuai ps`,
		RunE: does(func(ctx context.Context, _ []string) error {
			b, err := a.contexts()
			if err != nil {
				return err
			}
			v := &view{head: contextHead}
			all := []shownContext{}
			for _, name := range slices.Sorted(maps.Keys(b.Contexts)) {
				s := shown(name, name == b.Current, b.Contexts[name])
				all = append(all, s)
				s.row(v)
			}
			return a.showObject(ctx, all, v)
		}),
	})
}

func newContextUseCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: cobra.ExactArgs(1),
		Long:    "Make a context the one that commands use which are told no other by --context or\nGPUAI_CONTEXT.",
		Example: `  gpuai context use prod`,
		RunE: does(func(_ context.Context, args []string) error {
			b, err := a.contexts()
			if err != nil {
				return err
			}
			if b.Contexts[args[0]] == nil {
				return usageError{fmt.Errorf("there is no context %q: gpuai context list shows them, gpuai login makes one", args[0])}
			}
			b.Current = args[0]
			return b.save()
		}),
	}
}

func newContextShowCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "show", Short: "Show the context in use", Args: cobra.NoArgs,
		Long:    "Show the context that commands use now, after --context and GPUAI_CONTEXT.",
		Example: "  gpuai context show\n  gpuai context show --context prod -o json",
	}
	c.Flags().StringVar(&a.api.context, "context", "", "the context (default $GPUAI_CONTEXT, else the current one)")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		name, rc, err := a.chosen()
		if err != nil {
			return err
		}
		if name == "" {
			return usageError{fmt.Errorf("no context is in use: gpuai login makes one")}
		}
		s := shown(name, true, rc)
		v := &view{head: contextHead}
		s.row(v)
		return a.showObject(ctx, s, v)
	})
	return a.prints(c)
}

func newContextForgetCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "forget NAME", Short: "Take a context away, with its token", Args: cobra.ExactArgs(1),
		Long:    "Take a context away, with its token. The token stays good: gpuai token revoke ends\nit.",
		Example: `  gpuai context forget old`,
		RunE: does(func(_ context.Context, args []string) error {
			b, err := a.contexts()
			if err != nil {
				return err
			}
			if b.Contexts[args[0]] == nil {
				return usageError{fmt.Errorf("there is no context %q: gpuai context list shows them", args[0])}
			}
			delete(b.Contexts, args[0])
			if b.Current == args[0] {
				b.Current = ""
			}
			return b.save()
		}),
	}
}
