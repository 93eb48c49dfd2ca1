package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
)

// newAgentCleanCmd returns the command that takes devices back into use.
func newAgentCleanCmd(a *app) *cobra.Command {
	var data string
	var timeout time.Duration
	c := &cobra.Command{
		Use: "clean DEVICE...", Short: "Take devices back into use that the agent took out of it", Args: cobra.MinimumNArgs(1),
		Long: `Take devices of this host back into use that its agent took out of it: since they
were not clean when a task ended, or could not be given to one. See to a device
first; "gpuai node devices" says what is wrong with it. Run it on the node, as the
user of the agent. What a driver calls unhealthy stays so.`,
		Example: `  gpuai node devices gpu-c11
  gpuai agent clean --data /var/lib/gpuai/agent GPU-5f1d2c7e-8a43-4d0b-9c3a-2f6f3b1f0a55`,
		RunE: does(func(ctx context.Context, args []string) error {
			if data == "" {
				return errors.New("--data must name the agent's data directory")
			}
			for _, id := range args {
				bounded, cancel := context.WithTimeout(ctx, timeout)
				err := agent.Clean(bounded, data, gpuai.DeviceID(id))
				cancel()
				if err != nil {
					return err
				}
				a.say("%s is in use again\n", id)
			}
			return nil
		}),
	}
	c.Flags().StringVar(&data, "data", "", "the agent's data directory (required)")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the agent's answer")
	return c
}
