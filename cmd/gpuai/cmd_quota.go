package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/internal/jobfile"
)

// none is the value of a flag that takes a bound away.
const none = "none"

// quotaFlags are the bounds that a command changes; "" leaves one as it is.
type quotaFlags struct {
	gpus, cpu, memory, running, pending, rate, cohort, borrow string
	models                                                    []string
	clear, dryRun                                             bool
}

func newTenantQuotaCmd(a *app) *cobra.Command {
	var q quotaFlags
	c := &cobra.Command{
		Use: "quota TENANT", Short: "Show a tenant's quota, or change it", Args: cobra.ExactArgs(1),
		Long: `Show what a tenant may have at a time and what it uses of it; with flags, change
those bounds and leave the others as they are. "none" takes a bound away, --clear
all of them. What a tenant may not have yet waits with the reason QuotaExceeded;
submits above --pending-jobs are refused.

Tenants of one --cohort lend each other what they leave idle. What is lent comes
back by preemption when its owner has work for it.

--dry-run shows what would follow: which tasks would start, move or wait.`,
		Example: `  gpuai tenant quota research
  gpuai tenant quota research --gpus 64 --gpu H100=16 --pending-jobs 1000
  gpuai tenant quota research --gpus none --dry-run
  gpuai tenant quota research --gpus 32 --cohort lab --borrow 16`,
	}
	f := c.Flags()
	f.StringVar(&q.gpus, "gpus", "", "GPUs of all models")
	f.StringSliceVar(&q.models, "gpu", nil, "GPUs of one model, as MODEL=COUNT, such as H100=16")
	f.StringVar(&q.cpu, "cpu", "", "CPUs, such as 64 or 0.5")
	f.StringVar(&q.memory, "memory", "", "memory, such as 512GiB")
	f.StringVar(&q.running, "running-jobs", "", "jobs that hold a lease")
	f.StringVar(&q.pending, "pending-jobs", "", "jobs that wait")
	f.StringVar(&q.rate, "requests-per-second", "", "requests to the API")
	f.StringVar(&q.cohort, "cohort", "", "name that tenants share who lend each other what is idle")
	f.StringVar(&q.borrow, "borrow", "", "GPUs beyond --gpus that it may borrow of its cohort")
	f.BoolVar(&q.clear, "clear", false, "begin without any bound")
	f.BoolVar(&q.dryRun, "dry-run", false, "show what would follow and change nothing")
	c.RunE = does(func(ctx context.Context, args []string) error {
		id := gpuai.TenantID(args[0])
		st, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.QuotaStatus, error) {
			st, err := c.Quota(ctx, id)
			if errors.Is(err, &gpuai.Error{Code: gpuai.NotFound}) {
				st, err = gpuai.QuotaStatus{Tenant: id}, nil
			}
			return st, err
		})
		if err != nil {
			return err
		}
		if !changed(c, "clear", "gpus", "gpu", "cpu", "memory", "running-jobs", "pending-jobs", "requests-per-second", "cohort", "borrow") {
			return a.showObject(ctx, st, quotaView(&st))
		}
		quota := st.Quota
		if err := q.apply(&quota); err != nil {
			return usageError{err}
		}
		if fields := quota.Validate(); fields != nil {
			return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the quota would be invalid", Fields: fields}
		}
		if q.dryRun {
			return a.suppose(ctx, &client.PlanRequest{Quotas: []gpuai.TenantQuota{{Tenant: id, Quota: quota}}})
		}
		if st, err = ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.QuotaStatus, error) {
			return c.SetQuota(ctx, id, quota)
		}); err != nil {
			return err
		}
		return a.showObject(ctx, st, quotaView(&st))
	})
	return a.talks(c)
}

// changed reports whether any of a command's flags was given.
func changed(c *cobra.Command, flags ...string) bool {
	return slices.ContainsFunc(flags, c.Flags().Changed)
}

// apply changes the bounds that flags name.
func (q *quotaFlags) apply(to *gpuai.Quota) error {
	if q.clear {
		*to = gpuai.Quota{}
	}
	for _, x := range []struct {
		flag, value string
		to          **uint32
	}{
		{"gpus", q.gpus, &to.GPUs}, {"running-jobs", q.running, &to.RunningJobs}, {"pending-jobs", q.pending, &to.PendingJobs},
		{"requests-per-second", q.rate, &to.RequestsPerSecond}, {"borrow", q.borrow, &to.BorrowGPUs},
	} {
		if err := setCount(x.flag, x.value, x.to); err != nil {
			return err
		}
	}
	if err := setParsed("cpu", q.cpu, &to.CPU, jobfile.ParseCPU); err != nil {
		return err
	}
	if err := setParsed("memory", q.memory, &to.Memory, jobfile.ParseSize); err != nil {
		return err
	}
	switch q.cohort {
	case "":
	case none:
		to.Cohort, to.BorrowGPUs = "", nil
	default:
		to.Cohort = q.cohort
	}
	for _, s := range q.models {
		model, count, ok := strings.Cut(s, "=")
		if !ok || model == "" {
			return fmt.Errorf("--gpu %s: give MODEL=COUNT, such as H100=16", s)
		}
		var n *uint32
		if err := setCount("gpu "+model, count, &n); err != nil {
			return err
		}
		to.Models = slices.DeleteFunc(slices.Clone(to.Models), func(m gpuai.ModelQuota) bool { return m.Model == model })
		if n != nil {
			to.Models = append(to.Models, gpuai.ModelQuota{Model: model, GPUs: *n})
		}
	}
	return nil
}

func setCount(flag, value string, to **uint32) error {
	return setParsed(flag, value, to, func(s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			err = errors.New("must be a whole number, or none")
		}
		return uint32(n), err
	})
}

// setParsed sets a bound to what a flag says; "" leaves it, none takes it away.
func setParsed[T any](flag, value string, to **T, parse func(string) (T, error)) error {
	switch value {
	case "":
		return nil
	case none:
		*to = nil
		return nil
	}
	n, err := parse(value)
	if err != nil {
		return fmt.Errorf("--%s %s: %w", flag, value, err)
	}
	*to = &n
	return nil
}

// suppose shows what would follow from a change, and changes nothing.
func (a *app) suppose(ctx context.Context, req *client.PlanRequest) error {
	plan, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Plan, error) { return c.Suppose(ctx, req) })
	if err != nil {
		return err
	}
	a.say("a dry run: nothing was changed\n")
	return a.showObject(ctx, plan, &view{text: func(w io.Writer) error { return planText(w, &plan, req) }})
}

func quotaView(st *gpuai.QuotaStatus) *view {
	v := &view{head: []string{"BOUND", "USED", "OF"}}
	q, u := &st.Quota, &st.Use
	row := func(name, used string, of *uint32) {
		if of != nil {
			v.row(name, name, used, num(*of))
		}
	}
	row("gpus", thousandths(u.GPUMilli), q.GPUs)
	for i, m := range q.Models {
		used := "0"
		if i < len(u.Models) {
			used = thousandths(u.Models[i].GPUMilli)
		}
		v.row("gpu "+m.Model, "gpu "+m.Model, used, num(m.GPUs))
	}
	if q.CPU != nil {
		v.row("cpu", "cpu", cpuText(u.CPU), cpuText(*q.CPU))
	}
	if q.Memory != nil {
		v.row("memory", "memory", bytesText(u.Memory), bytesText(*q.Memory))
	}
	row("running jobs", num(u.RunningJobs), q.RunningJobs)
	row("pending jobs", num(u.PendingJobs), q.PendingJobs)
	row("requests per second", "", q.RequestsPerSecond)
	if q.Cohort != "" {
		borrow := "all that is idle"
		if q.BorrowGPUs != nil {
			borrow = num(*q.BorrowGPUs) + " GPUs"
		}
		v.row("cohort", "cohort "+q.Cohort, "", borrow)
	}
	if len(v.rows) == 0 {
		v.row("none", "none", "", "")
	}
	return v
}
