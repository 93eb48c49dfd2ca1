package telemetry

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hashicorp/go-metrics"
	"github.com/prometheus/client_golang/prometheus"
)

// BridgeRaftMetrics sends what hashicorp/raft reports through go-metrics to
// reg, as gpuai_raft_*: counters end in _total, times are histograms in
// seconds. Metrics appear when raft first reports them.
//
// go-metrics has one slot per process, so the newest call wins and the
// metrics of several Raft nodes in one process add up: a binary calls this
// once, in main.
func BridgeRaftMetrics(reg prometheus.Registerer) error {
	_, err := metrics.NewGlobal(&metrics.Config{
		EnableTypePrefix: true, // tells times from other samples
		TimerGranularity: time.Millisecond,
		FilterDefault:    true,
		// The transport reports per message type what raft_rpc_* has already.
		BlockedPrefixes: []string{"timer.raft.net"},
	}, &bridge{reg: reg})
	if err != nil {
		return fmt.Errorf("bridge raft's metrics: %w", err)
	}
	return nil
}

var _ metrics.MetricSink = (*bridge)(nil)

// bridge is a go-metrics sink that registers a collector for each name it
// meets. Raft's set of names is fixed, so the set is bounded.
type bridge struct {
	reg    prometheus.Registerer
	byName sync.Map // joined key → prometheus.Collector, or dropped{}
}

// dropped marks a key whose name collides with another metric's.
type dropped struct{ prometheus.Collector }

// kind is how a key is shown.
type kind uint8

const (
	counter kind = iota
	gauge
	seconds // a histogram of times; go-metrics gives milliseconds
	sizes   // a histogram of counts and bytes
)

// milliseconds are raft's samples and gauges that are times without saying so.
var milliseconds = map[string]bool{
	"raft_leader_last_contact":       true,
	"raft_fsm_last_restore_duration": true,
	"raft_oldest_log_age":            true,
}

// SetGauge implements metrics.MetricSink, like the methods below.
func (b *bridge) SetGauge(key []string, v float32) { b.SetGaugeWithLabels(key, v, nil) }

// SetGaugeWithLabels sets a gauge.
func (b *bridge) SetGaugeWithLabels(key []string, v float32, labels []metrics.Label) {
	name, ms := metricName(key)
	value := float64(v)
	if ms {
		name, value = name+"_seconds", value/1000
	}
	if g, ok := b.collector(key, name, gauge, labels).(*prometheus.GaugeVec); ok {
		if m, err := g.GetMetricWith(promLabels(labels)); err == nil {
			m.Set(value)
		}
	}
}

// EmitKey drops key-value events, which raft does not emit.
func (b *bridge) EmitKey([]string, float32) {}

// IncrCounter adds to a counter.
func (b *bridge) IncrCounter(key []string, v float32) { b.IncrCounterWithLabels(key, v, nil) }

// IncrCounterWithLabels adds to a counter.
func (b *bridge) IncrCounterWithLabels(key []string, v float32, labels []metrics.Label) {
	name, _ := metricName(key)
	if c, ok := b.collector(key, name+"_total", counter, labels).(*prometheus.CounterVec); ok && v >= 0 {
		if m, err := c.GetMetricWith(promLabels(labels)); err == nil {
			m.Add(float64(v))
		}
	}
}

// AddSample adds to a histogram.
func (b *bridge) AddSample(key []string, v float32) { b.AddSampleWithLabels(key, v, nil) }

// AddSampleWithLabels adds to a histogram.
func (b *bridge) AddSampleWithLabels(key []string, v float32, labels []metrics.Label) {
	name, ms := metricName(key)
	k, value := sizes, float64(v)
	if ms || key[0] == "timer" {
		name, k, value = name+"_seconds", seconds, value/1000
	}
	if h, ok := b.collector(key, name, k, labels).(*prometheus.HistogramVec); ok {
		if m, err := h.GetMetricWith(promLabels(labels)); err == nil {
			m.Observe(value)
		}
	}
}

// collector returns the one collector of key, registering it at its first use.
func (b *bridge) collector(key []string, name string, k kind, labels []metrics.Label) prometheus.Collector {
	id := strings.Join(key, ".")
	if c, ok := b.byName.Load(id); ok {
		return c.(prometheus.Collector)
	}
	c := newCollector("gpuai_"+name, k, labels)
	if err := b.reg.Register(c); err != nil {
		var already prometheus.AlreadyRegisteredError
		if errors.As(err, &already) {
			c = already.ExistingCollector
		} else {
			c = dropped{c}
		}
	}
	actual, _ := b.byName.LoadOrStore(id, c)
	return actual.(prometheus.Collector)
}

func newCollector(name string, k kind, labels []metrics.Label) prometheus.Collector {
	help := "Reported by hashicorp/raft as " + strings.TrimPrefix(name, "gpuai_") + "."
	names := make([]string, len(labels))
	for i, l := range labels {
		names[i] = snake(l.Name)
	}
	switch k {
	case counter:
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, names)
	case gauge:
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, names)
	case seconds:
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14), // 0.1 ms … 15 s
		}, names)
	default:
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(1, 4, 12), // 1 … 4 Mi
		}, names)
	}
}

func promLabels(labels []metrics.Label) prometheus.Labels {
	out := make(prometheus.Labels, len(labels))
	for _, l := range labels {
		out[snake(l.Name)] = l.Value
	}
	return out
}

// metricName turns a go-metrics key behind its type prefix into a snake_case
// name, and says whether its values are milliseconds in disguise.
func metricName(key []string) (name string, ms bool) {
	parts := make([]string, 0, len(key))
	for _, p := range key[1:] {
		parts = append(parts, snake(p))
	}
	name = strings.Join(parts, "_")
	return name, milliseconds[name]
}

// snake writes camelCase, and anything Prometheus refuses, in snake_case.
func snake(s string) string {
	var out strings.Builder
	upper := true // no underscore in front of the first letter or within RPC
	for _, r := range s {
		switch {
		case unicode.IsUpper(r):
			if !upper {
				out.WriteByte('_')
			}
			out.WriteRune(unicode.ToLower(r))
		case r == '_' || r < unicode.MaxASCII && (unicode.IsLower(r) || unicode.IsDigit(r)):
			out.WriteRune(r)
		default:
			out.WriteByte('_')
		}
		upper = unicode.IsUpper(r)
	}
	return out.String()
}
