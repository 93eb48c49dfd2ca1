package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newTenantCmd(a *app) *cobra.Command {
	return group("tenant", "Create tenants, look at their shares, quotas and budgets, and set them", newTenantCreateCmd(a), newTenantListCmd(a), newTenantWeightCmd(a), newTenantQuotaCmd(a), newTenantBudgetCmd(a))
}

func newTenantListCmd(a *app) *cobra.Command {
	var q client.Page
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what tenants had of the devices, and their weights", Args: cobra.NoArgs,
		Long: `List the tenants that have held devices or were given a weight. Among jobs of one
priority, those of the tenant with the lowest usage for its weight are placed
first. USAGE is in device hours and falls by half in each usage_half_life of the
policy; SHARE is usage by weight, of all tenants shown: none
where it is one alone, as with a token of its own. What part of all usage it has,
and what it is due, gpuai job explain says of its jobs that wait.`,
		Example: `  gpuai tenant list
  gpuai tenant list -o json --jq '.[].usage_milli_hours'`,
	}
	paging(c, &q)
	c.RunE = does(func(ctx context.Context, _ []string) error {
		v := &view{head: []string{"TENANT", "WEIGHT", "GPUS", "USAGE", "SHARE"}}
		tenants, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.TenantShare, error) {
			page, next, err := c.Tenants(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		var all float64
		for _, t := range tenants {
			all += float64(t.UsageMilliHours) / float64(max(t.Weight, 1))
		}
		for _, t := range tenants {
			share := "-"
			if all > 0 && len(tenants) > 1 {
				share = fmt.Sprintf("%.1f%%", 100*float64(t.UsageMilliHours)/float64(max(t.Weight, 1))/all)
			}
			v.row(string(t.ID), string(t.ID), num(t.Weight), thousandths(t.HeldMilli), thousandths(t.UsageMilliHours), share)
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func newTenantCreateCmd(a *app) *cobra.Command {
	var r gpuai.TenantRequest
	c := &cobra.Command{
		Use: "create TENANT", Short: "Create a tenant", Args: cobra.ExactArgs(1),
		Long: `Create a tenant: who submits jobs, and for whom tokens are made. Where requests
need tokens, jobs are taken of tenants only that were created. Tenants are not
deleted: what they had is in the history.`,
		Example: `  gpuai tenant create research --name "Research group"
  gpuai token create --tenant research --scope submit,read`,
	}
	c.Flags().StringVar(&r.Name, "name", "", "what people call it")
	c.RunE = does(func(ctx context.Context, args []string) error {
		r.ID = gpuai.TenantID(args[0])
		t, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.TenantShare, error) { return c.CreateTenant(ctx, r) })
		if err != nil {
			return err
		}
		v := &view{head: []string{"TENANT", "WEIGHT", "NAME"}}
		v.row(args[0], string(t.ID), num(t.Weight), t.Name)
		return a.show(ctx, v)
	})
	return a.talks(c)
}

// thousandths writes a number of thousandths with its decimals, if any.
func thousandths(n uint64) string { return strconv.FormatFloat(float64(n)/1000, 'f', -1, 64) }

func newTenantWeightCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "weight TENANT WEIGHT", Short: "Set a tenant's weight", Args: cobra.ExactArgs(2),
		Long: `Set a tenant's weight, 1 to 10000; one to whom none was given has 100. While
tenants have more to run than fits, their jobs of one priority get devices in
proportion to their weights.`,
		Example: `  gpuai tenant weight research 300`,
	}
	c.RunE = does(func(ctx context.Context, args []string) error {
		weight, err := strconv.ParseUint(args[1], 10, 32)
		if err != nil || weight < 1 || weight > gpuai.MaxTenantWeight {
			return usageError{errors.New("a weight is a whole number from 1 to " + strconv.Itoa(gpuai.MaxTenantWeight) + ", not " + strconv.Quote(args[1]))}
		}
		id := gpuai.TenantID(args[0])
		_, err = ask(ctx, a, func(ctx context.Context, c *client.Client) (struct{}, error) {
			return struct{}{}, c.SetTenantWeight(ctx, id, uint32(weight))
		})
		if err != nil {
			return err
		}
		v := &view{head: []string{"TENANT", "WEIGHT"}}
		v.row(args[0], args[0], args[1])
		return a.showObject(ctx, gpuai.TenantShare{ID: id, Weight: uint32(weight)}, v)
	})
	return a.talks(c)
}
