package raft

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

const (
	// replayChunk is how many entries are replayed between looks at the end.
	replayChunk = 1_024
	// MaxHashed bounds the entries of one HashLog.
	MaxHashed = 4_096
	// abdicateEvery is how often a quarantined leader tries to hand over.
	abdicateEvery = 250 * time.Millisecond
	// maxLetGo is how many hand-overs are tried before a quarantined leader
	// falls silent.
	maxLetGo = 4
	// rebuildPoll is how often a rebuild looks whether the log has come as far
	// as the state that it was given.
	rebuildPoll = 10 * time.Millisecond
)

// errQuarantined is returned for a snapshot of a machine that is not trusted.
var errQuarantined = errors.New("this replica is quarantined and takes no snapshots")

// Quarantine takes this replica's machine out of use: nothing is applied to it,
// no snapshot is made of it, and this server does not lead. Its log and its vote
// are as good as before: it goes on to replicate and to vote. The reason is
// durable; a start on this directory begins in quarantine. It is idempotent.
func (n *Node) Quarantine(reason string) error {
	err := n.cfg.Dir.SetQuarantine(reason)
	if n.replica.quarantined.Swap(true) {
		return err
	}
	n.silence()
	go n.leadNoMore() // ends with the Node
	return err
}

// silence ends what this server does as a leader.
func (n *Node) silence() {
	n.leading.Store(false)
	n.proposer.close(noLeader("this server is quarantined; retry"))
}

// Quarantined reports whether the machine is out of use.
func (n *Node) Quarantined() bool { return n.replica.quarantined.Load() }

// awaitTrust holds a new reign back while the machine is quarantined.
func (n *Node) awaitTrust(ctx context.Context) {
	for n.Quarantined() {
		select {
		case <-time.After(rebuildPoll):
		case <-ctx.Done():
			return
		}
	}
}

// leadNoMore hands leadership over whenever a quarantined server has it, and
// falls silent as a leader where it cannot: the others then elect one. A reign
// that a quarantine has ended stays ended: it goes on until that one is lost.
func (n *Node) leadNoMore() {
	defer n.muted.Store(false)
	for failed := 0; n.Quarantined() || n.raft.State() == hraft.Leader && !n.IsLeader(); {
		switch {
		case n.raft.State() != hraft.Leader:
			failed = 0
			n.muted.Store(false)
		case n.letGo() == nil:
		default:
			failed++
			n.muted.Store(failed > maxLetGo && n.otherVoters() > 0)
		}
		select {
		case <-time.After(abdicateEvery):
		case <-n.closing:
			return
		}
	}
}

// letGo hands leadership to a voter that answers, drawn by lot: the fittest by
// its log may be quarantined too, and refuses.
func (n *Node) letGo() error {
	ctx, cancel := context.WithTimeout(context.Background(), transferTimeout)
	defer cancel()
	alive := n.Reachable(ctx, n.Members())
	voters := slices.DeleteFunc(n.voters(), func(s hraft.Server) bool {
		id := gpuai.ServerID(s.ID)
		return id == n.cfg.ID || !alive[id]
	})
	if len(voters) == 0 {
		return errors.New("no other voter answers")
	}
	err := n.transferTo(ctx, voters[rand.IntN(len(voters))])
	if err != nil {
		n.cfg.Logger.Warn("a quarantined server leads and could not hand over; trying again", "error", err)
	}
	return err
}

// Rebuild replaces the machine of a quarantined replica by a state that other
// replicas vouch for, and ends the quarantine of the machine; the caller then
// calls Renew. check is called with the state's index and digest before anything
// is changed.
//
// It is safe in place: log, term and vote are not touched, so nothing that this
// server has promised is forgotten. The state is that of a committed index, and
// what follows it is replayed from this server's own log, which the caller has
// compared with another's by HashLog.
func (n *Node) Rebuild(ctx context.Context, state io.Reader, check func(index uint64, d fsm.Digest) error) error {
	m, err := fsm.Restore(bufio.NewReaderSize(state, snapshotBuffer), n.replica.opts)
	if err != nil {
		return fmt.Errorf("read the state of another server: %w", err)
	}
	if err := check(m.Index(), m.Digest()); err != nil {
		return err
	}
	if err := n.awaitHanded(ctx, m.Index()); err != nil {
		return err
	}
	at := m.Index()
	for range 100 { // without holding up the library while much is missing
		to := n.replica.lastHanded()
		if to < at+replayChunk {
			break
		}
		if at, err = n.replay(ctx, m, at, to); err != nil {
			return err
		}
	}
	return n.swap(ctx, m, at)
}

// swap replays the rest with the library held up, and puts the machine in place.
func (n *Node) swap(ctx context.Context, m *fsm.Machine, at uint64) error {
	r := n.replica
	r.feeding.Lock()
	defer r.feeding.Unlock()
	if _, err := n.replay(ctx, m, at, r.handed); err != nil {
		return err
	}
	r.mu.Lock()
	r.m = m
	r.mu.Unlock()
	r.noteServers(m)
	r.time.Store(int64(m.Time()))
	r.commands.Store(0)
	r.bytes.Store(0)
	r.advance(r.handed, r.handedTerm)
	r.quarantined.Store(false)
	if r.onRestore != nil {
		r.onRestore()
	}
	r.wake()
	return nil
}

// awaitHanded waits until this server's own log has come as far as index.
func (n *Node) awaitHanded(ctx context.Context, index uint64) error {
	for n.replica.lastHanded() < index {
		select {
		case <-time.After(rebuildPoll):
		case <-n.closing:
			return context.Canceled
		case <-ctx.Done():
			return fmt.Errorf("wait for this server's log to come to index %d: %w", index, ctx.Err())
		}
	}
	return nil
}

// replay applies the commands of the own log behind from, up to to.
func (n *Node) replay(ctx context.Context, m *fsm.Machine, from, to uint64) (uint64, error) {
	var out fsm.Output
	for i := from + 1; i <= to; i++ {
		if err := ctx.Err(); err != nil {
			return from, err
		}
		var e hraft.Log
		if err := n.log.Log.GetLog(i, &e); err != nil {
			return from, fmt.Errorf("read log entry %d again: %w", i, err)
		}
		if e.Type != hraft.LogCommand {
			continue
		}
		if err := m.Apply(e.Index, e.Term, e.Data, &out); err != nil {
			return from, fmt.Errorf("apply log entry %d again: %w", i, err)
		}
	}
	return max(from, to), nil
}

// Renew replaces all snapshots of before a Rebuild, which may be of a state that
// is wrong, by one of the new machine, and forgets the quarantine. Until it has
// returned nil a start begins in quarantine again.
func (n *Node) Renew() error {
	if n.Quarantined() {
		return errQuarantined
	}
	before, err := n.snaps.List()
	if err != nil {
		return err
	}
	if err := n.Snapshot(); err != nil {
		return err
	}
	after, err := n.snaps.List()
	if err != nil {
		return err
	}
	if len(before) > 0 && len(after) > 0 && after[0].ID == before[0].ID {
		return fmt.Errorf("a snapshot of index %d is of before the quarantine, and nothing has come since", after[0].Index)
	}
	for _, s := range before {
		if err := store.DropSnapshot(n.cfg.Dir, s.ID); err != nil {
			return err
		}
	}
	return n.cfg.Dir.ClearQuarantine()
}

// LogBounds returns the first and last index of this server's log.
func (n *Node) LogBounds() (first, last uint64, err error) {
	if first, err = n.log.FirstIndex(); err != nil {
		return 0, 0, err
	}
	last, err = n.log.LastIndex()
	return first, last, err
}

// HashLog returns a hash over the entries from … to of this server's log, at
// most MaxHashed: index, term, type and data of each.
func (n *Node) HashLog(from, to uint64) ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	if to < from || to-from >= MaxHashed {
		return sum, fmt.Errorf("%d to %d are not 1 to %d entries", from, to, MaxHashed)
	}
	h := sha256.New()
	var head [25]byte
	for i := from; i <= to; i++ {
		var e hraft.Log
		if err := n.log.Log.GetLog(i, &e); err != nil {
			return sum, fmt.Errorf("read log entry %d: %w", i, err)
		}
		binary.LittleEndian.PutUint64(head[0:], e.Index)
		binary.LittleEndian.PutUint64(head[8:], e.Term)
		head[16] = byte(e.Type)
		binary.LittleEndian.PutUint64(head[17:], uint64(len(e.Data)))
		h.Write(head[:])
		h.Write(e.Data)
	}
	h.Sum(sum[:0])
	return sum, nil
}
