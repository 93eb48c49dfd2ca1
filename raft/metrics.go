package raft

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// metrics are the Node's own, beside those that telemetry.BridgeRaftMetrics
// shows of the library. All carry the label "server", since a development
// region runs several in one process.
type metrics struct {
	reg           prometheus.Registerer
	all           []prometheus.Collector
	commands      prometheus.Counter
	events        prometheus.Counter
	panics        prometheus.Counter
	diverged      prometheus.Counter
	entryCommands prometheus.Histogram
	entryBytes    prometheus.Histogram
	refused       prometheus.Counter
	unknown       prometheus.Counter
	barriers      prometheus.Counter
	restores      prometheus.Counter
	restoreAlarms prometheus.Counter
	gated         prometheus.Counter
	writeStalls   prometheus.Counter
	applyStalls   prometheus.Counter
	fullWrites    prometheus.Counter
	handOvers     prometheus.Counter
	applyTimes    applyTimes
}

func newMetrics(n *Node) *metrics {
	m := &metrics{}
	m.commands = m.counter("gpuai_commands_applied_total", "Commands applied to this replica's machine.")
	m.events = m.counter("gpuai_events_emitted_total", "Events emitted by applied commands.")
	m.panics = m.counter("gpuai_command_panics_total", "Commands taken back because they panicked. Any is a defect.")
	m.diverged = m.counter("gpuai_checkpoint_mismatches_total", "Checkpoints whose digest was not this replica's. Any is damage.")
	m.refused = m.counter("gpuai_proposer_refused_total", "Commands refused because the proposer's queue was full.")
	m.unknown = m.counter("gpuai_proposer_outcome_unknown_total", "Commands whose outcome this leader could not tell.")
	m.barriers = m.counter("gpuai_read_barriers_total", "Barriers made for linearizable reads; each serves all reads of its window.")
	m.restores = m.counter("gpuai_snapshot_restores_total", "Snapshots restored since the start.")
	m.shield(n)
	m.entryCommands = m.histogram("gpuai_proposer_entry_commands", "Commands in a proposed log entry.", prometheus.ExponentialBuckets(1, 2, 11))
	m.entryBytes = m.histogram("gpuai_proposer_entry_bytes", "Bytes of a proposed log entry.", prometheus.ExponentialBuckets(256, 2, 11))
	m.applyTimes.init()
	m.all = append(m.all, m.applyTimes.vec)
	m.gauge("gpuai_raft_applied_index", "Index of the last entry applied to this replica's machine.",
		func() float64 { return float64(n.AppliedIndex()) })
	m.gauge("gpuai_raft_commit_index", "Index of the last entry known to be committed.",
		func() float64 { return float64(n.raft.CommitIndex()) })
	m.gauge("gpuai_raft_term", "Current Raft term.", func() float64 { return float64(n.raft.CurrentTerm()) })
	m.gauge("gpuai_raft_is_leader", "1 while this server leads and takes commands.", func() float64 {
		if n.IsLeader() {
			return 1
		}
		return 0
	})
	m.gauge("gpuai_proposer_queue_commands", "Commands waiting for an entry.",
		func() float64 { c, _ := n.proposer.queued(); return float64(c) })
	m.gauge("gpuai_proposer_queue_bytes", "Bytes of commands waiting for an entry.",
		func() float64 { _, b := n.proposer.queued(); return float64(b) })
	m.gauge("gpuai_proposer_inflight_entries", "Entries proposed and not yet answered.",
		func() float64 { return float64(len(n.proposer.slots)) })
	return m
}

// register shows the metrics; a nil registerer shows none. The gauges read the
// Node, which must be running.
func (m *metrics) register(reg prometheus.Registerer, id gpuai.ServerID) error {
	if reg == nil {
		return nil
	}
	m.reg = prometheus.WrapRegistererWith(prometheus.Labels{"server": string(id)}, reg)
	for _, c := range m.all {
		if err := m.reg.Register(c); err != nil {
			return fmt.Errorf("register raft's metrics of server %s: %w", id, err)
		}
	}
	return nil
}

func (m *metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.all = append(m.all, c)
	return c
}

func (m *metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	m.all = append(m.all, h)
	return h
}

func (m *metrics) gauge(name, help string, f func() float64) {
	m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
}

// applied counts one entry's output.
func (m *metrics) applied(out *fsm.Output) {
	m.commands.Add(float64(len(out.Results)))
	m.events.Add(float64(len(out.Events)))
	m.panics.Add(float64(out.Panics))
	if out.Diverged {
		m.diverged.Inc()
	}
}

// applyTimes are how long entries took, by what is in them. An entry's time
// cannot be split among its commands: they share timers, placement and digest.
type applyTimes struct {
	vec   *prometheus.HistogramVec
	kinds [fsm.NumCommandKinds]prometheus.Observer
	mixed prometheus.Observer
}

func (a *applyTimes) init() {
	a.vec = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "gpuai_fsm_apply_duration_seconds",
		Help:    "Time to apply a log entry to this replica's machine, by the command that it holds; 'mixed' where it holds several kinds.",
		Buckets: prometheus.ExponentialBuckets(1e-5, 4, 10), // 10 µs … 2.6 s
	}, []string{"command"})
	a.mixed = a.vec.WithLabelValues("mixed")
}

// took notes the time of one entry. It is called by the goroutine that applies.
func (a *applyTimes) took(d time.Duration, out *fsm.Output) {
	if len(out.Results) == 0 {
		return // applied before
	}
	kind := out.Results[0].Kind
	for i := range out.Results {
		if out.Results[i].Kind != kind || int(kind) >= len(a.kinds) {
			a.mixed.Observe(d.Seconds())
			return
		}
	}
	if a.kinds[kind] == nil {
		a.kinds[kind] = a.vec.WithLabelValues(kind.String())
	}
	a.kinds[kind].Observe(d.Seconds())
}

func (m *metrics) close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}
