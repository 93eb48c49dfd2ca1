package agent

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
	"github.com/gpuai/gpuai/store"
)

const (
	// measureEvery is how often drivers are asked for measurements.
	measureEvery = 5 * time.Second
	// measuredFor is how old a measurement may be: what is older is absent.
	measuredFor = 3 * measureEvery
	// maxErrorCodes bounds the labels of errors; further codes are "other".
	maxErrorCodes = 64
	// askTimeout bounds the wait for the loop's answer.
	askTimeout = time.Second
)

// A deviceCollector shows drivers and devices. A device's label is "UUID", as
// in dcgm-exporter's series, so that the two join. Jobs are labels of live
// leases only.
type deviceCollector struct {
	a      *Agent
	errors *prometheus.CounterVec

	up, restarts, health, utilization, memory, power, busy, lease *prometheus.Desc

	mu       sync.Mutex // guards below
	measured map[gpuai.DeviceID]measurement
	seen     map[gpuai.DeviceID]plugins.Health // the last word of each
	codes    map[string]bool
}

// A measurement is the newest of a device.
type measurement struct {
	at    time.Time
	stats plugins.Stats
	busy  time.Duration // since the agent's start
	used  bool          // busy was ever measured
}

var _ prometheus.Collector = (*deviceCollector)(nil)

func newDeviceCollector(a *Agent, labels prometheus.Labels) *deviceCollector {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, variable, labels)
	}
	return &deviceCollector{
		a: a,
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpuai_agent_gpu_errors_total", ConstLabels: labels,
			Help: "Times that a driver found something new wrong with a device, by its code.",
		}, []string{"UUID", "code"}),
		up:          desc("gpuai_agent_driver_up", "1 while the driver's process runs.", "driver"),
		restarts:    desc("gpuai_agent_driver_restarts_total", "Restarts of the driver's process.", "driver"),
		health:      desc("gpuai_agent_gpu_health", "1 while the device is offered as healthy, else 0.", "UUID", "model"),
		utilization: desc("gpuai_agent_gpu_utilization_ratio", "Share of time in which the device worked, where its driver measures it.", "UUID"),
		memory:      desc("gpuai_agent_gpu_memory_used_bytes", "Device memory in use, where the driver measures it.", "UUID"),
		power:       desc("gpuai_agent_gpu_power_watts", "Power that the device draws, where the driver measures it.", "UUID"),
		busy:        desc("gpuai_gpu_busy_seconds_total", "Utilization over time since the agent's start, where the driver measures it.", "UUID"),
		lease:       desc("gpuai_agent_gpu_lease", "1 for each live lease that holds the device, with the job that it is of.", "UUID", "lease", "job", "job_name"),
		measured:    map[gpuai.DeviceID]measurement{},
		seen:        map[gpuai.DeviceID]plugins.Health{},
		codes:       map[string]bool{},
	}
}

// Describe implements prometheus.Collector.
func (c *deviceCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.restarts, c.health, c.utilization, c.memory, c.power, c.busy, c.lease} {
		out <- d
	}
	c.errors.Describe(out)
}

// Collect implements prometheus.Collector.
func (c *deviceCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, d := range c.a.devices.drivers {
		snap := d.Inventory()
		gauge(c.up, number(snap.Up), d.name)
		out <- prometheus.MustNewConstMetric(c.restarts, prometheus.CounterValue, float64(snap.Restarts), d.name)
	}
	offered, leases := c.ask()
	for i := range offered {
		gauge(c.health, number(offered[i].Health == gpuai.DeviceHealthy), string(offered[i].ID), offered[i].Model)
	}
	for i := range leases {
		l := &leases[i].Lease
		for _, id := range l.Devices {
			gauge(c.lease, 1, string(id), l.ID.String(), l.Job.String(), leases[i].JobName)
		}
	}
	c.errors.Collect(out)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for id, m := range c.measured {
		if m.used {
			out <- prometheus.MustNewConstMetric(c.busy, prometheus.CounterValue, m.busy.Seconds(), string(id))
		}
		if now.Sub(m.at) > measuredFor {
			continue
		}
		if m.stats.GPUUtilization != nil {
			gauge(c.utilization, *m.stats.GPUUtilization, string(id))
		}
		if m.stats.MemoryUsedBytes != nil {
			gauge(c.memory, float64(*m.stats.MemoryUsedBytes), string(id))
		}
		if m.stats.PowerWatts != nil {
			gauge(c.power, *m.stats.PowerWatts, string(id))
		}
	}
}

func number(v bool) float64 {
	if v {
		return 1
	}
	return 0
}

// ask has the loop say which devices it offers and which leases it holds; both
// are nil when it does not answer: there is no loop yet, or no longer.
func (c *deviceCollector) ask() (offered []gpuai.Device, held []gpuai.Assignment) {
	type answer struct {
		offered []gpuai.Device
		held    []gpuai.Assignment
	}
	answers := make(chan answer, 1)
	expired := time.NewTimer(askTimeout)
	defer expired.Stop()
	question := func() {
		a := answer{offered: slices.Clone(c.a.devices.offered)}
		for _, r := range c.a.records {
			if r.State != store.JournalEnded {
				a.held = append(a.held, r.Assignment)
			}
		}
		answers <- a
	}
	select {
	case c.a.inbox <- question:
	case <-expired.C:
		return nil, nil
	}
	select {
	case a := <-answers:
		return a.offered, a.held
	case <-c.a.ended:
	case <-expired.C:
	}
	return nil, nil
}

// noteErrors counts what is newly wrong with a driver's devices.
func (c *deviceCollector) noteErrors(s *plugins.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range s.Devices {
		h, ok := s.Health[d.ID]
		if !ok {
			continue
		}
		last := c.seen[d.ID]
		c.seen[d.ID] = h
		if h.State <= plugins.HealthOK || h.State == last.State && h.Code == last.Code {
			continue
		}
		code := h.Code
		if code == "" {
			code = "state:" + strconv.Itoa(int(h.State))
		}
		if !c.codes[code] && len(c.codes) >= maxErrorCodes {
			code = "other"
		}
		c.codes[code] = true
		c.errors.WithLabelValues(string(d.ID), code).Inc()
	}
}

// measure asks a driver for measurements until ctx ends. A driver that is down,
// or refuses, is asked again.
func (a *Agent) measure(ctx context.Context, d driver) {
	for ctx.Err() == nil {
		err := d.Stats(ctx, measureEvery, nil, func(all []plugins.Stats) error {
			a.counts.devices.take(d.Inventory().Devices, all, time.Now())
			return ctx.Err()
		})
		if err != nil && ctx.Err() == nil {
			a.log.Debug("no measurements", "driver", d.name, "error", err)
		}
		if !pause(ctx, measureEvery) {
			return
		}
	}
}

// take notes measurements of known devices.
func (c *deviceCollector) take(known []gpuai.Device, all []plugins.Stats, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range all {
		if !slices.ContainsFunc(known, func(d gpuai.Device) bool { return d.ID == s.Device }) {
			continue
		}
		m := c.measured[s.Device]
		if u := s.GPUUtilization; u != nil && *u >= 0 && *u <= 1 {
			if !m.at.IsZero() { // of what was missed nothing is known
				m.busy += time.Duration(*u * float64(min(now.Sub(m.at), measuredFor)))
			}
			m.used = true
		}
		m.at, m.stats = now, s
		c.measured[s.Device] = m
	}
}
