package server

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// stateCollector reads gauges off the machine when they are asked for.
type stateCollector struct {
	s *Server

	applied, objects, nodes, queueJobs, queueGPUs, queueAge, gpus, fragmentation *prometheus.Desc

	mu      sync.Mutex // guards below, and one count at a time
	counted time.Time
	devices map[deviceLabels]uint64
	free    map[string]gpuai.FreeBlocks // by model
}

var _ prometheus.Collector = (*stateCollector)(nil)

func newStateCollector(s *Server) *stateCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &stateCollector{
		s:         s,
		applied:   desc("gpuai_fsm_last_applied_index", "Index of the last entry with commands that this server's state holds."),
		objects:   desc("gpuai_fsm_objects", "Objects in this server's state, by kind.", "kind"),
		nodes:     desc("gpuai_nodes", "Registered nodes, by status; drained ones are counted under both.", "status"),
		queueJobs: desc("gpuai_queue_jobs", "Jobs with a waiting task, by class and reason of the first of their kind.", "class", "reason"),
		queueGPUs: desc("gpuai_queue_gpus", "GPUs that waiting tasks ask for."),
		queueAge:  desc("gpuai_queue_oldest_age_seconds", "How long the oldest waiting job has waited."),
		gpus:      desc("gpuai_gpus", "GPUs of registered nodes, counted at most every 5 s.", "vendor", "model", "state"),
		fragmentation: desc("gpuai_fragmentation_ratio",
			"Part of the wholly free GPUs of nodes that take leases that tasks with so many GPUs cannot use, counted at most every 5 s.", "model", "gang_size"),
	}
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.applied, c.objects, c.nodes, c.queueJobs, c.queueGPUs, c.queueAge, c.gpus, c.fragmentation} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	var n fsm.Counts
	var waiting []fsm.QueueCount
	var index uint64
	c.s.node.View(func(m *fsm.Machine) { n, waiting, index = m.Counts(), m.QueueCounts(), m.Index() })
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.applied, float64(index))
	gauge(c.objects, float64(n.Jobs), "job")
	gauge(c.objects, float64(n.TasksPending), "pending_task")
	gauge(c.objects, float64(n.Leases), "lease")
	gauge(c.objects, float64(n.Revoking), "revoking_lease")
	gauge(c.objects, float64(n.Results), "result")
	gauge(c.objects, float64(n.Shapes), "shape")
	total := uint32(0)
	for state, count := range n.Nodes {
		gauge(c.nodes, float64(count), gpuai.NodeState(state).String())
		total += count
	}
	gauge(c.objects, float64(total), "node")
	gauge(c.nodes, float64(n.Drained), "drained")
	for _, q := range waiting {
		why := unexplained
		if q.Reason != gpuai.ReasonNone {
			why = q.Reason.String()
		}
		gauge(c.queueJobs, float64(q.Jobs), q.Class.String(), why)
	}
	gauge(c.queueGPUs, float64(n.QueueGPUs))
	gauge(c.queueAge, seconds(n.OldestWait))
	for l, count := range c.countDevices() {
		gauge(c.gpus, float64(count), l.vendor, l.model, l.state)
	}
	for model, b := range c.blocks() {
		for i, k := range gpuai.GangSizes {
			gauge(c.fragmentation, float64(b.Ratio(i))/float64(gpuai.WholeDevice), model, strconv.Itoa(int(k)))
		}
	}
}

const (
	// countEvery is how old the count of devices may be: it visits all nodes.
	countEvery = 5 * time.Second
	// maxModels bounds the labels of gpuai_gpus; further models are "other".
	maxModels = 64
)

type deviceLabels struct{ vendor, model, state string }

// countDevices counts the devices of all nodes, some nodes at each hold of the
// machine.
func (c *stateCollector) countDevices() map[deviceLabels]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.devices != nil && time.Since(c.counted) < countEvery {
		return c.devices
	}
	sum := census{counts: make(map[deviceLabels]uint64), models: make(map[deviceLabels]bool), blocks: make(map[string]gpuai.FreeBlocks)}
	for from := uint32(0); ; {
		var page []fsm.DeviceCount
		c.s.node.View(func(m *fsm.Machine) { page, from = m.CountDevices(from) })
		for i := range page {
			sum.add(&page[i])
		}
		if from == 0 {
			break
		}
	}
	c.devices, c.free, c.counted = sum.counts, sum.blocks, time.Now()
	return sum.counts
}

// blocks returns the free devices by model, as of the newest count.
func (c *stateCollector) blocks() map[string]gpuai.FreeBlocks {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.free
}

// A census sums up counts of devices under a bounded set of labels.
type census struct {
	counts map[deviceLabels]uint64
	models map[deviceLabels]bool // without state
	blocks map[string]gpuai.FreeBlocks
}

func (s *census) add(d *fsm.DeviceCount) {
	kind := deviceLabels{vendor: d.Vendor, model: d.Model}
	if !s.models[kind] && len(s.models) >= maxModels {
		kind = deviceLabels{vendor: "other", model: "other"}
	} else {
		s.models[kind] = true
	}
	put := func(state string, n uint32) {
		if n > 0 {
			s.counts[deviceLabels{kind.vendor, kind.model, state}] += uint64(n)
		}
	}
	b := s.blocks[kind.model]
	b.Join(&d.Blocks)
	s.blocks[kind.model] = b
	put("free", d.Free)
	put("shared", d.Shared)
	put("allocated", d.Allocated)
	for h, n := range d.Unhealthy {
		put(gpuai.DeviceHealth(h).String(), n)
	}
}
