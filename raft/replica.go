package raft

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// replica adapts the machine to hraft. hraft calls Apply, ApplyBatch, Snapshot
// and Restore from one goroutine; everything else is safe for concurrent use.
type replica struct {
	opts           fsm.Options
	onApply        func(*fsm.Output)
	onRestore      func()
	beforeSnapshot func(index uint64)
	damage         func(error)
	configure      func(index uint64, members []Member)
	metrics        *metrics
	applying       *stopwatch      // what hraft's goroutine for the machine is in
	restored       func()          // after each restore
	start          *startSnapshots // judges what is restored before running

	mu sync.RWMutex // guards m and what is in it
	m  *fsm.Machine

	feeding sync.Mutex // held by hraft's goroutine, entry by entry; guards below
	// handed is the newest entry that hraft has given us, and its term: in
	// quarantine it goes on where index stands still.
	handed, handedTerm uint64

	servers atomic.Pointer[records]
	moved   func(store.AddressBook) // told of new addresses

	quarantined atomic.Bool // the machine is not trusted: nothing is applied

	running atomic.Bool  // started: a restore from now on is news
	failed  atomic.Bool  // an entry could not be applied: nothing is, from then on
	time    atomic.Int64 // the machine's gpuai.Instant, without the lock
	// commands and bytes applied since the last snapshot or restore.
	commands, bytes atomic.Uint64

	index      atomic.Uint64 // of the last applied entry; stored before onApply
	restoredAt atomic.Uint64 // of the snapshot that m was made from

	waitMu  sync.Mutex // guards below
	term    uint64     // of the entry at index
	waiters []waiter
}

// waiter is woken when index is applied.
type waiter struct {
	index uint64
	done  chan struct{}
}

var _ hraft.BatchingFSM = (*replica)(nil)

// errFailed is returned for a snapshot of a machine that stopped applying:
// hraft would give it an index that the machine never reached.
var errFailed = errors.New("this replica stopped applying and takes no snapshots")

// Apply applies one entry. Its answer is *fsm.Output, or nil when the outcome
// is unknown.
func (r *replica) Apply(l *hraft.Log) any {
	if out := r.apply(l); out != nil {
		return out
	}
	return nil
}

// ApplyBatch applies entries in order.
func (r *replica) ApplyBatch(logs []*hraft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		out[i] = r.Apply(l)
	}
	return out
}

func (r *replica) apply(l *hraft.Log) *fsm.Output {
	r.feeding.Lock()
	defer r.feeding.Unlock()
	r.applying.begin()
	defer r.applying.end()
	if r.failed.Load() {
		return nil
	}
	r.handed, r.handedTerm = l.Index, l.Term
	if r.quarantined.Load() {
		if l.Type == hraft.LogConfiguration {
			r.configure(l.Index, membersOf(hraft.DecodeConfiguration(l.Data)))
		}
		return nil
	}
	if l.Type != hraft.LogCommand { // a configuration: hraft's own
		r.advance(l.Index, l.Term)
		r.wake()
		if l.Type == hraft.LogConfiguration {
			r.configure(l.Index, membersOf(hraft.DecodeConfiguration(l.Data)))
		}
		return nil
	}
	out := new(fsm.Output) // fresh: waiters and watchers keep it
	r.mu.Lock()
	began := time.Now()
	err := r.m.Apply(l.Index, l.Term, l.Data, out)
	took := time.Since(began)
	now := r.m.Time()
	r.mu.Unlock()
	if err != nil {
		r.failed.Store(true)
		r.damage(fmt.Errorf("apply log entry %d: %w", l.Index, err))
		return nil
	}
	r.time.Store(int64(now))
	r.commands.Add(uint64(len(out.Results)))
	r.bytes.Add(uint64(len(l.Data)))
	r.metrics.applied(out)
	if out.Servers {
		r.noteServers(r.m)
	}
	r.metrics.applyTimes.took(took, out)
	r.advance(l.Index, l.Term)
	if r.onApply != nil {
		r.onApply(out)
	}
	r.wake()
	return out
}

func (r *replica) lastHanded() uint64 {
	r.feeding.Lock()
	defer r.feeding.Unlock()
	return r.handed
}

func (r *replica) advance(index, term uint64) {
	r.waitMu.Lock()
	r.term = term
	r.index.Store(index)
	r.waitMu.Unlock()
}

// position returns the index and term of the last applied entry.
func (r *replica) position() (index, term uint64) {
	r.waitMu.Lock()
	defer r.waitMu.Unlock()
	return r.index.Load(), r.term
}

// wake releases those who waited for what is applied now.
func (r *replica) wake() {
	r.waitMu.Lock()
	defer r.waitMu.Unlock()
	if len(r.waiters) == 0 {
		return
	}
	at, kept := r.index.Load(), r.waiters[:0]
	for _, w := range r.waiters {
		if w.index <= at {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	clear(r.waiters[len(kept):])
	r.waiters = kept
}

// wait returns when index is applied, or with ctx's error.
func (r *replica) wait(ctx context.Context, index uint64) error {
	if r.index.Load() >= index {
		return nil
	}
	w := waiter{index: index, done: make(chan struct{})}
	r.waitMu.Lock()
	if r.index.Load() >= index {
		r.waitMu.Unlock()
		return nil
	}
	r.waiters = append(r.waiters, w)
	r.waitMu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		r.forget(w)
		return fmt.Errorf("wait for index %d to be applied: %w", index, ctx.Err())
	}
}

func (r *replica) forget(w waiter) {
	r.waitMu.Lock()
	defer r.waitMu.Unlock()
	for i := range r.waiters {
		if r.waiters[i].done == w.done {
			last := len(r.waiters) - 1
			r.waiters[i] = r.waiters[last]
			r.waiters[last] = waiter{}
			r.waiters = r.waiters[:last]
			return
		}
	}
}

func (r *replica) view(f func(*fsm.Machine)) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	f(r.m)
}

func (r *replica) fork() *fsm.Machine {
	r.mu.Lock() // a fork marks the pages of both as shared
	defer r.mu.Unlock()
	return r.m.Fork()
}

func (r *replica) regionTime() gpuai.Instant { return gpuai.Instant(r.time.Load()) }

// Snapshot forks the machine for hraft.
func (r *replica) Snapshot() (hraft.FSMSnapshot, error) {
	r.applying.begin()
	defer r.applying.end()
	if r.failed.Load() {
		return nil, errFailed
	}
	if r.quarantined.Load() {
		return nil, errQuarantined
	}
	s := &snapshot{replica: r, machine: r.fork(), commands: r.commands.Load(), bytes: r.bytes.Load()}
	return s, nil
}

// snapshotBuffer is between the machine's many small writes and the file.
const snapshotBuffer = 1 << 20

// snapshot is a fork on its way to disk.
type snapshot struct {
	replica         *replica
	machine         *fsm.Machine
	commands, bytes uint64 // of the replica's counters at the fork
}

// Persist writes the fork, beside Apply. A state that breaks an invariant is not
// written: it could not be restored, and the log that led to it would be gone.
func (s *snapshot) Persist(sink hraft.SnapshotSink) error {
	if err := s.machine.Check(); err != nil {
		return errors.Join(fmt.Errorf("no snapshot is written of a state that is wrong; report this bug: %w", err), sink.Cancel())
	}
	if f := s.replica.beforeSnapshot; f != nil {
		f(s.machine.Index())
	}
	w := bufio.NewWriterSize(sink, snapshotBuffer)
	err := s.machine.WriteSnapshot(w)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	s.replica.commands.Add(-s.commands)
	s.replica.bytes.Add(-s.bytes)
	return nil
}

// Release lets the fork go.
func (s *snapshot) Release() { s.machine = nil }

// Restore replaces the machine by a snapshot's, once that is read whole and
// verified; after an error the old one stays.
func (r *replica) Restore(src io.ReadCloser) error {
	defer src.Close()
	m, err := fsm.Restore(bufio.NewReaderSize(src, snapshotBuffer), r.opts)
	if err == nil && !r.running.Load() {
		err = r.start.judge(m)
	}
	if err != nil {
		return r.notRestored(err)
	}
	r.feeding.Lock()
	defer r.feeding.Unlock()
	r.handed, r.handedTerm = m.Index(), m.Term()
	r.mu.Lock()
	r.m = m
	r.mu.Unlock()
	r.noteServers(m)
	r.time.Store(int64(m.Time()))
	r.commands.Store(0)
	r.bytes.Store(0)
	r.restoredAt.Store(m.Index())
	r.advance(m.Index(), m.Term())
	r.restored()
	if r.onRestore != nil && r.running.Load() {
		r.onRestore()
	}
	r.wake()
	return nil
}

// notRestored is the error of a snapshot that was not taken over. A running
// server that a leader sends a snapshot of a newer level must stop: it would
// ask for it for ever.
func (r *replica) notRestored(err error) error {
	err = fmt.Errorf("restore snapshot: %w", err)
	switch {
	case !r.running.Load():
		r.start.note(err)
	case errors.Is(err, fsm.ErrLevel):
		r.damage(err)
	}
	return err
}
