package server

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai/store"
)

// archiveMetrics are the history archive's: this server's own, leading or not.
func archiveMetrics(s *Server) []prometheus.Collector {
	gauge := func(name, help string, read func(a *archiver) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return read(s.archive) })
	}
	counter := func(name, help string, read func(a *archiver) *atomic.Uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(read(s.archive).Load()) })
	}
	return []prometheus.Collector{
		gauge("gpuai_archive_used_bytes", "Bytes of the history archive's file that hold history.",
			func(a *archiver) float64 { used, _ := a.size(); return float64(used) }),
		gauge("gpuai_archive_file_bytes", "Bytes of the history archive's file, those that wait to be used again included.",
			func(a *archiver) float64 { _, file := a.size(); return float64(file) }),
		gauge("gpuai_archive_limit_bytes", "Bytes that history may take before the oldest makes way.",
			func(a *archiver) float64 { return float64(a.max) }),
		gauge("gpuai_archive_queued_events", "Events, jobs and tasks that wait to be archived.",
			func(a *archiver) float64 { return float64(a.queued()) }),
		gauge("gpuai_archive_written_index", "Index up to which nothing waits to be archived.",
			func(a *archiver) float64 { return float64(a.writtenIndex()) }),
		gauge("gpuai_archive_gap_indexes", "Log indexes whose history this server still has to fetch from the others.",
			func(a *archiver) float64 { return float64(a.gapIndexes()) }),
		counter("gpuai_archive_dropped_jobs_total", "Archived jobs that made way for newer history.",
			func(a *archiver) *atomic.Uint64 { return &a.dropped }),
		counter("gpuai_archive_overflows_total", "How often history came faster than it was archived and had to be fetched again.",
			func(a *archiver) *atomic.Uint64 { return &a.overflows }),
		counter("gpuai_archive_rebuilds_total", "How often a damaged history archive was set aside.",
			func(a *archiver) *atomic.Uint64 { return &a.rebuilds }),
	}
}

func (a *archiver) size() (used, file int64) {
	a.dbMu.RLock()
	defer a.dbMu.RUnlock()
	if a.db == nil {
		return 0, 0
	}
	return a.db.Size()
}

func (a *archiver) queued() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.weight
	for i := range a.pending {
		n += weightOf(a.pending[i].Events, a.pending[i].Retired, a.pending[i].Audit)
	}
	return n
}

func (a *archiver) writtenIndex() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.written
}

func (a *archiver) gapIndexes() (n uint64) {
	var st store.ArchiveState
	a.dbMu.RLock()
	if a.db != nil {
		st = a.db.State()
	}
	a.dbMu.RUnlock()
	for _, g := range st.Gaps() {
		n += g.To - g.From + 1
	}
	return n
}
