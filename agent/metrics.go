package agent

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai/agent/decide"
)

// counts are the agent's metrics. They are labelled with the node, since one
// process may hold several agents.
type counts struct {
	leases    prometheus.Gauge
	connected prometheus.Gauge
	sessions  prometheus.Counter
	kills     prometheus.Counter
	fences    prometheus.Counter
	devices   *deviceCollector
}

func newCounts(a *Agent) *counts {
	labels := prometheus.Labels{"node": string(a.cfg.Node)}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
	}
	return &counts{
		leases:    gauge("gpuai_agent_leases", "Leases that the agent holds."),
		connected: gauge("gpuai_agent_session_up", "1 while the agent has a session with a server."),
		sessions:  counter("gpuai_agent_sessions_total", "Sessions that servers welcomed the agent to. More than one means that the earlier were lost."),
		kills:     counter("gpuai_agent_kills_total", "Tasks that the agent ended at once, by their fence or an order."),
		fences:    counter("gpuai_agent_fenced_total", "Tasks that the agent ended because their leases were not renewed in time."),
		devices:   newDeviceCollector(a, labels),
	}
}

// register shows the metrics; a nil registerer shows none.
func (c *counts) register(reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	for _, m := range c.all() {
		if err := reg.Register(m); err != nil {
			return fmt.Errorf("register the agent's metrics: %w", err)
		}
	}
	return nil
}

func (c *counts) all() []prometheus.Collector {
	return []prometheus.Collector{c.leases, c.connected, c.sessions, c.kills, c.fences, c.devices}
}

func (c *counts) see(core *decide.Core) {
	c.leases.Set(float64(len(core.Views())))
	c.connected.Set(number(core.Connected()))
}

func (c *counts) close(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, m := range c.all() {
		reg.Unregister(m)
	}
}
