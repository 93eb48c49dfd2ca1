package raft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/telemetry"
	"github.com/gpuai/gpuai/store"
)

// maxForks is how many forks of the machine may be alive: each keeps old pages
// from being freed.
const maxForks = 2

const (
	drainTimeout    = 2 * time.Second  // for entries in flight at a stop
	shutdownTimeout = 10 * time.Second // for the library's goroutines
	notifyBuffer    = 16
)

// A Node is one running member. Its methods are safe for concurrent use.
type Node struct {
	cfg  Config
	tune tuning

	log      *guard
	snaps    hraft.SnapshotStore
	mux      *mux
	peers    *muxListener
	raft     *hraft.Raft
	replica  *replica
	proposer *proposer
	metrics  *metrics

	shield
	lib      atomic.Pointer[hraft.Raft] // raft, for what runs before it is started
	members  membership
	book     addressBook
	atStart  store.AddressBook // where members were when this server last ran
	barriers barrierGate
	clock    clock
	leading  atomic.Bool
	notify   chan bool
	terms    chan Term
	forks    chan struct{} // one per fork alive

	damageOnce sync.Once
	closeOnce  sync.Once
	closeErr   error
	closing    chan struct{}
	wg         sync.WaitGroup
}

// Open starts a member on cfg.Dir. Its errors are sentences for the operator;
// after one, Listener is closed and Dir still the caller's to close.
func Open(cfg Config) (*Node, error) { return open(cfg, cfg.tuning()) }

func open(cfg Config, t tuning) (*Node, error) {
	if err := cfg.validate(); err != nil {
		if cfg.Listener != nil {
			cfg.Listener.Close()
		}
		return nil, err
	}
	n := &Node{
		cfg:     cfg,
		tune:    t,
		members: newMembership(),
		book:    addressBook{last: make(map[gpuai.ServerID]string), told: make(map[gpuai.ServerID]string)},
		notify:  make(chan bool, notifyBuffer),
		terms:   make(chan Term, 1),
		forks:   make(chan struct{}, maxForks),
		closing: make(chan struct{}),
	}
	n.shield.init(n)
	n.clock.wall = cfg.Wall
	if err := n.start(); err != nil {
		close(n.closing)
		if n.mux != nil {
			n.mux.close()
		}
		cfg.Listener.Close()
		if n.log != nil {
			n.log.Close()
		}
		return nil, err
	}
	return n, nil
}

// start brings the parts up in the order in which they need each other.
func (n *Node) start() (err error) {
	if err := n.cfg.identify(); err != nil {
		return err
	}
	if err := n.openStore(); err != nil {
		return err
	}
	opts := fsm.Options{Region: n.cfg.Region, MaxLevel: n.cfg.MaxFeatureLevel}
	n.replica = &replica{
		opts:           opts,
		m:              fsm.New(opts),
		onApply:        n.cfg.OnApply,
		onRestore:      n.cfg.OnRestore,
		beforeSnapshot: n.cfg.BeforeSnapshot,
		damage:         n.damaged,
		configure:      n.configured,
		moved:          n.moved,
		metrics:        n.metrics,
		applying:       newStopwatch(),
		restored:       n.restored,
	}
	if n.atStart, err = n.cfg.Dir.Addresses(); err != nil {
		return err
	}
	reason, err := n.cfg.Dir.Quarantine()
	if err != nil {
		return err
	}
	n.replica.quarantined.Store(reason != "")
	n.mux = newMux(n.cfg.Listener, n, n.cfg.Identity)
	n.peers = n.mux.listener(kindPeer)
	n.trans = n.newTransport()
	if err := n.startLibrary(n.trans); err != nil {
		n.trans.Close()
		return err
	}
	n.gate.raft.Store(n.raft)
	n.log.running.Store(true)
	n.replica.running.Store(true)
	n.proposer = newProposer(n.raft, &n.clock, n.tune, n.metrics)
	n.wg.Go(n.watchLeadership)
	n.wg.Go(n.maintain)
	n.wg.Go(n.askAround)
	n.wg.Go(n.watch)
	if reason != "" {
		go n.leadNoMore() // ends with the Node
	}
	if err := n.metrics.register(n.cfg.Metrics, n.cfg.ID); err != nil {
		return errors.Join(err, n.halt())
	}
	return nil
}

func (n *Node) openStore() error {
	log, err := store.OpenLog(n.cfg.Dir)
	if err != nil {
		return err
	}
	n.log = newGuard(n, log)
	n.snaps, err = store.OpenSnapshots(n.cfg.Dir, telemetry.LineWriter(n.cfg.Logger))
	if err != nil {
		return err
	}
	return store.CheckHistory(n.cfg.Dir, log, n.snaps)
}

// startLibrary forms the cluster where that is due, restores the newest
// snapshot, and starts hraft. The library panics over an entry that it cannot
// read, here in our goroutine.
func (n *Node) startLibrary(trans *transport) (err error) {
	lib := n.cfg.library(n.tune, n.notify)
	if err := n.cfg.bootstrap(lib, n.log, n.snaps, trans); err != nil {
		return err
	}
	snaps := &startSnapshots{SnapshotStore: n.snaps, node: n}
	n.replica.start = snaps
	defer func() {
		if p := recover(); p != nil {
			err = startPanic(p)
		}
	}()
	n.raft, err = hraft.NewRaft(lib, n.replica, n.log, n.log, snaps, n.seenByLibrary(trans))
	if noSnapshotWillDo(err) && snaps.passOver() {
		n.raft, err = hraft.NewRaft(lib, n.replica, n.log, n.log, snaps, n.seenByLibrary(trans))
	}
	if noSnapshotWillDo(err) {
		return snaps.failure()
	}
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	n.lib.Store(n.raft)
	return nil
}

func noSnapshotWillDo(err error) bool {
	return err != nil && err.Error() == "failed to load any existing snapshots"
}

// startPanic is the error of a panic of NewRaft, or panics on.
func startPanic(p any) error {
	err, ok := p.(error)
	switch {
	case !ok:
		panic(p)
	case errors.Is(err, hraft.ErrLogNotFound):
		return fmt.Errorf("%w: an entry between its snapshot and its end is missing; rebuild this server with 'gpuai server rejoin --wipe'", store.ErrLost)
	case errors.Is(err, store.ErrDamaged):
		return err
	default:
		panic(p)
	}
}

// damaged reports once that this replica must stop. It returns at once.
func (n *Node) damaged(err error) {
	n.damageOnce.Do(func() {
		n.cfg.Logger.Error("this server can go on no longer", "error", err)
		if n.cfg.OnDamage != nil {
			go n.cfg.OnDamage(err)
		}
	})
}

// maintain records the applied index every few seconds, and makes a snapshot
// when enough was applied.
func (n *Node) maintain() {
	persist := time.NewTicker(n.tune.persistApplied)
	defer persist.Stop()
	check := time.NewTicker(n.tune.snapshotCheck)
	defer check.Stop()
	for {
		var err error
		select {
		case <-n.closing:
			return
		case <-persist.C:
			err = n.persistApplied()
		case <-check.C:
			if n.replica.commands.Load() >= n.tune.snapshotCommands || n.replica.bytes.Load() >= n.tune.snapshotBytes {
				err = n.Snapshot()
			}
		}
		if err != nil {
			n.cfg.Logger.Error("maintenance", "error", err)
		}
	}
}

// persistApplied records how far this server has come, so that an older log
// put in place of its own is noticed.
func (n *Node) persistApplied() error {
	var p store.Progress
	if p.Applied, p.Term = n.replica.position(); p.Applied == 0 {
		return nil
	}
	n.View(func(m *fsm.Machine) { p.Epoch, p.Level = m.Epoch(), m.Level() })
	return n.cfg.Dir.Advance(p)
}

// Snapshot writes the machine to disk and lets go of the log before it, but
// for the last 16,384 entries. It waits for a fork to be free.
func (n *Node) Snapshot() error {
	select {
	case n.forks <- struct{}{}:
	case <-n.closing:
		return net.ErrClosed
	}
	defer func() { <-n.forks }()
	ctx, cancel := context.WithTimeout(context.Background(), n.tune.snapshotTimeout)
	defer cancel()
	if err := ignoreNothingNew(n.await(ctx, n.raft.Snapshot())); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return n.persistApplied()
}

// View calls f with the machine under the read lock, which Apply waits for:
// at most 1,000 rows, filtering and encoding outside. f keeps no reference.
func (n *Node) View(f func(m *fsm.Machine)) { n.replica.view(f) }

// Fork returns an independent copy of the machine as it is now, for one
// goroutine, and a function that gives it back. At most two are alive,
// snapshots included: it blocks until one is free.
func (n *Node) Fork() (m *fsm.Machine, release func()) {
	n.forks <- struct{}{}
	var once sync.Once
	return n.replica.fork(), func() { once.Do(func() { <-n.forks }) }
}

// AppliedIndex returns the index of the last entry applied to the machine.
// (The library's own means handed to its queue.)
func (n *Node) AppliedIndex() uint64 { return n.replica.index.Load() }

// RestoredIndex returns the index of the snapshot that the machine was last
// made from; 0 when it was made from the log alone. Outputs up to it were never
// given to OnApply.
func (n *Node) RestoredIndex() uint64 { return n.replica.restoredAt.Load() }

// WaitApplied returns once the entry at index, one that held commands, is
// applied here.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	return n.replica.wait(ctx, index)
}

// Close is a planned stop: a leader hands over first, within 5 seconds. It is
// idempotent and returns the first call's error. Dir stays open.
func (n *Node) Close() error {
	if n.raft.State() == hraft.Leader && n.otherVoters() > 0 {
		if err := n.TransferLeadership(context.Background()); err != nil {
			n.cfg.Logger.Warn("stopping without a hand-over", "error", err)
		}
	}
	return n.halt()
}

// halt stops at once; the others notice by a missing heartbeat.
func (n *Node) halt() error {
	n.closeOnce.Do(func() { n.closeErr = n.stop() })
	return n.closeErr
}

func (n *Node) stop() error {
	n.metrics.close()
	n.proposer.close(noLeader("this server is stopping; retry"))
	close(n.closing)
	if !within(shutdownTimeout, n.wg.Wait) { // a hung disk may hold any of them
		n.raft.Shutdown()
		n.trans.Close()
		n.mux.close()
		return errors.New("this server's own goroutines did not stop in time; does its disk answer?")
	}
	n.proposer.shutdown(drainTimeout)
	if !within(shutdownTimeout, func() { n.raft.Shutdown().Error() }) {
		// The log must stay open: somebody may still read it.
		n.trans.Close()
		n.mux.close()
		return errors.New("raft did not stop in time; does the disk answer?")
	}
	n.mux.close()
	return errors.Join(n.persistApplied(), n.log.Close())
}
