package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newUsageCmd(a *app) *cobra.Command {
	var q client.Page
	var job string
	c := &cobra.Command{
		Use: "usage [TENANT]", Short: "Show what tenants and jobs have spent", Args: cobra.MaximumNArgs(1),
		Long: `Show GPU-hours held and money billed, by day, month (of UTC) and in all: of all
tenants, of one with its budget, or of one job. HELD is what its leases may yet
cost: their price times their run-time limit, or an hour ahead without one.`,
		Example: `  gpuai usage
  gpuai usage research
  gpuai usage --job sft-bot
  gpuai usage -o json --jq '.usage[] | [.tenant, .month.money_micros]'`,
	}
	c.Flags().StringVar(&job, "job", "", "show one job: its ID, a prefix of it, or its name")
	paging(c, &q)
	c.RunE = does(func(ctx context.Context, args []string) error {
		switch {
		case job != "" && len(args) > 0:
			return usageError{errors.New("give a tenant or a --job, and not both")}
		case job != "":
			return a.jobUsage(ctx, job)
		case len(args) > 0:
			u, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.TenantUsage, error) {
				return c.Usage(ctx, gpuai.TenantID(args[0]))
			})
			if err != nil {
				return err
			}
			return a.showObject(ctx, u, budgetView(&u))
		}
		v := &view{head: []string{"TENANT", "DAY", "MONTH", "TOTAL", "DAY USD", "MONTH USD", "TOTAL USD", "HELD USD"}}
		all, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.TenantUsage, error) {
			page, next, err := c.Usages(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for i := range all {
			u := &all[i]
			v.row(string(u.Tenant), string(u.Tenant), thousandths(u.Day.GPUMilliHours), thousandths(u.Month.GPUMilliHours), thousandths(u.Total.GPUMilliHours),
				dollars(u.Day.Money), dollars(u.Month.Money), dollars(u.Total.Money), dollars(u.HeldMoney))
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func (a *app) jobUsage(ctx context.Context, ref string) error {
	j, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Job, error) { return c.Job(ctx, ref) })
	if err != nil {
		return err
	}
	v := &view{head: []string{"JOB", "GPU-HOURS", "BILLED USD", "HELD USD", "USD/HOUR"}}
	cost := gpuai.JobCost{}
	if j.Cost != nil {
		cost = *j.Cost
	}
	v.row(j.ID.String(), j.Name, thousandths(cost.GPUMilliHours), dollars(cost.Billed), dollars(cost.Held), dollars(cost.Hourly))
	return a.showObject(ctx, j, v)
}

// dollars writes an amount in US dollars.
func dollars(m gpuai.Micros) string {
	if m == 0 {
		return "0"
	}
	return price(m)
}

// budgetFlags are the bounds that a command changes; "" leaves one as it is.
type budgetFlags struct {
	hours, money  [3]string
	clear, dryRun bool
}

var budgetPeriods = [3]string{"day", "month", "total"}

func newTenantBudgetCmd(a *app) *cobra.Command {
	var b budgetFlags
	c := &cobra.Command{
		Use: "budget TENANT", Short: "Show a tenant's budget, or change it", Args: cobra.ExactArgs(1),
		Long: `Show what a tenant may spend by day, month (of UTC) and in all, and what it has
spent; with flags, change those bounds and leave the others as they are. "none"
takes a bound away, --clear all of them.

A lease starts only when the budget suffices for all that it may cost: its price
times its run-time limit, or an hour ahead without one. A job that has to wait for
it says BudgetExceeded. At four fifths of a bound there is an event.

--dry-run shows what would follow.`,
		Example: `  gpuai tenant budget research
  gpuai tenant budget research --month-gpu-hours 5000 --month-money 12000
  gpuai tenant budget research --day-money none --dry-run`,
	}
	var flags []string
	for i, p := range budgetPeriods {
		c.Flags().StringVar(&b.hours[i], p+"-gpu-hours", "", "GPU-hours: "+p)
		c.Flags().StringVar(&b.money[i], p+"-money", "", "US dollars: "+p)
		flags = append(flags, p+"-gpu-hours", p+"-money")
	}
	c.Flags().BoolVar(&b.clear, "clear", false, "begin without any bound")
	c.Flags().BoolVar(&b.dryRun, "dry-run", false, "show what would follow and change nothing")
	c.RunE = does(func(ctx context.Context, args []string) error {
		id := gpuai.TenantID(args[0])
		u, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.TenantUsage, error) {
			u, err := c.Usage(ctx, id)
			if errors.Is(err, &gpuai.Error{Code: gpuai.NotFound}) {
				u, err = gpuai.TenantUsage{Tenant: id}, nil
			}
			return u, err
		})
		if err != nil {
			return err
		}
		if !changed(c, append(flags, "clear")...) {
			return a.showObject(ctx, u, budgetView(&u))
		}
		budget := u.Budget
		if err := b.apply(&budget); err != nil {
			return usageError{err}
		}
		if fields := budget.Validate(); fields != nil {
			return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the budget would be invalid", Fields: fields}
		}
		if b.dryRun {
			return a.suppose(ctx, &client.PlanRequest{Budgets: []gpuai.TenantBudget{{Tenant: id, Budget: budget}}})
		}
		if u, err = ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.TenantUsage, error) {
			return c.SetBudget(ctx, id, budget)
		}); err != nil {
			return err
		}
		return a.showObject(ctx, u, budgetView(&u))
	})
	return a.talks(c)
}

func (b *budgetFlags) apply(to *gpuai.Budget) error {
	if b.clear {
		*to = gpuai.Budget{}
	}
	for i, l := range [...]*gpuai.BudgetLimit{&to.Day, &to.Month, &to.Total} {
		if err := setCount(budgetPeriods[i]+"-gpu-hours", b.hours[i], &l.GPUHours); err != nil {
			return err
		}
		if err := setParsed(budgetPeriods[i]+"-money", b.money[i], &l.Money, parsePrice); err != nil {
			return err
		}
	}
	return nil
}

func budgetView(u *gpuai.TenantUsage) *view {
	v := &view{head: []string{"PERIOD", "GPU-HOURS", "BILLED", "OF", "USD", "OF"}, wide: []string{"HELD GPU-HOURS", "HELD USD"}}
	for i, x := range []struct {
		use, billed gpuai.PeriodUse
		of          gpuai.BudgetLimit
	}{{u.Day, u.Billed.Day, u.Budget.Day}, {u.Month, u.Billed.Month, u.Budget.Month}, {u.Total, u.Billed.Total, u.Budget.Total}} {
		hours, money := "-", "-"
		if x.of.GPUHours != nil {
			hours = num(*x.of.GPUHours)
		}
		if x.of.Money != nil {
			money = dollars(*x.of.Money)
		}
		v.row(budgetPeriods[i], budgetPeriods[i], thousandths(x.use.GPUMilliHours), thousandths(x.billed.GPUMilliHours), hours, dollars(x.billed.Money), money,
			thousandths(u.HeldGPUMilliHours), dollars(u.HeldMoney))
	}
	return v
}
