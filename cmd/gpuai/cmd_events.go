package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// errEnough ends a stream that has given what was asked for.
var errEnough = errors.New("enough events")

func newEventsCmd(a *app) *cobra.Command {
	var q client.EventQuery
	var node string
	var limit int
	c := &cobra.Command{
		Use: "events", Short: "Follow what happens in the region", Args: cobra.NoArgs,
		Long: `Follow the region's events until interrupted, one line each: index, region time,
kind, and what it is about. With -o json one object a line.`,
		Example: `  gpuai events
  gpuai events --job sft-bot -o json
  gpuai events --from 48000 --limit 100`,
	}
	c.Flags().Uint64Var(&q.From, "from", 0, "events after this index; 0 for those after now")
	c.Flags().StringVar(&q.Job, "job", "", "only those of this job")
	c.Flags().StringVar(&node, "node", "", "only those of this node")
	c.Flags().IntVar(&limit, "limit", 0, "end after so many; 0 for never")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		q.Node = gpuai.NodeID(node)
		if a.api.output == formatYAML || a.api.output == formatName || a.api.output == formatWide {
			return usageError{fmt.Errorf("events are printed as table or json, not %q", a.api.output)}
		}
		cl, err := a.connect()
		if err != nil {
			return err
		}
		n := 0
		err = cl.Events(ctx, q, func(events []gpuai.Event, _ uint64) error {
			for i := range events {
				if err := a.event(ctx, &events[i]); err != nil {
					return err
				}
				if n++; n == limit {
					return errEnough
				}
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	return a.talks(c)
}

// event prints one event.
func (a *app) event(ctx context.Context, e *gpuai.Event) error {
	if a.api.output != formatJSON && a.api.jq == "" {
		_, err := fmt.Fprintln(a.out, eventText(e))
		return err
	}
	raw, err := json.Marshal(e, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	if a.api.jq != "" {
		return a.runJQ(ctx, raw)
	}
	_, err = fmt.Fprintf(a.out, "%s\n", raw)
	return err
}

func eventText(e *gpuai.Event) string {
	parts := []string{fmt.Sprintf("%d.%d", e.Index, e.Ordinal), gpuai.Duration(e.At).String(), e.Kind.String()}
	add := func(name, value string, ok bool) {
		if ok {
			parts = append(parts, name+"="+printable(value))
		}
	}
	add("job", e.Job.String(), !e.Job.IsZero())
	add("task", num(e.Group)+"["+num(e.Task)+"]", e.Lease != 0 || e.Kind == gpuai.TaskRequeued)
	add("lease", e.Lease.String(), e.Lease != 0)
	add("node", string(e.Node), e.Node != "")
	add("status", e.JobStatus.String(), e.Kind == gpuai.JobEnded)
	add("state", e.NodeState.String(), e.Kind == gpuai.NodeChanged)
	add("drained", "true", e.Drained)
	add("cause", e.Cause.String(), e.Cause != gpuai.CauseNone)
	add("exit", num(e.ExitCode), e.Kind == gpuai.LeaseEndedEvent)
	add("code", e.EndCode.String(), e.EndCode != gpuai.EndOther)
	add("reason", strconv.Quote(e.Reason), e.Reason != "")
	add("image", e.Image, e.Image != "")
	return strings.Join(parts, "  ")
}
