package raft

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// ErrNoReplay is returned by Replay when nothing of what it is asked for can be
// made from what is on this server's disk.
var ErrNoReplay = errors.New("neither the log nor a snapshot reaches back so far")

// Replay makes the outputs of applied entries once more, in order, and calls f
// with each: from a snapshot and the log on this server's disk, on a machine of
// its own, beside everything else. It begins at the index that it returns, the
// range's first or, where the disk does not reach back so far, a later one.
func (n *Node) Replay(ctx context.Context, r gpuai.IndexRange, f func(*fsm.Output) error) (from uint64, err error) {
	m, at, err := n.replayFrom(r)
	if err != nil {
		return 0, err
	}
	from = max(r.From, at+1)
	return from, n.advance(ctx, m, gpuai.IndexRange{From: at + 1, To: r.To}, func(out *fsm.Output) error {
		if out.Index < r.From {
			return nil
		}
		return f(out)
	})
}

// advance applies the log's entries of a range to a machine of its own.
func (n *Node) advance(ctx context.Context, m *fsm.Machine, r gpuai.IndexRange, f func(*fsm.Output) error) error {
	for i := r.From; i <= r.To && ctx.Err() == nil; i++ {
		var l hraft.Log
		if err := n.log.GetLog(i, &l); err != nil {
			return fmt.Errorf("replay the log: %w", err)
		}
		if l.Type != hraft.LogCommand {
			continue
		}
		out := new(fsm.Output)
		if err := m.Apply(l.Index, l.Term, l.Data, out); err != nil {
			return fmt.Errorf("replay the log: %w", err)
		}
		if err := f(out); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// MachineAt makes the state after a past index once more: from the newest
// snapshot before it and the log, on a machine of the caller's own. It takes as
// long as the log is from there. ErrNoReplay says that it is no longer, or not
// yet, in this server's log; see Retained.
func (n *Node) MachineAt(ctx context.Context, index uint64) (*fsm.Machine, error) {
	if index > n.AppliedIndex() {
		return nil, ErrNoReplay
	}
	m, at, err := n.replayFrom(gpuai.IndexRange{From: index + 1, To: index + 1})
	if err != nil {
		return nil, err
	}
	if at > index {
		return nil, ErrNoReplay
	}
	return m, n.Advance(ctx, m, index)
}

// Advance applies what follows in the log, up to an index, to a machine that
// MachineAt returned.
func (n *Node) Advance(ctx context.Context, m *fsm.Machine, index uint64) error {
	return n.advance(ctx, m, gpuai.IndexRange{From: m.Index() + 1, To: index}, func(*fsm.Output) error { return nil })
}

// Entry returns an entry of this server's log, committed or not; ErrNoReplay when
// it is not there, or no longer.
func (n *Node) Entry(index uint64) (store.Entry, error) {
	var l hraft.Log
	switch err := n.log.GetLog(index, &l); {
	case errors.Is(err, hraft.ErrLogNotFound):
		return store.Entry{}, ErrNoReplay
	case err != nil:
		return store.Entry{}, fmt.Errorf("read the log: %w", err)
	}
	return store.Entry{Index: l.Index, Term: l.Term, Command: l.Type == hraft.LogCommand, Data: l.Data}, nil
}

// Retained returns the indexes for which MachineAt makes the state: from that
// of the oldest snapshot on which the log follows, or of no entry, on.
func (n *Node) Retained() (gpuai.IndexRange, error) {
	r := gpuai.IndexRange{From: n.AppliedIndex(), To: n.AppliedIndex()}
	first, err := n.log.FirstIndex()
	if err != nil {
		return r, err
	}
	list, err := n.snaps.List()
	if err != nil {
		return r, fmt.Errorf("list snapshots: %w", err)
	}
	for _, s := range list {
		if s.Index+1 >= first {
			r.From = min(r.From, s.Index)
		}
	}
	if first == 1 {
		r.From = 0
	}
	return r, nil
}

// replayFrom returns a machine to begin with, and the index of the log that it
// is at: the newest before the range, or else the oldest within it.
func (n *Node) replayFrom(r gpuai.IndexRange) (m *fsm.Machine, at uint64, err error) {
	opts := n.replica.opts
	first, err := n.log.FirstIndex()
	if err != nil {
		return nil, 0, err
	}
	list, err := n.snaps.List() // the newest first
	if err != nil {
		return nil, 0, fmt.Errorf("list snapshots: %w", err)
	}
	best := -1
	for i, s := range list {
		if s.Index+1 < first || s.Index >= r.To {
			continue
		}
		if best = i; s.Index < r.From {
			break
		}
	}
	if first == 1 && (best < 0 || list[best].Index >= r.From) {
		return fsm.New(opts), 0, nil
	}
	if best < 0 {
		return nil, 0, ErrNoReplay
	}
	_, src, err := n.snaps.Open(list[best].ID)
	if err != nil {
		return nil, 0, fmt.Errorf("open a snapshot to replay from: %w", err)
	}
	defer src.Close()
	m, err = fsm.Restore(bufio.NewReaderSize(src, snapshotBuffer), opts)
	if err != nil {
		return nil, 0, fmt.Errorf("restore a snapshot to replay from: %w", err)
	}
	return m, list[best].Index, nil
}
