package agent

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/decide"
)

// counts are the agent's metrics. They are labelled with the node, since one
// process may hold several agents.
type counts struct {
	leases    prometheus.Gauge
	connected prometheus.Gauge
	kills     prometheus.Counter
}

func newCounts(reg prometheus.Registerer, node gpuai.NodeID) (*counts, error) {
	labels := prometheus.Labels{"node": string(node)}
	c := &counts{
		leases:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "gpuai_agent_leases", Help: "Leases that the agent holds.", ConstLabels: labels}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "gpuai_agent_session_up", Help: "1 while the agent has a session with a server.", ConstLabels: labels}),
		kills:     prometheus.NewCounter(prometheus.CounterOpts{Name: "gpuai_agent_kills_total", Help: "Tasks that the agent ended at once, by their fence or an order.", ConstLabels: labels}),
	}
	if reg == nil {
		return c, nil
	}
	for _, m := range c.all() {
		if err := reg.Register(m); err != nil {
			return nil, fmt.Errorf("register the agent's metrics: %w", err)
		}
	}
	return c, nil
}

func (c *counts) all() []prometheus.Collector {
	return []prometheus.Collector{c.leases, c.connected, c.kills}
}

func (c *counts) see(core *decide.Core) {
	c.leases.Set(float64(len(core.Views())))
	c.connected.Set(0)
	if core.Connected() {
		c.connected.Set(1)
	}
}

func (c *counts) fenced() { c.kills.Inc() }

func (c *counts) close(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, m := range c.all() {
		reg.Unregister(m)
	}
}
