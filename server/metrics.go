package server

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/liveness"
)

const (
	// maxRecovering bounds the tasks whose recovery is being timed.
	maxRecovering = 10_000
	// watchQueue is how many entries may wait to be measured; more are not. An
	// entry may hold thousands of events.
	watchQueue = 64
)

// allocationBuckets have an edge at 3 s, the goal.
var allocationBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 3, 10, 30, 60, 300, 1800}

// metrics are the server's own. What it counts of the region it counts while
// it leads, so that the sum over the servers is right.
type metrics struct {
	s   *Server
	reg prometheus.Registerer
	all []prometheus.Collector

	results    *prometheus.CounterVec
	allocation *prometheus.HistogramVec
	expired    *prometheus.CounterVec
	recovery   *prometheus.HistogramVec
	retired    prometheus.Counter
	tripped    prometheus.Counter
	held       prometheus.Gauge
	open       prometheus.Gauge
	divergence *prometheus.CounterVec

	entries chan *fsm.Output // to be measured

	mu   sync.Mutex // guards below
	lost map[gpuai.TaskRef]gpuai.Instant
}

func newMetrics(s *Server) *metrics {
	m := &metrics{s: s, entries: make(chan *fsm.Output, watchQueue), lost: make(map[gpuai.TaskRef]gpuai.Instant)}
	m.results = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpuai_fsm_commands_total", Help: "Commands applied while this server led, by result.",
	}, []string{"result"})
	m.allocation = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "gpuai_allocation_latency_seconds", Buckets: allocationBuckets,
		Help: "From the submit of a job to its first lease, by class, while this server led.",
	}, []string{"class"})
	m.expired = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpuai_leases_expired_total", Help: "Leases lost with their node, by cause, while this server led.",
	}, []string{"cause"})
	m.recovery = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "gpuai_recovery_duration_seconds", Buckets: allocationBuckets,
		Help: "From the end of a lost lease until its task runs again, by class, while this server led.",
	}, []string{"class"})
	m.retired = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gpuai_jobs_retired_total", Help: "Jobs that left the region's memory for the history archive while this server led.",
	})
	m.tripped = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gpuai_breaker_trips_total", Help: "How often so many nodes fell silent at once that expiry was slowed down.",
	})
	m.held = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gpuai_breaker_held_expiries", Help: "Expiries that the breaker keeps back.",
	})
	m.open = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gpuai_breaker_open", Help: "1 while expiry is slowed down because too many nodes fell silent.",
	})
	m.divergence = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpuai_fsm_divergence_total", Help: "Differences between servers' states that this server judged, by what it found of its own. Any is damage or a defect.",
	}, []string{"verdict"})
	quarantined := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gpuai_quarantined", Help: "1 while this server serves nothing because its state is not the majority's.",
	}, func() float64 {
		if s.quarantine.why() != "" {
			return 1
		}
		return 0
	})
	sessions := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gpuai_agent_sessions", Help: "Agents connected to this server.",
	}, func() float64 { return float64(s.sessions.len()) })
	m.all = []prometheus.Collector{
		m.results, m.allocation, m.expired, m.recovery, m.retired, m.tripped, m.held, m.open, sessions, m.divergence, quarantined, newStateCollector(s),
	}
	m.all = append(m.all, archiveMetrics(s)...)
	return m
}

// register shows the metrics. All carry the label "server": a development
// region runs several in one process.
func (m *metrics) register(reg prometheus.Registerer, id gpuai.ServerID) error {
	m.reg = prometheus.WrapRegistererWith(prometheus.Labels{"server": string(id)}, reg)
	for _, c := range m.all {
		if err := m.reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

// placed observes a submit whose job got its first lease at once.
func (m *metrics) placed(c gpuai.Class, res *fsm.Result, took time.Duration) {
	if res.Code == gpuai.OK && res.Leased > 0 && !res.Repeated {
		m.allocation.WithLabelValues(c.String()).Observe(took.Seconds())
	}
}

// breaker shows a window's decision.
func (m *metrics) breaker(d *liveness.Decision) {
	if d.Tripped {
		m.tripped.Inc()
	}
	m.held.Set(float64(d.Held))
	m.open.Set(0)
	if d.Open {
		m.open.Set(1)
	}
}

// observe takes an applied entry of a term that this server leads. It does not
// block: what run is too slow for is not measured.
func (m *metrics) observe(out *fsm.Output) {
	select {
	case m.entries <- out:
	default:
	}
}

// run measures entries until ctx ends.
func (m *metrics) run(ctx context.Context) {
	for {
		select {
		case out := <-m.entries:
			m.measure(out)
		case <-ctx.Done():
			return
		}
	}
}

func (m *metrics) measure(out *fsm.Output) {
	for i := range out.Results {
		m.results.WithLabelValues(out.Results[i].Code.String()).Inc()
	}
	m.retired.Add(float64(len(out.Retired)))
	var fresh gpuai.JobID // submitted in this entry: Submit observes those
	for i := range out.Events {
		e := &out.Events[i]
		ref := gpuai.TaskRef{Job: e.Job, Group: e.Group, Task: e.Task}
		switch e.Kind {
		case gpuai.JobSubmitted:
			fresh = e.Job
		case gpuai.LeaseGrantedEvent:
			if e.Job != fresh {
				m.granted(e)
			}
		case gpuai.LeaseEndedEvent:
			m.ended(e, ref)
		case gpuai.LeaseStarted:
			m.started(e, ref)
		default:
		}
	}
}

// granted observes the first lease of a job that waited.
func (m *metrics) granted(e *gpuai.Event) {
	if j, ok := m.job(e.Job); ok && j.StartedAt == e.At {
		m.allocation.WithLabelValues(j.Class.String()).Observe(seconds(e.At - j.SubmittedAt))
	}
}

// ended counts leases that were lost, and times the recovery of their tasks.
func (m *metrics) ended(e *gpuai.Event, ref gpuai.TaskRef) {
	switch e.Cause {
	case gpuai.CauseExpired, gpuai.CauseFenced, gpuai.CauseNodeRestarted:
	default:
		return
	}
	m.expired.WithLabelValues(e.Cause.String()).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.lost) < maxRecovering {
		m.lost[ref] = e.At
	}
}

func (m *metrics) started(e *gpuai.Event, ref gpuai.TaskRef) {
	m.mu.Lock()
	at, ok := m.lost[ref]
	delete(m.lost, ref)
	m.mu.Unlock()
	if !ok {
		return
	}
	if j, ok := m.job(e.Job); ok {
		m.recovery.WithLabelValues(j.Class.String()).Observe(seconds(e.At - at))
	}
}

func (m *metrics) job(id gpuai.JobID) (j gpuai.Job, ok bool) {
	m.s.node.View(func(f *fsm.Machine) { j, ok = f.Job(id, false) })
	return j, ok
}

func seconds[T ~int64](ms T) float64 { return float64(ms) / 1_000 }

// stateCollector reads gauges off the machine when they are asked for.
type stateCollector struct {
	s *Server

	applied, objects, nodes, queueJobs, queueGPUs, queueAge, gpus *prometheus.Desc

	mu      sync.Mutex // guards below, and one count at a time
	counted time.Time
	devices map[deviceLabels]uint64
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
		queueJobs: desc("gpuai_queue_jobs", "Jobs with a waiting task, by why the first of their kind waits.", "reason"),
		queueGPUs: desc("gpuai_queue_gpus", "GPUs that waiting tasks ask for."),
		queueAge:  desc("gpuai_queue_oldest_age_seconds", "How long the oldest waiting job has waited."),
		gpus:      desc("gpuai_gpus", "GPUs of registered nodes, counted at most every 15 s.", "vendor", "model", "state"),
	}
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.applied, c.objects, c.nodes, c.queueJobs, c.queueGPUs, c.queueAge, c.gpus} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	var n fsm.Counts
	var q gpuai.QueueStatus
	var index uint64
	c.s.node.View(func(m *fsm.Machine) { n, q, index = m.Counts(), m.Queue(), m.Index() })
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
	reasons := make(map[gpuai.ReasonCode]uint32)
	for i := range q.Shapes {
		reasons[q.Shapes[i].Reason] += q.Shapes[i].Jobs
	}
	for r, jobs := range reasons {
		gauge(c.queueJobs, float64(jobs), r.String())
	}
	gauge(c.queueGPUs, float64(q.GPUs))
	gauge(c.queueAge, seconds(q.OldestAge))
	for l, count := range c.countDevices() {
		gauge(c.gpus, float64(count), l.vendor, l.model, l.state)
	}
}

const (
	// countEvery is how old the count of devices may be: it visits all nodes.
	countEvery = 15 * time.Second
	// maxModels bounds the labels of gpuai_gpus; further models are "other".
	maxModels = 64
)

type deviceLabels struct{ vendor, model, state string }

// countDevices counts the devices of all nodes, a page at each hold of the
// machine.
func (c *stateCollector) countDevices() map[deviceLabels]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.devices != nil && time.Since(c.counted) < countEvery {
		return c.devices
	}
	counts, models := make(map[deviceLabels]uint64), make(map[deviceLabels]bool)
	var after gpuai.NodeID
	for {
		var nodes []gpuai.Node
		c.s.node.View(func(m *fsm.Machine) { nodes = m.Nodes(after, maxPage) })
		for i := range nodes {
			for k := range nodes[i].Devices {
				countDevice(&nodes[i].Devices[k], counts, models)
			}
		}
		if len(nodes) < maxPage {
			break
		}
		after = nodes[len(nodes)-1].ID
	}
	c.devices, c.counted = counts, time.Now()
	return counts
}

func countDevice(d *gpuai.Device, counts map[deviceLabels]uint64, models map[deviceLabels]bool) {
	l := deviceLabels{vendor: d.Vendor, model: d.Model}
	if !models[l] && len(models) >= maxModels {
		l = deviceLabels{vendor: "other", model: "other"}
	} else {
		models[l] = true
	}
	switch {
	case d.Health != gpuai.DeviceHealthy:
		l.state = d.Health.String()
	case d.Free == gpuai.WholeDevice:
		l.state = "free"
	case d.Free == 0:
		l.state = "allocated"
	default:
		l.state = "shared"
	}
	counts[l]++
}
