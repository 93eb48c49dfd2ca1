package raft

import (
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
)

// shield is what a Node has around hraft against hraft's own defects and this
// server's: gate.go, stall.go, transfer.go, watchdog.go and disk.go.
type shield struct {
	trans       *transport
	gate        *gate
	views       peerViews
	transfers   transfers
	disk        *disk
	stuck       atomic.Pointer[gpuai.Error] // why no commands are taken; nil while Apply returns
	broken      atomic.Bool                 // the log can be read or written no longer
	handing     atomic.Bool                 // a hand-over is under way
	muted       atomic.Bool                 // quarantined, leading, and unable to hand over
	restoreRate restoreRate
}

func (s *shield) init(n *Node) {
	n.metrics = newMetrics(n)
	s.disk = newDisk(&n.cfg)
	s.gate = &gate{
		id:       []byte(n.cfg.ID),
		rpcs:     make(chan hraft.RPC),
		done:     make(chan struct{}),
		note:     n.noteSpace,
		answered: n.metrics.gated,
	}
}

// seenByLibrary is the transport that hraft gets.
func (n *Node) seenByLibrary(t *transport) hraft.Transport {
	if n.tune.bare {
		return t.NetworkTransport
	}
	return t
}

// within runs f, and reports whether it returned in time; it runs on if not.
func within(limit time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// shield makes the metrics of a Node's shield.
func (m *metrics) shield(n *Node) {
	m.restoreAlarms = m.counter("gpuai_snapshot_restore_alarms_total", "Restores above three a minute: the server is not caught up by them.")
	m.gated = m.counter("gpuai_raft_heartbeats_gated_total", "Heartbeats answered while a write of the log was under way.")
	m.writeStalls = m.counter("gpuai_raft_write_stalls_total", "Writes of the log so long that a leader falls silent.")
	m.applyStalls = m.counter("gpuai_raft_apply_stalls_total", "Log entries applied for so long that leadership is given up.")
	m.fullWrites = m.counter("gpuai_raft_full_disk_writes_total", "Writes of the log that waited for room on the disk.")
	m.handOvers = m.counter("gpuai_raft_hand_overs_total", "Times that this server gave leadership up to a fitter one.")
	m.gauge("gpuai_raft_write_seconds", "For how long the write of the log under way has been running; 0 when none is.",
		func() float64 { return n.log.writing.running().Seconds() })
	m.gauge("gpuai_raft_apply_seconds", "For how long the log entry under way has been applied; 0 when none is.",
		func() float64 { return n.replica.applying.running().Seconds() })
	m.gauge("gpuai_disk_free_bytes", "Room on the disk of the data directory.",
		func() float64 { return float64(n.disk.free.Load()) })
	m.gauge("gpuai_disk_level", "0: there is room; 1: commands of clients are refused; 2: nothing is proposed.",
		func() float64 { return float64(n.disk.level()) })
}
