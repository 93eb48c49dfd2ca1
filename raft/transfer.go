package raft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
)

// transfers remembers to whom a hand-over was tried in a term.
//
// One that times out may leave its request to the replicating goroutine behind.
// A second one to the same server then waits for room behind it, and for ever
// once this server has stepped down; the library goes on refusing commands when
// this server leads again (hashicorp/raft #696). So one attempt a term and
// server may end that way: the next term has a new goroutine.
type transfers struct {
	mu    sync.Mutex // guards below
	term  uint64
	spent map[gpuai.ServerID]bool
}

// claim takes the attempt for term and id, if there is one.
func (t *transfers) claim(term uint64, id gpuai.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.term != term {
		t.term, t.spent = term, make(map[gpuai.ServerID]bool)
	}
	if t.spent[id] {
		return false
	}
	t.spent[id] = true
	return true
}

// release gives an attempt back that left nothing behind.
func (t *transfers) release(term uint64, id gpuai.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.term == term {
		delete(t.spent, id)
	}
}

func (t *transfers) isSpent(term uint64, id gpuai.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.term == term && t.spent[id]
}

// TransferLeadership hands leadership to the most up-to-date other member that
// answers and has room on its disk, and returns when this server has let go,
// within ctx and 5 seconds.
func (n *Node) TransferLeadership(ctx context.Context) error {
	if n.raft.State() != hraft.Leader {
		return n.notLeading()
	}
	if err := n.unfit(); err != nil { // nobody hears of it from a silent leader
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	heir, err := n.awaitHeir(ctx)
	if err != nil {
		return fmt.Errorf("transfer leadership of server %s: %w", n.cfg.ID, err)
	}
	return n.transferTo(ctx, heir)
}

// heirPoll is how often a new leader looks for its first answers.
const heirPoll = 20 * time.Millisecond

// awaitHeir gives the others a moment to answer: a leader knows none at first.
func (n *Node) awaitHeir(ctx context.Context) (hraft.Server, error) {
	deadline := time.Now().Add(n.heartbeat())
	for {
		heir, ok := n.heir()
		if ok {
			return heir, nil
		}
		if time.Now().After(deadline) {
			return heir, errors.New("no other voting server answers, has room on its disk, and was not tried in this term before")
		}
		select {
		case <-time.After(heirPoll):
		case <-ctx.Done():
			return heir, ctx.Err()
		}
	}
}

// heir picks the voter that could lead soonest.
func (n *Node) heir() (heir hraft.Server, ok bool) {
	var best peerView
	term := n.raft.CurrentTerm()
	for _, s := range n.voters() {
		v := n.views.get(s.ID)
		if gpuai.ServerID(s.ID) == n.cfg.ID || v.noSpace || time.Since(v.heard) > n.heartbeat() || n.transfers.isSpent(term, gpuai.ServerID(s.ID)) {
			continue
		}
		if !ok || v.last > best.last {
			heir, best, ok = s, v, true
		}
	}
	return heir, ok
}

// transferTo hands leadership to one server.
func (n *Node) transferTo(ctx context.Context, s hraft.Server) error {
	id, term := gpuai.ServerID(s.ID), n.raft.CurrentTerm()
	if !n.transfers.claim(term, id) {
		return fmt.Errorf("transfer leadership of server %s: server %s was tried in this term and did not catch up; stop this server to have another one elected", n.cfg.ID, id)
	}
	err := n.await(ctx, n.raft.LeadershipTransferToServer(s.ID, s.Address))
	if err == nil {
		return nil
	}
	if leftNothing(err) {
		n.transfers.release(term, id)
	}
	return fmt.Errorf("transfer leadership of server %s to server %s: %w", n.cfg.ID, id, err)
}

// leftNothing reports whether a failed transfer surely waits for nothing any
// more: it never began, or its last step, the message to the heir, failed.
func leftNothing(err error) bool {
	return notAppended(err) || strings.HasPrefix(err.Error(), "failed to make TimeoutNow RPC")
}

// await waits for a future of hraft, which may never answer, until ctx ends or
// this server stops.
func (n *Node) await(ctx context.Context, f hraft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.closing:
		return context.Canceled
	}
}

// voters returns the voting members, this server included.
func (n *Node) voters() []hraft.Server {
	f := n.raft.GetConfiguration() // is answered at once
	if f.Error() != nil {
		return nil
	}
	var out []hraft.Server
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == hraft.Voter {
			out = append(out, s)
		}
	}
	return out
}

// otherVoters counts the members that could lead instead.
func (n *Node) otherVoters() int {
	others := 0
	for _, s := range n.voters() {
		if gpuai.ServerID(s.ID) != n.cfg.ID {
			others++
		}
	}
	return others
}

// heartbeat is the timeout after which a server counts as gone.
func (n *Node) heartbeat() time.Duration {
	return time.Duration(n.cfg.Multiplier) * heartbeatTimeout
}
