package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

func newNodeCmd(a *app) *cobra.Command {
	return group("node", "Look at nodes, take them out of use and back",
		newNodeListCmd(a), newNodeStatusCmd(a), newNodeDevicesCmd(a), newNodeDrainCmd(a, true), newNodeDrainCmd(a, false),
		newNodePriceCmd(a), newNodeWindowCmd(a))
}

func newNodeListCmd(a *app) *cobra.Command {
	var q client.Page
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List nodes", Args: cobra.NoArgs,
		Example: `  gpuai node list
  gpuai node list -o wide
  gpuai node list --fragmentation
  gpuai node list --jq '.nodes[] | select(.free_gpus > 0) | .id'`,
	}
	paging(c, &q)
	var fragmentation bool
	c.Flags().BoolVar(&fragmentation, "fragmentation", false, "sum up the free GPUs of all nodes by model: how many, the largest block, and what gangs cannot use")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		if fragmentation {
			return a.fragmentation(ctx, q)
		}
		v := &view{
			head: []string{"NODE", "STATE", "GPUS", "FREE", "MODEL", "CPU", "MEMORY", "LEASES"},
			wide: []string{"ZONE", "RACK", "NVLINK", "ADDRESS", "FREECPU", "FREEMEMORY", "INCARNATION", "PRICE", "VERSION", "LABELS", "CONTRIBUTOR", "EARNED", "SCHEDULE"},
		}
		nodes, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.Node, error) {
			page, next, err := c.Nodes(ctx, q)
			v.more = next
			return page, err
		})
		if err != nil {
			return err
		}
		for i := range nodes {
			v.row(string(nodes[i].ID), nodeRow(&nodes[i])...)
		}
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func nodeRow(n *gpuai.Node) []string {
	return []string{
		string(n.ID), nodeState(n), num(len(n.Devices)), num(n.FreeGPUs), models(n), cpuText(n.CPU), bytesText(n.Memory), num(n.Leases),
		n.Zone, n.Rack, n.NVLinkDomain, n.Address, cpuText(n.FreeCPU), bytesText(n.FreeMemory), n.Incarnation.String(), price(n.Price), n.Version, labels(n.Labels),
		string(n.Contributor), dollars(n.Earned), scheduleText(n),
	}
}

// nodeState returns the node's state, and whether it is drained or outside of its
// schedule.
func nodeState(n *gpuai.Node) string {
	s := n.State.String()
	if n.Drained {
		s += ",drained"
	}
	if n.Outside {
		s += ",outside"
	}
	if n.Refuses != nil {
		s += "," + n.Refuses.Code.String()
	}
	return s
}

// models returns the kinds of a node's devices, each once, in their order; it
// says so where they are made up.
func models(n *gpuai.Node) string {
	var out []string
	seen := map[string]bool{}
	for _, d := range n.Devices {
		if !seen[d.Model] {
			seen[d.Model] = true
			out = append(out, d.Model)
		}
	}
	s := strings.Join(out, ",")
	if n.Simulated {
		s += "(simulated)"
	}
	return s
}

// price returns US dollars per GPU and hour.
func price(m gpuai.Micros) string {
	if m == 0 {
		return ""
	}
	return fmt.Sprintf("%d.%06d", m/1_000_000, m%1_000_000)
}

func labels(m map[string]string) string {
	var out []string
	for _, k := range gpuai.EnvNames(m) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

func newNodeStatusCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "status NODE", Short: "Show one node", Args: cobra.ExactArgs(1),
		Example: `  gpuai node status gpu-c11`,
		RunE: does(func(ctx context.Context, args []string) error {
			n, err := a.node(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(ctx, &view{names: []string{string(n.ID)}, text: func(w io.Writer) error { return columns(w, nodePairs(&n)) }})
		}),
	})
}

func (a *app) node(ctx context.Context, id string) (gpuai.Node, error) {
	return ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Node, error) {
		return c.Node(ctx, gpuai.NodeID(id))
	})
}

func nodePairs(n *gpuai.Node) [][]string {
	rows := [][]string{
		{"node", string(n.ID)}, {"state", nodeState(n)}, {"region", string(n.Region)}, {"zone", n.Zone}, {"rack", n.Rack}, {"nvlink domain", n.NVLinkDomain}, {"address", n.Address},
		{"incarnation", n.Incarnation.String()}, {"boot id", n.BootID}, {"version", n.Version}, {"labels", labels(n.Labels)},
		{"gpus", fmt.Sprintf("%d, %d free: %s", len(n.Devices), n.FreeGPUs, models(n))},
		{"cpu", cpuText(n.CPU) + ", " + cpuText(n.FreeCPU) + " free"},
		{"memory", bytesText(n.Memory) + ", " + bytesText(n.FreeMemory) + " free"},
		{"leases", num(n.Leases)}, {"price per GPU hour", price(n.Price)},
	}
	if n.Contributor != "" {
		rows = append(rows, []string{"contributor", string(n.Contributor)}, []string{"earned", dollars(n.Earned)})
	}
	if n.Ask != nil {
		rows = append(rows, []string{"asks per GPU hour", askText(n)})
	}
	if n.Schedule != nil {
		rows = append(rows, []string{"schedule", scheduleText(n)}, []string{"", changesText(n)})
	}
	if n.Refuses != nil {
		rows = append(rows, []string{"takes no new task", n.Refuses.Code.String() + ": " + n.Refuses.Detail})
	}
	rows = append(rows, topologyRows(n)...)
	for i := range n.Devices {
		if d := &n.Devices[i]; d.Health != gpuai.DeviceHealthy {
			rows = append(rows, []string{"out of use", strings.TrimSpace(fmt.Sprintf("%s is %s %s", d.ID, d.Health, d.HealthCode))})
		}
	}
	if n.State == gpuai.NodeQuarantined {
		rows = append(rows, []string{"quarantined until", instant(n.QuarantineUntil)})
	}
	return rows
}

func newNodeDevicesCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "devices [NODE]", Short: "List the devices of a node, or of all", Args: cobra.MaximumNArgs(1),
		Example: `  gpuai node devices
  gpuai node devices gpu-c11`,
		RunE: does(func(ctx context.Context, args []string) error {
			v := &view{head: []string{"NODE", "INDEX", "DEVICE", "VENDOR", "MODEL", "MEMORY", "HEALTH", "FREE", "PLACE", "CODE"}}
			nodes, err := ask(ctx, a, func(ctx context.Context, c *client.Client) ([]gpuai.Node, error) {
				if len(args) == 1 {
					n, err := c.Node(ctx, gpuai.NodeID(args[0]))
					return []gpuai.Node{n}, err
				}
				page, next, err := c.Nodes(ctx, client.Page{Limit: 1000})
				v.more = next
				return page, err
			})
			if err != nil {
				return err
			}
			for i := range nodes {
				for j, d := range nodes[i].Devices {
					v.row(string(d.ID), string(nodes[i].ID), num(j), string(d.ID), d.Vendor, d.Model, bytesText(d.Memory),
						d.Health.String(), cpuText(gpuai.MilliCPU(d.Free)), placeText(d.DevicePlace), d.HealthCode)
				}
			}
			return a.show(ctx, v)
		}),
	})
}

// newNodeDrainCmd returns drain, or undrain.
func newNodeDrainCmd(a *app, drain bool) *cobra.Command {
	var wait waiting
	c := &cobra.Command{
		Use: "drain NODE...", Short: "Place nothing more on nodes, and move what runs there", Args: cobra.MinimumNArgs(1),
		Long: "Take nodes out of use: nothing new is placed there, and what runs is stopped with\nits grace and placed again elsewhere.",
		Example: `  gpuai node drain gpu-c11
  gpuai node drain gpu-c11 --wait=done --timeout 5m   # until no lease is left`,
	}
	if drain {
		wait.flags(c, condDone)
	} else {
		c.Use, c.Short, c.Long = "undrain NODE...", "Take drained nodes into use again", ""
		c.Example = "  gpuai node undrain gpu-c11"
	}
	c.RunE = does(func(ctx context.Context, args []string) error {
		if err := wait.check(condDone); err != nil {
			return err
		}
		v := &view{head: []string{"NODE", "STATE", "LEASES"}}
		for _, id := range args {
			n, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Node, error) {
				return c.SetDrained(ctx, gpuai.NodeID(id), drain)
			})
			if err == nil && wait.cond != "" {
				err = a.waitEmpty(ctx, &n, wait)
			}
			if err == nil {
				v.row(string(n.ID), string(n.ID), nodeState(&n), num(n.Leases))
				err = a.showEach(ctx, v)
			}
			if err != nil {
				return err
			}
		}
		return a.showAll(ctx, v)
	})
	return a.talks(c)
}

// waitEmpty waits until a node has no lease left.
func (a *app) waitEmpty(ctx context.Context, n *gpuai.Node, w waiting) error {
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if w.timeout > 0 {
		bounded, cancel = context.WithTimeout(ctx, w.timeout)
	}
	defer cancel()
	said := n.Leases + 1
	for n.Leases > 0 {
		if n.Leases != said {
			a.say("%s: %s left\n", n.ID, plural(uint64(n.Leases), "lease"))
			said = n.Leases
		}
		if pause(bounded, pollEvery) != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &exitError{code: exitTimedOut, text: fmt.Sprintf("%s still has %s after %v", n.ID, plural(uint64(n.Leases), "lease"), w.timeout), next: "gpuai lease list --node " + string(n.ID)}
		}
		now, err := a.node(ctx, string(n.ID))
		switch {
		case err == nil:
			*n = now
		case !away(err):
			return err
		}
	}
	return nil
}
