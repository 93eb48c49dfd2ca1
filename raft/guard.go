package raft

import (
	"errors"
	"runtime"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai/store"
)

// guard stands between hraft and the log. hraft panics when it cannot read an
// entry; a damaged one must end in one sentence instead.
type guard struct {
	*store.Log
	running atomic.Bool // hraft's goroutines run; before, NewRaft's caller recovers
	damage  func(error)
	closing <-chan struct{}
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
