package httpd

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are gpuai_http_*. Labels are bounded: routes are templates, never
// paths, and statuses are those that handlers give.
type metrics struct {
	duration *prometheus.HistogramVec
}

// newMetrics registers the metrics with r; nil keeps them to themselves.
func newMetrics(r prometheus.Registerer, g *gate) *metrics {
	m := &metrics{duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "gpuai_http_request_duration_seconds",
		Help:    "Time from a request's header to its answer, sessions and streams aside.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 3, 10},
	}, []string{"route", "method", "status"})}
	if r == nil {
		return m
	}
	r.MustRegister(m.duration)
	for c := range numClasses {
		labels := prometheus.Labels{"class": classNames[c]}
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gpuai_http_refused_total", ConstLabels: labels,
			Help: "Requests answered 429 because this server served enough of them.",
		}, func() float64 { return float64(g.refusals[c].Load()) }))
	}
	inFlight := func(what string, c class) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "gpuai_http_in_flight", ConstLabels: prometheus.Labels{"kind": what},
			Help: "Requests under way: short ones, agents' sessions, streams, and those that need no token.",
		}, func() float64 { return float64(g.counter(c).Load()) })
	}
	r.MustRegister(inFlight("short", classStatus), inFlight("session", classSession), inFlight("stream", classStream), inFlight("anonymous", classAnonymous))
	return m
}

func (m *metrics) observe(rt *route, method string, status int, d time.Duration) {
	if rt.class == classSession || rt.class == classStream {
		return
	}
	switch method {
	case "GET", "POST", "PUT", "HEAD":
	default:
		method = "other"
	}
	m.duration.WithLabelValues(rt.path, method, strconv.Itoa(status)).Observe(d.Seconds())
}
