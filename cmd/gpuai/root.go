package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// newRoot returns the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "gpuai",
		Short: "Run jobs on GPUs, and the region that places them",
		Long: `gpuai runs jobs on GPUs.

A region of three servers places jobs onto nodes and leases their GPUs to
tasks. Start one on this machine with "gpuai dev".

Environment:
  GPUAI_ADDR         servers to talk to, comma-separated (default: the context's, else ` + defaultAddr + `)
  GPUAI_CONTEXT      which region to talk to, of gpuai context list
  GPUAI_TOKEN        access token (default: the context's)
  GPUAI_TENANT       tenant of jobs and tokens that name none
  GPUAI_CACERT       PEM file of the region's CA
  GPUAI_CLIENT_CERT  PEM files of a certificate to show, and of its key
  GPUAI_CLIENT_KEY`,
		Example: `  gpuai dev                     # a region with simulated GPUs, nothing else to start
  gpuai job init > job.yaml     # a job file to begin with
  gpuai run job.yaml --wait     # submit it and wait until it runs
  gpuai logs hello -f           # follow its output`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(
		&cobra.Group{ID: "use", Title: "Use a region:"},
		&cobra.Group{ID: "run", Title: "Run a region:"},
		&cobra.Group{ID: "alias", Title: "Aliases:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("use", newJobCmd(a), newPlanCmd(a), newLeaseCmd(a), newNodeCmd(a), newContributorCmd(a), newQueueCmd(a), newTenantCmd(a), newUsageCmd(a), newTokenCmd(a), newSecretCmd(a), newEventsCmd(a), newLoginCmd(a), newContextCmd(a))
	add("run", newDevCmd(a), newServerCmd(a), newAgentCmd(a), newImageCmd(a), newOperatorCmd(a), newSimCmd(a), newBenchCmd(a))
	add("alias", alias(newJobRunCmd(a), "run", "job run"), alias(newJobListCmd(a), "ps", "job list"),
		alias(newJobLogsCmd(a), "logs", "job logs"), alias(newJobStopCmd(a), "stop", "job stop"))
	root.AddCommand(newVersionCmd(a))
	closeGroups(root)
	return root
}

// alias makes a command known by another name at the root.
func alias(c *cobra.Command, name, of string) *cobra.Command {
	args := ""
	for i, r := range c.Use {
		if r == ' ' {
			args = c.Use[i:]
			break
		}
	}
	c.Use, c.Aliases = name+args, nil
	c.Short = "Short for gpuai " + of
	return c
}

// group returns a command that only holds others.
func group(use, short string, cmds ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: use, Short: short}
	g.AddCommand(cmds...)
	return g
}

// closeGroups makes a mistyped subcommand an error: cobra would print the help
// and succeed.
func closeGroups(c *cobra.Command) {
	for _, sub := range c.Commands() {
		closeGroups(sub)
	}
	if c.HasSubCommands() && c.RunE == nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			hint := ""
			c.SuggestionsMinimumDistance = 2
			for _, s := range c.SuggestionsFor(args[0]) {
				hint += "; did you mean " + s + "?"
			}
			return usageError{fmt.Errorf("unknown command %q for %q%s", args[0], c.CommandPath(), hint)}
		}
		c.Args = cobra.ArbitraryArgs
	}
}

// does adapts a command's function: its errors are those of the work, all
// others are of the usage.
func does(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		if err := f(c.Context(), args); err != nil {
			return workError{err}
		}
		return nil
	}
}
