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

	tally      tally
	rejections *prometheus.CounterVec
	allocation *prometheus.HistogramVec
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
	m.tally.init()
	m.rejections = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpuai_scheduler_rejections_total",
		Help: "Jobs refused because no registered node could ever run them, by the first reason; 'unexplained' where nobody looked for it.",
	}, []string{"reason"})
	m.allocation = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "gpuai_allocation_latency_seconds", Buckets: allocationBuckets,
		Help: "From the submit of a job to its first lease, by class, while this server led.",
	}, []string{"class"})
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
		m.tally.results, m.tally.placements, m.tally.preempted, m.tally.allocated, m.tally.expired, m.rejections, m.allocation, m.recovery, m.retired, m.tripped, m.held, m.open, sessions, m.divergence, quarantined,
		newStateCollector(s),
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

// rejected counts a job that can never run, by the first of its reasons.
func (m *metrics) rejected(reasons []gpuai.Reason) {
	why := unexplained
	if len(reasons) > 0 {
		why = reasons[0].Code.String()
	}
	m.rejections.WithLabelValues(why).Inc()
}

// unexplained is the reason of what nobody looked at.
const unexplained = "unexplained"

// observe takes an applied entry, from the one goroutine that applies. It does
// not block: what run is too slow for is counted, but its times are not taken.
func (m *metrics) observe(out *fsm.Output, leads bool) {
	m.tally.count(out, leads)
	if !leads {
		return
	}
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

// ended begins to time the recovery of a task whose lease was lost.
func (m *metrics) ended(e *gpuai.Event, ref gpuai.TaskRef) {
	if !lostCause(e.Cause) {
		return
	}
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
