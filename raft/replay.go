package raft

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
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
	for i := at + 1; i <= r.To && ctx.Err() == nil; i++ {
		var l hraft.Log
		if err := n.log.GetLog(i, &l); err != nil {
			return from, fmt.Errorf("replay the log: %w", err)
		}
		if l.Type != hraft.LogCommand {
			continue
		}
		out := new(fsm.Output)
		if err := m.Apply(l.Index, l.Term, l.Data, out); err != nil {
			return from, fmt.Errorf("replay the log: %w", err)
		}
		if i >= r.From {
			if err := f(out); err != nil {
				return from, err
			}
		}
	}
	return from, ctx.Err()
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
