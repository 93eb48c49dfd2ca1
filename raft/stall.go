package raft

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai/store"
)

// stopwatch tells for how long something has been running.
type stopwatch struct {
	base  time.Time
	since atomic.Int64 // nanoseconds from base; 0: nothing runs
}

func newStopwatch() *stopwatch { return &stopwatch{base: time.Now()} }

func (s *stopwatch) begin() { s.since.Store(max(1, int64(time.Since(s.base)))) }
func (s *stopwatch) end()   { s.since.Store(0) }

// running is 0 while nothing runs.
func (s *stopwatch) running() time.Duration {
	since := s.since.Load()
	if since == 0 {
		return 0
	}
	return time.Since(s.base) - time.Duration(since)
}

// fullRetry is how often a write is tried again on a full disk.
const fullRetry = time.Second

// StoreLogs stores entries with the gate open. It waits while the disk is
// full: hraft sees a slow disk, which it survives, and no failed write, after
// which a follower would take deleted entries for its own. After any other
// failure it reports it and never returns.
func (g *guard) StoreLogs(entries []*hraft.Log) error {
	if g.bare {
		return g.fault(func() error { return g.Log.StoreLogs(entries) })
	}
	g.gate.enter()
	defer g.gate.leave()
	g.writing.begin()
	defer g.writing.end()
	return g.write(func() error { return g.Log.StoreLogs(entries) })
}

// DeleteRange deletes entries, with StoreLogs' answers to failures.
func (g *guard) DeleteRange(lo, hi uint64) error {
	return g.write(func() error { return g.Log.DeleteRange(lo, hi) })
}

// Set stores a stable key, with StoreLogs' answers to failures. hraft panics
// when it cannot store its term.
func (g *guard) Set(key, val []byte) error {
	return g.write(func() error { return g.Log.Set(key, val) })
}

// SetUint64 is Set of a number.
func (g *guard) SetUint64(key []byte, val uint64) error {
	return g.write(func() error { return g.Log.SetUint64(key, val) })
}

// write does one write, once hraft's goroutines run with the answers above.
func (g *guard) write(do func() error) error {
	for waited := false; ; waited = true {
		err := g.fault(do)
		var failed *store.WriteError
		if err == nil || !g.running.Load() || !errors.As(err, &failed) {
			return err
		}
		if !failed.Full {
			g.fail(err)
		}
		if !waited {
			g.full(err)
		}
		select {
		case <-time.After(fullRetry):
		case <-g.closing:
			return err
		}
	}
}

// lostLog reports that the log can be read or written no longer. A leader
// falls silent at once: the process may need seconds to end.
func (n *Node) lostLog(err error) {
	n.broken.Store(true)
	n.damaged(err)
}

// A peerView is what the answers to heartbeats said of another server.
type peerView struct {
	heard   time.Time
	last    uint64 // index of its last entry
	noSpace bool   // its disk is below the low mark
}

// peerViews keeps the newest view of each peer.
type peerViews struct {
	mu   sync.Mutex // guards below
	view map[hraft.ServerID]peerView
}

func (p *peerViews) get(id hraft.ServerID) peerView {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view[id]
}

func (p *peerViews) heard(id hraft.ServerID, resp *hraft.AppendEntriesResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view == nil {
		p.view = make(map[hraft.ServerID]peerView)
	}
	p.view[id] = peerView{heard: time.Now(), last: resp.LastLog, noSpace: string(resp.Addr) == noSpaceMark}
}

// isHeartbeat tells heartbeats as the library's transport does.
func isHeartbeat(r *hraft.AppendEntriesRequest) bool {
	return r.Term != 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && len(r.Entries) == 0 && r.LeaderCommitIndex == 0
}

// unfit reports why this server must neither lead nor stand for election. A
// leader whose disk hangs sends heartbeats for ever otherwise (hashicorp/raft
// #503, #614), for its main goroutine alone could step down, and waits for the
// disk.
func (n *Node) unfit() error {
	if n.muted.Load() {
		return fmt.Errorf("server %s must not lead: its state is quarantined", n.cfg.ID)
	}
	if n.broken.Load() {
		return fmt.Errorf("server %s must not lead: its log can be read or written no longer", n.cfg.ID)
	}
	if d := n.log.writing.running(); d > n.tune.writeStall {
		return fmt.Errorf("server %s must not lead: a write of its log has been running for %v", n.cfg.ID, d.Round(time.Millisecond))
	}
	if d := n.replica.applying.running(); d > n.tune.applyStall+n.tune.handOver {
		return fmt.Errorf("server %s must not lead: an entry has been applied for %v", n.cfg.ID, d.Round(time.Millisecond))
	}
	return nil
}

// Stalled reports, in a sentence, why this server cannot apply what its leader
// has, and for how long: its log cannot be written, as on a full disk, or its
// machine does not return. It is "" while neither is so, and in a server whose
// log is the only one, for which nothing passes it by.
func (n *Node) Stalled() (why string, since time.Duration) {
	switch write, apply := n.log.writing.running(), n.replica.applying.running(); {
	case write > n.tune.writeStall:
		why, since = "a write of server %s's log has been waiting for its disk for %v", write
	case apply > n.tune.applyStall:
		why, since = "server %s has been applying one log entry for %v", apply
	}
	if since == 0 || n.otherVoters() == 0 {
		return "", 0
	}
	return fmt.Sprintf(why, n.cfg.ID, since.Round(time.Second)), since
}

// refuseRPC reports why a request of another server is refused before hraft
// sees it: who cannot lead takes no leadership over.
func (n *Node) refuseRPC(rpc hraft.RPC) error {
	if _, ok := rpc.Command.(*hraft.TimeoutNowRequest); !ok {
		return nil
	}
	if n.Quarantined() {
		return fmt.Errorf("server %s takes no leadership over: its state is quarantined", n.cfg.ID)
	}
	if level := n.disk.level(); level != diskAmple {
		return fmt.Errorf("server %s takes no leadership over: %s", n.cfg.ID, n.disk.sentence())
	}
	return n.unfit()
}
