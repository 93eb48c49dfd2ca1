package server

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// maxCodes bounds the codes that are counted; there are fewer.
const maxCodes = 32

// A tally counts what entries did, on the goroutine that applies them, so that
// nothing is missed.
type tally struct {
	results    *prometheus.CounterVec
	placements prometheus.Counter
	preempted  prometheus.Counter
	allocated  prometheus.Counter
	expired    *prometheus.CounterVec

	counters [fsm.NumCommandKinds][maxCodes]prometheus.Counter

	// What was held from since on; before the first entry nothing is known.
	known bool
	since gpuai.Instant
	milli uint64
}

func (t *tally) init() {
	t.results = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpuai_fsm_commands_total", Help: "Commands applied while this server led, by command and result.",
	}, []string{"command", "result"})
	t.placements = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gpuai_scheduler_placements_total", Help: "Leases granted while this server led.",
	})
	t.preempted = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gpuai_scheduler_preemptions_total", Help: "Leases revoked for a job of higher priority while this server led.",
	})
	t.allocated = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gpuai_gpu_allocated_seconds_total",
		Help: "GPUs held by live leases over region time, while this server led. A tenth of a GPU counts as a tenth.",
	})
	t.expired = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gpuai_leases_expired_total", Help: "Leases lost with their node, by cause, while this server led.",
	}, []string{"cause"})
	for _, c := range lostCauses { // from 0 on, so that an alert sees the first
		t.expired.WithLabelValues(c.String())
	}
}

// lostCauses are the ends of leases that were lost with their node.
var lostCauses = [...]gpuai.LeaseCause{gpuai.CauseExpired, gpuai.CauseFenced, gpuai.CauseNodeRestarted}

func lostCause(c gpuai.LeaseCause) bool { return slices.Contains(lostCauses[:], c) }

// count takes an applied entry.
func (t *tally) count(out *fsm.Output, leads bool) {
	if t.known && leads {
		t.allocated.Add(float64(t.milli) / 1_000 * seconds(max(out.Time-t.since, 0)))
	}
	t.known, t.since, t.milli = true, out.Time, out.GPUMilli
	if !leads {
		return
	}
	granted := 0
	for i := range out.Events {
		switch e := &out.Events[i]; {
		case e.Kind == gpuai.LeaseGrantedEvent:
			granted++
		case e.Kind == gpuai.LeaseRevokingEvent && e.Cause == gpuai.CausePreempted:
			t.preempted.Inc()
		case e.Kind == gpuai.LeaseEndedEvent && lostCause(e.Cause):
			t.expired.WithLabelValues(e.Cause.String()).Inc()
		}
	}
	t.placements.Add(float64(granted))
	t.commands(out.Results)
}

// forget is called when the state was replaced: how it came to be is not known.
func (t *tally) forget() { t.known = false }

// commands counts results, equal ones in a row at once: an entry holds up to a
// thousand.
func (t *tally) commands(results []fsm.Result) {
	for i := 0; i < len(results); {
		r, n := &results[i], 1
		for i+n < len(results) && results[i+n].Kind == r.Kind && results[i+n].Code == r.Code {
			n++
		}
		if int(r.Kind) < fsm.NumCommandKinds && r.Code < maxCodes {
			t.counter(r).Add(float64(n))
		}
		i += n
	}
}

func (t *tally) counter(r *fsm.Result) prometheus.Counter {
	c := &t.counters[r.Kind][r.Code]
	if *c == nil {
		*c = t.results.WithLabelValues(r.Kind.String(), r.Code.String())
	}
	return *c
}
