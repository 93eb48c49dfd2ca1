package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newContributorCmd(a *app) *cobra.Command {
	return group("contributor", "See what nodes have earned their contributors", newContributorListCmd(a))
}

func newContributorListCmd(a *app) *cobra.Command {
	var q client.Page
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "earnings"}, Short: "Show what contributors have earned", Args: cobra.NoArgs,
		Long: `Show what contributors have earned with their nodes, in US dollars: today and this
month, of UTC, and in all. A contributor sees itself only. Leases are billed when
they end, those without a run-time limit each hour too.

What single nodes earn, their hours and prices: gpuai node status.`,
		Example: `  gpuai contributor list
  gpuai contributor list -o json
  gpuai node list -o wide
  gpuai lease list --node gpu-7`,
	}
	paging(c, &q)
	c.RunE = does(func(ctx context.Context, _ []string) error {
		v := &view{head: []string{"CONTRIBUTOR", "TODAY", "MONTH", "TOTAL"}}
		all, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.ContributorStatus, error) {
			page, next, err := c.Contributors(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for _, s := range all {
			v.row(string(s.Contributor), string(s.Contributor), dollars(s.Day), dollars(s.Month), dollars(s.Total))
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func newNodePriceCmd(a *app) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use: "price NODE USD|none", Short: "Say what a GPU of a node costs by the hour", Args: cobra.ExactArgs(2),
		Long: `Say what a contributor asks for one GPU of its node and hour, in US dollars, within
the bounds that the region's operator sets. It stands before the price list and what
the node's agent says; a price that an operator gives (gpuai operator price set
--node) stands before it. "none" takes it back. Leases keep the price of their grant.

--dry-run shows operators what would follow.`,
		Example: `  gpuai node price gpu-7 1.25
  gpuai node price gpu-7 none
  gpuai node price gpu-7 2.00 --dry-run`,
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would follow and change nothing; for operators")
	c.RunE = does(func(ctx context.Context, args []string) error {
		_, usd, err := priceOf(args[0]+"="+args[1], "NODE")
		if err != nil {
			return usageError{err}
		}
		node := gpuai.NodeID(args[0])
		if dryRun {
			return a.suppose(ctx, &client.PlanRequest{NodeAsks: []gpuai.NodePrice{{Node: node, Price: usd}}})
		}
		n, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Node, error) { return c.SetNodeAsk(ctx, node, usd) })
		if err != nil {
			return err
		}
		v := &view{head: []string{"NODE", "ASKS", "COSTS"}}
		v.row(string(n.ID), string(n.ID), askText(&n), dollars(n.Price))
		return a.show(ctx, v)
	})
	return a.talks(c)
}

// askText is what a node's contributor asks; "" for nothing.
func askText(n *gpuai.Node) string {
	if n.Ask == nil {
		return ""
	}
	return dollars(*n.Ask)
}

func newNodeWindowCmd(a *app) *cobra.Command {
	var offset string
	var always, dryRun bool
	c := &cobra.Command{
		Use: "window NODE [DAYS=HH:MM-HH:MM...]", Short: "Say at which hours of the week a node may be used", Args: cobra.MinimumNArgs(1),
		Long: `Say when a node may be used: hours of the week, by a clock that is ahead of UTC by
--utc-offset, summer and winter. DAYS is a day (mon), days (mon,wed) or a range
(mon-fri); an end that is not after the beginning is on the next day. What is said
replaces what was said before; --always takes it back.

Outside of these hours nothing is placed there. Inside, jobs are whose run-time limit
ends before the hours do; jobs without one are not. When the hours end, what still
runs is stopped with its grace and placed again elsewhere, as by a drain.

--dry-run shows operators what would follow at once.`,
		Example: `  gpuai node window gpu-7 mon-fri=20:00-08:00 sat,sun=00:00-24:00 --utc-offset +01:00
  gpuai node window gpu-7 mon=00:00-24:00 -o json
  gpuai node window gpu-7 sat,sun=00:00-24:00 --dry-run
  gpuai node window gpu-7 --always`,
	}
	c.Flags().StringVar(&offset, "utc-offset", "+00:00", "what the clock is ahead of UTC, such as -08:00")
	c.Flags().BoolVar(&always, "always", false, "the node may always be used")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would follow and change nothing; for operators")
	c.RunE = does(func(ctx context.Context, args []string) error {
		if always == (len(args) > 1) {
			return usageError{errors.New("give windows as DAYS=HH:MM-HH:MM, such as mon-fri=20:00-08:00, or --always")}
		}
		s, err := readSchedule(offset, args[1:])
		if err != nil {
			return err
		}
		if dryRun {
			return a.suppose(ctx, &client.PlanRequest{Schedules: []gpuai.NodeSchedule{{Node: gpuai.NodeID(args[0]), Schedule: s}}})
		}
		n, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Node, error) {
			return c.SetNodeSchedule(ctx, gpuai.NodeID(args[0]), s)
		})
		if err != nil {
			return err
		}
		v := &view{head: []string{"NODE", "STATE", "SCHEDULE", "CHANGES"}}
		v.row(string(n.ID), string(n.ID), nodeState(&n), scheduleText(&n), changesText(&n))
		return a.show(ctx, v)
	})
	return a.talks(c)
}

// readSchedule reads windows as they are typed.
func readSchedule(offset string, windows []string) (s gpuai.Schedule, err error) {
	err = readOffset(offset, &s)
	for _, w := range windows {
		if err == nil {
			err = readWindow(w, &s)
		}
	}
	if err != nil {
		return s, usageError{err}
	}
	if wrong := s.Validate(); wrong != nil {
		return s, &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the schedule is invalid", Fields: wrong}
	}
	return s, nil
}

// readOffset reads an offset from UTC such as "+05:30".
func readOffset(text string, s *gpuai.Schedule) error {
	at, err := time.Parse("-07:00", text)
	if err != nil {
		return fmt.Errorf("--utc-offset %s: must be as +01:00 or -08:00", text)
	}
	_, seconds := at.Zone()
	s.UTCOffset = int16(seconds / 60)
	return nil
}

// readWindow adds the windows of DAYS=HH:MM-HH:MM.
func readWindow(text string, s *gpuai.Schedule) error {
	wrong := fmt.Errorf("%s: give DAYS=HH:MM-HH:MM, such as mon-fri=20:00-08:00", text)
	days, hours, ok := strings.Cut(text, "=")
	from, to, ok2 := strings.Cut(hours, "-")
	if !ok || !ok2 {
		return wrong
	}
	for part := range strings.SplitSeq(days, ",") {
		first, last, ranged := strings.Cut(part, "-")
		begin, err := gpuai.ParseWeekMinute(first + " 00:00")
		end := begin
		if ranged && err == nil {
			end, err = gpuai.ParseWeekMinute(last + " 00:00")
		}
		if err != nil {
			return wrong
		}
		for day := begin; ; day = (day + minutesOfDay) % (7 * minutesOfDay) {
			w, err := windowOf(day, from, to)
			if err != nil {
				return wrong
			}
			if s.Windows = append(s.Windows, w); day == end {
				break
			}
		}
	}
	return nil
}

const minutesOfDay = 24 * 60

// windowOf is the window that begins on a day.
func windowOf(day gpuai.WeekMinute, from, to string) (w gpuai.Window, err error) {
	name := day.String()[:3]
	if w.From, err = gpuai.ParseWeekMinute(name + " " + from); err == nil {
		w.To, err = gpuai.ParseWeekMinute(name + " " + to)
	}
	if err == nil && to != "24:00" && w.To <= w.From {
		w.To = (w.To + minutesOfDay) % (7 * minutesOfDay)
	}
	return w, err
}

// scheduleText is a node's schedule in one line; "" for none.
func scheduleText(n *gpuai.Node) string {
	if n.Schedule == nil {
		return ""
	}
	var out []string
	for _, w := range n.Schedule.Windows {
		out = append(out, w.From.String()+" - "+w.To.String())
	}
	sign, offset := "+", int(n.Schedule.UTCOffset)
	if offset < 0 {
		sign, offset = "-", -offset
	}
	return strings.Join(out, ", ") + " UTC" + sign + fmt.Sprintf("%02d:%02d", offset/60, offset%60)
}

// changesText is when a node closes or opens by its schedule.
func changesText(n *gpuai.Node) string {
	if n.ScheduleChanges == 0 {
		return ""
	}
	what := "closes "
	if n.Outside {
		what = "opens "
	}
	return what + time.UnixMilli(int64(n.ScheduleChanges)).UTC().Format(time.RFC3339)
}
