package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/loadgen"
	"github.com/gpuai/gpuai/store"
)

// This file is which region bench measures, and how its processes reach it.

// A benched is a region that is measured.
type benched struct {
	addrs  []string // the leader first
	access loadgen.Access
	labels map[string]string // of the simulated nodes, to which the jobs are bound; nil where there are no others
	stop   func() error      // ends what was started for it
	// worker makes the command of a process of simulated agents.
	worker func(args ...string) *exec.Cmd
}

// newBenchAgentsCmd returns the command of a worker of bench.
func newBenchAgentsCmd(a *app) *cobra.Command {
	var f benchFlags
	var from, to int
	var beside bool
	c := &cobra.Command{
		Use: "agents", Short: "Run a part of the simulated agents until standard input ends", Hidden: true, Args: cobra.NoArgs,
		RunE: does(func(ctx context.Context, _ []string) error {
			r, err := a.reach()
			if err != nil {
				return err
			}
			on := &benched{addrs: r.addrs, access: r.access()}
			if beside {
				on.labels = benchLabels
			}
			return loadgen.ServeFleet(ctx, f.fleet(on, from, to), a.in, a.out)
		}),
	}
	c.Flags().StringVar(&a.api.addr, "addr", "", "servers, comma-separated")
	c.Flags().BoolVar(&beside, "beside", false, "the region has other nodes")
	c.Flags().IntVar(&from, "from", 0, "first agent")
	c.Flags().IntVar(&to, "to", 0, "the agent after the last")
	f.agentFlags(c)
	return c
}

// newBenchRegionCmd returns the command of the keeper of bench's servers.
func newBenchRegionCmd(a *app) *cobra.Command {
	var cfg loadgen.KeepConfig
	var secure bool
	c := &cobra.Command{
		Use: "region", Short: "Run servers until standard input ends", Hidden: true, Args: cobra.NoArgs,
		RunE: does(func(ctx context.Context, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("looking for this program: %w", err)
			}
			cfg.Server = func(m loadgen.Member, all []loadgen.Member) *exec.Cmd {
				c := exec.Command(exe, serverArgs(m, all, secure)...)
				c.Env = append(os.Environ(), "GPUAI_JOIN_TOKEN="+m.JoinToken.Reveal())
				return c
			}
			if secure {
				cfg.Operator = a.benchOperator
			}
			return loadgen.KeepRegion(ctx, cfg, a.in, a.out)
		}),
	}
	c.Flags().StringVar(&cfg.Dir, "dir", "", "directory of the servers, removed in the end")
	c.Flags().IntVar(&cfg.Servers, "servers", 3, "how many")
	c.Flags().BoolVar(&secure, "secure", false, "form a region with authentication")
	return c
}

// serverArgs are the arguments of one server of a new region.
func serverArgs(m loadgen.Member, all []loadgen.Member, secure bool) []string {
	args := []string{"server", "run", "--id", m.ID, "--data", m.Data, "--http", m.HTTP, "--raft", m.Raft, "--log-level", "warn"}
	var peers []string
	for _, p := range all {
		peers = append(peers, p.ID+"="+p.Raft)
	}
	switch {
	case !secure:
		return append(args, "--peers", strings.Join(peers, ","), "--bootstrap")
	case m.ID == all[0].ID:
		return append(args, "--bootstrap")
	}
	return append(args, "--join", all[0].HTTP)
}

// benchOperator makes the first operator's token of the region that a server has
// formed, as gpuai operator bootstrap does.
func (a *app) benchOperator(ctx context.Context, m loadgen.Member) (ca []byte, token gpuai.Secret, err error) {
	quiet := *a
	quiet.err, quiet.api.timeout = io.Discard, time.Minute
	secret, err := quiet.bootstrapSecret(ctx, m.Data)
	if err == nil {
		err = quiet.reachOwn(ctx, m.Data) // waits for the CA
	}
	if err == nil {
		ca, err = os.ReadFile(filepath.Join(m.Data, store.TrustFile))
	}
	if err != nil {
		return nil, token, err
	}
	acc, err := loadgen.NewAccess(ca, token)
	if err != nil {
		return nil, token, err
	}
	c, err := client.New(client.Config{Addrs: []string{"https://" + m.HTTP}, TLS: acc.TLS})
	if err != nil {
		return nil, token, err
	}
	made, err := c.Bootstrap(ctx, secret)
	return ca, gpuai.NewSecret(made.Text), err
}

// benchLabels are those of simulated nodes beside others, which jobs of a bench must
// not reach.
var benchLabels = map[string]string{"bench": "simulated"}

// access returns how the tools of loadgen reach what a command does.
func (r *reach) access() loadgen.Access {
	acc := loadgen.Access{Token: r.token, Tenant: r.tenant}
	if strings.HasPrefix(r.addrs[0], "https:") {
		acc.TLS = r.tls
	}
	return acc
}

// benchServers starts the region to measure, or finds the one that is named.
func (a *app) benchServers(ctx context.Context, f *benchFlags, exe string) (on *benched, err error) {
	if f.local > 0 {
		on, err = a.benchLocal(ctx, f, exe)
	} else {
		on, err = a.benchThere(ctx, exe)
	}
	if err != nil {
		return nil, err
	}
	if on.addrs, err = loadgen.LeaderFirst(ctx, on.access, on.addrs); err != nil {
		return nil, errors.Join(err, on.stop())
	}
	return on, nil
}

// benchLocal starts a region.
func (a *app) benchLocal(ctx context.Context, f *benchFlags, exe string) (*benched, error) {
	a.say("starting %s\n", plural(uint64(f.local), "server"))
	region, err := loadgen.StartRegion(ctx, func(dir string) *exec.Cmd {
		return a.child(exe, "bench", "region", "--dir", dir, "--servers", strconv.Itoa(f.local), "--secure="+strconv.FormatBool(!f.insecure))
	})
	if err != nil {
		return nil, err
	}
	on := &benched{addrs: region.Addrs, access: region.Access, stop: region.Stop}
	on.worker = func(args ...string) *exec.Cmd {
		c := a.child(exe, append([]string{"bench", "agents", "--addr", strings.Join(on.addrs, ",")}, args...)...)
		// Of this region, whatever the user's contexts and environment say.
		c.Env = append(os.Environ(), "XDG_CONFIG_HOME="+region.Dir, "GPUAI_CONTEXT=", "GPUAI_TENANT=", "GPUAI_CLIENT_CERT=", "GPUAI_CLIENT_KEY=",
			"GPUAI_TOKEN="+region.Access.Token.Reveal(), "GPUAI_CACERT="+region.CA)
		return c
	}
	return on, nil
}

// benchThere finds the region of the flags, the environment or the context.
func (a *app) benchThere(ctx context.Context, exe string) (*benched, error) {
	name, c, err := a.chosen()
	if err != nil {
		return nil, err
	}
	if name == "" && len(c.Addrs) == 0 && a.api.addr == "" && a.getenv("GPUAI_ADDR") == "" {
		return nil, usageError{errors.New("there is no region to measure: start one with --local 3, or name one with --addr or --context (gpuai login keeps a context)")}
	}
	r, err := a.reach()
	if err != nil {
		return nil, err
	}
	on := &benched{addrs: r.addrs, access: r.access(), labels: benchLabels, stop: func() error { return nil }}
	on.worker = func(args ...string) *exec.Cmd {
		c := a.child(exe, append([]string{"bench", "agents", "--beside", "--addr", strings.Join(on.addrs, ",")}, args...)...)
		c.Env = append(os.Environ(), "GPUAI_CONTEXT="+name, "GPUAI_TOKEN="+r.token.Reveal())
		return c
	}
	return on, a.mayBench(ctx)
}

// mayBench refuses a token with which bench would fail after a while.
func (a *app) mayBench(ctx context.Context) error {
	a.api.timeout = 10 * time.Second
	c, err := a.connect()
	if err != nil {
		return err
	}
	return a.call(ctx, func(ctx context.Context) error {
		who, err := c.WhoAmI(ctx)
		if err != nil {
			return err
		}
		if !slices.Contains(who.Scopes, gpuai.ScopeOperator) {
			return fmt.Errorf("bench needs an operator's token, with which its simulated nodes join; this one is of %s: see gpuai context list, --context", who.Actor)
		}
		return nil
	})
}

// child makes a command of this program, which talks on standard error.
func (a *app) child(exe string, args ...string) *exec.Cmd {
	c := exec.Command(exe, args...)
	c.Stderr = a.err
	return c
}
