package raft

import (
	"context"
	"fmt"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
)

// watchEvery is how often the watchdog looks at writes and at Apply.
const watchEvery = 100 * time.Millisecond

// watch sees what hraft does not: a state machine that does not return, a
// write that does not, a disk that fills up. Writes and Apply silence a leader
// by themselves (see unfit); here they are reported, and leadership is handed
// over while that is possible.
func (n *Node) watch() {
	look, disk := time.NewTicker(watchEvery), time.NewTicker(n.tune.diskCheck)
	defer look.Stop()
	defer disk.Stop()
	n.checkDisk()
	stalled := false
	for {
		select {
		case <-n.closing:
			return
		case <-disk.C:
			n.checkDisk()
		case <-look.C:
			n.watchApply()
			stalled = n.watchWrites(stalled)
		}
	}
}

// watchWrites reports a write that takes longer than a leader may take.
func (n *Node) watchWrites(before bool) (stalled bool) {
	d := n.log.writing.running()
	if stalled = d > n.tune.writeStall; stalled && !before {
		n.metrics.writeStalls.Inc()
		n.cfg.Logger.Error("a write of the Raft log does not return: this server does not lead until it does; check the disk",
			"path", n.log.Path(), "for", d)
	}
	return stalled
}

// watchApply has new commands refused while Apply does not return, and
// leadership handed over.
func (n *Node) watchApply() {
	d := n.replica.applying.running()
	if d <= n.tune.applyStall {
		if n.stuck.Swap(nil) != nil {
			n.cfg.Logger.Warn("the state machine goes on")
		}
		return
	}
	err := &gpuai.Error{
		Code: gpuai.NoLeader, RetryAfter: retryElection,
		Detail: fmt.Sprintf("server %s has been applying one log entry for longer than %v and gives leadership up; retry", n.cfg.ID, n.tune.applyStall),
	}
	if n.stuck.Swap(err) != nil {
		return
	}
	n.metrics.applyStalls.Inc()
	n.cfg.Logger.Error("the state machine does not return: this server gives leadership up", "index_before", n.AppliedIndex(), "for", d)
	n.handOver("its state machine does not return")
}

// handOver gives leadership up in the background, if this server has it and
// another one could take it. One attempt runs at a time.
func (n *Node) handOver(why string) {
	if n.raft.State() != hraft.Leader || n.otherVoters() == 0 || n.handing.Swap(true) {
		return
	}
	n.wg.Go(func() {
		defer n.handing.Store(false)
		if err := n.TransferLeadership(context.Background()); err != nil {
			n.cfg.Logger.Warn("leadership was not handed over", "why", why, "error", err)
			return
		}
		n.metrics.handOvers.Inc()
		n.cfg.Logger.Warn("leadership was handed over", "why", why)
	})
}

const (
	// restoreWindow and restoreAlarm: a server that restores more snapshots
	// than that is not caught up by them, but sent the next one for ever
	// (hashicorp/raft #697).
	restoreWindow = time.Minute
	restoreAlarm  = 3
)

// restoreRate finds a server that restores snapshot after snapshot.
type restoreRate struct {
	mu   sync.Mutex // guards below
	last []time.Time
}

// add counts a restore and returns how many there were in the window.
func (r *restoreRate) add(now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = append(r.last, now)
	for now.Sub(r.last[0]) >= restoreWindow {
		r.last = r.last[1:]
	}
	return len(r.last)
}

// restored counts a restore, and raises the alarm.
func (n *Node) restored() {
	n.metrics.restores.Inc()
	if count := n.restoreRate.add(time.Now()); count > restoreAlarm {
		n.metrics.restoreAlarms.Inc()
		n.cfg.Logger.Error("this server restores snapshot after snapshot and does not catch up; if it goes on, rebuild it with 'gpuai server rejoin --wipe'",
			"restores", count, "within", restoreWindow)
	}
}
