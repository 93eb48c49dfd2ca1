package raft

import (
	"errors"
	"runtime"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai/store"
)

// guard stands between hraft and the log. hraft panics when it cannot read an
// entry or store its term; both must end in one sentence instead. Writes are
// in stall.go.
type guard struct {
	*store.Log
	running atomic.Bool // hraft's goroutines run; before, NewRaft's caller recovers
	damage  func(error)
	closing <-chan struct{}
	gate    *gate
	writing *stopwatch
	full    func(error)                    // the disk is; called once a write
	fault   func(write func() error) error // does it, but in tests
	bare    bool                           // hraft's own behaviour, for the conformance tests
}

func newGuard(n *Node, log *store.Log) *guard {
	g := &guard{
		Log: log, damage: n.lostLog, closing: n.closing, gate: n.gate,
		writing: newStopwatch(), full: n.noSpaceLeft, fault: n.tune.fault, bare: n.tune.bare,
	}
	if g.fault == nil {
		g.fault = func(write func() error) error { return write() }
	}
	return g
}

var _ hraft.LogStore = (*guard)(nil)

// GetLog reads one entry. On damage it reports it and never returns: the
// calling goroutine ends when the Node closes.
func (g *guard) GetLog(index uint64, e *hraft.Log) error {
	err := g.Log.GetLog(index, e)
	if err == nil || !g.running.Load() || !errors.Is(err, store.ErrDamaged) {
		return err
	}
	g.fail(err)
	return err
}

// fail reports err, waits for the Node to close and ends the goroutine.
func (g *guard) fail(err error) {
	g.damage(err)
	<-g.closing
	runtime.Goexit()
}
