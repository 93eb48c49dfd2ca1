package raft

import (
	"context"
	"errors"
	"fmt"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A Term is one reign of this server.
type Term struct {
	Number uint64
	Index  uint64          // applied when the term's own barrier had passed
	Ctx    context.Context // cancelled when leadership ends
}

// Leadership delivers a Term for each term that this server leads, once its
// own barrier is applied and region time is anchored; the Node takes commands
// from then on. A Term that nobody has received when it ends is dropped. The
// channel is closed by Close.
func (n *Node) Leadership() <-chan Term { return n.terms }

// reign is one stretch of leadership, from hraft's notification on.
type reign struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed when enthrone returned
}

// watchLeadership follows hraft's notifications, which come in order.
func (n *Node) watchLeadership() {
	defer close(n.terms)
	var current *reign
	for {
		select {
		case <-n.closing:
			n.abdicate(current)
			return
		case leads := <-n.notify:
			n.abdicate(current)
			if current = nil; leads {
				current = n.begin()
			}
		}
	}
}

// abdicate ends a reign, if there is one.
func (n *Node) abdicate(r *reign) {
	if r == nil {
		return
	}
	r.cancel()
	<-r.ended
	n.leading.Store(false)
	n.proposer.close(noLeader("this server lost its leadership; retry"))
	select { // a term that nobody received is over
	case <-n.terms:
	default:
	}
}

// begin starts a reign in the background.
func (n *Node) begin() *reign {
	ctx, cancel := context.WithCancel(context.Background())
	r := &reign{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		n.enthrone(ctx)
	}()
	return r
}

// enthrone passes a barrier in the current term, anchors region time, opens
// the proposer and announces the term.
func (n *Node) enthrone(ctx context.Context) {
	n.awaitTrust(ctx)
	for ctx.Err() == nil {
		term := n.raft.CurrentTerm()
		err := n.barrier(ctx)
		if err == nil && n.raft.CurrentTerm() == term {
			n.accede(ctx, term)
			return
		}
		if n.raft.State() != hraft.Leader {
			return
		}
		n.cfg.Logger.Warn("the barrier of a new term did not pass; trying again", "term", term, "error", err)
	}
}

func (n *Node) accede(ctx context.Context, term uint64) {
	var index uint64
	n.replica.view(func(m *fsm.Machine) {
		index = n.AppliedIndex()
		n.clock.anchor(m.Time())
	})
	n.proposer.open(term)
	n.leading.Store(true)
	if n.Quarantined() { // meanwhile
		n.silence()
	}
	n.cfg.Logger.Info("leading", "term", term, "index", index)
	select {
	case n.terms <- Term{Number: term, Index: index, Ctx: ctx}:
	case <-ctx.Done():
	}
}

// IsLeader reports whether this server leads and takes commands: some
// milliseconds later than Leader names it.
func (n *Node) IsLeader() bool { return n.leading.Load() }

// Leader returns the leader as far as this server knows.
func (n *Node) Leader() (id gpuai.ServerID, ok bool) {
	_, leader := n.raft.LeaderWithID()
	return gpuai.ServerID(leader), leader != ""
}

// RegionTime returns region time: on the leader now, elsewhere that of the
// last applied entry.
func (n *Node) RegionTime() gpuai.Instant {
	if n.IsLeader() {
		return n.clock.now()
	}
	return n.replica.regionTime()
}

func (n *Node) notLeading() error {
	if id, ok := n.Leader(); ok && id != n.cfg.ID {
		return noLeader(fmt.Sprintf("server %s does not lead; ask server %s", n.cfg.ID, id))
	}
	return noLeader(fmt.Sprintf("server %s knows no leader that takes commands; retry", n.cfg.ID))
}

// ignoreNothingNew hides that a snapshot would have been the last one again.
func ignoreNothingNew(err error) error {
	if errors.Is(err, hraft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}
