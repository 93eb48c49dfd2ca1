package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newLeaseCmd(a *app) *cobra.Command {
	return group("lease", "Look at leases", newLeaseListCmd(a), newLeaseStatusCmd(a))
}

func newLeaseListCmd(a *app) *cobra.Command {
	var q client.LeaseQuery
	var node string
	var all bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List leases", Args: cobra.NoArgs,
		Example: `  gpuai lease list
  gpuai lease list --job sft-bot --all
  gpuai lease list --node gpu-c11 -o wide`,
	}
	paging(c, &q.Page)
	c.Flags().StringVar(&q.Job, "job", "", "only those of this job")
	c.Flags().StringVar(&node, "node", "", "only those on this node")
	c.Flags().BoolVar(&all, "all", false, "ended ones too: of each task the latest")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		q.Node, q.Live = gpuai.NodeID(node), !all
		v := &view{
			head: []string{"LEASE", "JOB", "TASK", "NODE", "STATE", "GPUS", "EXIT"},
			wide: []string{"CAUSE", "CPU", "MEMORY", "TTL", "GRACE", "INCARNATION", "DEVICES"},
		}
		leases, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.Lease, error) {
			page, next, err := c.Leases(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for i := range leases {
			v.row(leases[i].ID.String(), leaseRow(&leases[i])...)
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func leaseRow(l *gpuai.Lease) []string {
	exit := ""
	if l.State == gpuai.LeaseEnded {
		exit = num(l.ExitCode)
	}
	return []string{
		l.ID.String(), l.Job.String(), num(l.Group) + "[" + num(l.Task) + "]", string(l.Node), l.State.String(), leaseGPUs(l), exit,
		leaseCause(l), cpuText(l.CPU), bytesText(l.Memory), l.TTL.String(), l.Grace.String(), l.Incarnation.String(), deviceList(l.Devices),
	}
}

// leaseCause says why a lease ends, and for whom.
func leaseCause(l *gpuai.Lease) string {
	if l.PreemptedBy.IsZero() {
		return l.Cause.String()
	}
	return l.Cause.String() + " by " + l.PreemptedBy.String()
}

// leaseGPUs returns how many devices a lease holds.
func leaseGPUs(l *gpuai.Lease) string {
	if l.Share > 0 {
		return cpuText(gpuai.MilliCPU(l.Share))
	}
	return num(len(l.Devices))
}

func deviceList(ds []gpuai.DeviceID) string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = string(d)
	}
	return strings.Join(out, ",")
}

func newLeaseStatusCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "status LEASE", Short: "Show one lease", Args: cobra.ExactArgs(1),
		Example: `  gpuai lease status 5242880
  gpuai lease status 5242880 -o json`,
		RunE: does(func(ctx context.Context, args []string) error {
			token, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("a lease's ID is a decimal number, not %q", args[0])}
			}
			l, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Lease, error) {
				return c.Lease(ctx, gpuai.Token(token))
			})
			if err != nil {
				return err
			}
			return a.show(ctx, &view{
				names: []string{l.ID.String()},
				text:  func(w io.Writer) error { return columns(w, leasePairs(&l)) },
			})
		}),
	})
}

func leasePairs(l *gpuai.Lease) [][]string {
	rows := [][]string{
		{"lease", l.ID.String()}, {"job", l.Job.String()}, {"task", num(l.Group) + "[" + num(l.Task) + "]"},
		{"tenant", string(l.Tenant)}, {"node", string(l.Node)}, {"incarnation", l.Incarnation.String()},
		{"state", l.State.String()}, {"cause", l.Cause.String()}, {"gpus", leaseGPUs(l)}, {"devices", deviceList(l.Devices)},
		{"cpu", cpuText(l.CPU)}, {"memory", bytesText(l.Memory)}, {"ttl", l.TTL.String()}, {"grace", l.Grace.String()},
		{"granted at", instant(l.GrantedAt)}, {"started at", instant(l.StartedAt)}, {"ended at", instant(l.EndedAt)},
	}
	if !l.PreemptedBy.IsZero() {
		rows = append(rows, []string{"preempted by", l.PreemptedBy.String()})
	}
	if l.State == gpuai.LeaseEnded {
		rows = append(rows, []string{"exit code", num(l.ExitCode)})
	}
	return rows
}

// instant returns a point of region time; "" for none.
func instant(t gpuai.Instant) string {
	if t == 0 {
		return ""
	}
	return gpuai.Duration(t).String() + " of region time"
}
