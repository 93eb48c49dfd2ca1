package telemetry

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gpuai/gpuai"
)

// NewRegistry returns a registry that already holds the metrics of the
// process, of the Go runtime, and gpuai_build_info.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "gpuai_build_info",
		Help:        "1, labelled with the version of this build.",
		ConstLabels: prometheus.Labels{"version": gpuai.Version},
	}, func() float64 { return 1 })
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build,
	)
	return r
}

// Handler serves r in Prometheus' text format. A collector that fails costs
// its own metrics only, not the page.
func Handler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
		Registry:      r,
	})
}
